//! Errors of the model server.

use crate::engine::{EngineError, ImageError};
use std::{sync::Arc, time::Duration};

/// Reason for which no model server runs.
#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    /// Invalid configuration from the orchestrator.
    #[error(
        "the orchestrator's configuration of the model server is invalid: {0}; fix it at the orchestrator"
    )]
    Configuration(String),
    /// Image that this node does not allow.
    #[error(
        "this node does not allow the model server image {image}; allow it with --allowed-image, start this node with --inference off, or set another --inference-image at the orchestrator"
    )]
    ImageNotAllowed {
        /// Reference of the image.
        image: String,
    },
    /// Image that cannot be pulled.
    #[error(
        "the model server image {image} is not available: {source}; set another --inference-image at the orchestrator, pull it here with podman pull, or start this node with --inference off"
    )]
    Image {
        /// Reference of the image.
        image: String,
        /// Cause.
        source: Arc<ImageError>,
    },
    /// Container of another owner.
    #[error(
        "the container {name} belongs to {owner}; give this node a port of its own with --inference-port, or remove that container"
    )]
    NotOurs {
        /// Name of the container.
        name: String,
        /// Owner of the container.
        owner: String,
    },
    /// Port in use by something else.
    #[error(
        "port {port} of 127.0.0.1 is in use by something that is not a model server; stop it, or choose another port with --inference-port"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// Container that podman could not create or start.
    #[error("the model server could not be started: {source}{}", hint.map(|hint| format!("; {hint}")).unwrap_or_default())]
    NotStarted {
        /// Podman's error.
        source: EngineError,
        /// Fix.
        hint: Option<&'static str>,
    },
    /// Container that exited before the first answer.
    #[error("the model server exited right after its start{}; its last output: {output}", code.map(|code| format!(" with code {code}")).unwrap_or_default())]
    Exited {
        /// Its exit code, where podman knows it.
        code: Option<i32>,
        /// End of its output.
        output: String,
    },
    /// Server that does not answer.
    #[error("the model server did not answer within {} s; its last output: {output}; check that its image serves Ollama's API at port 11434, or raise --inference-start-timeout", limit.as_secs())]
    Unresponsive {
        /// Time limit for its first answer.
        limit: Duration,
        /// End of its output.
        output: String,
    },
    /// Podman failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl InferenceError {
    /// Type of the error in the acknowledgement, a stable word for programs.
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
