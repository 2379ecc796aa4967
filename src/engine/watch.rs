//! Whether podman works at present, and if not, why.
//!
//! A podman that works is not asked. A call that takes too long, or a sandbox that podman could not
//! start, raises a suspicion; then it is asked for an image and has to run a container, as at the
//! start. While that fails there is [trouble](Engine::trouble), and it is tried again and again; once
//! it goes well, the trouble is over.

use super::{Engine, probe, probe::Ground};
use crate::{pause::Pauses, wait};
use std::time::Duration;
use tokio::{sync::watch, time::sleep};

/// Between two tries while podman doesn't work.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Before a container that could not be removed is looked for again.
const LEFT_PAUSE: Duration = Duration::from_secs(5);

#[derive(Clone, Default)]
struct State {
    /// How often there was reason to doubt it.
    suspicions: u64,
    trouble: Option<String>,
    /// Whether a container could not be removed.
    has_left: bool,
}

/// What is known of it; shared by all clones of an engine.
#[derive(Clone, Default)]
pub(super) struct Watch(watch::Sender<State>);

impl Engine {
    /// Why podman can run no container at present; nothing while it works.
    pub fn trouble(&self) -> Option<String> {
        self.watch.0.borrow().trouble.clone()
    }

    /// There is reason to doubt that podman works.
    pub fn suspect(&self) {
        self.watch.0.send_modify(|state| state.suspicions += 1);
    }

    /// Waits until podman has trouble and it is over.
    pub async fn recovered(&self) {
        let mut states = self.watch.0.subscribe();
        // An error can't be: the sender lives in `self`.
        let _ = wait::until(&mut states, |state| state.trouble.is_some()).await;
        let _ = wait::until(&mut states, |state| state.trouble.is_none()).await;
    }

    /// A container could not be removed.
    pub(super) fn note_left(&self) {
        self.watch.0.send_modify(|state| state.has_left = true);
    }

    /// Waits until a container could not be removed, and a moment more: it is to be looked for then.
    pub async fn left_behind(&self) {
        let mut states = self.watch.0.subscribe();
        // An error can't be: the sender lives in `self`.
        let _ = wait::until(&mut states, |state| state.has_left).await;
        sleep(LEFT_PAUSE).await;
        self.watch.0.send_modify(|state| state.has_left = false);
    }

    /// Looks into each suspicion, for as long as it is awaited.
    pub async fn watch_over(&self, ground: Ground<'_>) {
        let mut states = self.watch.0.subscribe();
        let mut looked_into = 0;
        loop {
            let raised = wait::until(&mut states, |state| state.suspicions != looked_into);
            looked_into = raised.await.map_or(looked_into, |state| state.suspicions);
            let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
            while let Err(error) = probe::works(self, ground).await {
                self.note(Some(error.to_string()));
                sleep(pauses.take()).await;
            }
            self.note(None);
        }
    }

    fn note(&self, trouble: Option<String>) {
        self.watch.0.send_if_modified(|state| {
            let is_news = state.trouble.is_some() != trouble.is_some();
            match &trouble {
                Some(reason) if is_news => {
                    tracing::error!(reason, "podman does not work; no new job is taken");
                }
                None if is_news => tracing::info!("podman works again"),
                _ => {}
            }
            state.trouble = trouble;
            is_news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{EngineError, Facts, Program, Way};
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    fn engine(turns: usize) -> Engine {
        Engine {
            program: Program::plain("/bin/sh"),
            gate: Arc::new(Semaphore::new(turns)),
            watch: Watch::default(),
            way: Way {
                runtime: None,
                ulimits: Vec::new(),
            },
            facts: Facts {
                version: String::new(),
                rootless: false,
                graph_root: "/".into(),
                graph_driver: String::new(),
                default_runtime: String::new(),
                cgroup_version: String::new(),
                cgroup_manager: String::new(),
            },
            node_of_uppers: None,
        }
    }

    fn suspicions(engine: &Engine) -> u64 {
        engine.watch.0.borrow().suspicions
    }

    #[tokio::test]
    async fn a_call_waits_for_its_turn_no_longer_than_it_may_take() {
        let engine = engine(0);
        let limit = Duration::from_millis(50);
        let outcome = engine.call(&["-c", "echo"], limit).await;
        assert!(matches!(outcome, Err(EngineError::TimedOut { limit: told, .. }) if told == limit));
        assert_eq!(suspicions(&engine), 1);
    }

    #[tokio::test]
    async fn only_a_podman_that_hangs_is_suspected_and_no_turn_is_lost() {
        let engine = engine(1);
        let limit = Duration::from_secs(60);
        for (script, hangs) in [
            ("echo", 0),
            ("exit 3", 0),
            ("exec sleep 1000", 1),
            ("echo", 1),
        ] {
            let limit = if script.contains("sleep") {
                Duration::from_millis(100)
            } else {
                limit
            };
            let outcome = engine.call(&["-c", script], limit).await;
            assert_eq!(outcome.is_ok(), script == "echo", "{script}");
            assert_eq!(suspicions(&engine), hangs, "{script}");
        }
    }
}
