//! Transition for each kind of outcome.

use super::*;
use crate::{
    api::{
        jobs::{JobError, JobResult, Truncated},
        time::Time,
    },
    orchestrator::{dispatch::outcome::tests::job, reason::Reason},
};

fn decide(attempt: u32, max_attempts: u32, outcome: AttemptOutcome) -> Transition {
    let job = RunningJob {
        attempt,
        last_attempt: attempt,
        max_attempts,
        ..job()
    };
    Transition::decide(&job, outcome)
}

fn ended(status: Outcome, exit_code: Option<i32>, error: Option<JobErrorKind>) -> AttemptOutcome {
    let job = job();
    let result = JobResult {
        version: 1,
        task_id: job.task_id,
        job_id: job.id,
        attempt: 1,
        status,
        exit_code,
        stdout: String::new(),
        stderr: String::new(),
        started_at: Time::from_millis(0),
        ended_at: Time::from_millis(5),
        truncated: Truncated::default(),
        effective: None,
        error: error.map(|kind| JobError {
            kind,
            message: "boom".to_owned(),
        }),
        oom_killed: false,
        reason: None,
        inference: None,
        artifacts: Vec::new(),
        artifacts_skipped: None,
    };
    AttemptOutcome::Ended(Box::new(ResultEvent {
        seq: 1,
        outline: vec![],
        result,
    }))
}

#[test]
fn damaged_job_fails_at_once() {
    let damaged = decide(1, 3, AttemptOutcome::Damaged("it is damaged".into()));
    assert!(damaged.requeue_after.is_none() && damaged.refusal.is_none());
    assert_eq!(
        (damaged.end.status, damaged.end.summary.as_str()),
        (JobStatus::Failed, "it is damaged")
    );
    assert!(damaged.cleanup == Cleanup::Nothing, "it was never sent");
}

#[test]
fn job_without_its_secret_fails_at_once() {
    let missing = AttemptOutcome::SecretMissing("there is no secret A".into());
    let missing = decide(1, 3, missing);
    assert!(missing.requeue_after.is_none() && missing.refusal.is_none());
    assert_eq!(missing.end.summary, "there is no secret A");
    assert!(missing.cleanup == Cleanup::Nothing, "it was never sent");
    let lost = ended(Outcome::Failed, None, Some(JobErrorKind::SecretsLost));
    assert!(decide(1, 3, lost).requeue_after.is_some());
}

#[test]
fn infrastructure_faults_are_retried_up_to_limit() {
    let failed = |code| ended(Outcome::Failed, Some(code), None);
    let error = |kind| ended(Outcome::Failed, None, Some(kind));
    assert!(
        decide(1, 3, failed(7)).requeue_after.is_none(),
        "a command's own failure is final"
    );
    let refused = decide(1, 3, error(JobErrorKind::ImageNotFound));
    assert!(
        refused.requeue_after.is_none()
            && refused.refusal.is_some()
            && refused.end.result.is_some()
    );
    assert!(
        decide(1, 3, error(JobErrorKind::EngineError))
            .requeue_after
            .is_some()
    );
    assert!(
        decide(3, 3, error(JobErrorKind::EngineError))
            .requeue_after
            .is_none()
    );
    assert!(
        decide(2, 3, AttemptOutcome::Lost(Reason::default()))
            .requeue_after
            .is_some()
    );
    let last = decide(1, 1, AttemptOutcome::Lost("gone".into()));
    assert!(
        last.requeue_after.is_none()
            && last.end.status == JobStatus::Lost
            && last.end.summary.contains("gone")
    );
    // An attempt that did not start doesn't count, with any maximum.
    let not_started = decide(1, 1, AttemptOutcome::NotStarted(Reason::default()));
    assert!(
        not_started.requeue_after.is_some()
            && not_started.is_not_started
            && not_started.cleanup == Cleanup::Nothing
    );
    let queue_full = decide(1, 1, AttemptOutcome::PullQueueFull(Reason::default()));
    assert!(queue_full.is_not_started && queue_full.requeue_after > not_started.requeue_after);
    let gpus_busy = decide(1, 1, AttemptOutcome::GpusBusy(Reason::default()));
    assert!(gpus_busy.is_not_started && gpus_busy.requeue_after > not_started.requeue_after);
    let no_room = decide(1, 1, AttemptOutcome::NoRoom(Reason::default()));
    assert!(no_room.is_not_started && no_room.refusal.is_none());
    assert!(no_room.requeue_after > gpus_busy.requeue_after);
    let not_sent = decide(1, 1, AttemptOutcome::NotSent(Reason::default()));
    assert!(not_sent.is_not_started && not_sent.cleanup == Cleanup::Nothing);
    // A later attempt was offered meanwhile with an unknown answer, so no number is left. No user canceled it.
    let job = RunningJob {
        attempt: 1,
        last_attempt: 2,
        max_attempts: 2,
        ..job()
    };
    let unknown = Transition::decide(&job, AttemptOutcome::NotStarted(Reason::default()));
    assert!(unknown.requeue_after.is_none() && unknown.end.status == JobStatus::Lost);
    let rejected = decide(1, 3, AttemptOutcome::Rejected("no".into()));
    assert!(rejected.requeue_after.is_none() && rejected.refusal.is_some());
    // A command with an invalid result has run.
    let unreadable = decide(1, 3, AttemptOutcome::Unreadable(Reason::default()));
    assert!(unreadable.requeue_after.is_none() && unreadable.end.status == JobStatus::Lost);
}
#[test]
fn canceled_job_has_no_other_attempt() {
    let engine_error = ended(Outcome::Failed, None, Some(JobErrorKind::EngineError));
    for outcome in [
        engine_error,
        AttemptOutcome::Lost(Reason::default()),
        AttemptOutcome::NotStarted(Reason::default()),
        AttemptOutcome::NotSent(Reason::default()),
        AttemptOutcome::Rejected(Reason::default()),
        AttemptOutcome::SecretMissing(Reason::default()),
        AttemptOutcome::Damaged(Reason::default()),
    ] {
        let mut transition = decide(1, 3, outcome);
        transition.cancel();
        assert!(transition.requeue_after.is_none() && transition.refusal.is_none());
        assert_eq!(transition.end.status, JobStatus::Canceled);
    }
    let mut failed = decide(1, 3, ended(Outcome::Failed, Some(7), None));
    failed.cancel();
    assert_eq!(
        failed.end.status,
        JobStatus::Failed,
        "its result came first"
    );
}
