//! Meaning of results, errors and refusals for an attempt.

use super::*;
use crate::api::{
    JobId, NodeId, TaskId,
    events::OUTPUT_LIMIT_BYTES,
    jobs::{JobError, JobErrorKind, JobResult, Outcome, Truncated},
    time::Time,
};

pub(in crate::orchestrator) fn job() -> RunningJob {
    RunningJob {
        id: JobId::new(),
        task_id: TaskId::new(),
        attempt: 1,
        last_attempt: 1,
        max_attempts: 3,
        node_id: NodeId::new(),
        offered_to: None,
        cancel_requested: false,
        eligible_at: Time::from_millis(0),
        started_at: None,
        effective_timeout_seconds: None,
        placement: crate::store::Placement::default(),
        timeout_seconds: None,
        is_sandbox: false,
    }
}

fn answer(job: &RunningJob) -> JobResult {
    JobResult {
        version: 1,
        task_id: job.task_id,
        job_id: job.id,
        attempt: job.attempt,
        status: Outcome::Completed,
        exit_code: Some(0),
        stdout: String::new(),
        stderr: String::new(),
        started_at: Time::from_millis(0),
        ended_at: Time::from_millis(0),
        truncated: Truncated::default(),
        effective: None,
        error: None,
        oom_killed: false,
        reason: None,
        inference: None,
        artifacts: Vec::new(),
        artifacts_skipped: None,
    }
}

#[test]
fn invalid_result_is_rejected() {
    let job = job();
    let good = answer(&job);
    let validate_result = |result| {
        let outline = vec![(3, 7)];
        validate_result(
            &job,
            ResultEvent {
                seq: 1,
                outline,
                result,
            },
        )
    };
    let stored = validate_result(JobResult {
        stdout: "x".to_owned(),
        ..good.clone()
    });
    assert!(
        stored.is_ok_and(|last| last.outline == [(1, 1)]),
        "nor is its outline"
    );
    let error = Some(JobError {
        kind: JobErrorKind::EngineError,
        message: String::new(),
    });
    let forged = [
        JobResult {
            job_id: JobId::new(),
            ..good.clone()
        },
        JobResult {
            task_id: TaskId::new(),
            ..good.clone()
        },
        JobResult {
            attempt: 2,
            ..good.clone()
        },
        JobResult {
            exit_code: Some(1),
            ..good.clone()
        },
        JobResult {
            exit_code: None,
            ..good.clone()
        },
        JobResult {
            status: Outcome::Failed,
            exit_code: None,
            ..good.clone()
        },
        JobResult {
            status: Outcome::Failed,
            error,
            ..good.clone()
        },
        JobResult {
            status: Outcome::Timeout,
            ..good.clone()
        },
        JobResult {
            stdout: "x".repeat(OUTPUT_LIMIT_BYTES + 1),
            ..good
        },
    ];
    for forged in forged {
        assert!(validate_result(forged.clone()).is_err(), "{forged:?}");
    }
}

#[test]
fn damaged_sandbox_ends_job() {
    let damaged = AttemptError::of_sandbox(StoreError::Damaged("task"));
    assert!(matches!(damaged.outcome, Some(AttemptOutcome::Damaged(_))));
    for error in [StoreError::TooSlow, StoreError::Closed] {
        let error = AttemptError::of_sandbox(error);
        assert!(error.outcome.is_none() && error.store_error.is_some());
    }
}

#[test]
fn unknown_status_of_any_length_is_for_admins() {
    let words = "/home/ann\u{1b}[2J".repeat(20_000);
    let error = DocumentError::UnknownStatus(words);
    let error = AttemptError::of_document(&error, Start::Run);
    let Some(AttemptOutcome::Unreadable(reason)) = error.outcome else {
        panic!("{:?}", error.outcome);
    };
    assert_eq!(
        reason.to_string(),
        "its node sent an invalid answer (unknown status)"
    );
    let seen = reason.for_admins();
    assert!(
        seen.contains("/home/ann [2J") && seen.len() < 1000,
        "{seen}"
    );
}

#[test]
fn refusal_means_not_started_only_where_certain() {
    let outcome = |start, kind, is_own_answer| {
        let error = NodeCallError::of_kind(kind, is_own_answer);
        AttemptError::of_request(error, start).outcome
    };
    use NodeCallErrorKind as Kind;
    let run = |kind| outcome(Start::Run, kind, true);
    for kind in [
        Kind::Unreachable,
        Kind::UnknownToken,
        Kind::Denied,
        Kind::NotFound,
        Kind::Unsupported,
    ] {
        let outcome = run(kind);
        assert!(
            matches!(outcome, Some(AttemptOutcome::NotStarted(_))),
            "{kind:?}"
        );
    }
    assert!(matches!(
        run(Kind::AtCapacity),
        Some(AttemptOutcome::AtCapacity(_))
    ));
    assert!(matches!(
        run(Kind::PullQueueFull),
        Some(AttemptOutcome::PullQueueFull(_))
    ));
    assert!(matches!(
        run(Kind::GpusBusy),
        Some(AttemptOutcome::GpusBusy(_))
    ));
    for kind in [Kind::Unhealthy, Kind::NoRoom] {
        assert!(matches!(run(kind), Some(AttemptOutcome::NodeUnhealthy(_))));
    }
    assert!(matches!(
        run(Kind::Invalid),
        Some(AttemptOutcome::Rejected(_))
    ));
    assert!(matches!(run(Kind::Conflict), Some(AttemptOutcome::Lost(_))));
    // The node may have started it, so it is asked again.
    for kind in [Kind::Unclear, Kind::Malformed, Kind::NotImplemented] {
        assert!(run(kind).is_none(), "{kind:?}");
    }
    let attach = |kind, is_own_answer| outcome(Start::Attach, kind, is_own_answer);
    for kind in [Kind::NotFound, Kind::Conflict] {
        assert!(matches!(attach(kind, true), Some(AttemptOutcome::Lost(_))));
        assert!(attach(kind, false).is_none(), "a proxy answers the same");
    }
    for kind in [
        Kind::Unreachable,
        Kind::Unclear,
        Kind::Unhealthy,
        Kind::Unsupported,
        Kind::NotImplemented,
    ] {
        assert!(attach(kind, true).is_none(), "{kind:?}");
    }
}
