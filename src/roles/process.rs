//! The life of a role's process: logging, signals, an orderly end.

use super::{allocator::tune_allocator, systemd};
use crate::{
    background,
    cli::{self, LogFlags, LogFormat, LogLevel},
    exit::Failure,
    http::server::Shutdown,
};
use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};
use tokio::sync::watch;
use tracing::Level;

/// What is left to blocking work when a role has ended.
const BLOCKING_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Logs go to stderr; stdout belongs to results.
fn start_logging(common: &LogFlags) {
    let level = match common.log_level.unwrap_or(LogLevel::Info) {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_target(false);
    match common.log_format.unwrap_or(LogFormat::Text) {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            builder
                .with_ansi(io::stderr().is_terminal() && !plain)
                .init();
        }
    }
}

/// Runs a role to its end on a runtime of its own; files that it makes are for nobody else.
pub(super) fn run_role(
    common: &LogFlags,
    role: impl AsyncFnOnce(Shutdown) -> Result<(), Failure>,
) -> Result<(), Failure> {
    start_logging(common);
    cli::warn_about_unknown();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    raise_file_limit();
    tune_allocator();
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::internal)?;
    let outcome = runtime.block_on(async {
        let (order, shutdown) = watch::channel(false);
        background::spawn("handle_signals", handle_signals(order));
        role(shutdown)
            .await
            .map_err(|failure| log_failure(common, failure))
    });
    // Else it would wait for the removal of a million files, which the next start takes up.
    runtime.shutdown_timeout(BLOCKING_SHUTDOWN_TIMEOUT);
    outcome
}

/// Logs why a role ends where logs are for programs, which read nothing else; a person gets the same as text
/// from whoever ends the process.
fn log_failure(common: &LogFlags, failure: Failure) -> Failure {
    if common.log_format != Some(LogFormat::Json) || failure.message.is_empty() {
        return failure;
    }
    tracing::error!(error = failure.message, "the role ends");
    Failure::new(failure.exit, "")
}

/// As many open files as the system lets us have: each connection is one.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// The first signal orders an orderly end, the second ends the process at once.
async fn handle_signals(order: watch::Sender<bool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
    let [Ok(mut terminate), Ok(mut interrupt)] = kinds.map(signal) else {
        tracing::error!("signals can't be caught; the process will end at once on any");
        return;
    };
    // Under nohup the end of the terminal is to be ignored, as it was when we were started.
    let mut hangup = (!hangup_is_ignored())
        .then(|| signal(SignalKind::hangup()).ok())
        .flatten();
    let mut signals = 0;
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = recv_or_pending(&mut hangup), if hangup.is_some() && signals == 0 => {
                // It often comes twice, from the shell and from the kernel, which is no impatience.
                hangup = None;
            }
        }
        signals += 1;
        if signals > 1 {
            std::process::exit(130);
        }
        tracing::info!("shutting down; a second signal ends at once");
        systemd::notify_stopping();
        order.send_replace(true);
    }
}

async fn recv_or_pending(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether SIGHUP, signal 1, is among the ignored ones of proc(5).
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}
