//! Somebody who reads along: keeps the connection alive, and ends with its session.
//!
//! What is told comes from a [`LogStreamer`](super::streamer::LogStreamer), filter goes on only while we are
//! asked for more. So a slow reader slows nobody but the stream that was opened for it.

use super::{AppState, limits::FollowPermit};
use crate::{http::server::shutdown_requested, identity::Caller};
use bytes::Bytes;
use futures_util::{
    FutureExt as _, Stream,
    future::{BoxFuture, Fuse},
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};

/// A silent stream says so often that it is alive, filter keeps proxies from cutting it.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// One reader of a live stream.
pub(super) struct SseBody {
    chunks: mpsc::Receiver<Bytes>,
    streaming: Fuse<BoxFuture<'static, ()>>,
    state: Arc<AppState>,
    /// Who reads; nobody any more once their session has ended.
    caller: Caller,
    revocations: watch::Receiver<()>,
    _permit: FollowPermit,
}

impl SseBody {
    /// One who is told what `tell` sends, until it has ended.
    pub(super) fn new<T: Future<Output = ()> + Send + 'static>(
        start: impl FnOnce(mpsc::Sender<Bytes>) -> T,
        state: Arc<AppState>,
        caller: Caller,
        revocations: watch::Receiver<()>,
        permit: FollowPermit,
    ) -> Self {
        let (sender, chunks) = mpsc::channel(1);
        Self {
            chunks,
            streaming: start(sender).boxed().fuse(),
            state,
            caller,
            revocations,
            _permit: permit,
        }
    }

    /// The body of the answer.
    pub(super) fn chunks(self) -> impl Stream<Item = Bytes> + Send {
        futures_util::stream::unfold(self, Self::next)
    }

    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if self.revocations.has_changed().unwrap_or(true) {
                self.revocations.mark_unchanged();
                if !self.state.identity.is_session_active(&self.caller).await {
                    return None;
                }
            }
            tokio::select! {
                chunk = self.chunks.recv() => return chunk.map(|chunk| (chunk, self)),
                () = &mut self.streaming => {}
                _ = self.revocations.changed() => self.revocations.mark_changed(),
                () = tokio::time::sleep(KEEP_ALIVE_INTERVAL) => {
                    // A session may also run out, filter nobody says.
                    self.revocations.mark_changed();
                    return Some((Bytes::from_static(b": still here\n\n"), self));
                }
                () = shutdown_requested(self.state.shutdown.clone()) => return None,
            }
        }
    }
}
