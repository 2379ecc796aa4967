//! Health of podman: whether it can run containers at present, and if not, why.
//!
//! A podman that works is not checked. A call that times out, or a sandbox that podman could not start, is
//! [reported](Engine::report_failure); then podman is asked for an image and has to run a probe container, as at the
//! start. While that fails there is a [health error](Engine::health_error), and the check is repeated until it
//! succeeds.

use super::{Engine, probe, probe::ProbeEnv};
use crate::{backoff::Backoff, wait};
use std::time::Duration;
use tokio::{sync::watch, time::sleep};

/// First pause between two checks that fail.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(15);
/// Pause before orphans are collected after a container could not be removed.
const CLEANUP_RETRY_DELAY: Duration = Duration::from_secs(5);

#[derive(Clone, Default)]
struct HealthState {
    /// Number of failures that were reported.
    failure_reports: u64,
    health_error: Option<String>,
    has_unremoved_container: bool,
}

/// Health of one podman, shared by all clones of an engine.
#[derive(Clone, Default)]
pub(super) struct Health(watch::Sender<HealthState>);

impl Engine {
    /// Reason why podman can run no container at present; `None` while it works.
    pub fn health_error(&self) -> Option<String> {
        self.health.0.borrow().health_error.clone()
    }

    /// Reports that podman may not work, which has it checked.
    pub fn report_failure(&self) {
        let health = &self.health.0;
        health.send_modify(|state| state.failure_reports += 1);
    }

    /// Waits until podman has a health error and works again.
    pub async fn wait_for_recovery(&self) {
        let mut states = self.health.0.subscribe();
        // The sender lives in `self`, so neither can fail.
        let _ = wait::until(&mut states, |state| state.health_error.is_some()).await;
        let _ = wait::until(&mut states, |state| state.health_error.is_none()).await;
    }

    /// Reports that a container could not be removed.
    pub(super) fn report_unremoved_container(&self) {
        let health = &self.health.0;
        health.send_modify(|state| state.has_unremoved_container = true);
    }

    /// Waits until a container could not be removed, and a short pause more: then orphans are to be collected.
    pub async fn wait_for_unremoved_container(&self) {
        let mut states = self.health.0.subscribe();
        // The sender lives in `self`, so this can't fail.
        let _ = wait::until(&mut states, |state| state.has_unremoved_container).await;
        sleep(CLEANUP_RETRY_DELAY).await;
        let health = &self.health.0;
        health.send_modify(|state| state.has_unremoved_container = false);
    }

    /// Checks podman after each reported failure. Never returns.
    pub async fn run_health_monitor(&self, probe_env: ProbeEnv<'_>) {
        let mut states = self.health.0.subscribe();
        let mut handled = 0;
        loop {
            let reported = wait::until(&mut states, |state| state.failure_reports != handled);
            handled = reported
                .await
                .map_or(handled, |state| state.failure_reports);
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
                    tracing::error!(reason, "podman does not work; refusing new jobs");
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
        let info = PodmanInfo {
            version: String::new(),
            rootless: false,
            graph_root: "/".into(),
            graph_driver: String::new(),
            default_runtime: String::new(),
            cgroup_version: String::new(),
            cgroup_manager: String::new(),
        };
        Engine {
            call_permits: Arc::new(Semaphore::new(permits)),
            ..Engine::new(Program::plain("/bin/sh"), info, RuntimeConfig::default())
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
        assert!(
            matches!(outcome, Err(EngineError::TimedOut { limit: exceeded, .. }) if exceeded == limit)
        );
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
