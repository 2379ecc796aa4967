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
const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// How the lines begin that podman says from then on.
const ANSWERED: [&str; 3] = ["Getting image source signatures", "Copying ", "Writing "];

/// Time that a pull may take.
#[derive(Clone, Copy)]
struct Limits {
    answer: Duration,
    all: Duration,
}

impl Engine {
    /// Fetches an image; `note` hears each line that podman says meanwhile. Takes long, so it doesn't
    /// count as one of the short calls.
    pub(super) async fn pull(
        &self,
        image: &str,
        limit: Duration,
        note: impl FnMut(&str),
    ) -> Result<(), EngineError> {
        let image = format!("docker://{image}");
        let limits = Limits {
            answer: ANSWER_LIMIT.min(limit),
            all: limit,
        };
        call_within(&self.program, &["pull", &image], limits, note).await
    }
}

async fn call_within(
    program: &Program,
    arguments: &[&str],
    limits: Limits,
    mut note: impl FnMut(&str),
) -> Result<(), EngineError> {
    let answered = Notify::new();
    let note = |line: &str| {
        if ANSWERED.iter().any(|word| line.starts_with(word)) {
            answered.notify_one();
        }
        note(line);
    };
    let over = async {
        let all = sleep(limits.all);
        if timeout(limits.answer, answered.notified()).await.is_err() {
            return limits.answer;
        }
        all.await;
        limits.all
    };
    call_until(program, arguments, over, note).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pull(script: &str) -> Result<(), EngineError> {
        let limits = Limits {
            answer: Duration::from_millis(300),
            all: Duration::from_secs(2),
        };
        let program = Program::plain("/bin/sh");
        call_within(&program, &["-c", script], limits, |_| ()).await
    }

    #[tokio::test]
    async fn registry_that_shows_no_image_is_given_up_soon() {
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
