//! Number of attempts of a task: an interactive one has a single attempt.

use super::{CreateTask, DEFAULT_MAX_ATTEMPTS, MAX_ATTEMPTS_LIMIT};
use crate::api::{integer::check_range, problem::Problem};

impl CreateTask {
    /// Maximum number of attempts, by default one that fits.
    pub(super) fn resolve_attempts(&self) -> Result<u32, Problem> {
        let default = if self.interactive {
            1
        } else {
            DEFAULT_MAX_ATTEMPTS
        };
        let max_attempts = self.max_attempts.unwrap_or(default);
        check_range("/max_attempts", max_attempts, 1..=MAX_ATTEMPTS_LIMIT)?;
        if self.interactive && max_attempts > 1 {
            let detail = "must be 1 or left out for an interactive task: its stdin can't be sent a second time";
            return Err(Problem::field("/max_attempts", detail));
        }
        Ok(max_attempts)
    }
}
