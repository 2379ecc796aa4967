//! The terminal of this process while another program has it: raw, and as it was on every way out.
//!
//! It is restored when [`Restoring`] is dropped, which a panic does too, by the listener for signals
//! ([`leaving`](super::super::leaving)), and after a kill by a [`guard`](super::guard).

use super::{guard::Guard, modes::ScreenModes};
use crate::{
    api::sandboxes::exec::{MAX_TERMINAL_CELLS, TerminalSize},
    exit::Failure,
};
use parking_lot::Mutex;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::Arc,
    time::Duration,
};

/// Time for output that is under way when the terminal is restored. A terminal that was stopped takes none.
const OUTPUT_TIME: Duration = Duration::from_millis(500);

/// Fails where stdin or stdout is not a terminal.
pub(in crate::client::sandbox) fn check() -> Result<(), Failure> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return Ok(());
    }
    Err(Failure::usage(
        "a terminal needs stdin and stdout to be one; without it, use: cynode sandbox exec NAME CMD",
    ))
}

/// Size of the terminal; the usual one where it has none.
pub(super) fn size() -> TerminalSize {
    let size = tcgetwinsize(io::stdin()).ok();
    let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or_else(TerminalSize::default, |size| TerminalSize {
        cols: size.ws_col.min(MAX_TERMINAL_CELLS),
        rows: size.ws_row.min(MAX_TERMINAL_CELLS),
    })
}

/// Terminal in raw mode, until it is restored.
#[derive(Clone)]
pub(in crate::client::sandbox) struct RawTerminal {
    before: Arc<Termios>,
    /// `None` once the terminal is restored.
    screen: Arc<Mutex<Option<Screen>>>,
}

/// Changes that the program has made to the screen.
#[derive(Default)]
struct Screen {
    modes: ScreenModes,
    /// Output that undoes it, as the guard knows it.
    reset: Vec<u8>,
    guard: Option<Guard>,
}

impl Screen {
    fn follow(&mut self, output: &[u8]) {
        self.modes.follow(output);
        let reset = self.modes.reset();
        if reset != self.reset {
            if let Some(guard) = &mut self.guard {
                guard.notify(&reset);
            }
            self.reset = reset;
        }
    }
}

impl RawTerminal {
    /// Makes the terminal raw: each key is read as it is typed, and none is a signal.
    pub(super) fn enter() -> Result<Self, Failure> {
        let before = tcgetattr(io::stdin()).map_err(io::Error::from)?;
        let guard = Guard::start();
        if let Err(error) = &guard {
            tracing::debug!(%error, "the terminal is not restored after a kill");
        }
        let screen = Screen {
            guard: guard.ok(),
            ..Screen::default()
        };
        let terminal = Self {
            before: Arc::new(before),
            screen: Arc::new(Mutex::new(Some(screen))),
        };
        terminal.set_raw()?;
        Ok(terminal)
    }

    /// Makes it raw again, such as after a stop of this process, for which a shell has restored it.
    pub(super) fn set_raw(&self) -> io::Result<()> {
        let mut raw = Termios::clone(&self.before);
        raw.make_raw();
        Ok(tcsetattr(io::stdin(), OptionalActions::Now, &raw)?)
    }

    /// Writes output of the program. Once the terminal is restored there is no more.
    pub(super) fn write(&self, output: &[u8]) -> io::Result<()> {
        match &mut *self.screen.lock() {
            Some(screen) => {
                // Before the output: a kill may come in between.
                screen.follow(output);
                put(output)
            }
            None => Ok(()),
        }
    }

    /// Remark of our own, as output: a line, or a title where a program has the whole screen.
    pub(super) fn remark(&self, text: &str) -> io::Result<()> {
        let screen = self.screen.lock();
        let is_full_screen = |screen: &Screen| screen.modes.is_full_screen();
        let is_full_screen = screen.as_ref().is_some_and(is_full_screen);
        let shown = if is_full_screen {
            format!("\x1b]2;{text}\x07\x07")
        } else {
            format!("\r\n[{text}]\r\n")
        };
        put(shown.as_bytes())
    }

    /// Makes the terminal what it was.
    pub(in crate::client::sandbox) fn restore(&self) {
        let screen = match self.screen.try_lock_for(OUTPUT_TIME) {
            Some(mut screen) => screen.take(),
            None => None,
        };
        if let Some(screen) = &screen {
            // A terminal that takes no more is gone.
            let _ = put(&screen.modes.reset());
        }
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.before) {
            tracing::debug!(%error, "the terminal could not be restored; see stty sane");
        }
        if let Some(guard) = screen.and_then(|screen| screen.guard) {
            guard.dismiss();
        }
    }
}

fn put(output: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(output)?;
    stdout.flush()
}

/// Restores the terminal when it is dropped.
pub(super) struct Restoring(pub(super) RawTerminal);

impl Drop for Restoring {
    fn drop(&mut self) {
        self.0.restore();
    }
}
