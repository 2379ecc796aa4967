//! State or result of a job as one JSON document, from workers that send no events (contract, section 4).
//!
//! Another implementation of the contract may leave out values that its reader knows: the attempt, an exit code
//! of 0, times, empty texts. So every field but the status is optional, and invalid values that do not concern
//! the outcome are dropped. The command has run: a result that can't be parsed is not obtained by another run.

use super::{
    JobId, PAYLOAD_VERSION, TaskId,
    events::OUTPUT_LIMIT_BYTES,
    jobs::{
        Effective, JobError, JobErrorKind, JobResult, MAX_ERROR_MESSAGE_BYTES, Outcome, Truncated,
    },
    time::Time,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// Statuses of a job that has not ended.
const UNFINISHED: [&str; 4] = ["running", "queued", "pending", "accepted"];

/// Attempt of a job that a document has to be about, with values for fields that are missing.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedAttempt {
    /// Task of the job.
    pub task_id: TaskId,
    /// Id of the job.
    pub job_id: JobId,
    /// Attempt of the job.
    pub attempt: u32,
    /// Start of the attempt, where the document has none.
    pub started_at: Time,
    /// End of the attempt, where the document has none.
    pub ended_at: Time,
}

/// State or result of a job, as any worker may write it.
#[derive(Debug, Deserialize)]
pub struct JobDocument {
    version: Option<u64>,
    task_id: Option<TaskId>,
    job_id: Option<JobId>,
    attempt: Option<u32>,
    status: String,
    exit_code: Option<i64>,
    stdout: Option<String>,
    stderr: Option<String>,
    started_at: Option<Value>,
    ended_at: Option<Value>,
    truncated: Option<Value>,
    effective: Option<Value>,
    error: Option<Value>,
    oom_killed: Option<Value>,
    reason: Option<Value>,
}

/// Reason for which a document is not about the expected attempt. Its text holds no words of the worker.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Payload version that is not known here.
    #[error("payload version {0}, expected {PAYLOAD_VERSION}")]
    Version(u64),
    /// Another job, or another attempt of the job.
    #[error("the answer is about another job or attempt")]
    OtherAttempt,
    /// Status that is not of the contract, as the worker wrote it: text of any length.
    #[error("unknown status")]
    UnknownStatus(String),
}

impl JobDocument {
    /// Result of the expected attempt; `None` while it has not ended.
    pub fn result(self, expected: ExpectedAttempt) -> Result<Option<JobResult>, DocumentError> {
        if let Some(version) = self.version.filter(|version| *version != PAYLOAD_VERSION) {
            return Err(DocumentError::Version(version));
        }
        if self.job_id.is_some_and(|id| id != expected.job_id)
            || self.task_id.is_some_and(|id| id != expected.task_id)
            || self.attempt.is_some_and(|n| n != expected.attempt)
        {
            return Err(DocumentError::OtherAttempt);
        }
        if UNFINISHED.contains(&self.status.as_str()) {
            return Ok(None);
        }
        let Ok(status) = self.status.parse::<Outcome>() else {
            return Err(DocumentError::UnknownStatus(self.status));
        };
        let (exit_code, error) = end(status, self.exit_code, self.error.map(error));
        let truncated = |stream| {
            let truncated = self.truncated.as_ref();
            truncated.and_then(|streams| streams.get(stream)?.as_bool()) == Some(true)
        };
        let (stdout, stdout_cut) = kept(self.stdout);
        let (stderr, stderr_cut) = kept(self.stderr);
        let started_at = lenient(self.started_at).unwrap_or(expected.started_at);
        Ok(Some(JobResult {
            version: PAYLOAD_VERSION,
            task_id: expected.task_id,
            job_id: expected.job_id,
            attempt: expected.attempt,
            status,
            exit_code,
            stdout,
            stderr,
            started_at,
            ended_at: lenient(self.ended_at).unwrap_or(expected.ended_at),
            truncated: Truncated {
                stdout: truncated("stdout") || stdout_cut,
                stderr: truncated("stderr") || stderr_cut,
            },
            effective: lenient::<Effective>(self.effective).filter(Effective::is_within_limits),
            error,
            oom_killed: lenient(self.oom_killed).unwrap_or(false),
            inference: None,
            artifacts: Vec::new(),
            artifacts_skipped: None,
            reason: lenient(self.reason).map(|reason| cut(reason, MAX_ERROR_MESSAGE_BYTES).0),
        }))
    }
}

/// Exit code and error that belong to a status. A missing code is 0 for a completed command; for a failed one the
/// cause stays unknown.
fn end(
    status: Outcome,
    code: Option<i64>,
    error: Option<JobError>,
) -> (Option<i32>, Option<JobError>) {
    let code = code.and_then(|code| i32::try_from(code).ok());
    let unknown = |message: &str| {
        let message = message.to_owned();
        Some(JobError {
            kind: JobErrorKind::Other,
            message,
        })
    };
    match (status, code, error) {
        (Outcome::Completed, code, error) => (Some(code.unwrap_or(0)), error),
        (Outcome::Failed, _, Some(error)) if error.kind != JobErrorKind::Other => {
            (None, Some(error))
        }
        // A code says more than an error whose type is unknown.
        (Outcome::Failed, Some(1..=255), _) => (code, None),
        (Outcome::Failed, _, Some(error)) => (None, Some(error)),
        (Outcome::Failed, Some(code), None) => (
            None,
            unknown(&format!("the node answered the invalid exit code {code}")),
        ),
        (Outcome::Failed, None, None) => (
            None,
            unknown("the node answered neither an exit code nor an error"),
        ),
        (Outcome::Timeout | Outcome::Canceled, _, error) => (None, error),
    }
}

/// Error, from an answer of any shape.
fn error(answered: Value) -> JobError {
    let field = |name: &str| answered.get(name).and_then(Value::as_str);
    let kind = lenient(answered.get("type").cloned()).unwrap_or(JobErrorKind::Other);
    let message = match (kind, field("type"), field("message").or(answered.as_str())) {
        (JobErrorKind::Other, Some(kind), Some(message)) => format!("{kind}: {message}"),
        (_, _, Some(message)) => message.to_owned(),
        _ => answered.to_string(),
    };
    JobError {
        kind,
        message: cut(message, MAX_ERROR_MESSAGE_BYTES).0,
    }
}

fn kept(text: Option<String>) -> (String, bool) {
    cut(text.unwrap_or_default(), OUTPUT_LIMIT_BYTES)
}

/// Text up to `limit` bytes, and whether it was longer.
fn cut(mut text: String, limit: usize) -> (String, bool) {
    let is_longer = text.len() > limit;
    text.truncate(text.floor_char_boundary(limit));
    (text, is_longer)
}

/// Value of an optional field; `None` where it is invalid.
fn lenient<T: DeserializeOwned>(value: Option<Value>) -> Option<T> {
    value.and_then(|value| serde_json::from_value(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn expected() -> ExpectedAttempt {
        ExpectedAttempt {
            task_id: TaskId::new(),
            job_id: JobId::new(),
            attempt: 3,
            started_at: Time::from_millis(1000),
            ended_at: Time::from_millis(2000),
        }
    }

    fn read(answer: Value) -> Result<Option<JobResult>, DocumentError> {
        let answer: JobDocument = serde_json::from_value(answer).unwrap();
        answer.result(expected())
    }

    fn result(answer: Value) -> JobResult {
        let result = read(answer.clone()).unwrap().unwrap();
        assert!(result.is_valid(), "{answer}: {result:?}");
        result
    }

    #[test]
    fn missing_result_fields_get_defaults() {
        let least = result(json!({"status": "completed"}));
        assert_eq!((least.exit_code, least.attempt), (Some(0), 3));
        assert_eq!(least.ended_at.since(least.started_at).as_secs(), 1);
        let full = result(json!({
            "version": 1, "status": "failed", "exit_code": 7, "stdout": "out", "stderr": null,
            "started_at": "2026-01-01T00:00:00Z", "ended_at": "soon", "truncated": {"stdout": true},
            "effective": {"network": "none"}, "sandbox": {"un": "known"},
        }));
        assert_eq!((full.exit_code, full.stdout.as_str()), (Some(7), "out"));
        assert!(full.effective.is_none() && full.truncated.stdout);
        let long = result(
            json!({"status": "timeout", "exit_code": -1, "stdout": "é".repeat(OUTPUT_LIMIT_BYTES)}),
        );
        assert!(long.exit_code.is_none() && long.truncated.stdout && !long.truncated.stderr);
    }

    #[test]
    fn failure_without_exit_code_keeps_output() {
        for (code, error) in [
            (json!(null), json!(null)),
            (json!(-1), json!(null)),
            (json!(0), json!(null)),
            (json!(256), json!(null)),
            (json!(-1), json!("no such file")),
            (
                json!(null),
                json!({"type": "oci-error", "message": "no such file"}),
            ),
        ] {
            let answer =
                json!({"status": "failed", "exit_code": code, "error": error, "stdout": "x"});
            let result = result(answer);
            let error = result.error.unwrap();
            assert!(result.exit_code.is_none() && result.stdout == "x");
            assert!(!error.kind.is_retryable(), "the command has run: {error:?}");
        }
        let coded = result(json!({"status": "failed", "exit_code": 7, "error": "it failed"}));
        assert_eq!((coded.exit_code, coded.error), (Some(7), None));
        let known = json!({"type": "image-not-found", "message": "nowhere"});
        let known = result(json!({"status": "failed", "error": known}))
            .error
            .unwrap();
        assert_eq!(known.kind, JobErrorKind::ImageNotFound);
    }

    #[test]
    fn document_of_another_job_is_refused() {
        for answer in [
            json!({"status": "completed", "version": 2}),
            json!({"status": "completed", "attempt": 2}),
            json!({"status": "completed", "job_id": JobId::new()}),
            json!({"status": "completed", "task_id": TaskId::new()}),
            json!({"status": "splendid"}),
        ] {
            assert!(read(answer.clone()).is_err(), "{answer}");
        }
        let unknown = read(json!({"status": "splendid"})).unwrap_err();
        assert_eq!(unknown.to_string(), "unknown status");
        assert!(matches!(read(json!({"status": "running"})), Ok(None)));
        let contradiction = read(json!({"status": "completed", "exit_code": 1}));
        assert!(!contradiction.unwrap().unwrap().is_valid());
    }
}
