//! The model server as a part of a node: its plan, its monitor, and its state for the reports.

use super::{
    InferenceError, ModelServerManager, Plan,
    monitor::{run_monitor, watch_existing},
    publisher::Publisher,
};
use crate::{api::nodes::Inference, background, inference::ollama::OllamaClient, worker::Worker};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

/// Time for which the start of a node waits for a model server that is not required; its image may take long.
const START_WAIT: Duration = Duration::from_mins(1);

/// The model server of a running node.
pub(in crate::node) struct LocalModelServer {
    manager: ModelServerManager,
    /// State in reports before a server runs.
    initial: Inference,
    state: watch::Sender<Inference>,
    monitor: Option<Monitor>,
}

/// Monitor of a model server; ends when this is dropped.
struct Monitor {
    target: Target,
    task: JoinHandle<()>,
}

/// Model server that is monitored.
#[derive(PartialEq, Eq)]
enum Target {
    /// The one that this node runs.
    Planned(Plan),
    /// Any that somebody else runs at this address.
    Existing(SocketAddr),
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

    /// Looks for a model server of somebody else, so that the first report includes it.
    pub(in crate::node) async fn look_for_existing(&self, address: SocketAddr) {
        if !self.manager.is_existing(address).await {
            return;
        }
        let models = OllamaClient::at(address).models().await;
        self.state.send_modify(|state| {
            state.supported = true;
            state.running = Some(true);
            state.existing_service = Some(true);
            state.set_models(models);
        });
    }

    /// Starts the planned server and its monitor, unless it is monitored already. A server that is not required may
    /// fail to start, or take longer than this waits: its monitor goes on trying.
    pub(in crate::node) async fn start(
        &mut self,
        plan: Plan,
        worker: &Worker,
    ) -> Result<(), InferenceError> {
        let target = Target::Planned(plan.clone());
        if self.is_monitored(&target) {
            return Ok(());
        }
        self.end_monitor().await;
        let planned = Inference {
            supported: true,
            ..self.initial.clone()
        };
        let is_required = plan.is_required;
        let publisher = Publisher::new(planned, &self.state, worker, plan.address());
        let (on_started, started) = oneshot::channel();
        let monitor = run_monitor(self.manager.clone(), plan, publisher, on_started);
        let task = background::spawn("monitor_model_server", monitor);
        self.monitor = Some(Monitor { target, task });
        if is_required {
            // A monitor that ends without a word has panicked, which the next heartbeat finds.
            let outcome = started.await.unwrap_or(Ok(()));
            if outcome.is_err() {
                self.monitor = None;
            }
            return outcome;
        }
        if timeout(START_WAIT, started).await.is_err() {
            tracing::info!("model server is still being started; the node takes jobs meanwhile");
        }
        Ok(())
    }

    /// Removes the server of an earlier configuration, and uses one of somebody else at this address, now or when it
    /// appears.
    pub(in crate::node) async fn use_existing(&mut self, address: SocketAddr, worker: &Worker) {
        let target = Target::Existing(address);
        if self.is_monitored(&target) {
            return;
        }
        self.stop(worker).await;
        let publisher = Publisher::new(self.initial.clone(), &self.state, worker, address);
        let (on_looked, looked) = oneshot::channel();
        let watch = watch_existing(OllamaClient::at(address), publisher, on_looked);
        let task = background::spawn("watch_model_server", watch);
        self.monitor = Some(Monitor { target, task });
        // So that the next report includes it; a watch that ends without a word has panicked.
        let _ = looked.await;
    }

    /// Removes the server of an earlier configuration.
    pub(in crate::node) async fn stop(&mut self, worker: &Worker) {
        self.end_monitor().await;
        worker.set_model_server(None);
        self.state.send_replace(self.initial.clone());
        if let Err(error) = self.manager.remove_all_except(None).await {
            tracing::warn!(%error, "an earlier model server may be left; see podman ps --all");
        }
    }

    /// Ends the monitor, so that it starts no server any more.
    pub(in crate::node) async fn end_monitor(&mut self) {
        if let Some(mut monitor) = self.monitor.take() {
            monitor.task.abort();
            // Its end is all that matters: it was aborted, or has ended before.
            let _ = (&mut monitor.task).await;
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

    fn is_monitored(&self, target: &Target) -> bool {
        self.monitor.as_ref().map(|monitor| &monitor.target) == Some(target)
    }
}
