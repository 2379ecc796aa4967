//! One line on how a job ended, for people.

use crate::api::jobs::{JobErrorKind, JobResult, Outcome};
use std::time::Duration;

/// Most of a cause that a summary repeats, in bytes.
const MAX_CAUSE: usize = 600;

/// Such as `exit 0 after 120 ms`.
pub(super) fn of(result: &JobResult) -> String {
    let after = after(result.ended_at.since(result.started_at));
    let end = match (result.status, result.exit_code, &result.error) {
        (_, _, Some(error)) => {
            let kind = serde_json::to_value(error.kind).ok();
            let kind = kind
                .as_ref()
                .and_then(|kind| kind.as_str())
                .unwrap_or("error");
            // Podman says first what it tries, and last why it failed.
            let line = error.message.lines().collect::<Vec<_>>().join(" ");
            let line = &line[..line.floor_char_boundary(MAX_CAUSE)];
            return match error.kind {
                JobErrorKind::Lost => format!("lost: {line}"),
                _ => format!("could not run ({kind}): {line}"),
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

/// In the unit that a person would take.
fn after(time: Duration) -> String {
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
    fn times_are_told_in_the_unit_that_fits() {
        let told = |millis| after(Duration::from_millis(millis));
        assert_eq!(told(7), "7 ms");
        assert_eq!(told(1500), "1.5 s");
        assert_eq!(told(150_000), "2 min 30 s");
        assert_eq!(told(9_000_000), "2 h 30 min");
    }
}
