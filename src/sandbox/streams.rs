//! The supervisor's ends of what a sandbox holds: the command's output, and init's reports.

use super::{OutputSink, execs::ExecPort};
use crate::{
    api::events::Stream,
    sandbox_init::wire::{ExecNumber, Report, take_report},
};
use std::{io, os::fd::OwnedFd, time::Duration};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::{OwnedReadHalf, pipe},
};

/// Bytes that are read of a pipe at a time.
const READ_BYTES: usize = 64 * 1024;
/// Largest content of a pipe, in bytes: what a user without privileges can set.
const MAX_PIPE_BYTES: usize = 1024 * 1024;
/// Time for reports that are under way when init is dead. They are in the socket already.
const LAST_REPORT_TIMEOUT: Duration = Duration::from_millis(100);

/// A pipe: our end, which never blocks us, and the command's, which may block it.
pub(super) fn pipe_pair() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = io::pipe()?;
    let read = OwnedFd::from(read);
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write.into()))
}

/// Reader of one of the command's streams.
pub(super) struct OutputPipe {
    pipe: pipe::Receiver,
    stream: Stream,
    buffer: Vec<u8>,
    is_open: bool,
}

impl OutputPipe {
    pub(super) fn new(pipe: pipe::Receiver, stream: Stream) -> Self {
        Self {
            pipe,
            stream,
            buffer: vec![0; READ_BYTES],
            is_open: true,
        }
    }

    /// Whether more may come.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Moves what is there to the sink. Cancel-safe.
    pub(super) async fn pump(&mut self, sink: &dyn OutputSink) {
        match self.pipe.read(&mut self.buffer).await {
            Ok(n @ 1..) => sink.output(self.stream, &self.buffer[..n]),
            _ => self.is_open = false,
        }
    }

    /// Moves all that is there now. Asks the kernel and not tokio, whose readiness may lag behind.
    pub(super) fn drain(&self, sink: &dyn OutputSink) {
        let mut buffer = vec![0; READ_BYTES];
        // A bound, should a process outside of the sandbox go on writing.
        let mut left = MAX_PIPE_BYTES;
        while left > 0
            && let Ok(n @ 1..) = rustix::io::read(&self.pipe, &mut buffer)
        {
            sink.output(self.stream, &buffer[..n]);
            left -= n.min(left);
        }
    }
}

/// Reader of init's reports. Cancel-safe.
pub(super) struct ReportReader {
    socket: Option<OwnedReadHalf>,
    buffer: Vec<u8>,
    execs: ExecPort,
    is_oom_killed: bool,
}

impl ReportReader {
    pub(super) fn new(socket: OwnedReadHalf, execs: ExecPort) -> Self {
        Self {
            socket: Some(socket),
            buffer: Vec::new(),
            execs,
            is_oom_killed: false,
        }
    }

    /// Whether more may come.
    pub(super) fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// Whether init has reported that the kernel killed a process of the sandbox for want of memory. It does before it
    /// reports the end.
    pub(super) fn is_oom_killed(&self) -> bool {
        self.is_oom_killed
    }

    /// The next report about the sandbox or its first command, those of other execs being delivered; `None` once there can be no more, also after one that makes
    /// no sense.
    pub(super) async fn next(&mut self) -> Option<(ExecNumber, Report)> {
        loop {
            let socket = self.socket.as_mut()?;
            match take_report(&mut self.buffer) {
                Ok(Some((ExecNumber::SANDBOX, Report::OomKilled))) => self.is_oom_killed = true,
                Ok(Some(report @ (ExecNumber::SANDBOX | ExecNumber::FIRST, _))) => {
                    return Some(report);
                }
                Ok(Some((exec, report))) if self.execs.deliver(exec, report.clone()) => {}
                Ok(Some((ExecNumber(exec), _))) => {
                    tracing::warn!(
                        exec,
                        "init reported an exec that was never handed over; ignored"
                    );
                }
                Ok(None) if matches!(socket.read_buf(&mut self.buffer).await, Ok(1..)) => {}
                _ => self.socket = None,
            }
        }
    }

    /// The last report that is still to be read once init is dead; conmon may hold the socket open.
    pub(super) async fn last(&mut self) -> Option<(ExecNumber, Report)> {
        let mut last = None;
        let all = async {
            while let Some(report) = self.next().await {
                last = Some(report);
            }
        };
        // Running into the timeout is the usual end.
        let _ = tokio::time::timeout(LAST_REPORT_TIMEOUT, all).await;
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox_init::wire::ExecEnd;
    use tokio::{io::AsyncWriteExt as _, net::UnixStream};

    #[tokio::test]
    async fn reports_of_unknown_execs_are_ignored() {
        let (ours, mut init) = UnixStream::pair().unwrap();
        let mut reports = ReportReader::new(ours.into_split().0, ExecPort::new().0);
        let ended = |code| Report::Ended(ExecEnd::Exited(code));
        for (exec, report) in [
            (ExecNumber(2), Report::Started),
            (ExecNumber::FIRST, Report::Started),
            (ExecNumber::SANDBOX, Report::OomKilled),
            (ExecNumber::FIRST, ended(3)),
            (ExecNumber(u32::MAX), ended(0)),
        ] {
            init.write_all(&report.encode(exec)).await.unwrap();
        }
        drop(init);
        assert_eq!(
            reports.next().await,
            Some((ExecNumber::FIRST, Report::Started))
        );
        assert!(!reports.is_oom_killed());
        assert_eq!(reports.last().await, Some((ExecNumber::FIRST, ended(3))));
        assert!(reports.is_oom_killed());
        assert!(!reports.is_open());
    }
}
