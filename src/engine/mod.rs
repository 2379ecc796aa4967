//! Podman: the only room that starts it.
//!
//! | podman is asked for | by |
//! |---|---|
//! | `--version`, `info` | [`info`] |
//! | `run`, in the foreground: a sandbox | [`Engine::spawn`], `container` |
//! | `run`, `image exists`: whether sandboxes can run here, and still can | [`probe`], `health` |
//! | `run`: the GPU devices that a container can open | [`devices`] |
//! | `run`: the GPUs that can be passed to a container | [`gpus`] |
//! | `run`: the limits that a container can have | [`limits`] |
//! | `ps`, `kill`, `rm`: sandboxes of a node | `sandboxes` |
//! | `container inspect`, `ps`: where a sandbox's writes go, and its PID | `upper`, `usage` |
//! | `run --detach`, `start`, `container inspect`, `logs`, `ps`, `rm`: a container that outlives us | [`service`] |
//! | `pull` | `images`, `pull` |
//! | `image inspect`, `container inspect`: instructions of an image to podman and the runtime | `image_metadata` |
//! | `image mount`, `image unmount`: whether an image can be used | `image_files`, `start_failure` |
//! | `image inspect`, `rmi`: unused images | `image_gc` |
//! | `image exists`, `save`, `load`: images as archives | `archives` |
//! | `create`, `container inspect`, `commit`, `tag`, `rmi`, `images`: snapshots of sandboxes | `snapshots` |
//! | `unshare`: one of our helpers as the owner of subordinate ids | `remove`, `usage`, `image_files`, `copy_tree` |
//!
//! The flags of every container stand in `container`, each with its reason. The host's settings for containers
//! reach none of ours: podman reads a file of ours instead (`containers_conf`).
//!
//! Under load podman queues on its storage locks, and a client that is killed at the wrong moment leaks storage or
//! leaves a lock behind. So a short call goes through `Engine::call`: a few run at a time, each has a time limit
//! that includes its wait for the others, and one that exceeds it gets TERM before KILL. A call that hangs raises
//! the question whether podman still works, which `health` answers.

mod archives;
mod call;
mod container;
mod containers_conf;
mod copy_tree;
mod deleted_files;
pub mod devices;
mod error;
pub mod gpus;
mod health;
mod image_files;
mod image_gc;
mod image_metadata;
mod images;
pub mod info;
mod isolation;
pub mod labels;
pub mod limits;
mod local_images;
mod memory;
mod orphans;
pub mod probe;
mod probe_container;
mod process;
mod program;
mod pull;
mod pull_fault;
mod pulled_images;
mod remove;
mod sandboxes;
pub mod service;
mod snapshots;
mod start_failure;
mod unshare;
mod upper;
mod usage;

pub use archives::save_image;
pub use container::{ClientEnd, Container, ContainerSpec, Root};
pub use copy_tree::{
    COPY_TREE_ARGUMENT, Copied, CopyError, CopyKind, CopyRequest, copy_from_argument,
};
pub use error::EngineError;
pub use image_files::{CHECK_IMAGE_ARGUMENT, files_fault, not_runnable};
pub use image_metadata::{IndexStamp, ResolvedImage};
pub use images::{ImageError, Images};
pub use info::PodmanInfo;
pub use memory::sandbox_memory;
pub use program::Program;
pub use pull_fault::PullFault;
pub use pulled_images::{ImageLease, PulledImages};
pub use remove::{REMOVE_TREE_ARGUMENT, remove_tree};
pub use snapshots::{SnapshotImage, is_image_in_use};
pub use start_failure::is_same_failure;
pub use usage::{MEASURE_SANDBOX_ARGUMENT, SandboxUsage, Usage, measure_from_argument};

use call::{call, timed_out};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// Short calls at the same time. More would only wait for each other inside podman.
const MAX_CONCURRENT_CALLS: usize = 4;

/// Settings with which this host runs containers: found by [`probe`], the same for every sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeConfig {
    /// OCI runtime to name; podman's own choice when `None`.
    pub runtime: Option<String>,
    /// Values for `--ulimit`; podman's own when empty.
    pub ulimits: Vec<String>,
}

/// A podman that works; cheap to clone. It can be sent to another process, which then limits its calls by itself.
#[derive(Clone, Serialize, Deserialize)]
pub struct Engine {
    program: Program,
    info: PodmanInfo,
    runtime_config: RuntimeConfig,
    #[serde(skip, default = "call_permits")]
    call_permits: Arc<Semaphore>,
    #[serde(skip)]
    health: health::Health,
    /// Node that owns detached upper directories (see `upper`); `None` where they stay in podman's storage.
    #[serde(default)]
    upper_owner: Option<String>,
}

impl Engine {
    fn new(program: Program, info: PodmanInfo, runtime_config: RuntimeConfig) -> Self {
        Self {
            program,
            info,
            runtime_config,
            call_permits: call_permits(),
            health: health::Health::default(),
            upper_owner: None,
        }
    }

    /// Settings with which sandboxes run.
    pub fn runtime_config(&self) -> &RuntimeConfig {
        &self.runtime_config
    }

    /// Podman's description of itself.
    pub fn info(&self) -> &PodmanInfo {
        &self.info
    }

    /// Name of the OCI runtime of sandboxes.
    pub fn runtime_name(&self) -> &str {
        let runtime = self.runtime_config.runtime.as_deref();
        runtime.unwrap_or(&self.info.default_runtime)
    }

    /// Runs a short podman command and returns its stdout. The wait for a permit is part of `limit`, so that calls
    /// that hang delay a caller no longer than one of them would.
    async fn call(&self, arguments: &[&str], limit: Duration) -> Result<String, EngineError> {
        let deadline = Instant::now() + limit;
        let outcome = match timeout_at(deadline, self.call_permits.acquire()).await {
            // The semaphore is never closed; an error in place of a permit would be no reason to stop.
            Ok(_permit) => call(&self.program, arguments, deadline - Instant::now(), |_| ()).await,
            Err(_) => Err(timed_out(arguments, limit)),
        };
        match outcome {
            Err(EngineError::TimedOut { .. }) => {
                self.report_failure();
                Err(timed_out(arguments, limit))
            }
            outcome => outcome,
        }
    }
}

fn call_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_CONCURRENT_CALLS))
}
