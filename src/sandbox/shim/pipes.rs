//! The shim's ends of what a sandbox holds: its output, and what init reports.

use super::sink::OutputSink;
use crate::{
    api::events::Stream,
    sandbox_init::wire::{Report, take_report},
};
use std::{io, os::fd::OwnedFd, time::Duration};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::{OwnedReadHalf, pipe},
};

/// A pipe: our end, which never blocks us, and the command's, which may block it.
pub(super) fn pipe_pair() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = io::pipe()?;
    let read = OwnedFd::from(read);
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write.into()))
}

/// The shim's end of one of the command's streams.
pub(super) struct Pipe {
    pipe: pipe::Receiver,
    stream: Stream,
    buffer: Vec<u8>,
    pub(super) open: bool,
}

impl Pipe {
    pub(super) fn new(pipe: pipe::Receiver, stream: Stream) -> Self {
        Self {
            pipe,
            stream,
            buffer: vec![0; 64 * 1024],
            open: true,
        }
    }

    /// Moves what is there into the log. Can be interrupted without loss.
    pub(super) async fn pump(&mut self, sink: &OutputSink) {
        match self.pipe.read(&mut self.buffer).await {
            Ok(n @ 1..) => sink.write(self.stream, &self.buffer[..n]),
            _ => self.open = false,
        }
    }

    /// Takes all that is there now. Asks the kernel and not tokio, which may not have heard yet that
    /// there is something.
    pub(super) fn drain(&self, sink: &OutputSink) {
        let mut buffer = vec![0; self.buffer.len()];
        // A pipe holds a megabyte at most; should somebody still write, this ends all the same.
        let mut left = 1 << 20;
        while left > 0
            && let Ok(n @ 1..) = rustix::io::read(&self.pipe, &mut buffer)
        {
            sink.write(self.stream, &buffer[..n]);
            left -= n.min(left);
        }
    }
}

/// Reader of init's reports. Cancel-safe.
pub(super) struct ReportReader {
    socket: Option<OwnedReadHalf>,
    buffer: Vec<u8>,
}

impl ReportReader {
    pub(super) fn new(socket: OwnedReadHalf) -> Self {
        Self {
            socket: Some(socket),
            buffer: Vec::new(),
        }
    }

    /// Whether more may come.
    pub(super) fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// The next report; `None` once there can be no more, also after one that makes no sense.
    pub(super) async fn next(&mut self) -> Option<Report> {
        loop {
            let socket = self.socket.as_mut()?;
            match take_report(&mut self.buffer) {
                Ok(Some((_, report))) => return Some(report),
                Ok(None) if matches!(socket.read_buf(&mut self.buffer).await, Ok(1..)) => {}
                _ => self.socket = None,
            }
        }
    }

    /// The last report that is still to be read once init is dead; conmon may hold the socket open.
    pub(super) async fn final_report(&mut self) -> Option<Report> {
        let mut last = None;
        let all = async {
            while let Some(report) = self.next().await {
                last = Some(report)
                    .filter(|report| matches!(report, Report::Ended(_) | Report::Refused(_)));
            }
        };
        // Running into the timeout is the usual end.
        let _ = tokio::time::timeout(Duration::from_millis(100), all).await;
        last
    }
}
