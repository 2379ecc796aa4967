//! One `podman pull`, which is ended sooner where its registry doesn't answer at all.
//!
//! Without a terminal podman says nothing of the bytes that it gets, but it says when a registry has shown it an
//! image. Until then there is little to send, so a registry that is silent for so long is not waited for.

use super::{Engine, EngineError, Program, process::call_until};
use std::time::Duration;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// How long a registry may take until it has shown an image.
const REGISTRY_ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// How the lines begin that podman says from then on.
const ANSWER_LINES: [&str; 3] = ["Getting image source signatures", "Copying ", "Writing "];

/// Time that a pull may take.
#[derive(Clone, Copy)]
struct PullTimeouts {
    answer: Duration,
    total: Duration,
}

impl Engine {
    /// Fetches an image; `on_line` hears each line that podman says meanwhile. Takes long, so it doesn't
    /// count as one of the short calls.
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
    async fn registry_that_has_answered_has_all_the_time() {
        let says = "echo Getting image source signatures >&2;";
        pull(&format!("{says} exec sleep 1")).await.unwrap();
        match pull(&format!("{says} exec sleep 1000")).await {
            Err(EngineError::TimedOut { limit, .. }) => assert_eq!(limit, Duration::from_secs(2)),
            other => panic!("{other:?}"),
        }
    }
}
