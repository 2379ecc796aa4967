//! Stream that its owner can cut, although others read and write it.
//!
//! The connection of HTTP/2 runs in a task of its own, and goes on after its handles are dropped, as long as there are
//! calls under way. A tunnel that is replaced has to end at once, with its calls.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

/// Handle that cuts a stream when it is dropped.
pub(super) struct Cutter(oneshot::Sender<Infallible>);

impl Cutter {
    /// Waits until nobody has the stream any more.
    pub(super) async fn dropped(&mut self) {
        self.0.closed().await;
    }
}

/// Stream that can be cut.
pub(super) struct CutStream<T> {
    inner: T,
    /// Resolves once the handle was dropped.
    cut: oneshot::Receiver<Infallible>,
    is_cut: bool,
}

impl<T> CutStream<T> {
    /// Stream, and the handle that cuts it.
    pub(super) fn new(inner: T) -> (Self, Cutter) {
        let (cutter, cut) = oneshot::channel();
        let stream = Self {
            inner,
            cut,
            is_cut: false,
        };
        (stream, Cutter(cutter))
    }

    /// Fails once the stream was cut; wakes the caller then.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        // Not polled again after its end.
        self.is_cut = self.is_cut || Pin::new(&mut self.cut).poll(context).is_ready();
        if self.is_cut {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the tunnel was closed",
            ));
        }
        Ok(())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CutStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CutStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::background;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn cut_ends_calls_under_way() {
        let (near, mut far) = duplex(16);
        let (mut stream, cutter) = CutStream::new(near);
        far.write_all(b"a").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
        let read = background::spawn("test_read", async move {
            let first = stream.read_u8().await;
            let next = stream.write_all(b"b").await;
            [first.map(drop), next].map(|done| done.unwrap_err().kind())
        });
        drop(cutter);
        assert_eq!(read.await.unwrap(), [io::ErrorKind::ConnectionAborted; 2]);
    }
}
