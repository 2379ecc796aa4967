//! Lease of an attempt: the time for which its node may be silent before the job is rescheduled.
//!
//! Every line that the node sends of the attempt renews the lease; it runs while the node is silent. A lease
//! lives in memory, on a clock that neither a changed date nor a laptop's sleep moves, and starts at full length
//! after a restart of the orchestrator. Its expiry alone ends nothing.
//!
//! A lease grows with the job: what has run for two hours is not worth starting over for a minute without a network.

use crate::wait;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Maximum length that a lease grows to.
const MAX_GROWN_LEASE: Duration = Duration::from_mins(30);

/// Length of all leases.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTerms {
    /// Shortest length.
    pub length: Duration,
    /// Whether a lease grows with the time that its job has run.
    pub grows: bool,
}

impl LeaseTerms {
    /// Length of the lease of an attempt that had run for this long when its node went silent.
    fn after(self, ran: Duration) -> Duration {
        let grown = if self.grows { ran / 2 } else { Duration::ZERO };
        self.length.max(grown.min(MAX_GROWN_LEASE))
    }
}

/// Lease of one attempt.
pub(super) struct Lease {
    terms: LeaseTerms,
    /// Time for which the attempt had run when this lease was made, and that time.
    ran: (Duration, Instant),
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
    /// Lease of a node that is asked now about an attempt that has run for this long.
    pub(super) fn new(terms: LeaseTerms, ran: Duration) -> Self {
        Self {
            terms,
            ran: (ran, Instant::now()),
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

    /// Length of the lease of a node that is silent since then.
    fn length(&self, since: Instant) -> Duration {
        let (before, at) = self.ran;
        self.terms.after(before + since.duration_since(at))
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
                        tokio::time::sleep_until(since + self.length(since)).await;
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
    use proptest::prelude::*;
    use tokio::time::{sleep, timeout};

    const LENGTH: Duration = Duration::from_mins(1);
    const FIXED: LeaseTerms = LeaseTerms {
        length: LENGTH,
        grows: false,
    };
    const GROWING: LeaseTerms = LeaseTerms {
        grows: true,
        ..FIXED
    };

    proptest! {
        #[test]
        fn lease_is_half_of_run_within_bounds(
            length in 1..7200_u64, ran in 0..1_000_000_u64, more in 0..1_000_000_u64, grows: bool,
        ) {
            let seconds = Duration::from_secs;
            let terms = LeaseTerms { length: seconds(length), grows };
            let lease = terms.after(seconds(ran));
            prop_assert!(lease >= terms.length);
            prop_assert!(lease <= terms.length.max(MAX_GROWN_LEASE));
            prop_assert!(terms.after(seconds(ran + more)) >= lease, "it never shrinks");
            if !grows || ran / 2 < length {
                prop_assert_eq!(lease, terms.length);
            } else if ran <= 3600 {
                prop_assert_eq!(lease, seconds(ran) / 2);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lease_counts_run_before_silence() {
        let lease = Lease::new(GROWING, Duration::from_mins(10));
        sleep(Duration::from_mins(10)).await;
        lease.renew();
        lease.mark_silent();
        let start = Instant::now();
        sleep(Duration::from_mins(5)).await;
        lease.mark_silent();
        lease.expired().await;
        assert_eq!(start.elapsed(), Duration::from_mins(10));
    }

    #[tokio::test(start_paused = true)]
    async fn lease_ends_exactly_after_duration() {
        let lease = Lease::new(FIXED, Duration::from_hours(9));
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
