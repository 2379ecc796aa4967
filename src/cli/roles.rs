//! Flags of the roles: what operators say. Those of the orchestrator and of sandboxes, which several
//! roles take, are beside this file.

use super::{EngineFlags, OrchestratorFlags, OutputFormat, SandboxFlags, parse_duration};
use crate::api::nodes::InferenceMode;
use clap::Args;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Where state is kept.
#[derive(Args, Clone, Debug)]
pub struct DataDirFlags {
    /// Directory for state [default: $XDG_STATE_HOME/cynode; root: /var/lib/cynode]
    #[arg(long, env = "CYNODE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// The pre-shared key.
#[derive(Args, Debug)]
pub struct PskFlags {
    /// Pre-shared key with which nodes register, at least 16 characters; other users can read it in the list
    /// of processes, so prefer --psk-file (or CYNODE_PSK)
    #[arg(long, value_name = "KEY", conflicts_with = "psk_file")]
    pub psk: Option<String>,
    /// Read the pre-shared key from a file, or from stdin with - (or CYNODE_PSK_FILE)
    #[arg(long, value_name = "FILE")]
    pub psk_file: Option<PathBuf>,
}

/// Who a node is.
#[derive(Args, Debug)]
pub struct IdentityFlags {
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
    #[arg(long, env = "CYNODE_INFERENCE_TIMEOUT", value_parser = parse_duration, value_name = "TIME")]
    pub inference_timeout: Option<Duration>,
    /// Time limit for the model server to answer after its start [default: 2m]
    #[arg(long, env = "CYNODE_INFERENCE_START_TIMEOUT", value_parser = parse_duration, value_name = "TIME")]
    pub inference_start_timeout: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    pub state: DataDirFlags,
    /// Settings in YAML; flags and variables override it [default: /etc/cynode/node.yaml, if it exists]
    #[arg(long, env = "CYNODE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// URL of the orchestrator's control plane, such as http://192.168.1.5:12082
    #[arg(long, env = "CYNODE_ORCHESTRATOR", value_name = "URL")]
    pub orchestrator: Option<String>,
    /// Time limit for an answer of the orchestrator [default: 30s]
    #[arg(long, env = "CYNODE_ORCHESTRATOR_TIMEOUT", value_parser = parse_duration, value_name = "TIME")]
    pub orchestrator_timeout: Option<Duration>,
    #[command(flatten)]
    pub psk: PskFlags,
    #[command(flatten)]
    pub identity: IdentityFlags,
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
    pub state: DataDirFlags,
    /// Read the token that callers must show from a file (or CYNODE_WORKER_TOKEN)
    #[arg(long, env = "CYNODE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    #[command(flatten)]
    pub sandbox: SandboxFlags,
}

#[derive(Args, Debug)]
pub struct DevArgs {
    #[command(flatten)]
    pub state: DataDirFlags,
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
    pub psk: PskFlags,
    #[command(flatten)]
    pub identity: IdentityFlags,
    #[command(flatten)]
    pub inference: InferenceFlags,
    #[command(flatten)]
    pub engine: EngineFlags,
}

#[derive(Args, Debug)]
pub struct BackupArgs {
    #[command(flatten)]
    pub state: DataDirFlags,
    /// Output format
    #[arg(long, short, env = "CYNODE_OUTPUT", default_value = "text")]
    pub output: OutputFormat,
    /// File to create
    pub file: PathBuf,
}
