//! Remarks on a task that has ended: what its exit code does not say.

use super::print::{clean, size};
use crate::api::{
    egress::EgressTotals,
    jobs::{JobInference, JobResult},
    tasks::TaskResult,
};

/// Result of the last attempt.
fn last(result: &TaskResult) -> Option<&JobResult> {
    result.jobs.last()?.result_object.as_ref()
}

/// Explanation of the end, such as too little memory.
pub(super) fn reason(result: &TaskResult) -> Option<String> {
    reason_of(last(result)?)
}

/// Model that answered a prompt, with its tokens.
pub(super) fn model(result: &TaskResult) -> Option<String> {
    model_of(last(result)?)
}

/// Requests and bytes of a task with a network.
pub(super) fn traffic(result: &TaskResult) -> Option<String> {
    traffic_of(last(result)?)
}

/// Last request that the proxy refused, with how many it refused.
pub(super) fn refusal(result: &TaskResult) -> Option<String> {
    refusal_of(last(result)?)
}

/// Files that should have been collected and were not.
pub(super) fn skipped(result: &TaskResult) -> Option<String> {
    skipped_of(last(result)?)
}

/// Whether all files that were not collected are such as never are: links, devices and the like.
pub(super) fn only_irregular(result: &TaskResult) -> bool {
    let skipped = last(result).and_then(|job| job.artifacts_skipped.as_ref());
    skipped.is_none_or(|skipped| skipped.count > 0 && skipped.count == skipped.irregular)
}

pub(super) fn refusal_of(job: &JobResult) -> Option<String> {
    let totals = job.effective.as_ref()?.egress.as_ref()?;
    let reason = clean(totals.last_refusal.as_deref()?);
    Some(match totals.refused {
        1 => reason,
        count => format!("{reason} (the last of {count} refusals)"),
    })
}

pub(super) fn reason_of(job: &JobResult) -> Option<String> {
    match (&job.reason, job.oom_killed) {
        (Some(reason), _) => Some(clean(reason)),
        (None, true) => Some("the kernel killed a process for want of memory".to_owned()),
        (None, false) => None,
    }
}

pub(super) fn model_of(job: &JobResult) -> Option<String> {
    let JobInference {
        model,
        prompt_tokens,
        completion_tokens,
    } = job.inference.as_ref()?;
    let text = format!("{model}, {prompt_tokens} tokens in, {completion_tokens} out");
    Some(clean(&text))
}

pub(super) fn traffic_of(job: &JobResult) -> Option<String> {
    let EgressTotals {
        requests,
        refused,
        bytes_sent,
        bytes_received,
        ..
    } = job.effective.as_ref()?.egress.as_ref()?;
    let requests = match requests {
        1 => "1 request".to_owned(),
        count => format!("{count} requests"),
    };
    let (sent, received) = (size(*bytes_sent), size(*bytes_received));
    Some(format!(
        "{requests}, {refused} of them refused, {sent} sent, {received} received"
    ))
}

pub(super) fn skipped_of(job: &JobResult) -> Option<String> {
    let skipped = job.artifacts_skipped.as_ref()?;
    let files = match skipped.count {
        0 => "some files are".to_owned(),
        1 => "1 file is".to_owned(),
        count => format!("{count} files are"),
    };
    Some(format!("{files} missing: {}", clean(&skipped.reason)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(more: &Value) -> JobResult {
        let mut job = json!({
            "version": 1, "task_id": "11111111-1111-4111-8111-111111111111",
            "job_id": "11111111-1111-4111-8111-111111111111", "attempt": 1,
            "status": "failed", "exit_code": 137, "stdout": "", "stderr": "",
            "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:00Z",
            "truncated": {"stdout": false, "stderr": false},
        });
        let fields = more.as_object().unwrap().clone();
        job.as_object_mut().unwrap().extend(fields);
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn answer_has_model_and_tokens() {
        let inference = json!({"model": "a:1b", "prompt_tokens": 3, "completion_tokens": 5});
        let answered = job(&json!({ "inference": inference }));
        assert_eq!(model_of(&answered).unwrap(), "a:1b, 3 tokens in, 5 out");
        assert_eq!(model_of(&job(&json!({}))), None);
    }

    #[test]
    fn traffic_has_requests_and_bytes() {
        let totals = json!({"requests": 1, "refused": 0, "bytes_sent": 3, "bytes_received": 4});
        let effective = json!({
            "image_id": "i", "network": "none", "runtime": "default", "timeout_seconds": 1, "egress": totals,
        });
        let text = traffic_of(&job(&json!({ "effective": effective }))).unwrap();
        assert_eq!(text, "1 request, 0 of them refused, 3 B sent, 4 B received");
        assert_eq!(traffic_of(&job(&json!({}))), None);
    }

    #[test]
    fn last_refusal_has_reason_and_number() {
        let refused = |count| {
            json!({"effective": {
                "image_id": "i", "network": "none", "runtime": "default", "timeout_seconds": 1,
                "egress": {
                    "requests": 2, "refused": count, "bytes_sent": 0, "bytes_received": 0, "last_refusal": "no\nlist has it",
                },
            }})
        };
        let text = |count| refusal_of(&job(&refused(count))).unwrap();
        assert!(!text(1).contains('\n'), "{}", text(1));
        assert!(text(2).ends_with("(the last of 2 refusals)"), "{}", text(2));
        assert_eq!(refusal_of(&job(&json!({}))), None);
    }

    #[test]
    fn result_tells_what_exit_code_hides() {
        let skipped = |count| json!({"artifacts_skipped": {"count": count, "reason": "a\nlimit"}});
        for (more, reason, files) in [
            (json!({}), None, None),
            (
                json!({"oom_killed": true}),
                Some("the kernel killed a process for want of memory"),
                None,
            ),
            (
                json!({"reason": "because", "oom_killed": true}),
                Some("because"),
                None,
            ),
            (skipped(0), None, Some("some files are missing: a")),
            (skipped(1), None, Some("1 file is missing: a")),
            (skipped(7), None, Some("7 files are missing: a")),
        ] {
            let job = job(&more);
            assert_eq!(reason_of(&job).as_deref(), reason, "{more}");
            let found = skipped_of(&job);
            assert_eq!(found.is_some(), files.is_some(), "{more}");
            assert!(
                found.is_none_or(|text| !text.contains('\n') && text.starts_with(files.unwrap()))
            );
        }
    }
}
