//! Bodies of a call of the file server, both ways, a chunk at a time.

use crate::{api::problem::Problem, http::body::BodyChunks};
use bytes::Bytes;
use futures_util::{Stream, stream};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Time of the last byte in either direction.
#[derive(Clone)]
pub(super) struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    fn mark(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Waits until nothing has happened for so long.
    pub(super) async fn silence(&self, limit: Duration) {
        loop {
            let until = *self.0.lock() + limit;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Body of a request on its way to the file server.
pub(super) struct Upload {
    chunks: Arc<tokio::sync::Mutex<BodyChunks>>,
    announced: Option<u64>,
    fault: Arc<Mutex<Option<Problem>>>,
    progress: Progress,
}

impl Upload {
    pub(super) fn new(chunks: BodyChunks) -> Self {
        Self {
            announced: chunks.announced_size(),
            chunks: Arc::new(chunks.into()),
            fault: Arc::default(),
            progress: Progress(Arc::new(Instant::now().into())),
        }
    }

    pub(super) fn announced_size(&self) -> Option<u64> {
        self.announced
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Fault of the sender, for which the body has ended early.
    pub(super) fn take_fault(&self) -> Option<Problem> {
        self.fault.lock().take()
    }

    /// Body for the call.
    pub(super) fn frames(&self) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static {
        let state = (
            Arc::clone(&self.chunks),
            Arc::clone(&self.fault),
            self.progress.clone(),
        );
        stream::try_unfold(state, async |(chunks, fault, progress)| {
            let next = chunks.lock().await.next().await;
            progress.mark();
            match next {
                Ok(chunk) => Ok(chunk.map(|chunk| (Frame::data(chunk), (chunks, fault, progress)))),
                Err(problem) => {
                    let error = io::Error::other(problem.detail.clone());
                    *fault.lock() = Some(problem);
                    Err(error)
                }
            }
        })
    }
}

/// Connection to the file server, which goes on while it is polled.
pub(super) type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// Body of an answer of the file server. It drives the connection, so that nothing is left of the call once the reader
/// is gone.
pub(super) struct DrivenBody {
    body: Incoming,
    connection: Connection,
    limit: Duration,
    silence: Pin<Box<Sleep>>,
}

impl DrivenBody {
    /// Body that fails after `limit` without a byte, while its reader waits for one. `connection` must be fused.
    pub(super) fn new(body: Incoming, connection: Connection, limit: Duration) -> Self {
        Self {
            body,
            connection,
            limit,
            silence: Box::pin(sleep(limit)),
        }
    }
}

impl Body for DrivenBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        // Its failure is one of the body, too.
        let _ = this.connection.as_mut().poll(context);
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(frame) => {
                let until = Instant::now() + this.limit;
                this.silence.as_mut().reset(until);
                Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
            }
            Poll::Pending => {
                let silence = this.silence.as_mut().poll(context);
                silence.map(|()| Some(Err(io::ErrorKind::TimedOut.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
