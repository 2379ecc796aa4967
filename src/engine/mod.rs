//! The only room that starts podman.
//!
//! Podman has moods: under load it queues on its storage locks, and a client killed at the
//! wrong moment leaks storage or leaves a lock behind. So every short call goes through
//! [`Engine::call`], which bounds how many run at a time and how long each may take, its wait for the
//! others included, and ends one with TERM before KILL. A sandbox is started by [`Engine::spawn`], a
//! container that goes on by itself is a [`service`].
//!
//! Podman reads settings of ours ([`settings`]), so that the host's settings for containers reach none of ours.
//!
//! [`probe`] finds out at start what this host's podman can do, [`devices`] which of the host's
//! devices a container gets to see, [`watch`] whether podman still works when there is reason to doubt it.

mod container;
pub mod devices;
pub mod facts;
mod image_check;
mod image_fault;
mod image_gc;
mod image_orders;
mod images;
mod isolation;
pub mod labels;
mod orphans;
pub mod probe;
mod process;
mod pull;
mod pull_fault;
mod pulled;
mod remove;
pub mod service;
mod settings;
mod unnamed;
mod upper;
mod usage;
mod watch;

pub use container::{Container, ContainerSpec, Root};
pub use facts::Facts;
pub use image_check::{CHECK_ARGUMENT, files_fault, not_runnable};
pub use image_fault::is_same_reason;
pub use image_orders::{FoundImage, IndexStamp};
pub use images::{ImageError, Images};
pub use process::Program;
pub use pull_fault::PullFault;
pub use pulled::{ImageLease, PulledImages};
pub use remove::{REMOVE_ARGUMENT, remove_tree};
pub use usage::{MEASURE_ARGUMENT, SandboxUsage, Usage, measure_as_ordered};

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
const GATE: usize = 4;
/// How long the removal of a tree may take.
const REMOVE_LIMIT: Duration = Duration::from_mins(5);
/// How long the removal of a container may take.
const SWEEP_LIMIT: Duration = Duration::from_mins(1);
/// How often the removal of a container is tried, and after which pause.
const REMOVE_TRIES: u32 = 3;
const REMOVE_PAUSE: Duration = Duration::from_secs(1);

/// Why podman did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no such program.
    #[error(
        "{program:?} can't be started: {source}; install podman (apt-get install podman), or name it with --engine"
    )]
    NotFound {
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
    NoWay(String),
    /// A file of its settings can't be used.
    #[error("podman's settings in {path} can't be used: {reason}; correct that file", path = path.display())]
    Settings {
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
    NotClosed {
        /// What was found, each with the setting that does it.
        findings: Vec<String>,
    },
    /// What it printed was not what we know.
    #[error("podman {call} answered what this cynode doesn't understand: {reason}")]
    Malformed {
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
pub struct Way {
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
    #[serde(skip, default = "gate")]
    gate: Arc<Semaphore>,
    #[serde(skip)]
    watch: watch::Watch,
    way: Way,
    facts: Facts,
    /// The node whose the upper directories of sandboxes are, see [`upper`]; `None` where they stay podman's.
    #[serde(default)]
    node_of_uppers: Option<String>,
}

impl Engine {
    /// How sandboxes are run.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// What podman says of itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The runtime that sandboxes get, by name.
    pub fn runtime_name(&self) -> &str {
        self.way
            .runtime
            .as_deref()
            .unwrap_or(&self.facts.default_runtime)
    }

    /// Runs a short podman command and answers what it printed on stdout. Waiting for its turn is part
    /// of `limit`: behind calls that hang, nobody waits longer than for one of them.
    pub async fn call(&self, arguments: &[&str], limit: Duration) -> Result<String, EngineError> {
        let deadline = Instant::now() + limit;
        let outcome = match timeout_at(deadline, self.gate.acquire()).await {
            // The semaphore is never closed, and who gets an error instead of a permit goes on.
            Ok(_permit) => call(&self.program, arguments, deadline - Instant::now(), |_| ()).await,
            Err(_) => Err(timed_out(arguments, limit)),
        };
        match outcome {
            Err(EngineError::TimedOut { .. }) => {
                self.suspect();
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
            (Some(init), Some(tree)) if self.facts.rootless => {
                let arguments = ["unshare", init, REMOVE_ARGUMENT, tree];
                call(&self.program, &arguments, REMOVE_LIMIT, |_| ())
                    .await
                    .map(drop)
                    .map_err(|error| error.to_string())
            }
            _ => Err(error),
        }
    }

    /// Removes a container, whatever its state, with its unnamed volumes; one that is gone is fine. Whether nothing
    /// of it is left: if not, [`Engine::left_behind`] says so to whoever looks for leftovers.
    pub async fn remove_container(&self, name: &str) -> bool {
        let arguments = ["rm", "--force", "--ignore", "--volumes", "--time=0", name];
        let mut is_removed = false;
        for left in (0..REMOVE_TRIES).rev() {
            match self.call(&arguments, SWEEP_LIMIT).await {
                // Conmon may be about to clear it away as well, and then one of the two fails.
                Err(EngineError::Failed { .. }) if left > 0 => {
                    tokio::time::sleep(REMOVE_PAUSE).await
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
        let is_removed = orphans::remove(name).await && is_removed;
        if !is_removed {
            self.note_left();
        }
        is_removed
    }

    /// Starts a container in the foreground of a podman of its own.
    pub fn spawn(&self, spec: &ContainerSpec<'_>) -> Result<Container, EngineError> {
        container::spawn(self, spec)
    }
}

fn gate() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(GATE))
}
