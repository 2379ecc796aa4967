//! Summaries: the end of a job in one line, for people.

use super::reason::sanitize;
use crate::{
    api::jobs::{JobError, JobErrorKind, JobResult, Outcome},
    store::Refusals,
};
use std::time::Duration;

/// Maximum number of nodes that a line names.
const MAX_NAMED_NODES: usize = 10;

/// Summary of a result, such as `exit 0 after 120 ms`.
pub(super) fn of_result(result: &JobResult) -> String {
    let after = format_duration(result.ended_at.since(result.started_at));
    let end = match (result.status, result.exit_code, &result.error) {
        (_, _, Some(error)) => {
            return match error.kind {
                JobErrorKind::Lost => format!("lost: {}", sanitize(&error.message)),
                JobErrorKind::OutOfDisk => format!("out of disk: {}", sanitize(&error.message)),
                JobErrorKind::OutOfMemory => {
                    format!("out of memory: {}", sanitize(&error.message))
                }
                JobErrorKind::WorkspaceLimit => {
                    format!("workspace limit: {}", sanitize(&error.message))
                }
                JobErrorKind::Other => {
                    "failed for a reason that this release does not know; the result has the node's message"
                        .to_owned()
                }
                _ => format!(
                    "could not run ({}): {}",
                    error.kind.as_str(),
                    sanitize(&error.message)
                ),
            };
        }
        (Outcome::Timeout, ..) => format!("timed out after {after}"),
        (Outcome::Canceled, ..) => format!("canceled after {after}"),
        (_, Some(code), _) => format!("exit {code} after {after}"),
        (status, None, None) => status.as_str().to_owned(),
    };
    let end = if result.oom_killed {
        format!("{end}; out of memory")
    } else {
        end
    };
    match (result.truncated.stdout, result.truncated.stderr) {
        (false, false) => end,
        (true, false) => format!("{end}; stdout truncated"),
        (false, true) => format!("{end}; stderr truncated"),
        (true, true) => format!("{end}; stdout and stderr truncated"),
    }
}

/// Summary of an error, such as `image-not-found: no such image`.
pub(super) fn of_error(error: &JobError) -> String {
    format!("{}: {}", error.kind.as_str(), sanitize(&error.message))
}

/// Summary of refusals, such as `node a (image-not-found: …); node b (…)`.
pub(super) fn refusals(refusals: &Refusals) -> String {
    let named = refusals.values().take(MAX_NAMED_NODES);
    let mut parts: Vec<String> = named
        .map(|refusal| format!("node {} ({})", refusal.node, sanitize(&refusal.reason)))
        .collect();
    if refusals.len() > MAX_NAMED_NODES {
        parts.push(format!("and {} more", refusals.len() - MAX_NAMED_NODES));
    }
    parts.join("; ")
}

/// Summary of a task that every suitable node has refused.
pub(super) fn refused_by_all(refusals: &Refusals) -> String {
    format!("could not run at {}", self::refusals(refusals))
}

/// Duration in a fitting unit.
fn format_duration(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        1..120 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 120..7200 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_use_fitting_unit() {
        let text = |millis| format_duration(Duration::from_millis(millis));
        assert_eq!(text(7), "7 ms");
        assert_eq!(text(1500), "1.5 s");
        assert_eq!(text(150_000), "2 min 30 s");
        assert_eq!(text(9_000_000), "2 h 30 min");
    }
}
