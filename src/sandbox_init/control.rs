//! Requests of the shim while a command runs, on a thread of their own: kill all, send a signal, fill its stdin.
//!
//! The thread reads a request as soon as it is there, however slowly the command reads its stdin: bytes for that wait
//! with a second thread, and the shim bounds them by what it was told that the pipe took.

use super::{
    COMMAND, ENDING, Reporter, kill_all,
    wire::{ExecNumber, InitRequest, Report},
};
use std::{
    io::{self, PipeWriter, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
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

/// Serves requests about the command until all are to be killed; the end of the socket is such a request, and so is
/// what makes no sense.
pub(super) fn serve(
    mut control: UnixStream,
    exec: ExecNumber,
    stdin: Option<StdinSender>,
    reporter: Arc<Reporter>,
) {
    thread::spawn(move || {
        while let Ok(request) = InitRequest::read(&mut control)
            && request.1 != InitRequest::Kill
            && handle(request, exec, stdin.as_ref(), &reporter).is_ok()
        {}
        ENDING.store(true, Ordering::SeqCst);
        kill_all();
    });
}

fn handle(
    (to, request): (ExecNumber, InitRequest),
    exec: ExecNumber,
    stdin: Option<&StdinSender>,
    reporter: &Reporter,
) -> io::Result<()> {
    match (request, stdin) {
        (InitRequest::Stdin(bytes), Some(stdin)) if to == exec => {
            // Fails once the command reads no more, which has been reported.
            let _ = stdin.send(bytes);
            Ok(())
        }
        (InitRequest::Signal(signal), _) if to == exec => send_signal(exec, signal, reporter),
        (other, _) => reporter.send(to, &Report::Unsupported(other.kind())),
    }
}

/// Sends a signal to the process group of the command, whose number is its process id. The report comes first, so
/// that it stands before the one of an end that the signal brings about.
fn send_signal(exec: ExecNumber, signal: i32, reporter: &Reporter) -> io::Result<()> {
    let pid = COMMAND.load(Ordering::SeqCst);
    if pid > 0 {
        reporter.send(exec, &Report::Signaled)?;
        // SAFETY: plain system call without pointers. The group is the command's own session, so init isn't in it.
        unsafe { libc::kill(-pid, signal) };
    }
    Ok(())
}
