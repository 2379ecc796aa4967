//! Process that restores the terminal where this one can't any more, because it was killed or has crashed.
//!
//! The guard is the binary again, as a helper. It keeps the terminal's modes as they were, is told what a program has
//! done to the screen, and waits for the end of a pipe. A client that ends in order dismisses it before.

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::{
    fs::File,
    io::{self, PipeWriter, Read, Write as _, stdin, stdout},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// Argument by which the binary knows that it is the guard of a terminal.
pub(crate) const ARGUMENT: &str = "__restore-terminal";

/// Path of the running binary, also where its file was replaced.
const BINARY: &str = "/proc/self/exe";
/// Terminal of this process and its shell.
const TERMINAL: &str = "/dev/tty";
/// Length that stands for the dismissal.
const DISMISSAL: u16 = u16::MAX;
/// Time for a shell to restore the terminal itself, as most do after a kill.
const SHELL_TIME: Duration = Duration::from_millis(50);

/// Guard, as the process sees it that it watches.
pub(super) struct Guard {
    process: Child,
    notes: PipeWriter,
}

impl Guard {
    /// Starts it, and waits until it knows the terminal as it is now.
    pub(super) fn start() -> io::Result<Self> {
        let (from_us, notes) = io::pipe()?;
        let (mut ready, to_us) = io::pipe()?;
        let process = Command::new(BINARY)
            .arg(ARGUMENT)
            .env_clear()
            .stdin(from_us)
            .stdout(to_us)
            .stderr(Stdio::null())
            // A signal to the whole job of a shell must not end it.
            .process_group(0)
            .spawn()?;
        let guard = Self { process, notes };
        ready.read_exact(&mut [0])?;
        Ok(guard)
    }

    /// Sends it the output that undoes the changes of a program to the screen.
    pub(super) fn notify(&mut self, reset: &[u8]) {
        let Ok(length) = u16::try_from(reset.len()) else {
            return;
        };
        let note = [&length.to_le_bytes(), reset].concat();
        // Without a guard the terminal is still restored on most ways out.
        let _ = self.notes.write_all(&note);
    }

    /// Ends it: the terminal is restored.
    pub(super) fn dismiss(mut self) {
        let _ = self.notes.write_all(&DISMISSAL.to_le_bytes());
        drop(self.notes);
        let _ = self.process.wait();
    }
}

/// Guards the terminal, as the helper process.
pub(crate) fn main() -> Result<String, String> {
    guard().map_err(|error| format!("the terminal can't be restored: {error}"))?;
    Ok(String::new())
}

#[allow(
    unsafe_code,
    reason = "only libc can have this process ignore a signal"
)]
fn guard() -> io::Result<()> {
    // SAFETY: no handler is installed, so nothing runs when the signal comes. Ignored, it allows a process in the
    // background to change the terminal.
    unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    let mut terminal = File::options().read(true).write(true).open(TERMINAL)?;
    let before = tcgetattr(&terminal)?;
    let mut to_client = stdout();
    to_client.write_all(b".")?;
    to_client.flush()?;
    let Some(reset) = last_note(&mut stdin())? else {
        return Ok(());
    };
    thread::sleep(SHELL_TIME);
    terminal.write_all(&reset)?;
    let mut raw = before.clone();
    raw.make_raw();
    // A shell that has restored it already may have modes of its own by now.
    if is_same(&tcgetattr(&terminal)?, &raw) {
        tcsetattr(&terminal, OptionalActions::Now, &before)?;
    }
    Ok(())
}

/// Last note of a client that is gone; `None` where it has dismissed the guard.
fn last_note(notes: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut last = Vec::new();
    let mut length = [0; 2];
    while notes.read_exact(&mut length).is_ok() {
        let length = u16::from_le_bytes(length);
        if length == DISMISSAL {
            return Ok(None);
        }
        let mut note = vec![0; length.into()];
        if notes.read_exact(&mut note).is_err() {
            break;
        }
        last = note;
    }
    Ok(Some(last))
}

fn is_same(a: &Termios, b: &Termios) -> bool {
    let modes = |modes: &Termios| (modes.input_modes, modes.output_modes, modes.local_modes);
    modes(a) == modes(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_whole_note_counts_until_dismissal() {
        let note = |mut bytes: &[u8]| last_note(&mut bytes).unwrap();
        assert_eq!(note(b""), Some(vec![]));
        assert_eq!(note(b"\x01\x00a\x02\x00bc"), Some(b"bc".to_vec()));
        assert_eq!(note(b"\x01\x00a\x02\x00b"), Some(b"a".to_vec()));
        assert_eq!(note(b"\x01\x00a\xff\xff"), None);
    }
}
