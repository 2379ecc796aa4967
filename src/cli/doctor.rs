//! Flags of `doctor`: those of the roles that say what it is to look at, and its own.

use super::{Output, Podman, State, StorageFlags};
use crate::node::InferenceMode;
use clap::Args;
use std::{net::SocketAddr, path::PathBuf};

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Mend what is safe to mend, and say so: make or close the data directory; describe NVIDIA GPUs to podman
    #[arg(long)]
    pub fix: bool,
    /// Text for people, JSON for programs
    #[arg(long, short, env = "CYNODE_OUTPUT", default_value = "text")]
    pub output: Output,
    #[command(flatten)]
    pub state: State,
    /// A node's settings in YAML [default: /etc/cynode/node.yaml, if there is one]
    #[arg(long, env = "CYNODE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The orchestrator's control plane that this machine is to reach, such as http://192.168.1.5:12082
    #[arg(long, env = "CYNODE_ORCHESTRATOR", value_name = "URL")]
    pub orchestrator: Option<String>,
    #[command(flatten)]
    pub podman: Podman,
    #[command(flatten)]
    pub storage: StorageFlags,
    /// Where a worker is to listen [default: 0.0.0.0:12090]
    #[arg(long, env = "CYNODE_WORKER_LISTEN", value_name = "ADDR:PORT")]
    pub worker_listen: Option<SocketAddr>,
    /// Where users are to reach an orchestrator
    #[arg(
        long,
        env = "CYNODE_GATEWAY_LISTEN",
        default_value = "127.0.0.1:12080",
        value_name = "ADDR:PORT"
    )]
    pub gateway_listen: SocketAddr,
    /// Where nodes are to reach an orchestrator
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "0.0.0.0:12082",
        value_name = "ADDR:PORT"
    )]
    pub control_listen: SocketAddr,
    /// Whether a node here is to run a model server [default: auto]
    #[arg(long, env = "CYNODE_INFERENCE", value_name = "MODE")]
    pub inference: Option<InferenceMode>,
    /// Where a node's model server is to listen, on 127.0.0.1 [default: 11434]
    #[arg(long, env = "CYNODE_INFERENCE_PORT", value_name = "PORT")]
    pub inference_port: Option<u16>,
}
