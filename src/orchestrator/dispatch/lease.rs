//! Lease of an attempt: the time for which its node may be silent before the job is rescheduled.
//!
//! Every line that the node sends of the attempt renews the lease; it runs while the node is silent. A lease
//! lives in memory, on a clock that neither a changed date nor a laptop's sleep moves, and starts at full length
//! after a restart of the orchestrator. Its expiry alone ends nothing.

use crate::wait;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Lease of one attempt.
pub(super) struct Lease {
    length: Duration,
    state: watch::Sender<State>,
    has_command_run: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The node was asked and may yet answer.
    Pending,
    /// The node answered last.
    Alive,
    /// The node does not answer.
    SilentSince(Instant),
}

impl Lease {
    /// Lease of a node that is asked now.
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            state: watch::Sender::new(State::Pending),
            has_command_run: AtomicBool::new(false),
        }
    }

    /// Renews the lease: the node answered.
    pub(super) fn renew(&self) {
        self.state.send_if_modified(|state| {
            let before = std::mem::replace(state, State::Alive);
            before != State::Alive
        });
    }

    /// Starts the lease where it doesn't run yet: the node does not answer.
    pub(super) fn mark_silent(&self) {
        self.state.send_if_modified(|state| {
            let is_first = !matches!(state, State::SilentSince(_));
            if is_first {
                *state = State::SilentSince(Instant::now());
            }
            is_first
        });
    }

    /// Stops the lease for good: the command has run, so no other node may run it.
    pub(super) fn mark_command_ran(&self) {
        self.has_command_run.store(true, Ordering::SeqCst);
    }

    /// Whether the command is known to have run.
    pub(super) fn has_command_run(&self) -> bool {
        self.has_command_run.load(Ordering::SeqCst)
    }

    /// Time since which the node does not answer.
    pub(super) fn silence(&self) -> Duration {
        match *self.state.borrow() {
            State::SilentSince(since) => since.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Waits until the node has been silent for the whole lease.
    pub(super) async fn expired(&self) {
        let mut changes = self.state.subscribe();
        loop {
            let state = *changes.borrow_and_update();
            let expiry = async {
                match state {
                    // The flag is set while the node answers, so before any silence that counts here.
                    State::SilentSince(since) if !self.has_command_run() => {
                        tokio::time::sleep_until(since + self.length).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = expiry => return,
                // The sender lives in `self`.
                _ = changes.changed() => {}
            }
        }
    }

    /// Waits until the node answers.
    pub(super) async fn renewed(&self) {
        let is_alive = |state: &State| *state == State::Alive;
        let _ = wait::until(&mut self.state.subscribe(), is_alive).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const LENGTH: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn lease_ends_exactly_after_duration() {
        let lease = Lease::new(LENGTH);
        assert!(timeout(10 * LENGTH, lease.expired()).await.is_err());
        lease.mark_silent();
        let start = Instant::now();
        lease.expired().await;
        assert_eq!(start.elapsed(), LENGTH);
        assert!(timeout(LENGTH, lease.renewed()).await.is_err());
        lease.renew();
        lease.renewed().await;
        assert!(timeout(10 * LENGTH, lease.expired()).await.is_err());
        lease.mark_silent();
        tokio::time::sleep(LENGTH / 2).await;
        lease.mark_silent();
        assert_eq!(lease.silence(), LENGTH / 2);
        assert!(timeout(LENGTH, lease.renewed()).await.is_err());
        assert!(timeout(Duration::ZERO, lease.expired()).await.is_ok());
        lease.renew();
        lease.mark_command_ran();
        lease.mark_silent();
        assert!(timeout(10 * LENGTH, lease.expired()).await.is_err());
    }
}
