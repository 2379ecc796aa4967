//! One reader of a live log: bounded by its session, and notified when idle.
//!
//! Events come from a [`LogStreamer`], which goes on only while it is polled: a slow reader holds up nothing
//! but the stream that was opened for it.

use super::{AppState, LogEvent, LogStreamer, limits::FollowPermit};
use crate::{api::tasks::TaskStatus, http::server::shutdown_requested, identity::Caller};
use futures_util::{
    FutureExt as _, Stream,
    future::{BoxFuture, Fuse},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};
use tracing::Instrument as _;

/// Time without an event after which [`LogUpdate::Idle`] is sent. Proxies cut connections that are silent
/// for longer.
const IDLE_INTERVAL: Duration = Duration::from_secs(15);

/// Next item of a followed log.
pub(in crate::orchestrator) enum LogUpdate {
    /// An event.
    Event(LogEvent),
    /// Nothing happened for a while; the connection has to be kept alive.
    Idle,
}

/// Reader of a live log.
pub(in crate::orchestrator) struct LogFollower {
    events: mpsc::Receiver<LogEvent>,
    streaming: Fuse<BoxFuture<'static, ()>>,
    state: Arc<AppState>,
    /// Completes when the session or key of the reader has ended.
    ended: BoxFuture<'static, ()>,
    _permit: FollowPermit,
}

impl LogFollower {
    /// Reader of `streamer`, for a task whose stored status is `stored`.
    pub(super) fn new(
        streamer: LogStreamer,
        stored: TaskStatus,
        state: Arc<AppState>,
        caller: Caller,
        revocations: watch::Receiver<()>,
        permit: FollowPermit,
    ) -> Self {
        let (sender, events) = mpsc::channel(1);
        // The stream outlives the handler of its request; its log lines still name the request.
        let streaming = streamer.run(stored, sender).in_current_span();
        let shared = Arc::clone(&state);
        let ended = async move { shared.identity.ended(&caller, revocations).await };
        Self {
            events,
            streaming: streaming.boxed().fuse(),
            state,
            ended: ended.boxed(),
            _permit: permit,
        }
    }

    /// Updates until the task has ended, the session has ended, or this orchestrator shuts down.
    pub(in crate::orchestrator) fn updates(self) -> impl Stream<Item = LogUpdate> + Send {
        futures_util::stream::unfold(self, Self::next)
    }

    async fn next(mut self) -> Option<(LogUpdate, Self)> {
        loop {
            tokio::select! {
                // No event is sent once the session has ended.
                biased;
                () = &mut self.ended => return None,
                event = self.events.recv() => return event.map(|event| (LogUpdate::Event(event), self)),
                () = &mut self.streaming => {}
                () = tokio::time::sleep(IDLE_INTERVAL) => return Some((LogUpdate::Idle, self)),
                () = shutdown_requested(self.state.shutdown.clone()) => return None,
            }
        }
    }
}
