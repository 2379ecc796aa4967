//! A sandbox as its user sees it, from what is stored and from what is known of its attempt. Pure.

use crate::{
    api::{
        egress::Egress,
        jobs::{JobErrorKind, SandboxSpec},
        sandboxes::{EndReason, Sandbox, SandboxStatus, SessionSpec},
        snapshots::shown_image,
        tasks::JobStatus,
    },
    orchestrator::task_watch::TaskState,
    store::{SandboxEnd, StoredSandbox},
};

/// Status of a sandbox. `current` is the state of its attempt, where this process follows one.
pub(super) fn status(stored: &StoredSandbox, current: Option<TaskState>) -> SandboxStatus {
    let has_started = current.is_some_and(|state| state.has_started);
    match stored.status {
        JobStatus::Queued => SandboxStatus::Queued,
        JobStatus::Running if has_started || stored.record.started_at.is_some() => {
            SandboxStatus::Running
        }
        JobStatus::Running => SandboxStatus::Starting,
        _ => SandboxStatus::Ended,
    }
}

/// Reason for which a sandbox ended: the one that its node gives, else what follows from the end of its job.
pub(super) fn end_reason(status: JobStatus, end: &SandboxEnd) -> EndReason {
    if let Some(reason) = end.reason.as_deref().and_then(|text| text.parse().ok()) {
        return reason;
    }
    let kind = end.error.as_ref().map(|error| error.kind);
    if end.oom_killed || kind == Some(JobErrorKind::OutOfMemory) {
        return EndReason::Oom;
    }
    match status {
        JobStatus::Canceled => EndReason::Deleted,
        JobStatus::Lost => EndReason::NodeLost,
        JobStatus::Timeout => EndReason::Lifetime,
        _ => EndReason::Failed,
    }
}

/// Sandbox for an answer.
pub(super) fn sandbox(stored: &StoredSandbox, current: Option<TaskState>) -> Sandbox {
    let status = status(stored, current);
    let is_ended = status == SandboxStatus::Ended;
    let reason = is_ended.then(|| end_reason(stored.status, &stored.end));
    let has_detail = matches!(
        reason,
        Some(EndReason::Failed | EndReason::NodeLost | EndReason::Oom)
    );
    let session = session(&stored.spec);
    let has_run = status == SandboxStatus::Running || stored.record.started_at.is_some();
    Sandbox {
        id: stored.id,
        name: stored.record.name.clone(),
        status,
        reason,
        detail: stored.end.summary.clone().filter(|_| has_detail),
        node_slug: stored.node_slug.clone(),
        image: shown_image(stored.spec.image.clone()),
        owner: stored.owner.clone(),
        network_policy: stored.spec.network_policy,
        egress: stored.spec.egress.as_ref().map(Egress::from),
        secrets: stored.spec.secrets.clone(),
        lifetime_seconds: session.lifetime_seconds,
        idle_timeout_seconds: session.idle_timeout_seconds,
        created_at: stored.created_at,
        started_at: stored.record.started_at,
        expires_at: has_run.then_some(stored.record.expires_at),
        ended_at: stored.ended_at,
    }
}

/// Times of a sandbox; none of a damaged row.
fn session(spec: &SandboxSpec) -> SessionSpec {
    spec.session.unwrap_or(SessionSpec {
        lifetime_seconds: 0,
        idle_timeout_seconds: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::jobs::JobError;

    #[test]
    fn node_gives_reason_of_end() {
        for reason in EndReason::ALL {
            let end = SandboxEnd {
                reason: Some(reason.as_str().to_owned()),
                oom_killed: true,
                ..SandboxEnd::default()
            };
            for status in [JobStatus::Canceled, JobStatus::Failed, JobStatus::Timeout] {
                assert_eq!(end_reason(status, &end), *reason);
            }
        }
    }

    #[test]
    fn reason_follows_from_end_of_job() {
        let of = |status| end_reason(status, &SandboxEnd::default());
        assert_eq!(of(JobStatus::Canceled), EndReason::Deleted);
        assert_eq!(of(JobStatus::Lost), EndReason::NodeLost);
        assert_eq!(of(JobStatus::Failed), EndReason::Failed);
        assert_eq!(of(JobStatus::Timeout), EndReason::Lifetime);
        let error = |kind| {
            let message = String::new();
            let end = SandboxEnd {
                reason: Some("no reason that this release knows".to_owned()),
                error: Some(JobError { kind, message }),
                ..SandboxEnd::default()
            };
            end_reason(JobStatus::Failed, &end)
        };
        assert_eq!(error(JobErrorKind::OutOfMemory), EndReason::Oom);
        assert_eq!(error(JobErrorKind::ImageNotFound), EndReason::Failed);
    }
}
