//! One line on how a job ended, for people.

use crate::api::jobs::{JobResult, Outcome};

/// Such as `exit 0 after 0.12 s`.
pub(super) fn of(result: &JobResult) -> String {
    let seconds = result.ended_at.since(result.started_at).as_secs_f64();
    let end = match (result.status, result.exit_code, &result.error) {
        (_, _, Some(error)) => {
            let kind = serde_json::to_value(error.kind).ok();
            let kind = kind
                .as_ref()
                .and_then(|kind| kind.as_str())
                .unwrap_or("error");
            let line = error.message.lines().next().unwrap_or_default();
            return format!("could not run ({kind}): {line}");
        }
        (Outcome::Timeout, ..) => format!("timed out after {seconds:.1} s"),
        (Outcome::Canceled, ..) => format!("canceled after {seconds:.2} s"),
        (_, Some(code), _) if code > 128 => {
            format!("exit {code} (signal {}) after {seconds:.2} s", code - 128)
        }
        (_, Some(code), _) => format!("exit {code} after {seconds:.2} s"),
        (status, None, None) => format!("{status:?}"),
    };
    match (result.truncated.stdout, result.truncated.stderr) {
        (false, false) => end,
        (true, false) => format!("{end}; stdout truncated"),
        (false, true) => format!("{end}; stderr truncated"),
        (true, true) => format!("{end}; stdout and stderr truncated"),
    }
}
