//! State of the model server, as reports and the Worker API show it.

use super::Source;
use crate::{
    api::nodes::{AckError, Inference, MAX_WARNING_BYTES, ModelDetails},
    worker::Worker,
};
use std::net::SocketAddr;
use tokio::sync::watch;

/// Publisher of the state of one model server. The Worker API passes calls on to it only while it runs.
#[derive(Clone)]
pub(super) struct Publisher {
    /// State while no server runs.
    idle: Inference,
    state: watch::Sender<Inference>,
    worker: Worker,
    address: SocketAddr,
}

impl Publisher {
    /// Publisher that starts with the state `idle`.
    pub(super) fn new(
        idle: Inference,
        state: &watch::Sender<Inference>,
        worker: &Worker,
        address: SocketAddr,
    ) -> Self {
        let publisher = Self {
            idle,
            state: state.clone(),
            worker: worker.clone(),
            address,
        };
        publisher.set_idle();
        publisher
    }

    /// Publishes that the server runs, with its models; `None` keeps the known ones.
    pub(super) fn set_running(&self, source: Source, models: Option<Vec<ModelDetails>>) {
        self.worker.set_model_server(Some(self.address));
        self.update(|known| {
            known.supported = true;
            known.running = Some(true);
            known.existing_service = Some(source == Source::External);
            known.reason = None;
            if models.is_some() {
                known.set_models(models);
            }
        });
    }

    /// Publishes that the server does not answer; its models stay known. Returns whether that is news.
    pub(super) fn set_silent(&self, source: Source) -> bool {
        self.worker.set_model_server(None);
        self.update(|known| {
            known.running = Some(false);
            known.existing_service = Some(source == Source::External);
        })
    }

    /// Publishes that the server can't be started, and the reason.
    pub(super) fn set_failed(&self, kind: &'static str, message: String) {
        self.worker.set_model_server(None);
        let error = AckError {
            kind: kind.to_owned(),
            message,
            details: None,
        };
        let mut reason = error.to_stored();
        reason.truncate(reason.floor_char_boundary(MAX_WARNING_BYTES));
        self.update(|known| {
            known.running = Some(false);
            known.reason = Some(reason);
        });
    }

    /// Publishes that there is no server.
    pub(super) fn set_idle(&self) {
        self.worker.set_model_server(None);
        self.update(|known| *known = self.idle.clone());
    }

    /// Changes the state. Returns whether it differs from the one before.
    fn update(&self, change: impl FnOnce(&mut Inference)) -> bool {
        self.state.send_if_modified(|known| {
            let before = known.clone();
            change(known);
            *known != before
        })
    }
}
