//! Flags of `doctor`: those of the roles that say what it is to look at, and its own.

use super::{DataDirFlags, OutputFormat, PodmanFlags, StorageFlags};
use crate::api::nodes::InferenceMode;
use clap::Args;
use std::{net::SocketAddr, path::PathBuf};

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Fix what is safe to fix: create or close the data directory, describe NVIDIA GPUs to podman
    #[arg(long)]
    pub fix: bool,
    /// Output format
    #[arg(long, short, env = "CYNODE_OUTPUT", default_value = "text")]
    pub output: OutputFormat,
    #[command(flatten)]
    pub state: DataDirFlags,
    /// Node settings in YAML [default: /etc/cynode/node.yaml, if it exists]
    #[arg(long, env = "CYNODE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check that this control plane can be reached, such as http://192.168.1.5:12082
    #[arg(long, env = "CYNODE_ORCHESTRATOR", value_name = "URL")]
    pub orchestrator: Option<String>,
    #[command(flatten)]
    pub podman: PodmanFlags,
    #[command(flatten)]
    pub storage: StorageFlags,
    /// Address for the Worker API [default: 0.0.0.0:12090]
    #[arg(long, env = "CYNODE_WORKER_LISTEN", value_name = "ADDR:PORT")]
    pub worker_listen: Option<SocketAddr>,
    /// Address for the User API
    #[arg(
        long,
        env = "CYNODE_GATEWAY_LISTEN",
        default_value = "127.0.0.1:12080",
        value_name = "ADDR:PORT"
    )]
    pub gateway_listen: SocketAddr,
    /// Address for the Node API
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "0.0.0.0:12082",
        value_name = "ADDR:PORT"
    )]
    pub control_listen: SocketAddr,
    /// Whether a node here runs a model server [default: auto]
    #[arg(long, env = "CYNODE_INFERENCE", value_name = "MODE")]
    pub inference: Option<InferenceMode>,
    /// Port of the model server, on 127.0.0.1 [default: 11434]
    #[arg(long, env = "CYNODE_INFERENCE_PORT", value_name = "PORT")]
    pub inference_port: Option<u16>,
}
