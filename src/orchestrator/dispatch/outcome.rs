//! Outcome of an attempt, as an answer of its node, or the lack of one, implies it. Pure.

use super::Start;
use crate::{
    api::{
        events::{OutputLog, ResultEvent},
        job_document::DocumentError,
    },
    identity::SecretError,
    orchestrator::{
        node_client::{NodeCallError, NodeCallErrorKind},
        reason::Reason,
    },
    store::{RunningJob, StoreError},
};

/// Outcome of an attempt.
#[derive(Debug)]
pub(super) enum AttemptOutcome {
    /// A result.
    Ended(Box<ResultEvent>),
    /// The node did not start the attempt.
    NotStarted(Reason),
    /// The node did not start the attempt: all its slots are taken.
    AtCapacity(Reason),
    /// The node did not start the attempt: its image has to be pulled, and too many jobs wait for pulls. Jobs
    /// whose image is there may still start.
    PullQueueFull(Reason),
    /// The node did not start the attempt: too few of its GPUs are free. Jobs that need fewer may still start.
    GpusBusy(Reason),
    /// The node did not start the attempt: it has no room for the job's files at present. Other jobs can start.
    NoRoom(Reason),
    /// The node was not sent the whole attempt, which is not for its sake: the job was canceled, or the orchestrator
    /// could not read its files at the moment.
    NotSent(Reason),
    /// The node did not start the attempt, and says why it can't run jobs at present.
    NodeUnhealthy(Reason),
    /// The node never starts this job as it is.
    Rejected(Reason),
    /// No node can start this job: its sandbox is damaged in the database.
    Damaged(Reason),
    /// No node can start this job: a secret that it names is not there any more.
    SecretMissing(Reason),
    /// Unknown: the command may have run.
    Lost(Reason),
    /// The command has run and its result is unusable, so that no other attempt may follow.
    Unreadable(Reason),
}

impl AttemptOutcome {
    /// Whether no other attempt could improve it.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Ended(last) => {
                last.result.error.as_ref().is_none_or(|error| {
                    !error.kind.is_retryable() && !error.kind.is_node_specific()
                })
            }
            _ => false,
        }
    }

    /// Logs an outcome that is not a result.
    pub(super) fn log(&self) {
        match self {
            Self::Ended(_) | Self::Rejected(_) => {}
            Self::PullQueueFull(reason) => {
                tracing::info!(%reason, "node did not start the job: its pull queue is full");
            }
            Self::GpusBusy(reason) => {
                tracing::info!(%reason, "node did not start the job: its GPUs are taken");
            }
            Self::NoRoom(reason) => {
                tracing::info!(%reason, "node did not start the job: it has no room for the job's files");
            }
            Self::NotSent(reason) => tracing::info!(%reason, "job not sent to its node"),
            Self::NotStarted(reason) | Self::AtCapacity(reason) | Self::NodeUnhealthy(reason) => {
                tracing::warn!(%reason, "node did not start the job");
            }
            Self::Damaged(reason) => tracing::error!(%reason, "job can't be sent to any node"),
            Self::SecretMissing(reason) => tracing::info!(%reason, "job can't get its secrets"),
            Self::Lost(reason) => tracing::warn!(%reason, "attempt lost"),
            Self::Unreadable(reason) => {
                let reason = reason.for_admins();
                tracing::warn!(reason, "job ran and its result is lost; not retried");
            }
        }
    }

    /// Same outcome for an attempt whose command is known to have run.
    pub(super) fn after_command_ran(self) -> Self {
        match self {
            Self::Lost(reason) => Self::Unreadable(reason),
            other => other,
        }
    }
}

/// Exchange with a node that brought no result.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct AttemptError {
    pub(super) reason: Reason,
    /// Outcome that follows; `None`: ask the node again.
    pub(super) outcome: Option<AttemptOutcome>,
    /// Failure of the store that kept the node from being asked. It says nothing about the node.
    pub(super) store_error: Option<Box<StoreError>>,
}

impl AttemptError {
    /// Error after which the node is asked again.
    pub(super) fn transient(reason: impl Into<Reason>) -> Self {
        Self {
            reason: reason.into(),
            outcome: None,
            store_error: None,
        }
    }

    /// Failed read of the store, which is repeated.
    pub(super) fn of_store(error: StoreError) -> Self {
        Self {
            store_error: Some(Box::new(error)),
            ..Self::transient("the job can't be read from the database")
        }
    }

    /// Failed read of a job's sandbox. A damaged one stays damaged, so that no node can run the job.
    pub(super) fn of_sandbox(error: StoreError) -> Self {
        let is_damaged = matches!(error, StoreError::Damaged(_) | StoreError::Json(_));
        let outcome = is_damaged.then(|| {
            let reason = "the task is damaged in the database, so no node can run it";
            AttemptOutcome::Damaged(reason.into())
        });
        Self {
            outcome,
            ..Self::of_store(error)
        }
    }

    /// Failure to get the secrets of a job. One that was removed comes back only by its user, so the job ends.
    pub(super) fn of_secrets(error: SecretError) -> Self {
        if let SecretError::Store(error) = error {
            return Self::of_sandbox(error);
        }
        let reason = Reason::from(error.to_string().as_str());
        Self {
            outcome: Some(AttemptOutcome::SecretMissing(reason.clone())),
            ..Self::transient(reason)
        }
    }

    /// Error after which the attempt is lost.
    pub(super) fn lost(reason: &str) -> Self {
        Self {
            reason: reason.into(),
            outcome: Some(AttemptOutcome::Lost(reason.into())),
            store_error: None,
        }
    }

    /// Invalid answer of success.
    pub(super) fn unreadable(reason: impl Into<Reason>) -> Self {
        let reason = reason.into();
        let reason = reason.map(|why| format!("its node sent an invalid answer ({why})"));
        Self {
            outcome: Some(AttemptOutcome::Unreadable(reason.clone())),
            reason,
            store_error: None,
        }
    }

    /// Document of success that is not about this attempt. After `jobs:run` its result is gone.
    pub(super) fn of_document(error: &DocumentError, start: Start) -> Self {
        let words = match error {
            DocumentError::UnknownStatus(status) => Some(status.as_str()),
            DocumentError::Version(_) | DocumentError::OtherAttempt => None,
        };
        let reason = Reason::with_detail(error.to_string(), words);
        match start {
            Start::Run => Self::unreadable(reason),
            Start::Attach => Self::transient(reason),
        }
    }

    /// Answer that broke off or is invalid. After `jobs:run` the command has run and its result is gone; a
    /// later question may have been answered by anything in between.
    pub(super) fn of_read(error: NodeCallError, start: Start) -> Self {
        match (error.kind, start) {
            (NodeCallErrorKind::Malformed, Start::Run) => {
                tracing::debug!(%error, "node sent an invalid answer");
                Self::unreadable("it violates the contract")
            }
            _ => Self::transient(error.reason),
        }
    }

    /// Failed request. An answer to a question about an attempt counts only in a worker's own words: a proxy
    /// answers the same for a node that it lost sight of.
    pub(super) fn of_request(error: NodeCallError, start: Start) -> Self {
        use NodeCallErrorKind as Kind;
        let is_own_answer = error.is_own_answer;
        let reason = error.reason;
        let outcome = match (start, error.kind) {
            (Start::Run, Kind::Invalid | Kind::TooLarge) => AttemptOutcome::Rejected,
            (Start::Run, Kind::Conflict) => AttemptOutcome::Lost,
            (Start::Run, Kind::Unhealthy | Kind::NoRoom) => AttemptOutcome::NodeUnhealthy,
            (Start::Run, Kind::PullQueueFull) => AttemptOutcome::PullQueueFull,
            (Start::Run, Kind::GpusBusy) => AttemptOutcome::GpusBusy,
            (Start::Run, Kind::AtCapacity) => AttemptOutcome::AtCapacity,
            (
                Start::Run,
                Kind::Unreachable
                | Kind::UnknownToken
                | Kind::Denied
                | Kind::NotFound
                | Kind::Unsupported,
            ) => AttemptOutcome::NotStarted,
            (Start::Attach, Kind::NotFound | Kind::Conflict) if is_own_answer => {
                return Self {
                    store_error: None,
                    reason,
                    outcome: Some(AttemptOutcome::Lost(
                        "its node does not have it (any more)".into(),
                    )),
                };
            }
            _ => return Self::transient(reason),
        };
        Self {
            outcome: Some(outcome(reason.clone())),
            reason,
            store_error: None,
        }
    }
}

/// Checks a result: it must be this job's and valid. An outline that doesn't match the output is replaced by
/// one that does.
pub(super) fn validate_result(
    job: &RunningJob,
    mut last: ResultEvent,
) -> Result<ResultEvent, AttemptError> {
    let result = &last.result;
    let is_own =
        result.job_id == job.id && result.task_id == job.task_id && result.attempt == job.attempt;
    if !(is_own && result.is_valid()) {
        return Err(AttemptError::unreadable(
            "a result that can't be this job's",
        ));
    }
    last.outline = OutputLog::restore(&last.outline, &result.stdout, &result.stderr).outline();
    Ok(last)
}

#[cfg(test)]
pub(super) mod tests;
