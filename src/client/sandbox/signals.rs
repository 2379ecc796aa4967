//! Signals of this process that are passed on to the command in a sandbox.

use super::target::Target;
use crate::{
    api::sandboxes::exec::SignalExec,
    client::{api_client::ApiClient, print::note, receive::EXIT_INTERRUPTED},
    exit::Failure,
};
use http::Method;
use std::{
    io, process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listener for signals, for as long as this process.
pub(super) struct Forwarding {
    is_begun: Arc<AtomicBool>,
}

impl Forwarding {
    /// From now on there is a command that gets the signals.
    pub(super) fn begin(&self) {
        self.is_begun.store(true, Ordering::Relaxed);
    }
}

/// Listens for signals in the background. The first Ctrl-C interrupts the command, as TERM terminates it; a second
/// signal leaves the command alone and ends this process, and so does the first before there is a command.
pub(super) fn forward(api: ApiClient, target: Target, exec: String) -> Result<Forwarding, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let signals = runtime.block_on(async {
        Ok::<_, io::Error>((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))
    })?;
    let is_begun = Arc::<AtomicBool>::default();
    let begun = Arc::clone(&is_begun);
    thread::spawn(move || runtime.block_on(listen(signals, &api, &target, &exec, &begun)));
    Ok(Forwarding { is_begun })
}

async fn listen(
    (mut interrupt, mut terminate): (Signal, Signal),
    api: &ApiClient,
    target: &Target,
    exec: &str,
    begun: &AtomicBool,
) {
    let mut is_sent = false;
    loop {
        let name = tokio::select! {
            _ = interrupt.recv() => "INT",
            _ = terminate.recv() => "TERM",
        };
        if is_sent || !begun.load(Ordering::Relaxed) {
            if begun.load(Ordering::Relaxed) {
                let hint = target.follow_hint(exec);
                note(&format!("the command goes on; follow it with: {hint}"));
            }
            process::exit(EXIT_INTERRUPTED.into());
        }
        is_sent = true;
        note("interrupting the command; a second Ctrl-C leaves it alone");
        let (mut api, target, exec) = (api.clone(), target.clone(), exec.to_owned());
        // A call may take long, and the second Ctrl-C must not wait for it.
        thread::spawn(move || {
            if let Err(failure) = send(&mut api, &target, &exec, name) {
                note(&format!("error: {}", failure.message));
            }
        });
    }
}

/// Sends a signal to a command.
pub(super) fn send(
    api: &mut ApiClient,
    target: &Target,
    exec: &str,
    signal: &str,
) -> Result<(), Failure> {
    let signal = signal.to_owned();
    api.done(
        Method::POST,
        &target.exec(exec, "/signal"),
        Some(&SignalExec { signal }),
    )
}
