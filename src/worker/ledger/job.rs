//! One attempt of a job that a worker accepted: its spool, whose it is, and who waits for it.

use crate::{
    api::{
        OrchestratorId, PAYLOAD_VERSION,
        events::ResultEvent,
        jobs::{JobState, Outcome},
        problem::{Problem, ProblemKind},
    },
    sandbox::shim::Excess,
    spool::{AcceptedJob, Spool},
    wait,
};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// One attempt of a job.
pub(in crate::worker) struct Job {
    pub(in crate::worker) accepted: AcceptedJob,
    pub(in crate::worker) spool: Spool,
    pub(in crate::worker) cancel: watch::Sender<bool>,
    /// Set once the node has it ended for want of room.
    pub(in crate::worker) excess: watch::Sender<Option<Excess>>,
    outcome: watch::Sender<Option<Outcome>>,
    changed: watch::Sender<()>,
    is_pulling: AtomicBool,
}

impl Job {
    pub(in crate::worker) fn new(
        accepted: AcceptedJob,
        spool: Spool,
        outcome: Option<Outcome>,
    ) -> Self {
        Self {
            accepted,
            spool,
            cancel: watch::Sender::new(false),
            excess: watch::Sender::new(None),
            outcome: watch::Sender::new(outcome),
            changed: watch::Sender::new(()),
            is_pulling: AtomicBool::new(false),
        }
    }

    pub(in crate::worker) fn state(&self) -> JobState {
        let ended = self.outcome.borrow().map(Outcome::as_str);
        JobState {
            version: PAYLOAD_VERSION,
            task_id: self.accepted.task_id,
            job_id: self.accepted.job_id,
            attempt: self.accepted.attempt,
            status: ended.unwrap_or(JobState::RUNNING).to_owned(),
        }
    }

    /// Whether this orchestrator may see, end and forget the job.
    pub(in crate::worker) fn belongs_to(&self, orchestrator: Option<&OrchestratorId>) -> bool {
        let owner = self.accepted.orchestrator_id.as_ref();
        owner.is_none() || owner == orchestrator
    }

    /// What is said about one attempt doesn't hold for another.
    pub(super) fn check_attempt(&self, attempt: Option<u32>) -> Result<(), Problem> {
        let has = self.accepted.attempt;
        match attempt {
            Some(attempt) if attempt != has => Err(Problem::new(
                ProblemKind::Conflict,
                format!(
                    "this node has attempt {has} of this job, not {attempt}; ask for that one, or for none"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Notes whether the job waits for the pull of its image; whether it did before.
    pub(in crate::worker) fn set_pulling(&self, is_pulling: bool) -> bool {
        self.is_pulling.swap(is_pulling, Ordering::SeqCst)
    }

    /// Whether the job waits for the pull of its image.
    pub(super) fn is_pulling(&self) -> bool {
        self.is_pulling.load(Ordering::SeqCst) && !self.has_ended()
    }

    /// Whether the job occupies a slot.
    pub(super) fn has_slot(&self) -> bool {
        !self.has_ended() && !self.is_pulling()
    }

    /// Whether there is a result.
    pub(in crate::worker) fn has_ended(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// There is more in the spool than before.
    pub(in crate::worker) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Hears that there is more in the spool.
    pub(in crate::worker) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// There is a result in the spool.
    pub(in crate::worker) fn set_outcome(&self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
        self.notify();
    }

    /// Waits for the result.
    pub(in crate::worker) async fn wait_result(&self) -> Option<ResultEvent> {
        // The sender lives in `self`.
        let _ = wait::until(&mut self.outcome.subscribe(), Option::is_some).await;
        self.read_result().await
    }

    /// The result, once there is one.
    pub(in crate::worker) async fn read_result(&self) -> Option<ResultEvent> {
        let path = self.spool.path().to_owned();
        let read = tokio::task::spawn_blocking(move || Spool::at(path).result()).await;
        match read {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => {
                tracing::error!(job = %self.accepted.job_id, %error, "a result can't be read");
                None
            }
            Err(_) => None,
        }
    }
}
