//! Flags of the orchestrator.

use super::{
    DataDirFlags, LogFlags, OperatorEgressFlags, PskFlags, TlsFlags, number, parse_duration,
    parse_lease, parse_listen, parse_network, parse_size,
};
use crate::orchestrator::RequireInference;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Settings of an orchestrator, by itself or in `dev`.
#[derive(Args, Debug)]
pub struct OrchestratorFlags {
    /// Address for the User API; port 0 picks a free port
    #[arg(
        long,
        env = "CYNODE_GATEWAY_LISTEN",
        default_value = "127.0.0.1:12080",
        value_parser = parse_listen,
        value_name = "ADDR:PORT",
        help_heading = "Connection"
    )]
    pub gateway_listen: SocketAddr,
    /// Read the first admin's password from a file, or from stdin with - (or CYNODE_ADMIN_PASSWORD); used only
    /// at the first start
    #[arg(
        long,
        env = "CYNODE_ADMIN_PASSWORD_FILE",
        value_name = "FILE",
        help_heading = "Identity"
    )]
    pub admin_password_file: Option<PathBuf>,
    /// Image for tasks that name none
    #[arg(
        long,
        env = "CYNODE_DEFAULT_IMAGE",
        default_value = "docker.io/library/alpine:latest",
        value_name = "IMAGE",
        help_heading = "Sandbox"
    )]
    pub default_image: String,
    /// Create an empty database although the data directory has keys
    #[arg(long, env = "CYNODE_INIT", help_heading = "Storage")]
    pub init: bool,
    /// Create the keys that are missing beside an existing database; nodes then register again
    #[arg(long, env = "CYNODE_NEW_KEYS", help_heading = "Storage")]
    pub new_keys: bool,
    /// Run this model server image on all nodes [default: Ollama's, on nodes with a GPU]
    #[arg(
        long,
        env = "CYNODE_INFERENCE_IMAGE",
        value_name = "IMAGE",
        help_heading = "Inference"
    )]
    pub inference_image: Option<String>,
    /// Pull this model on all nodes that run a model server, such as qwen3:0.6b, or on one, as in box=qwen3:0.6b;
    /// repeatable
    #[arg(
        long,
        env = "CYNODE_INFERENCE_MODEL",
        value_name = "[SLUG=]NAME",
        value_delimiter = ',',
        help_heading = "Inference"
    )]
    pub inference_model: Vec<String>,
    /// Model for prompts that name none [default: one that a node has loaded, else its first by name]
    #[arg(
        long,
        env = "CYNODE_DEFAULT_MODEL",
        value_name = "NAME",
        help_heading = "Inference"
    )]
    pub default_model: Option<String>,
    #[command(flatten)]
    pub tls: TlsFlags,
    #[command(flatten)]
    pub limits: LimitFlags,
    #[command(flatten)]
    pub retention: RetentionFlags,
    #[command(flatten)]
    pub egress: OperatorEgressFlags,
}

/// Whether something is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// Limits of an orchestrator.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitFlags {
    /// Refuse new tasks while this many are queued
    #[arg(
        long,
        env = "CYNODE_MAX_QUEUED",
        default_value_t = 1_000_000,
        value_parser = number::<u64, _>(..),
        value_name = "N"
    )]
    pub max_queued: u64,
    /// Refuse a user's new tasks while this many of theirs are queued
    #[arg(
        long,
        env = "CYNODE_MAX_QUEUED_PER_USER",
        default_value_t = 500_000,
        value_parser = number::<u64, _>(..),
        value_name = "N"
    )]
    pub max_queued_per_user: u64,
    /// Refuse new tasks while the queued ones take this much of the database, such as 1GiB
    #[arg(
        long,
        env = "CYNODE_MAX_QUEUED_BYTES",
        default_value = "1GiB",
        value_parser = parse_size,
        value_name = "SIZE"
    )]
    pub max_queued_bytes: u64,
    /// Refuse a user's new tasks while their queued ones take this much of the database
    #[arg(
        long,
        env = "CYNODE_MAX_QUEUED_BYTES_PER_USER",
        default_value = "512MiB",
        value_parser = parse_size,
        value_name = "SIZE"
    )]
    pub max_queued_bytes_per_user: u64,
    /// Refuse a user's new sandboxes while this many of theirs have not ended
    #[arg(
        long,
        env = "CYNODE_MAX_SANDBOXES_PER_USER",
        default_value_t = 16,
        value_parser = number::<u32, _>(..),
        value_name = "N"
    )]
    pub max_sandboxes_per_user: u32,
    /// Refuse new sandboxes while this many of all users have not ended
    #[arg(
        long,
        env = "CYNODE_MAX_SANDBOXES",
        default_value_t = 256,
        value_parser = number::<u32, _>(..),
        value_name = "N"
    )]
    pub max_sandboxes: u32,
    /// Maximum number of jobs on a node at a time, whatever the node offers
    #[arg(
        long,
        env = "CYNODE_MAX_JOBS_PER_NODE",
        default_value_t = 256,
        value_parser = number::<u32, _>(1..),
        value_name = "N"
    )]
    pub max_jobs_per_node: u32,
    /// Refuse new nodes while this many are registered
    #[arg(
        long,
        env = "CYNODE_MAX_NODES",
        default_value_t = 1024,
        value_parser = number::<u32, _>(1..),
        value_name = "N"
    )]
    pub max_nodes: u32,
    /// Requests per second for each user, with bursts of five seconds' worth; 0: no limit
    #[arg(
        long,
        env = "CYNODE_USER_RATE",
        default_value_t = 200,
        value_parser = number::<u32, _>(..),
        value_name = "N"
    )]
    pub user_rate: u32,
    /// Reschedule the jobs of a node that has been silent for this long; 1s or more
    #[arg(
        long,
        env = "CYNODE_LEASE",
        default_value = "60s",
        value_parser = parse_lease,
        value_name = "TIME",
        help_heading = "Scheduling"
    )]
    pub lease: Duration,
    /// Wait longer for the node of a job that has run for long: half that time, up to 30 minutes; off: never
    /// longer than --lease
    #[arg(
        long,
        env = "CYNODE_LEASE_GROWTH",
        default_value = "on",
        value_name = "on|off",
        help_heading = "Scheduling"
    )]
    pub lease_growth: Switch,
    /// Trust X-Forwarded-For from this address or network, such as 10.0.0.0/8; repeatable
    #[arg(
        long,
        env = "CYNODE_TRUSTED_PROXY",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = parse_network,
        help_heading = "Connection"
    )]
    pub trusted_proxy: Vec<IpNet>,
}

/// Disk space and retention of an orchestrator's database.
#[derive(Args, Debug)]
#[command(next_help_heading = "Storage")]
pub struct RetentionFlags {
    /// Refuse new tasks while less than this is free on the disk that holds the database; 0: no reserve
    #[arg(
        long,
        env = "CYNODE_RESERVE_DISK",
        default_value = "512MiB",
        value_parser = parse_size,
        value_name = "SIZE"
    )]
    pub reserve_disk: u64,
    /// Refuse uploads while artifacts and files of tasks take this much disk space; 0: no limit
    #[arg(
        long,
        env = "CYNODE_ARTIFACT_QUOTA",
        default_value = "10GiB",
        value_parser = parse_size,
        value_name = "SIZE"
    )]
    pub artifact_quota: u64,
    /// Delete finished tasks and their output after this time, such as 12h or 30d; 0: never
    #[arg(
        long,
        env = "CYNODE_RETAIN",
        default_value = "30d",
        value_parser = parse_duration,
        value_name = "TIME"
    )]
    pub retain: Duration,
    /// Delete the oldest finished tasks beyond this number; 0: no limit
    #[arg(
        long,
        env = "CYNODE_RETAIN_MAX",
        default_value_t = 1_000_000,
        value_parser = number::<u64, _>(..),
        value_name = "N"
    )]
    pub retain_max: u64,
    /// Delete the whole log of a finished task after this time, and keep the part in its result [default: as --retain]
    #[arg(
        long,
        env = "CYNODE_LOG_RETENTION",
        value_parser = parse_duration,
        value_name = "TIME"
    )]
    pub log_retention: Option<Duration>,
    /// Keep whole logs of finished tasks up to this size in all, compressed; the oldest are deleted first; 0: none
    #[arg(
        long,
        env = "CYNODE_LOG_QUOTA",
        default_value = "5GiB",
        value_parser = parse_size,
        value_name = "SIZE"
    )]
    pub log_quota: u64,
}

#[derive(Args, Debug)]
pub struct ServeOrchestratorArgs {
    #[command(flatten)]
    pub flags: OrchestratorFlags,
    /// Address for the Node API (control plane); port 0 picks a free port
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "0.0.0.0:12082",
        value_parser = parse_listen,
        value_name = "ADDR:PORT",
        help_heading = "Connection"
    )]
    pub control_listen: SocketAddr,
    /// URL under which nodes reach the control plane [default: the address they used]
    #[arg(
        long,
        env = "CYNODE_PUBLIC_URL",
        value_name = "URL",
        help_heading = "Connection"
    )]
    pub public_url: Option<String>,
    #[command(flatten)]
    pub psk: PskFlags,
    #[command(flatten)]
    pub state: DataDirFlags,
    /// Run as a drill on a restored copy of a data directory: users log in and read; no node is called, and nothing
    /// else changes
    #[arg(long, env = "CYNODE_DRILL", help_heading = "Storage")]
    pub drill: bool,
    /// Reach node SLUG at URL, overriding what it reports; repeatable
    #[arg(
        long,
        env = "CYNODE_WORKER_URL",
        value_name = "SLUG=URL",
        value_delimiter = ',',
        help_heading = "Connection"
    )]
    pub worker_url: Vec<String>,
    /// Call nodes only at addresses in this network, such as 10.0.0.0/8; --worker-url is exempt; repeatable
    #[arg(
        long,
        env = "CYNODE_WORKER_URL_ALLOW",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = parse_network,
        help_heading = "Connection"
    )]
    pub worker_url_allow: Vec<IpNet>,
    /// Report ready only while a node has inference running; auto: where a node was told to run it
    #[arg(
        long,
        env = "CYNODE_REQUIRE_INFERENCE",
        default_value = "auto",
        value_name = "auto|true|false",
        hide_possible_values = true,
        help_heading = "Inference"
    )]
    pub require_inference: RequireInference,
    #[command(flatten)]
    pub models: ModelFlags,
    #[command(flatten)]
    pub log: LogFlags,
}

/// Limits of calls of models.
#[derive(Args, Debug)]
#[command(next_help_heading = "Inference")]
pub struct ModelFlags {
    #[command(flatten)]
    pub queue: ModelQueueFlags,
    /// Give up on a model that has not begun to answer for this long
    #[arg(
        long,
        env = "CYNODE_INFERENCE_TIMEOUT",
        default_value = "10m",
        value_parser = parse_duration,
        value_name = "TIME"
    )]
    pub inference_timeout: Duration,
}

/// Queue of calls of models.
#[derive(Args, Debug)]
#[command(next_help_heading = "Inference")]
pub struct ModelQueueFlags {
    /// Send a node at most this many requests for its models at a time; the others wait
    #[arg(
        long,
        env = "CYNODE_INFERENCE_CONCURRENCY",
        default_value_t = 4,
        value_parser = number::<u32, _>(1..),
        value_name = "N"
    )]
    pub inference_concurrency: u32,
    /// Refuse requests for models while this many wait
    #[arg(
        long,
        env = "CYNODE_INFERENCE_QUEUE",
        default_value_t = 256,
        value_parser = number::<u32, _>(..),
        value_name = "N"
    )]
    pub inference_queue: u32,
}
