//! Somebody who reads along: keeps the connection alive, and ends with its session.
//!
//! What is told comes from a [`Teller`](super::teller::Teller), which goes on only while we are
//! asked for more. So a slow reader slows nobody but the stream that was opened for it.

use super::{Orchestrator, limits::Following};
use crate::{http::server::ended, identity::Caller};
use bytes::Bytes;
use futures_util::{
    FutureExt as _, Stream,
    future::{BoxFuture, Fuse},
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};

/// A silent stream says so often that it is alive, which keeps proxies from cutting it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One reader of a live stream.
pub(super) struct Reader {
    chunks: mpsc::Receiver<Bytes>,
    telling: Fuse<BoxFuture<'static, ()>>,
    orchestrator: Arc<Orchestrator>,
    /// Who reads; nobody any more once their session has ended.
    caller: Caller,
    revocations: watch::Receiver<()>,
    _following: Following,
}

impl Reader {
    /// One who is told what `tell` sends, until it has ended.
    pub(super) fn new<T: Future<Output = ()> + Send + 'static>(
        tell: impl FnOnce(mpsc::Sender<Bytes>) -> T,
        orchestrator: Arc<Orchestrator>,
        caller: Caller,
        revocations: watch::Receiver<()>,
        following: Following,
    ) -> Self {
        let (sender, chunks) = mpsc::channel(1);
        Self {
            chunks,
            telling: tell(sender).boxed().fuse(),
            orchestrator,
            caller,
            revocations,
            _following: following,
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
                if !self.orchestrator.identity.lives(&self.caller).await {
                    return None;
                }
            }
            tokio::select! {
                chunk = self.chunks.recv() => return chunk.map(|chunk| (chunk, self)),
                () = &mut self.telling => {}
                _ = self.revocations.changed() => self.revocations.mark_changed(),
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    // A session may also run out, which nobody says.
                    self.revocations.mark_changed();
                    return Some((Bytes::from_static(b": still here\n\n"), self));
                }
                () = ended(self.orchestrator.shutdown.clone()) => return None,
            }
        }
    }
}
