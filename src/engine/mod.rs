//! The only room that starts podman.
//!
//! Podman has moods: under load it queues on its storage locks, and a client killed at the
//! wrong moment leaks storage or leaves a lock behind. So every short call goes through
//! [`Engine::call`], which bounds how many run at a time and how long each may take, its wait for the
//! others included, and ends one with TERM before KILL. A sandbox is started by [`Engine::spawn`], a
//! container that goes on by itself is a [`service`].
//!
//! Podman reads settings of ours ([`containers_conf`]), so that the host's settings for containers reach none of ours.
//!
//! [`probe`] finds out at start what this host's podman can do, [`devices`] which of the host's
//! devices a container gets to see, [`health`] whether podman still works when there is reason to doubt it.

mod container;
mod containers_conf;
mod deleted_files;
pub mod devices;
mod health;
mod image_files;
mod image_gc;
mod image_metadata;
mod images;
pub mod info;
mod isolation;
pub mod labels;
mod orphans;
pub mod probe;
mod process;
mod pull;
mod pull_fault;
mod pulled_images;
mod remove;
pub mod service;
mod start_failure;
mod upper;
mod usage;

pub use container::{Container, ContainerSpec, Root};
pub use image_files::{CHECK_IMAGE_ARGUMENT, files_fault, not_runnable};
pub use image_metadata::{IndexStamp, ResolvedImage};
pub use images::{ImageError, Images};
pub use info::PodmanInfo;
pub use process::Program;
pub use pull_fault::PullFault;
pub use pulled_images::{ImageLease, PulledImages};
pub use remove::{REMOVE_TREE_ARGUMENT, remove_tree};
pub use start_failure::is_same_failure;
pub use usage::{MEASURE_SANDBOX_ARGUMENT, SandboxUsage, Usage, measure_from_argument};

use process::{call, timed_out};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// Short calls at the same time. More only wait for each other inside podman.
const MAX_CONCURRENT_CALLS: usize = 4;
/// How long the removal of a tree may take.
const TREE_REMOVAL_TIMEOUT: Duration = Duration::from_mins(5);
/// How long the removal of a container may take.
const CONTAINER_REMOVAL_TIMEOUT: Duration = Duration::from_mins(1);
/// How often the removal of a container is tried, and after which pause.
const CONTAINER_REMOVAL_ATTEMPTS: u32 = 3;
const CONTAINER_REMOVAL_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Why podman did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no such program.
    #[error(
        "{program:?} can't be started: {source}; install podman (apt-get install podman), or name it with --engine"
    )]
    NotStarted {
        /// What we tried to start.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("podman {call} failed: {message}")]
    Failed {
        /// Its subcommand.
        call: String,
        /// Its own words.
        message: String,
    },
    /// It did not end in time.
    #[error("podman {call} did not end within {} s; see what holds it up with: ps -C podman -o pid,stat,etime,args", limit.as_secs())]
    TimedOut {
        /// Its subcommand.
        call: String,
        /// How long we waited.
        limit: Duration,
    },
    /// No way to run a container was found.
    #[error("podman can run no container on this host; what was tried:\n{0}")]
    NoRuntimeWorks(String),
    /// A file of its settings can't be used.
    #[error("podman's settings in {path} can't be used: {reason}; correct that file", path = path.display())]
    InvalidSettings {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A sandbox is not what was asked for.
    #[error(
        "a sandbox on this host is not closed, and a node takes no jobs like this: {}; take out what is named, or what stands in for podman (--engine)",
        findings.join("; ")
    )]
    NotIsolated {
        /// What was found, each with the setting that does it.
        findings: Vec<String>,
    },
    /// What it printed was not what we know.
    #[error("podman {call} answered what this cynode doesn't understand: {reason}")]
    UnexpectedOutput {
        /// Its subcommand.
        call: String,
        /// What is wrong.
        reason: String,
    },
    /// Something of ours in the way.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How this host runs containers: found by [`probe`], the same for every sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeConfig {
    /// An OCI runtime to name; podman's own choice when `None`.
    pub runtime: Option<String>,
    /// `--ulimit` values to give; podman's own when empty.
    pub ulimits: Vec<String>,
}

/// A podman that works; cheap to clone. Can be handed to another process, which has a gate of
/// its own then.
#[derive(Clone, Serialize, Deserialize)]
pub struct Engine {
    program: Program,
    #[serde(skip, default = "call_permits")]
    call_permits: Arc<Semaphore>,
    #[serde(skip)]
    health: health::Health,
    runtime_config: RuntimeConfig,
    info: PodmanInfo,
    /// The node whose the upper directories of sandboxes are, see [`upper`]; `None` where they stay podman's.
    #[serde(default)]
    upper_owner: Option<String>,
}

impl Engine {
    /// How sandboxes are run.
    pub fn runtime_config(&self) -> &RuntimeConfig {
        &self.runtime_config
    }

    /// What podman says of itself.
    pub fn info(&self) -> &PodmanInfo {
        &self.info
    }

    /// The runtime that sandboxes get, by name.
    pub fn runtime_name(&self) -> &str {
        self.runtime_config
            .runtime
            .as_deref()
            .unwrap_or(&self.info.default_runtime)
    }

    /// Runs a short podman command and answers what it printed on stdout. Waiting for its turn is part
    /// of `limit`: behind calls that hang, nobody waits longer than for one of them.
    pub async fn call(&self, arguments: &[&str], limit: Duration) -> Result<String, EngineError> {
        let deadline = Instant::now() + limit;
        let outcome = match timeout_at(deadline, self.call_permits.acquire()).await {
            // The semaphore is never closed, and who gets an error instead of a permit goes on.
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

    /// Removes a tree that a job may have written, following no links out of it; `init` is our own
    /// binary. What can't be removed is left, and the error says why.
    pub async fn remove_tree(&self, init: &Path, tree: &Path) -> Result<(), String> {
        let here = tree.to_owned();
        let removed = tokio::task::spawn_blocking(move || remove_tree(&here)).await;
        let error = match removed {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        match (init.to_str(), tree.to_str()) {
            // Rootless, what a job's users wrote belongs to subordinate ids and can only be removed
            // from inside podman's user namespace. Takes long for a large tree, so it doesn't count
            // as one of the short calls.
            (Some(init), Some(tree)) if self.info.rootless => {
                let arguments = ["unshare", init, REMOVE_TREE_ARGUMENT, tree];
                call(&self.program, &arguments, TREE_REMOVAL_TIMEOUT, |_| ())
                    .await
                    .map(drop)
                    .map_err(|error| error.to_string())
            }
            _ => Err(error),
        }
    }

    /// Removes a container, whatever its state, with its unnamed volumes; one that is gone is fine. Whether nothing
    /// of it is left: if not, [`Engine::wait_for_unremoved_container`] says so to whoever looks for leftovers.
    pub async fn remove_container(&self, name: &str) -> bool {
        let arguments = ["rm", "--force", "--ignore", "--volumes", "--time=0", name];
        let mut is_removed = false;
        for remaining in (0..CONTAINER_REMOVAL_ATTEMPTS).rev() {
            match self.call(&arguments, CONTAINER_REMOVAL_TIMEOUT).await {
                // Conmon may be about to clear it away as well, and then one of the two fails.
                Err(EngineError::Failed { .. }) if remaining > 0 => {
                    tokio::time::sleep(CONTAINER_REMOVAL_RETRY_DELAY).await
                }
                Ok(_) => {
                    is_removed = true;
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, name, "podman could not remove a container; retrying later");
                    break;
                }
            }
        }
        let is_removed = orphans::remove_orphan(name).await && is_removed;
        if !is_removed {
            self.report_unremoved_container();
        }
        is_removed
    }

    /// Starts a container in the foreground of a podman of its own.
    pub fn spawn(&self, spec: &ContainerSpec<'_>) -> Result<Container, EngineError> {
        container::spawn(self, spec)
    }
}

fn call_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_CONCURRENT_CALLS))
}
