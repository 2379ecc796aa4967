//! Who follows which running job, so that a cancel finds its way.

use crate::api::JobId;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};
use tokio::sync::watch;

/// The jobs that are followed now.
#[derive(Default)]
pub(super) struct Followers(Mutex<HashMap<JobId, watch::Sender<bool>>>);

impl Followers {
    /// A follower begins; it hears of a cancel on the receiver.
    pub(super) fn enter(&self, job: JobId, canceled: bool) -> watch::Receiver<bool> {
        let (sender, receiver) = watch::channel(canceled);
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(job, sender);
        receiver
    }

    /// A follower has stored the end.
    pub(super) fn leave(&self, job: JobId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&job);
    }

    /// Tells the follower of a job, if it has one, to have it ended.
    pub(super) fn cancel(&self, job: JobId) {
        if let Some(follower) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&job)
        {
            follower.send_replace(true);
        }
    }
}
