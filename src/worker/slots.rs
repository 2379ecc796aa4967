//! Slots of a worker: the number of sandboxes that run at the same time.
//!
//! A slot is free as soon as all processes of its sandbox are dead. Podman then takes as long again to remove what the
//! sandbox left, and the next start waits for none of that. So that a flood of short jobs doesn't fill the disk with
//! containers, only as many sandboxes as there are slots may wait for their removal. Beyond that, a slot is free when
//! one of them is removed.

use std::future::pending;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

/// Slots of a worker.
pub(super) struct Slots {
    running: Semaphore,
    /// Places of sandboxes that have ended and are not yet removed.
    ended: Semaphore,
}

/// Slot of a job, or its place among the sandboxes that have ended. Both are free when it is dropped.
pub(super) struct Slot<'a> {
    slots: &'a Slots,
    running: Option<SemaphorePermit<'a>>,
    ended: Option<SemaphorePermit<'a>>,
}

impl Slots {
    /// This number of slots.
    pub(super) fn new(count: usize) -> Self {
        Self {
            running: Semaphore::new(count),
            ended: Semaphore::new(count),
        }
    }

    /// Waits for a slot.
    pub(super) async fn acquire(&self) -> Result<Slot<'_>, AcquireError> {
        let running = Some(self.running.acquire().await?);
        Ok(self.slot(running))
    }

    /// Slot of a job that runs already: after a restart with fewer slots, jobs run without one for a while.
    pub(super) fn adopt(&self) -> Slot<'_> {
        self.slot(self.running.try_acquire().ok())
    }

    fn slot<'a>(&'a self, running: Option<SemaphorePermit<'a>>) -> Slot<'a> {
        Slot {
            slots: self,
            running,
            ended: None,
        }
    }
}

impl Slot<'_> {
    /// Whether a sandbox that runs could have the slot once this one has ended.
    pub(super) fn is_held(&self) -> bool {
        self.running.is_some()
    }

    /// Frees the slot of a sandbox whose processes are dead, as soon as there is a place for what is left of it.
    /// Cancel-safe.
    pub(super) async fn leave(&mut self) {
        match self.slots.ended.acquire().await {
            Ok(place) => {
                self.ended = Some(place);
                self.running = None;
            }
            // The semaphore is never closed.
            Err(_) => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn ended_sandboxes_free_slots_within_bound() {
        let slots = Slots::new(2);
        let take = || slots.acquire().now_or_never().and_then(Result::ok);
        let (mut one, mut two) = (take().unwrap(), take().unwrap());
        assert!(take().is_none());
        assert!(one.leave().now_or_never().is_some() && !one.is_held());
        let mut three = take().unwrap();
        assert!(two.leave().now_or_never().is_some());
        let four = take().unwrap();
        assert!(three.leave().now_or_never().is_none(), "two wait already");
        assert!(three.is_held() && take().is_none());
        drop(one);
        assert!(three.leave().now_or_never().is_some());
        assert!(take().is_some());
        drop((two, three, four));
        assert_eq!(
            (
                slots.running.available_permits(),
                slots.ended.available_permits()
            ),
            (2, 2)
        );
    }

    #[tokio::test]
    async fn job_of_earlier_process_needs_no_slot() {
        let slots = Slots::new(1);
        let (one, mut two) = (slots.adopt(), slots.adopt());
        assert!(one.is_held() && !two.is_held());
        assert!(two.leave().now_or_never().is_some());
    }
}
