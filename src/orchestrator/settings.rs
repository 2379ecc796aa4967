//! Settings of an orchestrator, and the errors that keep it from starting.

use super::database::IncompleteState;
use crate::{
    api::image::ImageRef,
    store::{QueueLimits, Retention, StoreError},
};
use ipnet::IpNet;
use std::{collections::HashMap, io, net::SocketAddr, time::Duration};
use zeroize::Zeroizing;

/// Settings that the operator chooses.
pub struct Settings {
    /// Where users reach us.
    pub gateway_listen: SocketAddr,
    /// Where nodes reach us.
    pub control_listen: SocketAddr,
    /// How nodes are to call us; as they did when `None`.
    pub public_url: Option<String>,
    /// The pre-shared key; ours from the data directory when `None`.
    pub psk: Option<Zeroizing<String>>,
    /// The first admin's password; a random one when `None`.
    pub admin_password: Option<Zeroizing<String>>,
    /// Where nodes are reached, by slug, whatever they say.
    pub worker_urls: HashMap<String, String>,
    /// Networks in which nodes may say that they are reached; any where there are none.
    pub worker_url_allow: Vec<IpNet>,
    /// The image of a task that names none.
    pub default_image: ImageRef,
    /// The model server that nodes are to run.
    pub inference_image: Option<ImageRef>,
    /// The models that it is to have; whatever it has when empty.
    pub inference_models: Vec<String>,
    /// Whether we are ready only with inference.
    pub require_inference: bool,
    /// Whether this process runs a node, too.
    pub has_node: bool,
    /// How many tasks may be queued, and how large.
    pub queue: QueueLimits,
    /// Room on the disk that new tasks may not use up, in bytes.
    pub reserve_disk: u64,
    /// How long a node may be silent before what it runs is offered to another one.
    pub lease: Duration,
    /// Whether an empty database may be made beside keys of before.
    pub init: bool,
    /// Whether keys may be made beside a database of before.
    pub new_keys: bool,
    /// Which finished tasks are kept.
    pub retention: Retention,
    /// Most jobs of one node at the same time.
    pub max_jobs_per_node: u32,
    /// Most nodes.
    pub max_nodes: u32,
    /// How many requests a second each user may make; any number when 0.
    pub user_rate: u32,
    /// Those who are believed where a request came from.
    pub trusted_proxies: Vec<IpNet>,
}

/// Why the orchestrator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Files or sockets.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A setting.
    #[error("{0}")]
    Setting(String),
    /// A part of the state is missing.
    #[error("{0}; {fix}", fix = .0.fix())]
    Incomplete(#[from] IncompleteState),
}
