//! Body of an answer that is stored while the client gets it.
//!
//! The client waits for each write, but for slow ones not long in all: where the disk is slow or fails it gets the rest
//! without the cache.
//! What is stored is what the host announced, to its last byte: a client that leaves, or a host that breaks off, leaves
//! nothing.

use super::{
    disk::{Disk, SHORT_TIMEOUT, discard},
    store::Writer,
};
use crate::{background, http::response::Body};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::{
    future::Future,
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// Bytes that are gathered for one write.
const WRITE_BYTES: usize = 128 * 1024;
/// Time from which a write is slow.
const SLOW: Duration = Duration::from_millis(50);

/// Body that is stored.
pub(super) struct TeeBody {
    body: Body,
    disk: Disk,
    storing: Storing,
    /// Bytes that were not written yet. A copy: the pieces of a host that sends few at a time would each keep a buffer.
    pending: Vec<u8>,
    /// Bytes that did not come yet.
    left: u64,
    patience: Patience,
}

/// Time that a client still waits for slow writes. Other jobs may make a disk slow for long.
struct Patience(Duration);

/// What has written, and how long it took; `None` where that has failed.
type Written = Option<(Box<Writer>, Duration)>;
/// Write under way.
type WriteFuture = Pin<Box<dyn Future<Output = Written> + Send>>;

enum Storing {
    Ready(Box<Writer>),
    Busy(WriteFuture),
    /// Over, or given up.
    Over,
}

impl TeeBody {
    /// Body of so many bytes, which `writer` stores.
    pub(super) fn new(body: Body, length: u64, writer: Writer, disk: Disk) -> Self {
        Self {
            body,
            disk,
            storing: Storing::Ready(Box::new(writer)),
            pending: Vec::new(),
            left: length,
            patience: Patience(SHORT_TIMEOUT),
        }
    }

    /// Stores the next bytes, as soon as they are many or the last. The last ones are stored in the background: hyper asks
    /// for no more when it has as many as were announced.
    fn store(&mut self, data: &[u8]) {
        let Some(left) = self.left.checked_sub(data.len() as u64) else {
            self.give_up();
            return;
        };
        self.left = left;
        if matches!(self.storing, Storing::Over) {
            return;
        }
        self.pending.extend_from_slice(data);
        if left > 0 && self.pending.len() < WRITE_BYTES {
            return;
        }
        let Storing::Ready(writer) = mem::replace(&mut self.storing, Storing::Over) else {
            return;
        };
        let (disk, bytes) = (self.disk.clone(), mem::take(&mut self.pending));
        if left > 0 {
            self.storing = Storing::Busy(Box::pin(write(disk, writer, bytes)));
        } else {
            background::spawn("egress_cache_store", finish(disk, writer, bytes));
        }
    }

    fn give_up(&mut self) {
        self.pending = Vec::new();
        // A write under way drops its writer itself.
        if let Storing::Ready(writer) = mem::replace(&mut self.storing, Storing::Over) {
            discard(writer);
        }
    }
}

impl Patience {
    /// Whether there is some left after a write that took so long.
    fn bears(&mut self, took: Duration) -> bool {
        if took >= SLOW {
            self.0 = self.0.saturating_sub(took);
        }
        !self.0.is_zero()
    }
}

/// Writes some bytes. `None` where that fails or takes long.
async fn write(disk: Disk, mut writer: Box<Writer>, bytes: Vec<u8>) -> Written {
    let began = Instant::now();
    let written = disk.run(SHORT_TIMEOUT, move || writer.write(&bytes).map(|()| writer));
    let writer = logged(written.await)?;
    Some((writer, began.elapsed()))
}

/// Writes the last bytes.
async fn finish(disk: Disk, mut writer: Box<Writer>, bytes: Vec<u8>) {
    let written = disk.run(SHORT_TIMEOUT, move || {
        writer.write(&bytes).and_then(|()| writer.finish())
    });
    logged(written.await);
}

fn logged<T>(written: io::Result<T>) -> Option<T> {
    // A job can cause many.
    written
        .inspect_err(|error| tracing::debug!(%error, "download not stored in the egress cache"))
        .ok()
}

impl HttpBody for TeeBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if let Storing::Busy(write) = &mut this.storing {
            let written = ready!(write.as_mut().poll(context));
            this.storing = match written {
                Some((writer, took)) if this.patience.bears(took) => Storing::Ready(writer),
                Some((writer, _)) => {
                    discard(writer);
                    Storing::Over
                }
                None => Storing::Over,
            };
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.store(data);
                }
            }
            Some(Err(_)) | None => this.give_up(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TeeBody {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_writes_end_the_storing() {
        let mut patience = Patience(SHORT_TIMEOUT);
        for _ in 0..100_000 {
            assert!(patience.bears(SLOW / 2));
        }
        let slow = (0..).take_while(|_| patience.bears(SLOW)).count();
        assert_eq!(slow, 39);
    }
}
