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
    /// Begin with an empty database although the data directory holds keys of before
    #[arg(long, env = "CYNODE_INIT")]
    pub init: bool,
    /// The image of a task that names none
    #[arg(
        long,
        env = "CYNODE_DEFAULT_IMAGE",
        default_value = "docker.io/library/alpine:latest",
        value_name = "IMAGE"
    )]
    pub default_image: String,
    /// Have nodes run this model server image
    #[arg(long, env = "CYNODE_INFERENCE_IMAGE", value_name = "IMAGE")]
    pub inference_image: Option<String>,
    /// Have nodes fetch this model for it, such as qwen3:0.6b; repeatable
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
    /// Refuse new tasks while so many are queued
    #[arg(
        long,
        env = "CYNODE_MAX_QUEUED",
        default_value_t = 1_000_000,
        value_name = "N"
    )]
    pub max_queued: u64,
    /// Refuse a user's new tasks while so many of theirs are queued
    #[arg(
        long,
        env = "CYNODE_MAX_QUEUED_PER_USER",
        default_value_t = 500_000,
        value_name = "N"
    )]
    pub max_queued_per_user: u64,
    /// Offer what a node runs to another one when it has not answered for so long (found out 15 s after its last
    /// word at the latest)
    #[arg(long, env = "CYNODE_LEASE", default_value = "60s", value_parser = lease, value_name = "TIME")]
    pub lease: Duration,
    /// Forget finished tasks, with what they printed, after this time, such as 12h or 30d; 0: never
    #[arg(long, env = "CYNODE_RETAIN", default_value = "30d", value_parser = duration, value_name = "TIME")]
    pub retain: Duration,
    /// Forget the oldest finished tasks while there are more than so many; 0: any number
    #[arg(
        long,
        env = "CYNODE_RETAIN_MAX",
        default_value_t = 1_000_000,
        value_name = "N"
    )]
    pub retain_max: u64,
    /// Let each user make so many requests a second, five seconds' worth of them at once; 0: any number
    #[arg(
        long,
        env = "CYNODE_USER_RATE",
        default_value_t = 200,
        value_name = "N"
    )]
    pub user_rate: u32,
    /// Believe the X-Forwarded-For of this address or network, such as 10.0.0.0/8; repeatable
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
    /// Be ready only while a node has inference running
    #[arg(long, env = "CYNODE_REQUIRE_INFERENCE", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub require_inference: bool,
}

/// What a machine that runs sandboxes is told.
#[derive(Args, Debug)]
pub struct SandboxFlags {
    /// Where the Worker API listens; port 0 takes a free one [default: 0.0.0.0:12090]
    #[arg(long, env = "CYNODE_WORKER_LISTEN", value_name = "ADDR:PORT")]
    pub worker_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub engine: EngineFlags,
    /// An image to fetch before the first job asks for it
    #[arg(long, env = "CYNODE_DEFAULT_IMAGE", value_name = "IMAGE")]
    pub default_image: Option<String>,
    /// The longest body that the Worker API takes, in bytes [default: 10 MiB, which is also the most]
    #[arg(long, env = "CYNODE_MAX_REQUEST_BYTES", value_name = "N")]
    pub max_request_bytes: Option<usize>,
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
    #[command(flatten)]
    pub storage: StorageFlags,
    /// Time limit of a job that names none, such as 15m [default: 1h, which is also the most]
    #[arg(long, env = "CYNODE_DEFAULT_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub default_timeout: Option<Duration>,
    /// The longest that a job may run here, such as 30m [default: 3h, which is also the most]
    #[arg(long, env = "CYNODE_MAX_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub max_timeout: Option<Duration>,
    /// How long running jobs may go on at shutdown [default: 10s]
    #[arg(long, env = "CYNODE_SHUTDOWN_GRACE", value_parser = duration, value_name = "TIME")]
    pub shutdown_grace: Option<Duration>,
}

/// Where a worker keeps its jobs, and for how long.
#[derive(Args, Debug)]
pub struct StorageFlags {
    /// Where each job has its directory [default: worker/jobs in the data directory]
    #[arg(long, env = "CYNODE_JOBS_DIR", value_name = "DIR")]
    pub jobs_dir: Option<PathBuf>,
    /// Take no job while less than this is free there, such as 2GiB [default: 512MiB]
    #[arg(long, env = "CYNODE_MIN_FREE_DISK", value_parser = size, value_name = "SIZE")]
    pub min_free_disk: Option<u64>,
    /// How much of each job's output is kept for those who read along: its beginning, and of the rest the oldest goes first; 1MiB to 1TiB [default: 64MiB]
    #[arg(long, env = "CYNODE_JOB_LOG_SIZE", value_parser = size, value_name = "SIZE")]
    pub job_log_size: Option<u64>,
    /// How long a result is kept that the orchestrator doesn't fetch [default: 30d]
    #[arg(long, env = "CYNODE_LEDGER_RETAIN", value_parser = duration, value_name = "TIME")]
    pub ledger_retain: Option<Duration>,
}

/// Which podman, and what it is to use.
#[derive(Args, Debug)]
pub struct Podman {
    /// Name or path of podman [default: podman]
    #[arg(long, env = "CYNODE_ENGINE", value_name = "PROGRAM")]
    pub engine: Option<PathBuf>,
    /// The OCI runtime that podman is to use [default: the first that works here]
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
}

/// The one model server of a node.
#[derive(Args, Debug)]
pub struct InferenceFlags {
    /// Whether to run a model server: auto follows the orchestrator [default: auto; in dev: off, unless an image is named]
    #[arg(long, env = "CYNODE_INFERENCE", value_name = "MODE")]
    pub inference: Option<InferenceMode>,
    /// Its port, on loopback only [default: the orchestrator's word, else 11434]
    #[arg(long, env = "CYNODE_INFERENCE_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub inference_port: Option<u16>,
    /// How long fetching its image may take [default: 30m]
    #[arg(long, env = "CYNODE_INFERENCE_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub inference_timeout: Option<Duration>,
    /// How long it may take from its start to its first answer [default: 2m]
    #[arg(long, env = "CYNODE_INFERENCE_START_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub inference_start_timeout: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    pub state: State,
    /// Settings in YAML; a flag or a variable beats it [default: /etc/cynode/node.yaml, if there is one]
    #[arg(long, env = "CYNODE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The orchestrator's control plane, such as http://192.168.1.5:12082
    #[arg(long, env = "CYNODE_ORCHESTRATOR", value_name = "URL")]
    pub orchestrator: Option<String>,
    /// How long an answer of the orchestrator may take [default: 30s]
    #[arg(long, env = "CYNODE_ORCHESTRATOR_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub orchestrator_timeout: Option<Duration>,
    #[command(flatten)]
    pub psk: Psk,
    #[command(flatten)]
    pub identity: Identity,
    #[command(flatten)]
    pub inference: InferenceFlags,
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
    pub inference: InferenceFlags,
    #[command(flatten)]
    pub engine: EngineFlags,
}

#[derive(Args, Debug)]
pub struct BackupArgs {
    #[command(flatten)]
    pub state: State,
    /// Text for people, JSON for programs
    #[arg(long, short, env = "CYNODE_OUTPUT", default_value = "text")]
    pub output: Output,
    /// The file to make
    pub file: PathBuf,
}
