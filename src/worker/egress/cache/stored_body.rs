//! Body of an answer that comes from the cache.

use super::{
    disk::{Disk, READ_TIMEOUT, discard},
    reader::Reader,
};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::{
    future::Future,
    io, mem,
    pin::Pin,
    task::{Context, Poll},
};

/// Body that is read from a file. It breaks off where the file is damaged.
pub(super) struct StoredBody {
    disk: Disk,
    reading: Reading,
    left: u64,
}

/// Some bytes, and the reader of the next.
type Part = (Bytes, Box<Reader>);
/// Read under way.
type PartFuture = Pin<Box<dyn Future<Output = io::Result<Part>> + Send>>;

enum Reading {
    Ready(Box<Reader>),
    Busy(PartFuture),
    Over,
}

impl StoredBody {
    /// Body of all that the reader has.
    pub(super) fn new(reader: Reader, disk: Disk) -> Self {
        Self {
            disk,
            left: reader.left(),
            reading: Reading::Ready(Box::new(reader)),
        }
    }
}

/// Reads some bytes.
async fn read(disk: Disk, mut reader: Box<Reader>) -> io::Result<Part> {
    let read = move || reader.read().map(|bytes| (bytes, reader));
    disk.run(READ_TIMEOUT, read).await
}

impl HttpBody for StoredBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        // Over until the next bytes are there: what comes of a failure is the end.
        let mut reading: PartFuture = match mem::replace(&mut this.reading, Reading::Over) {
            Reading::Ready(reader) => Box::pin(read(this.disk.clone(), reader)),
            Reading::Busy(reading) => reading,
            Reading::Over => return Poll::Ready(None),
        };
        let Poll::Ready(done) = reading.as_mut().poll(context) else {
            this.reading = Reading::Busy(reading);
            return Poll::Pending;
        };
        let (bytes, reader) = match done {
            Ok(part) => part,
            Err(error) => return Poll::Ready(Some(Err(error))),
        };
        this.left = reader.left();
        this.reading = Reading::Ready(reader);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Drop for StoredBody {
    fn drop(&mut self) {
        // A read under way drops its reader itself.
        if let Reading::Ready(reader) = mem::replace(&mut self.reading, Reading::Over) {
            discard(reader);
        }
    }
}
