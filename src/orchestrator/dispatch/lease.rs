//! How long a node may be silent before its attempt is offered to another one.
//!
//! A lease is renewed by every line that the node tells of the attempt, and runs from the moment in
//! which it is found to be silent. It is nowhere but in memory, and goes by a clock that neither a changed
//! date nor a laptop's sleep moves: after a start of ours each begins anew at full length. That it has run
//! out ends nothing.

use crate::wait;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// The lease of one attempt.
pub(super) struct Lease {
    length: Duration,
    state: watch::Sender<State>,
    command_ran: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was asked, and may yet answer.
    Pending,
    /// It was heard, and nothing speaks against it since.
    Alive,
    /// It does not answer.
    SilentSince(Instant),
}

impl Lease {
    /// That of a node which is asked now.
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            state: watch::Sender::new(State::Pending),
            command_ran: AtomicBool::new(false),
        }
    }

    /// The node is there.
    pub(super) fn renew(&self) {
        self.state.send_if_modified(|state| {
            let was = std::mem::replace(state, State::Alive);
            was != State::Alive
        });
    }

    /// The node does not answer now.
    pub(super) fn mark_silent(&self) {
        self.state.send_if_modified(|state| {
            let begins = !matches!(state, State::SilentSince(_));
            if begins {
                *state = State::SilentSince(Instant::now());
            }
            begins
        });
    }

    /// The command has run: the lease never ends, since no other node may run it.
    pub(super) fn mark_command_ran(&self) {
        self.command_ran.store(true, Ordering::SeqCst);
    }

    /// Whether the command is known to have run.
    pub(super) fn command_ran(&self) -> bool {
        self.command_ran.load(Ordering::SeqCst)
    }

    /// For how long it has not answered.
    pub(super) fn silence(&self) -> Duration {
        match *self.state.borrow() {
            State::SilentSince(since) => since.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Waits until the node has been silent for as long as it may.
    pub(super) async fn expired(&self) {
        let mut changes = self.state.subscribe();
        loop {
            let state = *changes.borrow_and_update();
            let end = async {
                match state {
                    // Set while the node is heard, so before any silence that is awaited here.
                    State::SilentSince(since) if !self.command_ran() => {
                        tokio::time::sleep_until(since + self.length).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end => return,
                // The sender lives in `self`.
                _ = changes.changed() => {}
            }
        }
    }

    /// Waits until the node was heard.
    pub(super) async fn renewed(&self) {
        let heard = |state: &State| *state == State::Alive;
        let _ = wait::until(&mut self.state.subscribe(), heard).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const LENGTH: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn lease_ends_exactly_after_its_length() {
        let lease = Lease::new(LENGTH);
        assert!(timeout(10 * LENGTH, lease.expired()).await.is_err());
        lease.mark_silent();
        let begun = Instant::now();
        lease.expired().await;
        assert_eq!(begun.elapsed(), LENGTH);
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
