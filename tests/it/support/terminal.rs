//! Pseudo-terminals, and programs at them as a person sees and uses them.

use super::{eventually, process::Done};
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use std::{
    ffi::OsStr,
    fs::File,
    io::{Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
};

/// A pseudo-terminal: the end of the user, and the end of the program.
pub(crate) fn terminal() -> (File, File) {
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let name = ptsname(&person, Vec::new()).unwrap();
    let path = Path::new(OsStr::from_bytes(name.as_bytes()));
    let program = File::options().read(true).write(true).open(path).unwrap();
    (File::from(person), program)
}

fn set_size(terminal: &File, cols: u16, rows: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

pub(crate) fn echoes(terminal: &File) -> bool {
    let modes = tcgetattr(terminal).unwrap().local_modes;
    modes.contains(LocalModes::ECHO)
}

/// The same command with this terminal as its own.
pub(crate) fn at_terminal(plain: &Command, terminal: &File) -> Command {
    let mut command = Command::new("setsid");
    command
        .args(["--ctty", "--wait"])
        .arg(plain.get_program())
        .args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .current_dir(plain.get_current_dir().unwrap())
        .stdin(terminal.try_clone().unwrap());
    command
}

/// A program with all its streams at a terminal of its own.
pub(crate) struct Session {
    person: File,
    seen: Arc<Mutex<Vec<u8>>>,
    child: Child,
    reader: thread::JoinHandle<()>,
}

impl Session {
    /// Starts a command.
    pub(crate) fn start(plain: &Command) -> Self {
        let (person, program) = terminal();
        set_size(&person, 80, 24);
        let child = at_terminal(plain, &program)
            .env("TERM", "xterm")
            .stdout(program.try_clone().unwrap())
            .stderr(program)
            .spawn()
            .unwrap();
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        let (mut screen, kept) = (person.try_clone().unwrap(), Arc::clone(&seen));
        let reader = thread::spawn(move || {
            let mut some = [0; 4096];
            // An error is the end of the output: no process has the other end open.
            while let Ok(n @ 1..) = screen.read(&mut some) {
                kept.lock().unwrap().extend(&some[..n]);
            }
        });
        Self {
            person,
            seen,
            child,
            reader,
        }
    }

    /// All that was shown so far, with the escapes.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits until this is shown.
    pub(crate) fn shows(&self, text: &str) {
        self.shows_times(text, 1);
    }

    /// Waits until this was shown so often.
    pub(crate) fn shows_times(&self, text: &str, times: usize) {
        let what = format!("{text:?} is shown {times} times");
        let is_shown = || self.shown().matches(text).count() >= times;
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&what, || is_shown().then_some(()));
        }));
        assert!(found.is_ok(), "{what}, not in {:?}", self.shown());
    }

    /// Types keys.
    pub(crate) fn types(&mut self, keys: &str) {
        self.person.write_all(keys.as_bytes()).unwrap();
    }

    /// Gives the terminal another size.
    pub(crate) fn resize(&self, cols: u16, rows: u16) {
        set_size(&self.person, cols, rows);
    }

    /// Sends a signal to the program.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Whether the terminal shows what is typed.
    pub(crate) fn echoes(&self) -> bool {
        echoes(&self.person)
    }

    /// Leaves the program with Ctrl-D, once it reads single keys, and waits for its end. A Ctrl-D that comes while the
    /// terminal still collects lines is the end of a line, and reaches the program as a NUL.
    pub(crate) fn leaves(&mut self) -> Done {
        eventually("the program reads single keys", || {
            let modes = tcgetattr(&self.person).unwrap().local_modes;
            (!modes.contains(LocalModes::ICANON)).then_some(())
        });
        self.types("\x04");
        self.ends()
    }

    /// Waits for the end of the program; both streams are in `stdout`.
    pub(crate) fn ends(&mut self) -> Done {
        let status = eventually("the end of the program", || self.child.try_wait().unwrap());
        eventually("the end of its output", || {
            self.reader.is_finished().then_some(())
        });
        Done {
            code: status.code().unwrap(),
            stdout: self.shown(),
            stderr: String::new(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // An end that was not waited for: its terminal is gone with `person`, which hangs it up.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
