//! The model server as a part of a node: its plan, its monitor, and its state for the reports.

use super::{InferenceError, ModelServerManager, Plan, Source, monitor::run_monitor};
use crate::{api::nodes::Inference, background};
use tokio::{sync::watch, task::JoinHandle};

/// The model server of a running node.
pub(in crate::node) struct LocalModelServer {
    manager: ModelServerManager,
    /// State in reports before a server runs.
    initial: Inference,
    state: watch::Sender<Inference>,
    monitor: Option<Monitor>,
}

/// Monitor of a running model server; ends when this is dropped.
struct Monitor {
    plan: Plan,
    task: JoinHandle<()>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LocalModelServer {
    pub(in crate::node) fn new(manager: ModelServerManager, initial: Inference) -> Self {
        Self {
            manager,
            state: watch::Sender::new(initial.clone()),
            initial,
            monitor: None,
        }
    }

    pub(in crate::node) fn manager(&self) -> ModelServerManager {
        self.manager.clone()
    }

    /// State of the server in reports.
    pub(in crate::node) fn subscribe(&self) -> watch::Receiver<Inference> {
        self.state.subscribe()
    }

    /// Starts the planned server and its monitor, unless it is monitored already.
    pub(in crate::node) async fn start(&mut self, plan: Plan) -> Result<(), InferenceError> {
        if self.monitor.as_ref().map(|monitor| &monitor.plan) == Some(&plan) {
            return Ok(());
        }
        self.reset(true);
        let source = self.manager.ensure_running(&plan).await?;
        let models = self.manager.models(&plan).await;
        self.state.send_modify(|state| {
            state.running = Some(true);
            state.set_models(models);
            state.existing_service = Some(source == Source::External);
        });
        let monitor = run_monitor(
            self.manager.clone(),
            plan.clone(),
            source,
            self.state.clone(),
        );
        let task = background::spawn("monitor_model_server", monitor);
        self.monitor = Some(Monitor { plan, task });
        Ok(())
    }

    /// Removes the server of an earlier configuration.
    pub(in crate::node) async fn stop(&mut self) {
        self.reset(false);
        if let Err(error) = self.manager.remove_all_except(None).await {
            tracing::warn!(%error, "an earlier model server may be left; see podman ps --all");
        }
    }

    /// Removes the monitor if it has ended, which only a panic can cause. Returns whether it has.
    pub(in crate::node) fn take_failed_monitor(&mut self) -> bool {
        let failed = self.monitor.take_if(|monitor| monitor.task.is_finished());
        if failed.is_some() {
            tracing::error!("monitor of the model server failed; starting it again");
        }
        failed.is_some()
    }

    fn reset(&mut self, supported: bool) {
        self.monitor = None;
        self.state.send_replace(Inference {
            supported,
            ..self.initial.clone()
        });
    }
}
