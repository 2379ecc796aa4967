//! Settings of an orchestrator, and the errors that keep it from starting.

use super::{
    database::IncompleteState, dispatch::LeaseTerms, egress::EgressPolicy, encryption::TlsSettings,
    inference::ModelSettings,
};
use crate::{
    api::{image::ImageRef, nodes::PreSharedKeys},
    store::{QueueLimits, Retention, SandboxLimits, StoreError},
};
use ipnet::IpNet;
use std::{collections::HashMap, io, net::SocketAddr, time::Duration};
use zeroize::Zeroizing;

/// Settings that the operator chooses.
pub struct Settings {
    /// Address of the gateway, for users.
    pub gateway_listen: SocketAddr,
    /// Address of the control plane, for nodes.
    pub control_listen: SocketAddr,
    /// URL at which nodes reach the control plane; the one that each node used if `None`.
    pub public_url: Option<String>,
    /// Encryption of both listeners.
    pub tls: TlsSettings,
    /// Pre-shared keys; those in the data directory if `None`.
    pub psk: Option<PreSharedKeys>,
    /// Password of the first admin; a generated one if `None`.
    pub admin_password: Option<Zeroizing<String>>,
    /// URLs of Worker APIs by slug, which override those that nodes report.
    pub worker_urls: HashMap<String, String>,
    /// Networks in which nodes may report their Worker API; any if empty.
    pub worker_url_allow: Vec<IpNet>,
    /// Image of tasks that name none.
    pub default_image: ImageRef,
    /// Model of prompts that name none; the node chooses one if `None`.
    pub default_model: Option<String>,
    /// Image of the model server that all nodes run; nodes with a graphics processor run the default one if `None`.
    pub inference_image: Option<ImageRef>,
    /// Models that model servers have to have; any if empty.
    pub inference_models: Vec<WantedModel>,
    /// Limits of calls of models.
    pub models: ModelSettings,
    /// Whether readiness requires inference.
    pub require_inference: RequireInference,
    /// Whether this process also runs a node.
    pub has_node: bool,
    /// Limits of the queue in tasks and bytes.
    pub queue: QueueLimits,
    /// Limits on the sandboxes that stay.
    pub sandboxes: SandboxLimits,
    /// Network that jobs may ask for.
    pub egress: EgressPolicy,
    /// Free disk space that new tasks may not use, in bytes.
    pub reserve_disk: u64,
    /// Most bytes of artifacts and files of tasks; no limit if `None`.
    pub artifact_quota: Option<u64>,
    /// Silence of a node after which its jobs are rescheduled.
    pub lease: LeaseTerms,
    /// Whether to create an empty database although keys of an earlier one exist.
    pub init: bool,
    /// Whether to create missing keys although a database exists.
    pub new_keys: bool,
    /// Whether this is a drill: users read, and nothing else is called or changed.
    pub drill: bool,
    /// Retention of finished tasks and audit events.
    pub retention: Retention,
    /// Retention of the logs of ended jobs.
    pub logs: LogRetention,
    /// Maximum number of jobs that one node runs at a time.
    pub max_jobs_per_node: u32,
    /// Maximum number of nodes.
    pub max_nodes: u32,
    /// Requests per second and user; 0 is no limit.
    pub user_rate: u32,
    /// Proxies whose forwarding headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
}

/// Whether readiness requires inference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum RequireInference {
    /// Where a node was told to run inference
    Auto,
    /// Always
    True,
    /// Never
    False,
}

/// Model that model servers have to have.
#[derive(Clone, Debug)]
pub struct WantedModel {
    /// Node that has to have it; all if `None`.
    pub slug: Option<String>,
    /// Name of the model.
    pub name: String,
}

/// Retention of the logs of ended jobs.
#[derive(Clone, Copy, Debug)]
pub struct LogRetention {
    /// Time for which a log is kept; `None` keeps it as long as its task.
    pub age: Option<Duration>,
    /// Size of all logs together, compressed, in bytes; 0 keeps none.
    pub quota: u64,
}

/// Error that keeps the orchestrator from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file or a socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A setting.
    #[error("{0}")]
    Setting(String),
    /// A part of the state in the data directory is missing.
    #[error("{0}; {fix}", fix = .0.fix())]
    Incomplete(#[from] IncompleteState),
}
