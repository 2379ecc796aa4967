//! One `podman pull`, which ends early where its registry does not answer.
//!
//! Without a terminal podman reports no progress in bytes, but it reports when a registry has answered with an
//! image. Until then there is little to transfer, so a pull from a registry that is silent for long is ended.

use super::{Engine, EngineError, Program, call::call_until};
use std::time::Duration;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// Time limit for a registry's first answer.
const REGISTRY_ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// Prefixes of the lines that podman prints from then on.
const ANSWER_LINES: [&str; 3] = ["Getting image source signatures", "Copying ", "Writing "];

/// Time limits of a pull.
#[derive(Clone, Copy)]
struct PullTimeouts {
    answer: Duration,
    total: Duration,
}

impl Engine {
    /// Pulls an image. Each line of podman's output is passed to `on_line`. It takes long, and does not count as a
    /// short call.
    pub(super) async fn pull(
        &self,
        image: &str,
        limit: Duration,
        on_line: impl FnMut(&str),
    ) -> Result<(), EngineError> {
        let image = format!("docker://{image}");
        let timeouts = PullTimeouts {
            answer: REGISTRY_ANSWER_TIMEOUT.min(limit),
            total: limit,
        };
        call_with_timeouts(&self.program, &["pull", &image], timeouts, on_line).await
    }
}

async fn call_with_timeouts(
    program: &Program,
    arguments: &[&str],
    timeouts: PullTimeouts,
    mut on_line: impl FnMut(&str),
) -> Result<(), EngineError> {
    let answered = Notify::new();
    let on_line = |line: &str| {
        if ANSWER_LINES.iter().any(|word| line.starts_with(word)) {
            answered.notify_one();
        }
        on_line(line);
    };
    let expired = async {
        let total = sleep(timeouts.total);
        if timeout(timeouts.answer, answered.notified()).await.is_err() {
            return timeouts.answer;
        }
        total.await;
        timeouts.total
    };
    call_until(program, arguments, expired, on_line)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pull(script: &str) -> Result<(), EngineError> {
        let timeouts = PullTimeouts {
            answer: Duration::from_millis(300),
            total: Duration::from_secs(2),
        };
        let program = Program::plain("/bin/sh");
        call_with_timeouts(&program, &["-c", script], timeouts, |_| ()).await
    }

    #[tokio::test]
    async fn registry_without_image_fails_soon() {
        let silent = "echo Trying to pull docker://x/y:1... >&2; exec sleep 1000";
        match pull(silent).await {
            Err(EngineError::TimedOut { limit, .. }) => assert!(limit < Duration::from_secs(1)),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn registry_that_answered_has_full_timeout() {
        let answers = "echo Getting image source signatures >&2;";
        pull(&format!("{answers} exec sleep 1")).await.unwrap();
        match pull(&format!("{answers} exec sleep 1000")).await {
            Err(EngineError::TimedOut { limit, .. }) => assert_eq!(limit, Duration::from_secs(2)),
            other => panic!("{other:?}"),
        }
    }
}
