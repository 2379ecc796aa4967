//! Flags of the roles: what operators say.

use super::duration;
use crate::node::InferenceMode;
use clap::{ArgAction, Args};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Where state is kept.
#[derive(Args, Debug)]
pub struct State {
    /// Where state is kept [default: $XDG_STATE_HOME/cynode; root: /var/lib/cynode]
    #[arg(long, env = "CYNODE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// The pre-shared key.
#[derive(Args, Debug)]
pub struct Psk {
    /// The pre-shared key by which nodes register (or CYNODE_PSK)
    #[arg(long, value_name = "KEY", conflicts_with = "psk_file")]
    pub psk: Option<String>,
    /// A file that holds the pre-shared key (or CYNODE_PSK_FILE)
    #[arg(long, value_name = "FILE")]
    pub psk_file: Option<PathBuf>,
}

/// What an orchestrator is told, alone or in `dev`.
#[derive(Args, Debug)]
pub struct OrchestratorFlags {
    /// Where users reach it; port 0 takes a free one
    #[arg(
        long,
        env = "CYNODE_GATEWAY_LISTEN",
        default_value = "127.0.0.1:12080",
        value_name = "ADDR:PORT"
    )]
    pub gateway_listen: SocketAddr,
    /// The first admin's password, from a file; counts only at the first start
    #[arg(long, env = "CYNODE_ADMIN_PASSWORD_FILE", value_name = "FILE")]
    pub admin_password_file: Option<PathBuf>,
    /// The image of a task that names none
    #[arg(
        long,
        env = "CYNODE_DEFAULT_IMAGE",
        default_value = "docker.io/library/alpine:latest",
        value_name = "IMAGE"
    )]
    pub default_image: String,
}

#[derive(Args, Debug)]
pub struct ServeOrchestrator {
    #[command(flatten)]
    pub state: State,
    #[command(flatten)]
    pub flags: OrchestratorFlags,
    /// Where nodes reach it
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "0.0.0.0:12082",
        value_name = "ADDR:PORT"
    )]
    pub control_listen: SocketAddr,
    /// How nodes are to call it [default: the address they came by]
    #[arg(long, env = "CYNODE_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    #[command(flatten)]
    pub psk: Psk,
    /// Reach the node SLUG at URL, whatever it says; repeatable
    #[arg(
        long,
        env = "CYNODE_WORKER_URL",
        value_name = "SLUG=URL",
        value_delimiter = ','
    )]
    pub worker_url: Vec<String>,
    /// Have nodes run this model server image
    #[arg(long, env = "CYNODE_INFERENCE_IMAGE", value_name = "IMAGE")]
    pub inference_image: Option<String>,
    /// Be ready only while a node has inference running
    #[arg(long, env = "CYNODE_REQUIRE_INFERENCE", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub require_inference: bool,
}

/// What a machine that runs sandboxes is told.
#[derive(Args, Debug)]
pub struct SandboxFlags {
    /// Where the Worker API listens; port 0 takes a free one
    #[arg(
        long,
        env = "CYNODE_WORKER_LISTEN",
        default_value = "0.0.0.0:12090",
        value_name = "ADDR:PORT"
    )]
    pub worker_listen: SocketAddr,
    #[command(flatten)]
    pub engine: EngineFlags,
    /// An image to fetch before the first job asks for it
    #[arg(long, env = "CYNODE_DEFAULT_IMAGE", value_name = "IMAGE")]
    pub default_image: Option<String>,
}

/// How sandboxes are run.
#[derive(Args, Debug)]
pub struct EngineFlags {
    /// Jobs at the same time [default: CPU cores]
    #[arg(long, env = "CYNODE_MAX_CONCURRENCY", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_concurrency: Option<u32>,
    /// Allow only images that match, such as docker.io/library/*; repeatable [default: all]
    #[arg(
        long,
        env = "CYNODE_ALLOWED_IMAGE",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub allowed_image: Vec<String>,
    #[command(flatten)]
    pub podman: Podman,
    /// How long running jobs may go on at shutdown, such as 10s
    #[arg(long, env = "CYNODE_SHUTDOWN_GRACE", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub shutdown_grace: Duration,
}

/// Which podman, and what it is to use.
#[derive(Args, Debug)]
pub struct Podman {
    /// Name or path of podman
    #[arg(
        long,
        env = "CYNODE_ENGINE",
        default_value = "podman",
        value_name = "PROGRAM"
    )]
    pub engine: PathBuf,
    /// The OCI runtime that podman is to use [default: the first that works here]
    #[arg(long, env = "CYNODE_ENGINE_RUNTIME", value_name = "RUNTIME")]
    pub engine_runtime: Option<String>,
}

/// Who a node is.
#[derive(Args, Debug)]
pub struct Identity {
    /// This machine's name in commands [default: the host's name]
    #[arg(long, env = "CYNODE_SLUG")]
    pub slug: Option<String>,
    /// Its name for people
    #[arg(long, env = "CYNODE_NAME")]
    pub name: Option<String>,
    /// What tasks may ask for, such as gpu or zone=attic; repeatable
    #[arg(
        long,
        env = "CYNODE_LABEL",
        value_name = "LABEL",
        value_delimiter = ','
    )]
    pub label: Vec<String>,
    /// Whether to run a model server: auto follows the orchestrator
    #[arg(long, env = "CYNODE_INFERENCE", value_name = "MODE")]
    pub inference: Option<InferenceMode>,
}

#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    pub state: State,
    /// The orchestrator's control plane, such as http://192.168.1.5:12082
    #[arg(long, env = "CYNODE_ORCHESTRATOR", value_name = "URL")]
    pub orchestrator: String,
    #[command(flatten)]
    pub psk: Psk,
    #[command(flatten)]
    pub identity: Identity,
    /// Where the orchestrator reaches this node [default: the address that leads to it]
    #[arg(long, env = "CYNODE_ADVERTISE_URL", value_name = "URL")]
    pub advertise_url: Option<String>,
    #[command(flatten)]
    pub sandbox: SandboxFlags,
}

#[derive(Args, Debug)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub state: State,
    /// A file that holds the token callers must show (or CYNODE_WORKER_TOKEN)
    #[arg(long, env = "CYNODE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    #[command(flatten)]
    pub sandbox: SandboxFlags,
}

#[derive(Args, Debug)]
pub struct Dev {
    #[command(flatten)]
    pub state: State,
    #[command(flatten)]
    pub flags: OrchestratorFlags,
    /// Where its node reaches it
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "127.0.0.1:12082",
        value_name = "ADDR:PORT"
    )]
    pub control_listen: SocketAddr,
    /// Where its Worker API listens
    #[arg(
        long,
        env = "CYNODE_WORKER_LISTEN",
        default_value = "127.0.0.1:12090",
        value_name = "ADDR:PORT"
    )]
    pub worker_listen: SocketAddr,
    #[command(flatten)]
    pub psk: Psk,
    #[command(flatten)]
    pub identity: Identity,
    #[command(flatten)]
    pub engine: EngineFlags,
}
