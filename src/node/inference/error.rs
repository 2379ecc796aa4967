//! Reasons for which a node has no model server.

use crate::engine::{EngineError, ImageError};
use std::{sync::Arc, time::Duration};

/// Why there is no model server.
#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    /// The orchestrator's configuration can't be followed.
    #[error("the configuration of the model server is wrong: {0}; mend it at the orchestrator")]
    Configuration(String),
    /// The operator doesn't allow the image.
    #[error(
        "the operator of this node does not allow the model server image {image} that the orchestrator names: allow it with --allowed-image, start this node with --inference off, or name another with --inference-image at the orchestrator"
    )]
    ImageNotAllowed {
        /// Which.
        image: String,
    },
    /// No image.
    #[error(
        "the model server's image {image} can't be had: {source}; name another with --inference-image at the orchestrator, fetch it here with podman pull, or start this node with --inference off"
    )]
    Image {
        /// Which.
        image: String,
        /// Why not.
        source: Arc<ImageError>,
    },
    /// The name is taken.
    #[error(
        "the container {name} belongs to {owner}, and is left alone; give this node a port of its own with --inference-port, or stop the other one"
    )]
    NotOurs {
        /// The container.
        name: String,
        /// Whose it is.
        owner: String,
    },
    /// The port is taken.
    #[error(
        "port {port} of 127.0.0.1 is taken by something that is no model server; stop it, or choose another port with --inference-port"
    )]
    PortTaken {
        /// Which.
        port: u16,
    },
    /// Podman could not make or start the container.
    #[error("the model server could not be started: {source}{}", hint.map(|hint| format!("; {hint}")).unwrap_or_default())]
    NotStarted {
        /// Podman's words.
        source: EngineError,
        /// What to do.
        hint: Option<&'static str>,
    },
    /// It started and ended.
    #[error("the model server ended as soon as it was started; its last words: {output}")]
    Exited {
        /// What it said.
        output: String,
    },
    /// It runs and doesn't answer.
    #[error("the model server did not answer within {} s; its last words: {output}; see that its image serves Ollama's API at port 11434, and that --inference-start-timeout isn't shorter than it needs", limit.as_secs())]
    Unresponsive {
        /// How long we waited.
        limit: Duration,
        /// What it said.
        output: String,
    },
    /// Podman could not say how things stand.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl InferenceError {
    /// A stable word for programs, as the acknowledgement carries it.
    pub(in crate::node) fn kind(&self) -> &'static str {
        match self {
            Self::Configuration(_) => "invalid-configuration",
            Self::ImageNotAllowed { .. } => "image-not-allowed",
            Self::Image { source, .. } => match **source {
                ImageError::NotPermitted(_) => "image-not-allowed",
                _ => "image-unavailable",
            },
            Self::NotOurs { .. } => "container-not-ours",
            Self::PortTaken { .. } => "port-in-use",
            Self::NotStarted { .. } | Self::Exited { .. } => "model-server-not-started",
            Self::Unresponsive { .. } => "model-server-silent",
            Self::Engine(_) => "engine-error",
        }
    }
}
