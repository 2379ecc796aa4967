//! Flags of the roles, and flags that several of them share. In a struct, flattened groups come last: a group's
//! `next_help_heading` stays in force for the flags after it.

use super::{
    EngineFlags, LogFlags, ModelQueueFlags, OrchestratorFlags, OutputFormat, SandboxFlags, number,
    old_names::variable, parse_duration, parse_listen,
};
use crate::{
    api::nodes::{Connect, GpuShare, InferenceMode},
    tls::Pin,
};
use clap::Args;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Directory of a role's state.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Storage")]
pub struct DataDirFlags {
    /// Directory for state [default: $XDG_STATE_HOME/cynode; root: /var/lib/cynode]
    #[arg(long, env = "CYNODE_DATA_DIR", value_name = "DIR", display_order = 0)]
    pub data_dir: Option<PathBuf>,
}

/// The pre-shared key.
#[derive(Args, Debug)]
#[command(next_help_heading = "Identity")]
pub struct PskFlags {
    /// Pre-shared key with which nodes register, at least 16 characters; other users can read it in the list
    /// of processes, so prefer --psk-file (or CYNODE_PSK)
    #[arg(long, value_name = "KEY", conflicts_with = "psk_file")]
    pub psk: Option<String>,
    /// Read the pre-shared key from a file, or from stdin with - (or CYNODE_PSK_FILE); an orchestrator also accepts the
    /// key before it, on a second line
    #[arg(long, value_name = "FILE")]
    pub psk_file: Option<PathBuf>,
}

/// The join token.
#[derive(Args, Debug)]
#[command(next_help_heading = "Identity")]
pub struct JoinFlags {
    /// Join token of cynode nodes token create, in place of --orchestrator and the pre-shared key; other users can
    /// read it in the list of processes, so prefer --join-file (or CYNODE_JOIN)
    #[arg(long, value_name = "TOKEN", conflicts_with = "join_file")]
    pub join: Option<String>,
    /// Read the join token from a file, or from stdin with - (or CYNODE_JOIN_FILE)
    #[arg(long, value_name = "FILE")]
    pub join_file: Option<PathBuf>,
}

/// Trust in an orchestrator at an `https://` URL.
#[derive(Args, Clone, Debug, Default)]
pub struct TrustFlags {
    /// Trust only the server with this pin, sha256:…, which the orchestrator prints at its start; for https:// URLs
    #[arg(
        long,
        env = "CYNODE_PIN",
        value_name = "PIN",
        help_heading = "Connection"
    )]
    pub pin: Option<Pin>,
    /// Trust the authorities in this PEM file, too, besides the system's; not used with a pin
    #[arg(
        long,
        env = "CYNODE_CA_FILE",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub ca_file: Option<PathBuf>,
}

/// Names and labels of a node.
#[derive(Args, Debug)]
#[command(next_help_heading = "Identity")]
pub struct IdentityFlags {
    /// Name of this node in commands [default: the host name]
    #[arg(long, env = "CYNODE_SLUG")]
    pub slug: Option<String>,
    /// Display name of this node
    #[arg(long, env = "CYNODE_NAME")]
    pub name: Option<String>,
    /// Label that tasks can select this node by, such as gpu or zone=attic; repeatable
    #[arg(
        long,
        env = "CYNODE_LABEL",
        value_name = "LABEL",
        value_delimiter = ',',
        help_heading = "Scheduling"
    )]
    pub label: Vec<String>,
}

/// The model server of a node.
#[derive(Args, Debug)]
#[command(next_help_heading = "Inference")]
pub struct InferenceFlags {
    /// Run a model server; auto follows the orchestrator, uses one that runs already, and goes on without one where it
    /// can't be started [default: auto; dev: off unless an image is given]
    #[arg(long, env = "CYNODE_INFERENCE", value_name = "MODE")]
    pub inference: Option<InferenceMode>,
    /// Port of the model server, on loopback only [default: the orchestrator's setting, else 11434]
    #[arg(
        long,
        env = "CYNODE_INFERENCE_PORT",
        value_parser = number::<u16, _>(1..=65535),
        value_name = "PORT"
    )]
    pub inference_port: Option<u16>,
    /// Time limit for pulling the model server image [default: 30m]
    #[arg(
        long,
        alias = "inference-timeout",
        env = variable("CYNODE_INFERENCE_PULL_TIMEOUT"),
        value_parser = parse_duration,
        value_name = "TIME"
    )]
    pub inference_pull_timeout: Option<Duration>,
    /// Time limit for the model server to answer after its start [default: 2m]
    #[arg(
        long,
        env = "CYNODE_INFERENCE_START_TIMEOUT",
        value_parser = parse_duration,
        value_name = "TIME"
    )]
    pub inference_start_timeout: Option<Duration>,
    /// Length of the context of models, in tokens [default: as fits the memory of the GPUs]
    #[arg(
        long,
        env = "CYNODE_INFERENCE_CONTEXT_LENGTH",
        value_parser = number::<u32, _>(1..=16_777_216),
        value_name = "N"
    )]
    pub inference_context_length: Option<u32>,
    /// Whether the model server and jobs share GPUs [default: shared]
    #[arg(long, env = "CYNODE_GPU_SHARE", value_name = "MODE")]
    pub gpu_share: Option<GpuShare>,
}

#[derive(Args, Debug)]
pub struct NodeArgs {
    /// Settings in YAML; flags and variables override it [default: /etc/cynode/node.yaml, if it exists]
    #[arg(long, env = "CYNODE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// URL of the orchestrator's control plane, such as https://192.168.1.5:12082
    #[arg(
        long,
        env = "CYNODE_ORCHESTRATOR",
        value_name = "URL",
        help_heading = "Connection"
    )]
    pub orchestrator: Option<String>,
    /// Time limit for an answer of the orchestrator [default: 30s]
    #[arg(
        long,
        env = "CYNODE_ORCHESTRATOR_TIMEOUT",
        value_parser = parse_duration,
        value_name = "TIME",
        help_heading = "Connection"
    )]
    pub orchestrator_timeout: Option<Duration>,
    /// Who connects to whom; with dial, and with auto where the orchestrator offers it, the node opens a tunnel and listens
    /// only where --worker-listen is given [default: auto]
    #[arg(
        long,
        env = "CYNODE_CONNECT",
        value_name = "MODE",
        help_heading = "Connection"
    )]
    pub connect: Option<Connect>,
    /// URL under which the orchestrator reaches this node [default: the address that leads to it]
    #[arg(
        long,
        env = "CYNODE_ADVERTISE_URL",
        value_name = "URL",
        help_heading = "Connection"
    )]
    pub advertise_url: Option<String>,
    #[command(flatten)]
    pub trust: TrustFlags,
    #[command(flatten)]
    pub psk: PskFlags,
    #[command(flatten)]
    pub join: JoinFlags,
    #[command(flatten)]
    pub identity: IdentityFlags,
    #[command(flatten)]
    pub sandbox: SandboxFlags,
    #[command(flatten)]
    pub state: DataDirFlags,
    #[command(flatten)]
    pub inference: InferenceFlags,
    #[command(flatten)]
    pub log: LogFlags,
}

#[derive(Args, Debug)]
pub struct WorkerArgs {
    /// Read the token that callers must show from a file, or from stdin with - (or CYNODE_WORKER_TOKEN)
    #[arg(
        long,
        env = variable("CYNODE_WORKER_TOKEN_FILE"),
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub token_file: Option<PathBuf>,
    #[command(flatten)]
    pub sandbox: SandboxFlags,
    #[command(flatten)]
    pub state: DataDirFlags,
    #[command(flatten)]
    pub log: LogFlags,
}

#[derive(Args, Debug)]
pub struct DevArgs {
    #[command(flatten)]
    pub flags: OrchestratorFlags,
    /// Address for the Node API (control plane); port 0 picks a free port
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "127.0.0.1:12082",
        value_parser = parse_listen,
        value_name = "ADDR:PORT",
        help_heading = "Connection"
    )]
    pub control_listen: SocketAddr,
    /// Address for the Worker API; port 0 picks a free port
    #[arg(
        long,
        env = "CYNODE_WORKER_LISTEN",
        default_value = "127.0.0.1:12090",
        value_parser = parse_listen,
        value_name = "ADDR:PORT",
        help_heading = "Connection"
    )]
    pub worker_listen: SocketAddr,
    #[command(flatten)]
    pub psk: PskFlags,
    #[command(flatten)]
    pub identity: IdentityFlags,
    #[command(flatten)]
    pub engine: EngineFlags,
    #[command(flatten)]
    pub state: DataDirFlags,
    // Not the time limit: `--inference-timeout` is the old name of another of `dev`.
    #[command(flatten)]
    pub queue: ModelQueueFlags,
    #[command(flatten)]
    pub inference: InferenceFlags,
    #[command(flatten)]
    pub log: LogFlags,
}

#[derive(Args, Debug)]
pub struct BackupArgs {
    /// File to create
    pub file: PathBuf,
    /// Output format
    #[arg(long, short, env = "CYNODE_OUTPUT", default_value = "text")]
    pub output: OutputFormat,
    #[command(flatten)]
    pub state: DataDirFlags,
}
