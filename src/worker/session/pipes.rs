//! Pipes of an exec: our ends, which never block the shim, and those of the exec.

use super::protocol::ExecCall;
use std::{fs::File, io, os::fd::OwnedFd};
use tokio::{net::unix::pipe, task::coop};

/// Bytes that are read of a pipe at a time.
const READ_BYTES: usize = 64 * 1024;

/// Pipe to an exec's stdin.
fn stdin_pipe() -> io::Result<(OwnedFd, pipe::Sender)> {
    let (read, write) = io::pipe()?;
    let write = OwnedFd::from(write);
    rustix::io::ioctl_fionbio(&write, true)?;
    Ok((read.into(), pipe::Sender::from_owned_fd(write)?))
}

/// Stdin of an exec that has none.
pub(super) fn no_stdin() -> io::Result<OwnedFd> {
    Ok(File::open("/dev/null")?.into())
}

/// Pipe from one of an exec's streams; `None` once its end was read.
pub(super) struct OutputPipe(Option<pipe::Receiver>);

impl OutputPipe {
    /// New pipe, and the exec's end of it.
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = io::pipe()?;
        let read = OwnedFd::from(read);
        rustix::io::ioctl_fionbio(&read, true)?;
        let pipe = pipe::Receiver::from_owned_fd(read)?;
        Ok((Self(Some(pipe)), write.into()))
    }

    /// Pipe that has ended.
    pub(super) fn ended() -> Self {
        Self(None)
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// Next bytes; none at the end. Memory is taken only once there are some: many execs wait at a time. Cancel-safe.
    pub(super) async fn read(&mut self) -> Vec<u8> {
        while let Some(pipe) = &self.0 {
            // Readiness takes no budget: a fast writer would keep all other tasks of the shim from running.
            coop::consume_budget().await;
            if pipe.readable().await.is_ok() {
                let mut buffer = Vec::with_capacity(READ_BYTES);
                match pipe.try_read_buf(&mut buffer) {
                    Ok(1..) => return buffer,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    _ => {}
                }
            }
            self.0 = None;
        }
        Vec::new()
    }
}

/// Reads what processes print that live on, which a closed pipe would end.
pub(super) async fn discard(mut output: [OutputPipe; 2]) {
    while output.iter().any(OutputPipe::is_open) {
        let [stdout, stderr] = &mut output;
        tokio::select! {
            _ = stdout.read(), if stdout.is_open() => {}
            _ = stderr.read(), if stderr.is_open() => {}
        }
    }
}

/// Streams of an exec, our ends and those for init.
pub(super) struct Streams {
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) output: [OutputPipe; 2],
    pub(super) for_init: Vec<OwnedFd>,
}

impl Streams {
    pub(super) fn open(call: &ExecCall) -> io::Result<Self> {
        let has_stdin = call.interactive || call.tty.is_some() || call.stdin.is_some();
        let (stdin_end, stdin) = if has_stdin {
            let (end, stdin) = stdin_pipe()?;
            (end, Some(stdin))
        } else {
            (no_stdin()?, None)
        };
        let (stdout, stdout_end) = OutputPipe::new()?;
        let (stderr, for_init) = if call.tty.is_some() {
            (OutputPipe::ended(), vec![stdin_end, stdout_end])
        } else {
            let (stderr, stderr_end) = OutputPipe::new()?;
            (stderr, vec![stdin_end, stdout_end, stderr_end])
        };
        Ok(Self {
            stdin,
            output: [stdout, stderr],
            for_init,
        })
    }
}
