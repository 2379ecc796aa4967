//! How long a node may be silent before its attempt is offered to another one.
//!
//! A lease is renewed by every line that the node tells of the attempt, and runs from the moment in
//! which it is found to be silent. It is nowhere but in memory, and goes by a clock that neither a changed
//! date nor a laptop's sleep moves: after a start of ours each begins anew at full length. That it has run
//! out ends nothing.

use std::time::Duration;
use tokio::{sync::watch, time::Instant};

/// The lease of one attempt.
pub(super) struct Lease {
    length: Duration,
    silent_since: watch::Sender<Option<Instant>>,
}

impl Lease {
    /// One that was not renewed yet.
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            silent_since: watch::Sender::new(Some(Instant::now())),
        }
    }

    /// The node is there.
    pub(super) fn renew(&self) {
        self.silent_since
            .send_if_modified(|since| since.take().is_some());
    }

    /// The node does not answer now.
    pub(super) fn is_silent(&self) {
        self.silent_since.send_if_modified(|since| {
            let begins = since.is_none();
            since.get_or_insert_with(Instant::now);
            begins
        });
    }

    /// For how long it has not answered.
    pub(super) fn silence(&self) -> Duration {
        let since = *self.silent_since.borrow();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Waits until the node has been silent for as long as it may.
    pub(super) async fn ended(&self) {
        let mut changes = self.silent_since.subscribe();
        loop {
            let since = *changes.borrow_and_update();
            let end = async {
                match since {
                    Some(since) => tokio::time::sleep_until(since + self.length).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end => return,
                // The sender lives in `self`.
                _ = changes.changed() => {}
            }
        }
    }

    /// Waits until the node is there again.
    pub(super) async fn renewed(&self) {
        let _ = self
            .silent_since
            .subscribe()
            .wait_for(Option::is_none)
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const LENGTH: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_after_a_silence_of_its_length_and_not_before() {
        let lease = Lease::new(LENGTH);
        let begun = Instant::now();
        lease.ended().await;
        assert_eq!(begun.elapsed(), LENGTH, "nothing was ever heard");
        lease.renew();
        lease.renewed().await;
        assert!(timeout(10 * LENGTH, lease.ended()).await.is_err());
        lease.is_silent();
        tokio::time::sleep(LENGTH / 2).await;
        lease.is_silent();
        assert_eq!(lease.silence(), LENGTH / 2);
        assert!(timeout(LENGTH, lease.renewed()).await.is_err());
        assert!(timeout(Duration::ZERO, lease.ended()).await.is_ok());
    }
}
