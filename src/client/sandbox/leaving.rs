//! Signals that end this process while it has a terminal in a sandbox, a sandbox of its own, or waits for one to run.
//!
//! A terminal is restored, a sandbox that was made for one command is removed, and a note says what goes on, before the
//! process ends as the signal would have ended it.

use super::{target::Target, terminal::RawTerminal};
use crate::{
    client::{api_client::ApiClient, print::note},
    exit::Failure,
};
use http::Method;
use parking_lot::Mutex;
use std::{io, process, sync::Arc, thread};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Offset of the exit code of a process that a signal has ended.
const SIGNAL_EXIT: i32 = 128;

/// Steps to take before this process ends.
#[derive(Default)]
struct ToDo {
    terminal: Option<RawTerminal>,
    sandbox: Option<(ApiClient, Target)>,
    note: Option<String>,
}

/// Listener for signals, for as long as this process.
pub(super) struct Leaving(Arc<Mutex<ToDo>>);

impl Leaving {
    /// Begins to listen.
    pub(super) fn listen() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let signals = runtime.block_on(async {
            Ok::<_, io::Error>([
                (libc::SIGINT, signal(SignalKind::interrupt())?),
                (libc::SIGTERM, signal(SignalKind::terminate())?),
                (libc::SIGHUP, signal(SignalKind::hangup())?),
                (libc::SIGQUIT, signal(SignalKind::quit())?),
            ])
        })?;
        let to_do = Arc::<Mutex<ToDo>>::default();
        let of_thread = Arc::clone(&to_do);
        thread::spawn(move || {
            let number = runtime.block_on(first(signals));
            leave(&of_thread, number);
        });
        Ok(Self(to_do))
    }

    /// Has a signal restore this terminal.
    pub(super) fn restore(&self, terminal: RawTerminal) {
        self.0.lock().terminal = Some(terminal);
    }

    /// Has a signal remove this sandbox.
    pub(super) fn remove(&self, api: ApiClient, sandbox: Target) {
        self.0.lock().sandbox = Some((api, sandbox));
    }

    /// Has a signal print this note, in place of an earlier one.
    pub(super) fn explain(&self, text: String) {
        self.0.lock().note = Some(text);
    }

    /// Keeps the sandbox.
    pub(super) fn keep(&self) {
        self.0.lock().sandbox = None;
    }
}

/// Number of the first signal that comes.
async fn first([a, b, c, d]: [(i32, Signal); 4]) -> i32 {
    let ((a, mut first), (b, mut second), (c, mut third), (d, mut fourth)) = (a, b, c, d);
    tokio::select! {
        _ = first.recv() => a,
        _ = second.recv() => b,
        _ = third.recv() => c,
        _ = fourth.recv() => d,
    }
}

fn leave(to_do: &Mutex<ToDo>, signal: i32) -> ! {
    let ToDo {
        terminal,
        sandbox,
        note: text,
    } = std::mem::take(&mut *to_do.lock());
    if let Some(terminal) = terminal {
        terminal.restore();
    }
    if let Some((mut api, sandbox)) = sandbox {
        note("removing the sandbox");
        if let Err(failure) = api.done(Method::DELETE, &sandbox.path(""), None::<&()>) {
            note(&format!(
                "error: {}\nThe sandbox is still there; remove it with: cynode sandbox rm {}",
                failure.message,
                sandbox.word()
            ));
        }
    }
    if let Some(text) = text {
        note(&text);
    }
    process::exit(SIGNAL_EXIT + signal)
}
