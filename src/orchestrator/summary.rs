//! One line on how a job ended, for people.

use super::reason::sanitize;
use crate::{
    api::jobs::{JobError, JobErrorKind, JobResult, Outcome},
    store::Refusals,
};
use std::time::Duration;

/// Most nodes that a line names.
const MAX_NAMED_NODES: usize = 10;

/// Such as `exit 0 after 120 ms`.
pub(super) fn of_result(result: &JobResult) -> String {
    let after = format_duration(result.ended_at.since(result.started_at));
    let end = match (result.status, result.exit_code, &result.error) {
        (_, _, Some(error)) => {
            return match error.kind {
                JobErrorKind::Lost => format!("lost: {}", sanitize(&error.message)),
                JobErrorKind::OutOfDisk => format!("out of disk: {}", sanitize(&error.message)),
                JobErrorKind::Other => {
                    "could not run, or ended, for a reason of no kind that we know; its result has the node's words"
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
        (status, None, None) => format!("{status:?}"),
    };
    match (result.truncated.stdout, result.truncated.stderr) {
        (false, false) => end,
        (true, false) => format!("{end}; stdout truncated"),
        (false, true) => format!("{end}; stderr truncated"),
        (true, true) => format!("{end}; stdout and stderr truncated"),
    }
}

/// Error in one line, such as `image-not-found: no such image`.
pub(super) fn of_error(error: &JobError) -> String {
    format!("{}: {}", error.kind.as_str(), sanitize(&error.message))
}

/// Refusals in one line, such as `node a (image-not-found: …); node b (…)`.
pub(super) fn refusals(refusals: &Refusals) -> String {
    let named = refusals.values().take(MAX_NAMED_NODES);
    let mut told: Vec<String> = named
        .map(|refusal| format!("node {} ({})", refusal.node, sanitize(&refusal.reason)))
        .collect();
    if refusals.len() > MAX_NAMED_NODES {
        told.push(format!("and {} more", refusals.len() - MAX_NAMED_NODES));
    }
    told.join("; ")
}

/// Summary of a task that no node is left to run.
pub(super) fn refused_by_all(refusals: &Refusals) -> String {
    format!("could not run at {}", self::refusals(refusals))
}

/// In the unit that a person would take.
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
    fn durations_use_a_fitting_unit() {
        let told = |millis| format_duration(Duration::from_millis(millis));
        assert_eq!(told(7), "7 ms");
        assert_eq!(told(1500), "1.5 s");
        assert_eq!(told(150_000), "2 min 30 s");
        assert_eq!(told(9_000_000), "2 h 30 min");
    }
}
