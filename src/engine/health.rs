//! Whether podman works at present, and if not, why.
//!
//! A podman that works is not asked. A call that takes too long, or a sandbox that podman could not
//! start, raises a suspicion; then it is asked for an image and has to run a container, as at the
//! start. While that fails there is [health_error](Engine::health_error), and it is tried again and again; once
//! it goes well, the health_error is over.

use super::{Engine, probe, probe::ProbeEnv};
use crate::{backoff::Backoff, wait};
use std::time::Duration;
use tokio::{sync::watch, time::sleep};

/// Between two tries while podman doesn't work.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(15);
/// Before a container that could not be removed is looked for again.
const CLEANUP_RETRY_DELAY: Duration = Duration::from_secs(5);

#[derive(Clone, Default)]
struct HealthState {
    /// How often there was reason to doubt it.
    failure_reports: u64,
    health_error: Option<String>,
    /// Whether a container could not be removed.
    has_unremoved_container: bool,
}

/// What is known of it; shared by all clones of an engine.
#[derive(Clone, Default)]
pub(super) struct Health(watch::Sender<HealthState>);

impl Engine {
    /// Why podman can run no container at present; nothing while it works.
    pub fn health_error(&self) -> Option<String> {
        self.health.0.borrow().health_error.clone()
    }

    /// There is reason to doubt that podman works.
    pub fn report_failure(&self) {
        self.health
            .0
            .send_modify(|state| state.failure_reports += 1);
    }

    /// Waits until podman has health_error and it is over.
    pub async fn wait_for_recovery(&self) {
        let mut states = self.health.0.subscribe();
        // An error can't be: the sender lives in `self`.
        let _ = wait::until(&mut states, |state| state.health_error.is_some()).await;
        let _ = wait::until(&mut states, |state| state.health_error.is_none()).await;
    }

    /// A container could not be removed.
    pub(super) fn report_unremoved_container(&self) {
        self.health
            .0
            .send_modify(|state| state.has_unremoved_container = true);
    }

    /// Waits until a container could not be removed, and a moment more: it is to be looked for then.
    pub async fn wait_for_unremoved_container(&self) {
        let mut states = self.health.0.subscribe();
        // An error can't be: the sender lives in `self`.
        let _ = wait::until(&mut states, |state| state.has_unremoved_container).await;
        sleep(CLEANUP_RETRY_DELAY).await;
        self.health
            .0
            .send_modify(|state| state.has_unremoved_container = false);
    }

    /// Looks into each suspicion, for as long as it is awaited.
    pub async fn run_health_monitor(&self, probe_env: ProbeEnv<'_>) {
        let mut states = self.health.0.subscribe();
        let mut handled_reports = 0;
        loop {
            let raised = wait::until(&mut states, |state| {
                state.failure_reports != handled_reports
            });
            handled_reports = raised
                .await
                .map_or(handled_reports, |state| state.failure_reports);
            let mut backoff = Backoff::new(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
            while let Err(error) = probe::health_check(self, probe_env).await {
                self.record(Some(error.to_string()));
                sleep(backoff.next_delay()).await;
            }
            self.record(None);
        }
    }

    fn record(&self, health_error: Option<String>) {
        self.health.0.send_if_modified(|state| {
            let is_change = state.health_error.is_some() != health_error.is_some();
            match &health_error {
                Some(reason) if is_change => {
                    tracing::error!(reason, "podman does not work; no new job is taken");
                }
                None if is_change => tracing::info!("podman works again"),
                _ => {}
            }
            state.health_error = health_error;
            is_change
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{EngineError, PodmanInfo, Program, RuntimeConfig};
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    fn engine(permits: usize) -> Engine {
        Engine {
            program: Program::plain("/bin/sh"),
            call_permits: Arc::new(Semaphore::new(permits)),
            health: Health::default(),
            runtime_config: RuntimeConfig {
                runtime: None,
                ulimits: Vec::new(),
            },
            info: PodmanInfo {
                version: String::new(),
                rootless: false,
                graph_root: "/".into(),
                graph_driver: String::new(),
                default_runtime: String::new(),
                cgroup_version: String::new(),
                cgroup_manager: String::new(),
            },
            upper_owner: None,
        }
    }

    fn failure_reports(engine: &Engine) -> u64 {
        engine.health.0.borrow().failure_reports
    }

    #[tokio::test]
    async fn call_waits_no_longer_than_its_timeout() {
        let engine = engine(0);
        let limit = Duration::from_millis(50);
        let outcome = engine.call(&["-c", "echo"], limit).await;
        assert!(matches!(outcome, Err(EngineError::TimedOut { limit: told, .. }) if told == limit));
        assert_eq!(failure_reports(&engine), 1);
    }

    #[tokio::test]
    async fn only_hanging_podman_is_reported() {
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
            assert_eq!(failure_reports(&engine), hangs, "{script}");
        }
    }
}
