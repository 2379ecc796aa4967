//! Connection to a file server that may answer before it has read the whole call, and hang up.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{Sleep, sleep},
};

/// Time in which an answer is made use of that was read before the end of its connection was.
const RESET_DELAY: Duration = Duration::from_millis(200);

/// Stream whose peer may read no more. What is written then is dropped, and the end is late, so that an answer which the
/// peer sent before comes first: else either would be the end of the call.
pub(super) struct AnsweredStream {
    stream: UnixStream,
    /// End of the time before a reset shows.
    reset_at: Option<Pin<Box<Sleep>>>,
}

impl AnsweredStream {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            reset_at: None,
        }
    }
}

/// Outcome of a write, `instead` of the error that the peer reads no more.
fn dropped<T>(written: Poll<io::Result<T>>, instead: T) -> Poll<io::Result<T>> {
    match written {
        Poll::Ready(Err(error))
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Poll::Ready(Ok(instead))
        }
        written => written,
    }
}

impl AsyncRead for AnsweredStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.reset_at.is_none() {
            match ready!(Pin::new(&mut this.stream).poll_read(context, buffer)) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    this.reset_at = Some(Box::pin(sleep(RESET_DELAY)));
                }
                read => return Poll::Ready(read),
            }
        }
        if let Some(reset_at) = &mut this.reset_at {
            ready!(reset_at.as_mut().poll(context));
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

impl AsyncWrite for AnsweredStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        dropped(
            Pin::new(&mut self.stream).poll_write(context, bytes),
            bytes.len(),
        )
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        dropped(written, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        dropped(Pin::new(&mut self.stream).poll_flush(context), ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        dropped(Pin::new(&mut self.stream).poll_shutdown(context), ())
    }
}
