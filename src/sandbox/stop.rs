//! Reasons to stop a sandbox before its command ends, and the request to do so.

use crate::{disk_space::Resource, wait};
use tokio::sync::watch;

/// Reason for which a sandbox is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StopReason {
    /// Its command ran into its time limit.
    Timeout,
    /// A user or an operator asked for it.
    Canceled,
    /// The node is short of disk space, and the sandbox uses the most.
    OutOfDisk(Excess),
    /// The machine shuts down.
    Shutdown,
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

/// Requests to stop a sandbox, of which the first counts.
#[derive(Clone, Debug)]
pub(crate) struct Stops(watch::Sender<Option<StopReason>>);

impl Stops {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Requests the stop.
    pub(crate) fn request(&self, reason: StopReason) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(reason);
            is_first
        });
    }

    /// Waits for a request.
    pub(crate) async fn requested(&self) -> StopReason {
        match wait::until(&mut self.0.subscribe(), Option::is_some).await {
            Ok(Some(reason)) => reason,
            // The sender lives in `self`, and the condition holds.
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_request_to_stop_counts() {
        let stops = Stops::new();
        let waiting = stops.clone();
        let requested = waiting.requested();
        stops.request(StopReason::Shutdown);
        stops.request(StopReason::Canceled);
        assert_eq!(requested.await, StopReason::Shutdown);
    }
}
