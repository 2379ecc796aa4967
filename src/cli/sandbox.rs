//! Flags of every role that runs sandboxes.

use super::{parse_duration, parse_duration_or_off, parse_size};
use clap::Args;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

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
    /// Allow only images that match, such as docker.io/library/*, for jobs and the model server; a registry
    /// with a port or in the own network has to be named, as in registry.lan:5000/*; repeatable [default: all]
    #[arg(
        long,
        env = "CYNODE_ALLOWED_IMAGE",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub allowed_image: Vec<String>,
    #[command(flatten)]
    pub podman: PodmanFlags,
    #[command(flatten)]
    pub storage: StorageFlags,
    /// Time limit of a job that names none, such as 15m [default and maximum: 1h]
    #[arg(long, env = "CYNODE_DEFAULT_TIMEOUT", value_parser = parse_duration, value_name = "TIME")]
    pub default_timeout: Option<Duration>,
    /// Longest time a job may run here, such as 30m [default and maximum: 3h]
    #[arg(long, env = "CYNODE_MAX_TIMEOUT", value_parser = parse_duration, value_name = "TIME")]
    pub max_timeout: Option<Duration>,
    /// Time to wait for running jobs at shutdown [default: 10s]
    #[arg(long, env = "CYNODE_SHUTDOWN_GRACE", value_parser = parse_duration, value_name = "TIME")]
    pub shutdown_grace: Option<Duration>,
}

/// Where a worker keeps its jobs, and for how long.
#[derive(Args, Debug)]
pub struct StorageFlags {
    /// Directory for jobs [default: worker/jobs in the data directory]
    #[arg(long, env = "CYNODE_JOBS_DIR", value_name = "DIR")]
    pub jobs_dir: Option<PathBuf>,
    /// Keep this much free for jobs, images and state, such as 2GiB: refuse jobs below it, end the one that
    /// uses it up [default: 512MiB]
    #[arg(long, env = "CYNODE_MIN_FREE_DISK", value_parser = parse_size, value_name = "SIZE")]
    pub min_free_disk: Option<u64>,
    /// Output to keep of each job for live readers: its start and the latest; 1MiB to 1TiB [default: 64MiB]
    #[arg(long, env = "CYNODE_JOB_LOG_SIZE", value_parser = parse_size, value_name = "SIZE")]
    pub job_log_size: Option<u64>,
    /// Time to keep results that the orchestrator does not fetch [default: 30d]
    #[arg(long, env = "CYNODE_LEDGER_RETAIN", value_parser = parse_duration, value_name = "TIME")]
    pub ledger_retain: Option<Duration>,
    /// Time to keep unused images that this node pulled; less where room is short; off: keep them
    /// [default: 30d]
    #[arg(long, env = "CYNODE_IMAGE_GC", value_parser = parse_duration_or_off, value_name = "TIME|off")]
    pub image_gc: Option<Duration>,
}

/// Which podman, and what it is to use.
#[derive(Args, Debug)]
pub struct PodmanFlags {
    /// Name or path of podman [default: podman]
    #[arg(long, env = "CYNODE_ENGINE", value_name = "PROGRAM")]
    pub engine: Option<PathBuf>,
    /// OCI runtime for podman [default: the first that works here]
    #[arg(long, env = "CYNODE_ENGINE_RUNTIME", value_name = "RUNTIME")]
    pub engine_runtime: Option<String>,
}

impl PodmanFlags {
    /// The program to start.
    pub fn program(&self) -> PathBuf {
        self.engine.clone().unwrap_or_else(|| "podman".into())
    }
}
