//! Ctrl-C while an answer is under way: the answer stops, and the chat goes on.
//!
//! At the prompt Ctrl-C is a key, since the line editor reads the terminal raw. A second Ctrl-C while the first can't
//! stop the call yet, such as during a name lookup, ends the program.

use crate::exit::Failure;
use parking_lot::Mutex;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::{io, process, sync::Arc, thread};
use tokio::signal::unix::{Signal, SignalKind, signal};
use ureq::Agent;

/// Exit codes of a program that a signal has ended.
const EXIT_INTERRUPTED: i32 = 130;
const EXIT_TERMINATED: i32 = 143;

/// Work that a Ctrl-C would stop.
#[derive(Default)]
enum Call {
    #[default]
    None,
    /// Connections of the call that is under way.
    Running(Agent),
    /// The call was told to stop.
    Stopping,
}

/// Listener for signals, for as long as this process.
pub(super) struct Interrupts {
    call: Arc<Mutex<Call>>,
}

/// Call that Ctrl-C stops, until it is dropped.
pub(super) struct Stoppable<'a> {
    call: &'a Mutex<Call>,
}

impl Interrupts {
    /// Begins to listen. SIGTERM then restores the terminal as it is now, and ends this process.
    pub(super) fn listen() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let signals = runtime.block_on(async {
            Ok::<_, io::Error>((
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            ))
        })?;
        let terminal = tcgetattr(io::stdin()).ok();
        let call = Arc::<Mutex<Call>>::default();
        let of_thread = Arc::clone(&call);
        thread::spawn(move || runtime.block_on(handle(signals, &of_thread, terminal.as_ref())));
        Ok(Self { call })
    }

    /// Has Ctrl-C end the calls that use these connections.
    pub(super) fn stoppable(&self, connections: Agent) -> Stoppable<'_> {
        *self.call.lock() = Call::Running(connections);
        Stoppable { call: &self.call }
    }
}

impl Stoppable<'_> {
    /// Whether Ctrl-C was pressed.
    pub(super) fn is_stopped(&self) -> bool {
        matches!(*self.call.lock(), Call::Stopping)
    }
}

impl Drop for Stoppable<'_> {
    fn drop(&mut self) {
        *self.call.lock() = Call::None;
    }
}

async fn handle(
    (mut interrupt, mut terminate): (Signal, Signal),
    call: &Mutex<Call>,
    terminal: Option<&Termios>,
) {
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => leave(terminal, EXIT_TERMINATED),
        }
        let stopped = {
            let mut call = call.lock();
            match std::mem::take(&mut *call) {
                Call::None => None,
                Call::Running(connections) => {
                    *call = Call::Stopping;
                    Some(connections)
                }
                Call::Stopping => leave(terminal, EXIT_INTERRUPTED),
            }
        };
        if let Some(connections) = stopped {
            connections.shutdown();
        }
    }
}

/// Ends this process, with the terminal as it was.
fn leave(terminal: Option<&Termios>, code: i32) -> ! {
    if let Some(terminal) = terminal {
        // Without a terminal there is nothing to restore.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, terminal);
    }
    process::exit(code)
}
