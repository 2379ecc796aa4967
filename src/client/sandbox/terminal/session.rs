//! A terminal from its first connection to its end, over as many connections as it takes.

use super::{
    keys::DetachKeys,
    link::{ConnectError, connect},
    pump::{Ended, Person, Shown, pump, show_all},
    raw::{self, RawTerminal, Restoring},
};
use crate::{
    api::sandboxes::exec::{Exec, ExecStatus},
    client::{
        api_client::ApiClient,
        paths,
        print::clean,
        sandbox::{events::ExecEnd, exec::is_passing, leaving::Leaving, target::Target},
    },
    exit::{Exit, Failure},
};
use bytes::Bytes;
use std::{
    io::{self, Read as _},
    thread,
    time::{Duration, Instant},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

/// Time for which the connection may be lost.
const RECONNECT_TIMEOUT: Duration = Duration::from_mins(10);
/// Pause between two attempts to connect.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
/// Pieces of output, and reads of keys, that wait.
const MAX_WAITING: usize = 16;
/// Bytes that are read of the keyboard at a time.
const READ_BYTES: usize = 16 * 1024;
/// Key that leaves while there is no connection.
const CTRL_C: u8 = 3;
/// Output that clears the screen before its last part is shown again.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";
/// Exit code after a hang-up of the terminal, as a signal gives it.
const EXIT_HUNG_UP: u8 = 129;

/// Program that gets the terminal.
pub(super) struct Program {
    pub(super) exec_id: String,
    /// Command of a new exec; empty for a login shell.
    pub(super) command: Vec<String>,
    pub(super) cwd: Option<String>,
    /// Whether the exec is there already.
    pub(super) is_running: bool,
}

/// End of a terminal.
pub(in crate::client::sandbox) enum End {
    /// The program ended.
    Exited(ExecEnd),
    /// The user left; the program goes on.
    Detached,
}

/// Gives this process's terminal to a program in a sandbox, until that ends or the user detaches.
pub(super) fn run(
    api: &mut ApiClient,
    target: &Target,
    program: &Program,
    leaving: &Leaving,
) -> Result<End, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let terminal = RawTerminal::enter()?;
    let _restoring = Restoring(terminal.clone());
    leaving.restore(terminal.clone());
    let (screen, mut shown) = mpsc::channel(MAX_WAITING);
    let of_writer = terminal.clone();
    // An error is a terminal that is gone, which the end of the channel tells.
    let writer = thread::spawn(move || show_all(&of_writer, &mut shown));
    let signals = runtime.block_on(async {
        let continued = SignalKind::from_raw(libc::SIGCONT);
        Ok::<_, io::Error>((signal(SignalKind::window_change())?, signal(continued)?))
    })?;
    let mut session = Session {
        api,
        target,
        program,
        runtime,
        person: Person {
            terminal,
            keys: read_keys(),
            screen,
            resized: signals.0,
            continued: signals.1,
            detach: DetachKeys::default(),
        },
        is_connected: program.is_running,
        is_shown: false,
        lost_at: None,
    };
    let end = session.run();
    drop(session);
    // All output comes before the terminal is restored.
    let _ = writer.join();
    end
}

/// Reads what is typed, in the background.
fn read_keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, keys) = mpsc::channel(MAX_WAITING);
    thread::spawn(move || {
        let mut stdin = io::stdin();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match stdin.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read @ 1..) if sender.blocking_send(buffer[..read].to_vec()).is_ok() => {}
                _ => return,
            }
        }
    });
    keys
}

struct Session<'a> {
    api: &'a mut ApiClient,
    target: &'a Target,
    program: &'a Program,
    runtime: Runtime,
    person: Person,
    /// Whether the exec is known to be there.
    is_connected: bool,
    /// Whether output of the exec was shown before.
    is_shown: bool,
    /// Time at which the connection was lost.
    lost_at: Option<Instant>,
}

/// Outcome of an attempt that has not ended the terminal.
enum Attempt {
    Ended(Ended),
    Failed(ConnectError),
}

impl Session<'_> {
    fn run(&mut self) -> Result<End, Failure> {
        loop {
            let failure = match self.attempt() {
                Attempt::Ended(Ended::Exited(end)) => return Ok(End::Exited(end)),
                Attempt::Ended(Ended::Detached) => return Ok(End::Detached),
                Attempt::Ended(Ended::HungUp) => return Err(Failure::silent(EXIT_HUNG_UP)),
                Attempt::Ended(Ended::Lost) => None,
                // The next call renews the login.
                Attempt::Failed(ConnectError::Expired) => None,
                Attempt::Failed(
                    ConnectError::Refused(failure) | ConnectError::Unreachable(failure),
                ) => Some(failure),
            };
            if let Some(failure) = failure
                && !self.is_connected
            {
                return Err(failure);
            }
            if let Some(end) = self.look()? {
                return Ok(end);
            }
            if self.lost_at.is_none() {
                self.lost_at = Some(Instant::now());
                self.remark("the connection is lost; retrying. Ctrl-C gives up");
            }
            if self
                .lost_at
                .is_some_and(|at| at.elapsed() > RECONNECT_TIMEOUT)
            {
                let text = format!(
                    "the orchestrator at {} is still unreachable. Come back with: {}",
                    self.api.url,
                    self.target.attach_hint(&self.program.exec_id)
                );
                return Err(Failure::new(Exit::Unreachable, text));
            }
            if self.wants_to_leave() {
                let text = format!(
                    "given up; the program is hung up soon. To be in time, use: {}",
                    self.target.attach_hint(&self.program.exec_id)
                );
                return Err(Failure::new(Exit::Unreachable, text));
            }
        }
    }

    /// Connects, and passes everything on.
    fn attempt(&mut self) -> Attempt {
        let path = self.path();
        let token = self.api.token().unwrap_or_default().to_owned();
        let is_again = self.is_shown || self.program.is_running;
        let (gateway, person) = ((&*self.api.url, self.api.trust()), &mut self.person);
        let connected = self.runtime.block_on(connect(gateway, &path, &token));
        let link = match connected {
            Ok(link) => link,
            Err(error) => return Attempt::Failed(error),
        };
        let is_back = self.lost_at.take().is_some() && self.is_shown;
        (self.is_connected, self.is_shown) = (true, true);
        self.runtime.block_on(async {
            if is_back {
                // The server begins with the last part of the output.
                let clear = Shown::Output(Bytes::from_static(CLEAR));
                if person.screen.send(clear).await.is_err() {
                    return Attempt::Ended(Ended::HungUp);
                }
            }
            Attempt::Ended(pump(link, person, is_again).await)
        })
    }

    /// Path of the terminal: of a new exec, or of the one that is there.
    fn path(&self) -> String {
        let size = raw::size();
        let (cols, rows) = (size.cols.to_string(), size.rows.to_string());
        let mut query = vec![
            ("exec_id", Some(self.program.exec_id.as_str())),
            ("cols", Some(cols.as_str())),
            ("rows", Some(rows.as_str())),
        ];
        if !self.is_connected {
            query.push(("cwd", self.program.cwd.as_deref()));
            let words = self.program.command.iter();
            query.extend(words.map(|word| ("command", Some(word.as_str()))));
        }
        paths::with_query(&self.target.path("/terminal"), &query)
    }

    /// Looks whether the program has ended while there was no connection. Renews the login where it has to be.
    fn look(&mut self) -> Result<Option<End>, Failure> {
        let path = self.target.exec(&self.program.exec_id, "");
        match self.api.get::<Exec>(&path) {
            Ok(exec) if exec.status == ExecStatus::Running => Ok(None),
            Ok(exec) => Ok(Some(End::Exited(ExecEnd::from(&exec)))),
            Err(failure) if is_passing(&failure) => Ok(None),
            // A login that was renewed just now, before there was an exec.
            Err(failure) if failure.exit == Exit::NotFound && !self.is_connected => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn remark(&self, text: &str) {
        let remark = Shown::Remark(clean(text));
        // A terminal that takes no more shows nothing either.
        let _ = self.person.screen.try_send(remark);
    }

    /// Waits for the next attempt. Whether the user leaves meanwhile.
    fn wants_to_leave(&mut self) -> bool {
        let person = &mut self.person;
        self.runtime.block_on(async {
            let leaves = async {
                // The end of the keys is the end of the terminal.
                while let Some(typed) = person.keys.recv().await {
                    if typed.contains(&CTRL_C) || person.detach.take(&typed).is_detach {
                        break;
                    }
                }
            };
            timeout(RECONNECT_INTERVAL, leaves).await.is_ok()
        })
    }
}
