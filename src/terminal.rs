//! The terminal: results on stdout, remarks on stderr, and prompts for secrets.

use crate::exit::Failure;
use rustix::{
    io::ioctl_fionread,
    termios::{LocalModes, OptionalActions, QueueSelector, Termios, tcflush, tcgetattr, tcsetattr},
};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, IsTerminal as _, Write},
};
use zeroize::Zeroizing;

/// Exit code of a process whose reader is gone, as after SIGPIPE.
const BROKEN_PIPE_EXIT: u8 = 141;

/// Writes to stdout and flushes it.
pub(crate) fn to_stdout(
    write: impl FnOnce(&mut io::StdoutLock<'_>) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    write(&mut stdout)
        .and_then(|()| stdout.flush())
        .map_err(write_failure)
}

/// The failure of a write to stdout or stderr. A reader that has left, such as `head`, is not an error worth
/// a message.
pub(crate) fn write_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(BROKEN_PIPE_EXIT),
        _ => Failure::internal(error),
    }
}

/// Prints a line on stdout.
pub(crate) fn print_line(text: &str) -> Result<(), Failure> {
    to_stdout(|out| writeln!(out, "{text}"))
}

/// Prints a value as indented JSON on stdout, for programs.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::internal)?;
    print_line(&text)
}

/// Prints a remark on stderr. A closed stderr is ignored: no other channel to the user is left.
pub fn print_note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether stdin is a terminal, so that a person can answer a prompt.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal()
}

/// Prompts for a secret without echo. Echo is off before the prompt appears, so that a secret that is typed
/// or pasted early does not show either.
pub(crate) fn ask_secret(prompt: &str) -> io::Result<Zeroizing<String>> {
    // Without ISIG, Ctrl-C reaches the reader as a byte: a signal would end the process with echo off.
    let _echo_off = EchoOff::begin(LocalModes::ISIG)?;
    Ok(Zeroizing::new(rpassword::prompt_password(prompt)?))
}

/// Same for a text of one line. `None` where more follows, as of a key that was pasted: it is thrown away, since the shell
/// would show and run it.
pub(crate) fn ask_secret_line(prompt: &str) -> io::Result<Option<Zeroizing<String>>> {
    let echo_off = EchoOff::begin(LocalModes::ISIG)?;
    let line = Zeroizing::new(rpassword::prompt_password(prompt)?);
    let is_all = !echo_off.discard_unread()?;
    Ok(is_all.then_some(line))
}

/// A terminal without echo; restored when dropped.
pub(crate) struct EchoOff {
    terminal: File,
    before: Termios,
}

impl EchoOff {
    /// Turns echo off, where what is typed would mix with what is printed. Ctrl-C stays a signal.
    pub(crate) fn keeping_signals() -> io::Result<Self> {
        Self::begin(LocalModes::empty())
    }

    /// Turns off echo, and these modes.
    fn begin(more: LocalModes) -> io::Result<Self> {
        let terminal = File::options().read(true).write(true).open("/dev/tty")?;
        let before = tcgetattr(&terminal)?;
        let mut silent = before.clone();
        silent.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | more;
        tcsetattr(&terminal, OptionalActions::Now, &silent)?;
        Ok(Self { terminal, before })
    }

    /// Throws away what was typed and not read; whether there was anything.
    fn discard_unread(&self) -> io::Result<bool> {
        let unread = ioctl_fionread(&self.terminal)?;
        tcflush(&self.terminal, QueueSelector::IFlush)?;
        Ok(unread > 0)
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        let restored = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        if let Err(error) = restored {
            tracing::debug!(%error, "echo of the terminal could not be restored; see stty echo");
        }
    }
}
