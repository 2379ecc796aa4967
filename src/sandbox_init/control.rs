//! Requests of the shim while a command runs, on a thread of their own: kill all, send a signal, fill its stdin, run
//! another one.
//!
//! The thread reads a request as soon as it is there, however slowly the command reads its stdin: bytes for that wait
//! with a second thread, and the shim bounds them by what it was told that the pipe took.

use super::{
    COMMAND, ENDING, Reporter, TERMINATING,
    channel::Channel,
    execs::Execs,
    kill_all,
    wire::{ExecNumber, ExecStreams, InitRequest, Report},
};
use std::{
    io::{self, PipeWriter, Write as _},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

/// Bytes on the way to a command's stdin; an empty message is its end.
pub(super) type StdinSender = Sender<Vec<u8>>;

/// Opens a pipe to the stdin of a command, and fills it on a thread of its own with what is sent.
pub(super) fn open_stdin(
    exec: ExecNumber,
    reporter: &Arc<Reporter>,
) -> io::Result<(StdinSender, OwnedFd)> {
    let (read, write) = io::pipe()?;
    let (sender, bytes) = channel();
    let reporter = Arc::clone(reporter);
    // Fails to report only when the shim is gone, and then all ends.
    thread::spawn(move || fill(exec, &bytes, write, &reporter));
    Ok((sender, read.into()))
}

/// Writes what comes until its end, and reports what the pipe took. A command that reads no more is reported once.
fn fill(
    exec: ExecNumber,
    bytes: &Receiver<Vec<u8>>,
    mut pipe: PipeWriter,
    reporter: &Reporter,
) -> io::Result<()> {
    while let Ok(bytes) = bytes.recv()
        && !bytes.is_empty()
    {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let taken = match pipe.write(rest) {
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return reporter.send(exec, &Report::StdinClosed),
            };
            rest = &rest[taken..];
            reporter.send(exec, &Report::StdinTaken(taken as u32))?;
        }
    }
    Ok(())
}

/// Requests while the first command runs, or a sandbox without one stays.
pub(super) struct Requests {
    first: ExecNumber,
    /// Whether there is no first command, and the sandbox stays.
    stays: bool,
    stdin: Option<StdinSender>,
    execs: Arc<Execs>,
    reporter: Arc<Reporter>,
}

impl Requests {
    pub(super) fn new(
        (first, stays): (ExecNumber, bool),
        stdin: Option<StdinSender>,
        execs: &Arc<Execs>,
        reporter: &Arc<Reporter>,
    ) -> Self {
        Self {
            first,
            stays,
            stdin,
            execs: Arc::clone(execs),
            reporter: Arc::clone(reporter),
        }
    }

    /// Serves requests until all are to be killed; the end of the socket is such a request, and so is what makes no
    /// sense.
    pub(super) fn serve(self, mut channel: Channel) {
        thread::spawn(move || {
            while let Ok(request) = InitRequest::read(&mut channel)
                && request.1 != InitRequest::Kill
                && self.handle(request, &mut channel).is_ok()
            {}
            ENDING.store(true, Ordering::SeqCst);
            kill_all();
            self.execs.wake();
        });
    }

    fn handle(
        &self,
        (exec, request): (ExecNumber, InitRequest),
        channel: &mut Channel,
    ) -> io::Result<()> {
        let is_first = exec == self.first;
        match (request, &self.stdin) {
            (InitRequest::Stdin(bytes), Some(stdin)) if is_first => {
                // Fails once the command reads no more, which has been reported.
                let _ = stdin.send(bytes);
                Ok(())
            }
            (InitRequest::Signal(signal), _) if is_first => self.signal_first(signal),
            (InitRequest::Signal(signal), _) => self.execs.signal(exec, signal),
            (InitRequest::Run(spec), _) if !is_first && spec.streams != ExecStreams::Sandbox => {
                self.execs.start(exec, &spec, channel)
            }
            (InitRequest::Resize(size), _) => {
                self.execs.resize(exec, size);
                Ok(())
            }
            (other, _) => self.reporter.send(exec, &Report::Unsupported(other.kind())),
        }
    }

    /// Sends a signal to the process group of the first command, whose number is its process id. The report comes
    /// first, so that it stands before the one of an end that the signal brings about. Where there is no such command, TERM
    /// asks all to end.
    fn signal_first(&self, signal: i32) -> io::Result<()> {
        let pid = COMMAND.load(Ordering::SeqCst);
        if pid > 0 {
            self.reporter.send(self.first, &Report::Signaled)?;
            // SAFETY: plain system call without pointers. The group is the command's own session, so init isn't in it.
            unsafe { libc::kill(-pid, signal) };
        } else if self.stays {
            self.reporter.send(self.first, &Report::Signaled)?;
            // SAFETY: plain system call without pointers; all of this PID namespace but init. Keepers block it.
            unsafe { libc::kill(-1, signal) };
            if signal == libc::SIGTERM {
                TERMINATING.store(true, Ordering::SeqCst);
                if self.execs.is_empty() {
                    // Detached processes hold up no end.
                    kill_all();
                }
                self.execs.wake();
            }
        }
        Ok(())
    }
}
