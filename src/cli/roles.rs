//! Flags of the roles: what operators say.

use super::{Output, duration, size};
use crate::node::InferenceMode;
use clap::{ArgAction, Args};
use ipnet::IpNet;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Where state is kept.
#[derive(Args, Clone, Debug)]
pub struct State {
    /// Directory for state [default: $XDG_STATE_HOME/cynode; root: /var/lib/cynode]
    #[arg(long, env = "CYNODE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// The pre-shared key.
#[derive(Args, Debug)]
pub struct Psk {
    /// Pre-shared key with which nodes register, at least 16 characters; other users can read it in the list
    /// of processes, so prefer --psk-file (or CYNODE_PSK)
    #[arg(long, value_name = "KEY", conflicts_with = "psk_file")]
    pub psk: Option<String>,
    /// Read the pre-shared key from a file, or from stdin with - (or CYNODE_PSK_FILE)
    #[arg(long, value_name = "FILE")]
    pub psk_file: Option<PathBuf>,
}

/// What an orchestrator is told, alone or in `dev`.
#[derive(Args, Debug)]
pub struct OrchestratorFlags {
    /// Address for the User API; port 0 picks a free port
    #[arg(
        long,
        env = "CYNODE_GATEWAY_LISTEN",
        default_value = "127.0.0.1:12080",
        value_name = "ADDR:PORT"
    )]
    pub gateway_listen: SocketAddr,
    /// Read the first admin's password from a file; used only at the first start
    #[arg(long, env = "CYNODE_ADMIN_PASSWORD_FILE", value_name = "FILE")]
    pub admin_password_file: Option<PathBuf>,
    /// Begin with an empty database although the data directory has keys
    #[arg(long, env = "CYNODE_INIT")]
    pub init: bool,
    /// Image for tasks that name none
    #[arg(
        long,
        env = "CYNODE_DEFAULT_IMAGE",
        default_value = "docker.io/library/alpine:latest",
        value_name = "IMAGE"
    )]
    pub default_image: String,
    /// Run this model server image on nodes
    #[arg(long, env = "CYNODE_INFERENCE_IMAGE", value_name = "IMAGE")]
    pub inference_image: Option<String>,
    /// Fetch this model on nodes, such as qwen3:0.6b; repeatable
    #[arg(
        long,
        env = "CYNODE_INFERENCE_MODEL",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "inference_image"
    )]
    pub inference_model: Vec<String>,
    #[command(flatten)]
    pub limits: Limits,
}

/// What an orchestrator puts up with.
#[derive(Args, Debug)]
pub struct Limits {
    /// Refuse new tasks while this many are queued
    #[arg(
        long,
        env = "CYNODE_MAX_QUEUED",
        default_value_t = 1_000_000,
        value_name = "N"
    )]
    pub max_queued: u64,
    /// Refuse a user's new tasks while this many of theirs are queued
    #[arg(
        long,
        env = "CYNODE_MAX_QUEUED_PER_USER",
        default_value_t = 500_000,
        value_name = "N"
    )]
    pub max_queued_per_user: u64,
    /// Reschedule the jobs of a node that has been silent for this long
    #[arg(long, env = "CYNODE_LEASE", default_value = "60s", value_parser = lease, value_name = "TIME")]
    pub lease: Duration,
    /// Delete finished tasks and their output after this time, such as 12h or 30d; 0: never
    #[arg(long, env = "CYNODE_RETAIN", default_value = "30d", value_parser = duration, value_name = "TIME")]
    pub retain: Duration,
    /// Delete the oldest finished tasks beyond this number; 0: no limit
    #[arg(
        long,
        env = "CYNODE_RETAIN_MAX",
        default_value_t = 1_000_000,
        value_name = "N"
    )]
    pub retain_max: u64,
    /// Requests per second for each user, with bursts of five seconds' worth; 0: no limit
    #[arg(
        long,
        env = "CYNODE_USER_RATE",
        default_value_t = 200,
        value_name = "N"
    )]
    pub user_rate: u32,
    /// Trust X-Forwarded-For from this address or network, such as 10.0.0.0/8; repeatable
    #[arg(
        long,
        env = "CYNODE_TRUSTED_PROXY",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = network
    )]
    pub trusted_proxy: Vec<IpNet>,
}

/// A lease that ends at once would hand a job over at each lost packet.
fn lease(text: &str) -> Result<Duration, String> {
    let lease = duration(text)?;
    if lease < Duration::from_secs(1) {
        return Err("expected 1s or more".to_owned());
    }
    Ok(lease)
}

/// An address alone is a network of one.
fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network = address.or_else(|_| text.parse());
    network.map_err(|_| "write it like 192.168.1.5 or 10.0.0.0/8".to_owned())
}

#[derive(Args, Debug)]
pub struct ServeOrchestrator {
    #[command(flatten)]
    pub state: State,
    #[command(flatten)]
    pub flags: OrchestratorFlags,
    /// Address for the Node API (control plane)
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "0.0.0.0:12082",
        value_name = "ADDR:PORT"
    )]
    pub control_listen: SocketAddr,
    /// URL under which nodes reach the control plane [default: the address they used]
    #[arg(long, env = "CYNODE_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    #[command(flatten)]
    pub psk: Psk,
    /// Reach node SLUG at URL, overriding what it reports; repeatable
    #[arg(
        long,
        env = "CYNODE_WORKER_URL",
        value_name = "SLUG=URL",
        value_delimiter = ','
    )]
    pub worker_url: Vec<String>,
    /// Report ready only while a node has inference running
    #[arg(long, env = "CYNODE_REQUIRE_INFERENCE", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub require_inference: bool,
}

/// What a machine that runs sandboxes is told.
#[derive(Args, Debug)]
pub struct SandboxFlags {
    /// Address for the Worker API; port 0 picks a free port [default: 0.0.0.0:12090]
    #[arg(long, env = "CYNODE_WORKER_LISTEN", value_name = "ADDR:PORT")]
    pub worker_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub engine: EngineFlags,
    /// Image to fetch before the first job needs it
    #[arg(long, env = "CYNODE_DEFAULT_IMAGE", value_name = "IMAGE")]
    pub default_image: Option<String>,
    /// Largest request body of the Worker API, in bytes [default and maximum: 10 MiB]
    #[arg(long, env = "CYNODE_MAX_REQUEST_BYTES", value_name = "N")]
    pub max_request_bytes: Option<usize>,
}

/// How sandboxes are run.
#[derive(Args, Debug)]
pub struct EngineFlags {
    /// Maximum number of jobs at a time [default: CPU cores]
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
    #[command(flatten)]
    pub storage: StorageFlags,
    /// Time limit of a job that names none, such as 15m [default and maximum: 1h]
    #[arg(long, env = "CYNODE_DEFAULT_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub default_timeout: Option<Duration>,
    /// Longest time a job may run here, such as 30m [default and maximum: 3h]
    #[arg(long, env = "CYNODE_MAX_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub max_timeout: Option<Duration>,
    /// Time to wait for running jobs at shutdown [default: 10s]
    #[arg(long, env = "CYNODE_SHUTDOWN_GRACE", value_parser = duration, value_name = "TIME")]
    pub shutdown_grace: Option<Duration>,
}

/// Where a worker keeps its jobs, and for how long.
#[derive(Args, Debug)]
pub struct StorageFlags {
    /// Directory for jobs [default: worker/jobs in the data directory]
    #[arg(long, env = "CYNODE_JOBS_DIR", value_name = "DIR")]
    pub jobs_dir: Option<PathBuf>,
    /// Refuse jobs while less than this is free there, such as 2GiB [default: 512MiB]
    #[arg(long, env = "CYNODE_MIN_FREE_DISK", value_parser = size, value_name = "SIZE")]
    pub min_free_disk: Option<u64>,
    /// Output to keep of each job for live readers: its start and the latest; 1MiB to 1TiB [default: 64MiB]
    #[arg(long, env = "CYNODE_JOB_LOG_SIZE", value_parser = size, value_name = "SIZE")]
    pub job_log_size: Option<u64>,
    /// Time to keep results that the orchestrator does not fetch [default: 30d]
    #[arg(long, env = "CYNODE_LEDGER_RETAIN", value_parser = duration, value_name = "TIME")]
    pub ledger_retain: Option<Duration>,
}

/// Which podman, and what it is to use.
#[derive(Args, Debug)]
pub struct Podman {
    /// Name or path of podman [default: podman]
    #[arg(long, env = "CYNODE_ENGINE", value_name = "PROGRAM")]
    pub engine: Option<PathBuf>,
    /// OCI runtime for podman [default: the first that works here]
    #[arg(long, env = "CYNODE_ENGINE_RUNTIME", value_name = "RUNTIME")]
    pub engine_runtime: Option<String>,
}

impl Podman {
    /// The program to start.
    pub fn program(&self) -> PathBuf {
        self.engine.clone().unwrap_or_else(|| "podman".into())
    }
}

/// Who a node is.
#[derive(Args, Debug)]
pub struct Identity {
    /// Name of this node in commands [default: the host name]
    #[arg(long, env = "CYNODE_SLUG")]
    pub slug: Option<String>,
    /// Display name of this node
    #[arg(long, env = "CYNODE_NAME")]
    pub name: Option<String>,
    /// Label for placement, such as gpu or zone=attic; repeatable
    #[arg(
        long,
        env = "CYNODE_LABEL",
        value_name = "LABEL",
        value_delimiter = ','
    )]
    pub label: Vec<String>,
}

/// The one model server of a node.
#[derive(Args, Debug)]
pub struct InferenceFlags {
    /// Run a model server; auto follows the orchestrator [default: auto; dev: off unless an image is given]
    #[arg(long, env = "CYNODE_INFERENCE", value_name = "MODE")]
    pub inference: Option<InferenceMode>,
    /// Port of the model server, on loopback only [default: the orchestrator's setting, else 11434]
    #[arg(long, env = "CYNODE_INFERENCE_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub inference_port: Option<u16>,
    /// Time limit for fetching the model server image [default: 30m]
    #[arg(long, env = "CYNODE_INFERENCE_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub inference_timeout: Option<Duration>,
    /// Time limit for the model server to answer after its start [default: 2m]
    #[arg(long, env = "CYNODE_INFERENCE_START_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub inference_start_timeout: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    pub state: State,
    /// Settings in YAML; flags and variables override it [default: /etc/cynode/node.yaml, if it exists]
    #[arg(long, env = "CYNODE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// URL of the orchestrator's control plane, such as http://192.168.1.5:12082
    #[arg(long, env = "CYNODE_ORCHESTRATOR", value_name = "URL")]
    pub orchestrator: Option<String>,
    /// Time limit for an answer of the orchestrator [default: 30s]
    #[arg(long, env = "CYNODE_ORCHESTRATOR_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub orchestrator_timeout: Option<Duration>,
    #[command(flatten)]
    pub psk: Psk,
    #[command(flatten)]
    pub identity: Identity,
    #[command(flatten)]
    pub inference: InferenceFlags,
    /// URL under which the orchestrator reaches this node [default: the address that leads to it]
    #[arg(long, env = "CYNODE_ADVERTISE_URL", value_name = "URL")]
    pub advertise_url: Option<String>,
    #[command(flatten)]
    pub sandbox: SandboxFlags,
}

#[derive(Args, Debug)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub state: State,
    /// Read the token that callers must show from a file (or CYNODE_WORKER_TOKEN)
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
    /// Address for the Node API (control plane)
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "127.0.0.1:12082",
        value_name = "ADDR:PORT"
    )]
    pub control_listen: SocketAddr,
    /// Address for the Worker API
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
    pub inference: InferenceFlags,
    #[command(flatten)]
    pub engine: EngineFlags,
}

#[derive(Args, Debug)]
pub struct BackupArgs {
    #[command(flatten)]
    pub state: State,
    /// Output format
    #[arg(long, short, env = "CYNODE_OUTPUT", default_value = "text")]
    pub output: Output,
    /// File to create
    pub file: PathBuf,
}
