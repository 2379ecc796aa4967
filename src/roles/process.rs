//! Process of a role: log, signals, limits, and an orderly end.

use super::{allocator::tune_allocator, logging, systemd};
use crate::{
    background,
    cli::{self, LogFlags, LogFormat},
    exit::Failure,
    http::server::Shutdown,
    secrets::take_exposure_warnings,
};
use std::time::Duration;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// Time limit for blocking work that is left when a role has ended.
const BLOCKING_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Exit code after a second signal, as a shell reports SIGINT.
const INTERRUPTED_EXIT: i32 = 130;

/// Runs a role to its end on a runtime of its own. Files that it creates are private to its user.
pub(super) fn run_role(
    log: &LogFlags,
    notices: &[String],
    role: impl AsyncFnOnce(Shutdown) -> Result<(), Failure>,
) -> Result<(), Failure> {
    run_reloadable_role(log, notices, false, role)
}

/// Same as [`run_role`]. With `reloads`, SIGHUP does not end the role, which catches the signal itself, unless it says
/// that the terminal was closed.
pub(super) fn run_reloadable_role(
    log: &LogFlags,
    notices: &[String],
    reloads: bool,
    role: impl AsyncFnOnce(Shutdown) -> Result<(), Failure>,
) -> Result<(), Failure> {
    logging::start(log);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    raise_file_limit();
    tune_allocator();
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::internal)?;
    let outcome = runtime.block_on(async {
        let (request_shutdown, shutdown) = watch::channel(false);
        // Before the first log line: an observer of the log can rely on an orderly end.
        if let Some(signals) = Signals::register(reloads) {
            background::spawn("handle_signals", signals.handle(request_shutdown));
        }
        for notice in notices {
            tracing::warn!("{notice}");
        }
        for warning in take_exposure_warnings() {
            tracing::warn!("{warning}");
        }
        cli::warn_about_unknown();
        role(shutdown)
            .await
            .map_err(|failure| log_failure(log, failure))
    });
    // Without a limit it would wait for the removal of a million files, which the next start goes on with.
    runtime.shutdown_timeout(BLOCKING_SHUTDOWN_TIMEOUT);
    outcome
}

/// Logs the failure that ends a role where the log is JSON; otherwise the process prints it as text at its end.
fn log_failure(log: &LogFlags, failure: Failure) -> Failure {
    if log.log_format != Some(LogFormat::Json) || failure.message.is_empty() {
        return failure;
    }
    tracing::error!(error = failure.message, "role failed");
    Failure::new(failure.exit, "")
}

/// Raises the limit of open files to the maximum: each connection is one.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        tracing::debug!(%error, "limit of open files not raised");
    }
}

/// Signals that end a role.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
    /// Whether a hangup is a request to reload, as long as the terminal of the start is there.
    reloads: bool,
    has_terminal: bool,
}

impl Signals {
    /// Registers the signals; `None` where the system refuses.
    fn register(reloads: bool) -> Option<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
        let [Ok(terminate), Ok(interrupt)] = kinds.map(signal) else {
            tracing::error!("signals cannot be caught; any signal ends the process at once");
            return None;
        };
        Some(Self {
            terminate,
            interrupt,
            // Under nohup SIGHUP stays ignored, as at the start of this process.
            hangup: (!hangup_is_ignored())
                .then(|| signal(SignalKind::hangup()).ok())
                .flatten(),
            reloads,
            has_terminal: has_terminal(),
        })
    }

    /// Requests the shutdown at the first signal; the second one ends the process at once.
    async fn handle(mut self, request_shutdown: watch::Sender<bool>) {
        let mut signals = 0;
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                () = recv_or_pending(&mut self.hangup), if self.hangup.is_some() && signals == 0 => {
                    if self.reloads && self.has_terminal == has_terminal() {
                        continue;
                    }
                    // It often comes twice, from the shell and from the kernel, and must not count as a second signal.
                    self.hangup = None;
                }
            }
            signals += 1;
            if signals > 1 {
                std::process::exit(INTERRUPTED_EXIT);
            }
            tracing::info!("shutting down; a second signal ends the process immediately");
            systemd::notify_stopping();
            request_shutdown.send_replace(true);
        }
    }
}

async fn recv_or_pending(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether this process has a controlling terminal, as tty(4) tells. It has none any more when that was closed.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Whether SIGHUP, signal 1, is among the ignored ones of proc(5).
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}
