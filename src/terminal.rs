//! Asking for a secret at a terminal.

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::{
    fs::File,
    io::{self, IsTerminal as _},
};
use zeroize::Zeroizing;

/// Asks for a secret that doesn't show while it is typed. Echo is off before the prompt appears: what is
/// typed, or pasted, as soon as it is seen must not show either.
pub(crate) fn ask_secret(prompt: &str) -> io::Result<Zeroizing<String>> {
    let _silent = Silence::begin()?;
    Ok(Zeroizing::new(rpassword::prompt_password(prompt)?))
}

/// Whether there is a terminal to ask at.
pub(crate) fn is_there() -> bool {
    io::stdin().is_terminal()
}

/// A terminal without echo; restored when dropped.
struct Silence {
    terminal: File,
    before: Termios,
}

impl Silence {
    fn begin() -> io::Result<Self> {
        let terminal = File::options().read(true).write(true).open("/dev/tty")?;
        let before = tcgetattr(&terminal)?;
        let mut silent = before.clone();
        // Without ISIG, Ctrl-C is left to the one that reads: a signal would end us with echo off.
        silent.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ISIG;
        tcsetattr(&terminal, OptionalActions::Now, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let restored = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        if let Err(error) = restored {
            tracing::debug!(%error, "the terminal's echo could not be restored; see stty echo");
        }
    }
}
