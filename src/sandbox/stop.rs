//! Reasons to stop a sandbox before its command ends, and the request to do so.

use crate::{disk_space::Resource, wait};
use std::time::Duration;
use tokio::sync::watch;

/// Most time between TERM and KILL for a command that fills the disk: it may go on to write.
const OUT_OF_DISK_GRACE: Duration = Duration::from_secs(5);
/// Most time between TERM and KILL while the machine shuts down, which itself waits no longer than 90 s.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// Reason for which a sandbox is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StopReason {
    /// Its command ran into its time limit.
    Timeout,
    /// A user or an operator asked for it.
    Canceled,
    /// Its node ends, and leaves no sandbox behind.
    Closing,
    /// The node is short of disk space, and the sandbox uses the most.
    OutOfDisk(Excess),
    /// The node is short of memory, and the sandbox's use of it grew the most.
    OutOfMemory(Overuse),
    /// The sandbox has more on disk than the node allows to one.
    WorkspaceLimit(Overuse),
    /// The stdin of its command can't be read. Only the sandbox's own shim finds this.
    StdinUnreadable,
    /// The machine shuts down.
    Shutdown,
    /// It stays, and nothing has used it for its idle timeout. Only the sandbox's own shim finds this.
    Idle,
    /// It stays, and has reached its lifetime. Only the sandbox's own shim finds this.
    Lifetime,
}

/// Share of a sandbox in the shortage for which it is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Excess {
    /// Resource of which the node is short.
    pub(crate) of: Resource,
    /// Amount that the sandbox uses; `u64::MAX` where it could not be measured.
    pub(crate) used: u64,
    /// Amount that the node keeps free.
    pub(crate) reserve: u64,
}

/// Use that is too much, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Overuse {
    /// Bytes that the sandbox uses; `u64::MAX` where they could not be measured.
    pub(crate) used: u64,
    /// Bytes that it may use, or that the node keeps free.
    pub(crate) limit: u64,
}

/// Request to stop a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StopRequest {
    pub(crate) reason: StopReason,
    /// Most time between TERM and KILL. The command's own grace holds where it is shorter.
    pub(crate) max_grace: Duration,
}

impl StopRequest {
    /// Request that leaves the command its grace, as far as the reason allows.
    pub(crate) fn new(reason: StopReason) -> Self {
        Self::within(reason, Duration::MAX)
    }

    /// Request that leaves the command at most this time.
    pub(crate) fn within(reason: StopReason, max_grace: Duration) -> Self {
        let limit = match reason {
            StopReason::OutOfDisk(_) => OUT_OF_DISK_GRACE,
            // Each moment makes it worse, and others pay for it.
            StopReason::OutOfMemory(_) | StopReason::WorkspaceLimit(_) => Duration::ZERO,
            // A command that waits for the rest must not take it for the end.
            StopReason::StdinUnreadable => Duration::ZERO,
            StopReason::Shutdown => SHUTDOWN_GRACE,
            StopReason::Timeout
            | StopReason::Canceled
            | StopReason::Closing
            | StopReason::Idle
            | StopReason::Lifetime => Duration::MAX,
        };
        Self {
            reason,
            max_grace: max_grace.min(limit),
        }
    }

    /// This request with a later one: the reason of this one counts, and the shortest grace.
    pub(super) fn merge(self, later: Self) -> Self {
        Self {
            max_grace: self.max_grace.min(later.max_grace),
            ..self
        }
    }
}

/// Requests to stop a sandbox. The reason of the first counts, and the shortest grace.
#[derive(Clone, Debug)]
pub(crate) struct Stops(watch::Sender<Option<StopRequest>>);

impl Stops {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Requests the stop, or shortens the grace of one that was requested.
    pub(crate) fn request(&self, request: StopRequest) {
        self.0.send_if_modified(|now| {
            let merged = now.map_or(request, |first| first.merge(request));
            now.replace(merged) != Some(merged)
        });
    }

    /// Waits for a request; its reason.
    pub(crate) async fn requested(&self) -> StopReason {
        self.next(None).await.reason
    }

    /// Waits for a request other than the one `seen` last.
    pub(super) async fn next(&self, seen: Option<StopRequest>) -> StopRequest {
        let is_new = |request: &Option<StopRequest>| request.is_some() && *request != seen;
        match wait::until(&mut self.0.subscribe(), is_new).await {
            Ok(Some(request)) => request,
            // The sender lives in `self`, and the condition holds.
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_reason_and_shortest_grace_count() {
        let stops = Stops::new();
        let waiting = stops.clone();
        let requested = waiting.requested();
        stops.request(StopRequest::new(StopReason::Canceled));
        stops.request(StopRequest::new(StopReason::Shutdown));
        assert_eq!(requested.await, StopReason::Canceled);
        let seen = stops.next(None).await;
        let next = stops.next(Some(seen));
        stops.request(StopRequest::within(StopReason::Canceled, Duration::ZERO));
        stops.request(StopRequest::new(StopReason::Canceled));
        let killed = StopRequest::within(StopReason::Canceled, Duration::ZERO);
        assert_eq!((seen.max_grace, next.await), (SHUTDOWN_GRACE, killed));
    }
}
