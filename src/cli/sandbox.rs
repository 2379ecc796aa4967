//! Flags of every role that runs sandboxes.

use super::{
    NodeEgressFlags, UpstreamFlags, number, old_names::variable, parse_duration,
    parse_duration_or_off, parse_listen, parse_size,
};
use clap::Args;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Settings of a machine that runs sandboxes for others.
#[derive(Args, Debug)]
pub struct SandboxFlags {
    /// Address for the Worker API; port 0 picks a free port; a node with a tunnel listens only where this is given
    /// [default: 0.0.0.0:12090]
    #[arg(
        long,
        env = "CYNODE_WORKER_LISTEN",
        value_parser = parse_listen,
        value_name = "ADDR:PORT",
        help_heading = "Connection"
    )]
    pub worker_listen: Option<SocketAddr>,
    /// Largest request body of the Worker API, in bytes, 1024 to 10485760 [default: 10485760]
    #[arg(
        long,
        env = "CYNODE_MAX_REQUEST_BYTES",
        value_parser = number::<usize, _>(..),
        value_name = "N",
        help_heading = "Connection"
    )]
    pub max_request_bytes: Option<usize>,
    #[command(flatten)]
    pub engine: EngineFlags,
    /// Image to pull at the start and to keep; repeatable
    #[arg(
        long,
        alias = "default-image",
        env = variable("CYNODE_PREFETCH_IMAGE"),
        value_name = "IMAGE",
        value_delimiter = ',',
        help_heading = "Sandbox"
    )]
    pub prefetch_image: Vec<String>,
    #[command(flatten)]
    pub egress: NodeEgressFlags,
}

/// Settings of sandboxes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sandbox")]
pub struct EngineFlags {
    /// Maximum number of jobs at a time [default: CPU cores]
    #[arg(long, env = "CYNODE_MAX_CONCURRENCY", value_parser = number::<u32, _>(1..), value_name = "N")]
    pub max_concurrency: Option<u32>,
    /// Keep up to this many sandboxes started and unused, for jobs that come: by what jobs needed lately; 0: none
    /// [default: twice the number of jobs]
    #[arg(long, env = "CYNODE_WARM", value_parser = number::<u32, _>(..), value_name = "N")]
    pub warm: Option<u32>,
    /// Memory that those may take together, at 8MiB each [default: 512MiB]
    #[arg(long, env = "CYNODE_WARM_MEMORY", value_parser = parse_size, value_name = "SIZE")]
    pub warm_memory: Option<u64>,
    /// Allow only images that match, such as docker.io/library/*, for jobs and the model server; a registry
    /// with a port or in the own network has to be named, as in registry.lan:5000/*; repeatable [default: all]
    #[arg(
        long,
        env = "CYNODE_ALLOWED_IMAGE",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub allowed_image: Vec<String>,
    /// Time limit of a job that names none, such as 15m; 1h at most [default: 1h]
    #[arg(long, env = "CYNODE_DEFAULT_TIMEOUT", value_parser = parse_duration, value_name = "TIME")]
    pub default_timeout: Option<Duration>,
    /// Longest time limit of a job, such as 30m or 7d; 30d at most [default: 3h]
    #[arg(long, env = "CYNODE_MAX_TIMEOUT", value_parser = parse_duration, value_name = "TIME")]
    pub max_timeout: Option<Duration>,
    /// Keep this much of the machine's memory free, such as 2GiB: below it, end the job whose use grew the most;
    /// 0: never [default: 512MiB]
    #[arg(long, env = "CYNODE_RESERVE_MEMORY", value_parser = parse_size, value_name = "SIZE")]
    pub reserve_memory: Option<u64>,
    /// Time to wait for running jobs at shutdown [default: 10s]
    #[arg(long, env = "CYNODE_SHUTDOWN_GRACE", value_parser = parse_duration, value_name = "TIME")]
    pub shutdown_grace: Option<Duration>,
    #[command(flatten)]
    pub podman: PodmanFlags,
    #[command(flatten)]
    pub storage: StorageFlags,
    #[command(flatten)]
    pub upstream: UpstreamFlags,
}

/// Directory of a worker's jobs, and how much and how long to keep.
#[derive(Args, Debug)]
#[command(next_help_heading = "Storage")]
pub struct StorageFlags {
    /// Directory for jobs [default: worker/jobs in the data directory]
    #[arg(long, env = "CYNODE_JOBS_DIR", value_name = "DIR")]
    pub jobs_dir: Option<PathBuf>,
    /// Keep this much free for jobs, images and state, such as 2GiB: refuse jobs below it, end the one that
    /// uses it up [default: 512MiB]
    #[arg(long, env = "CYNODE_MIN_FREE_DISK", value_parser = parse_size, value_name = "SIZE")]
    pub min_free_disk: Option<u64>,
    /// Most that a job may have on disk, such as 20GiB: end the job that has more [default: no limit]
    #[arg(long, env = "CYNODE_WORKSPACE_LIMIT", value_parser = parse_size, value_name = "SIZE")]
    pub workspace_limit: Option<u64>,
    /// Output to keep of each job for live readers: its start and the latest; 1MiB to 1TiB [default: 64MiB]
    #[arg(long, env = "CYNODE_JOB_LOG_SIZE", value_parser = parse_size, value_name = "SIZE")]
    pub job_log_size: Option<u64>,
    /// Contents of files to keep for later jobs [default: 10GiB]
    #[arg(long, env = "CYNODE_CONTENT_CACHE", value_parser = parse_size, value_name = "SIZE")]
    pub content_cache: Option<u64>,
    /// Most that snapshots of sandboxes may take [default: 20GiB]
    #[arg(long, env = "CYNODE_SNAPSHOT_QUOTA", value_parser = parse_size, value_name = "SIZE")]
    pub snapshot_quota: Option<u64>,
    /// Artifacts to collect of a job at most; a task may ask for less [default: 2GiB]
    #[arg(long, env = "CYNODE_ARTIFACT_LIMIT", value_parser = parse_size, value_name = "SIZE")]
    pub artifact_limit: Option<u64>,
    /// Time to keep results that the orchestrator does not fetch [default: 30d]
    #[arg(
        long,
        alias = "ledger-retain",
        env = variable("CYNODE_RESULT_RETENTION"),
        value_parser = parse_duration,
        value_name = "TIME"
    )]
    pub result_retention: Option<Duration>,
    /// Time to keep unused images that this node pulled; less where space is short; off: keep them
    /// [default: 30d]
    #[arg(long, env = "CYNODE_IMAGE_GC", value_parser = parse_duration_or_off, value_name = "TIME|off")]
    pub image_gc: Option<Duration>,
}

/// Podman, and the runtime that it uses.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sandbox")]
pub struct PodmanFlags {
    /// Name or path of podman [default: podman]
    #[arg(long, env = "CYNODE_ENGINE", value_name = "PROGRAM")]
    pub engine: Option<PathBuf>,
    /// OCI runtime for podman [default: the first that works here]
    #[arg(long, env = "CYNODE_ENGINE_RUNTIME", value_name = "RUNTIME")]
    pub engine_runtime: Option<String>,
}

impl PodmanFlags {
    /// Podman's program.
    pub fn program(&self) -> PathBuf {
        self.engine.clone().unwrap_or_else(|| "podman".into())
    }
}
