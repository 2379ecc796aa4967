//! Flags of `doctor`: flags of the roles that its checks depend on, and its own.

use super::{
    DataDirFlags, OutputFormat, PodmanFlags, StorageFlags, TrustFlags, number, parse_listen,
};
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
    /// Node settings in YAML [default: /etc/cynode/node.yaml, if it exists]
    #[arg(long, env = "CYNODE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check that this control plane can be reached, such as https://192.168.1.5:12082
    #[arg(
        long,
        env = "CYNODE_ORCHESTRATOR",
        value_name = "URL",
        help_heading = "Connection"
    )]
    pub orchestrator: Option<String>,
    /// Address for the Worker API [default: 0.0.0.0:12090]
    #[arg(
        long,
        env = "CYNODE_WORKER_LISTEN",
        value_parser = parse_listen,
        value_name = "ADDR:PORT",
        help_heading = "Connection"
    )]
    pub worker_listen: Option<SocketAddr>,
    /// Address for the User API
    #[arg(
        long,
        env = "CYNODE_GATEWAY_LISTEN",
        default_value = "127.0.0.1:12080",
        value_parser = parse_listen,
        value_name = "ADDR:PORT",
        help_heading = "Connection"
    )]
    pub gateway_listen: SocketAddr,
    /// Address for the Node API
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "0.0.0.0:12082",
        value_parser = parse_listen,
        value_name = "ADDR:PORT",
        help_heading = "Connection"
    )]
    pub control_listen: SocketAddr,
    #[command(flatten)]
    pub trust: TrustFlags,
    #[command(flatten)]
    pub podman: PodmanFlags,
    #[command(flatten)]
    pub state: DataDirFlags,
    #[command(flatten)]
    pub storage: StorageFlags,
    /// Run the checks of a model server; auto follows the orchestrator [default: auto]
    #[arg(
        long,
        env = "CYNODE_INFERENCE",
        value_name = "MODE",
        help_heading = "Inference"
    )]
    pub inference: Option<InferenceMode>,
    /// Port of the model server, on 127.0.0.1 [default: 11434]
    #[arg(
        long,
        env = "CYNODE_INFERENCE_PORT",
        value_parser = number::<u16, _>(..),
        value_name = "PORT",
        help_heading = "Inference"
    )]
    pub inference_port: Option<u16>,
}
