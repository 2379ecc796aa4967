//! The only room that starts podman.
//!
//! Podman has moods: under load it queues on its storage locks, and a client killed at the
//! wrong moment leaks storage or leaves a lock behind. So every short call goes through
//! [`Engine::call`], which bounds how many run at a time and how long each may take, and ends
//! one with TERM before KILL. A sandbox is started by [`Engine::spawn`], a container that goes
//! on by itself is a [`service`].
//!
//! [`probe`] finds out at start what this host's podman can do, [`devices`] which of the host's
//! devices a container gets to see.

mod container;
pub mod devices;
mod images;
pub mod labels;
pub mod probe;
mod remove;
pub mod service;

pub use container::{Container, ContainerSpec, Root};
pub use images::{ImageError, Images};
pub use remove::{REMOVE_ARGUMENT, remove_tree};

use crate::environment;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    sync::Semaphore,
};

/// Short calls at the same time. More only wait for each other inside podman.
const GATE: usize = 4;
/// How long the removal of a tree may take.
const REMOVE_LIMIT: Duration = Duration::from_mins(5);
/// How long the removal of a container may take.
const SWEEP_LIMIT: Duration = Duration::from_mins(1);
/// How long a call that was told to end may take to do so.
const TERM_GRACE: Duration = Duration::from_secs(5);
/// What is kept of podman's own messages, in bytes.
const MESSAGE_BYTES: usize = 8 * 1024;
/// What is read of podman's answers, in bytes.
const ANSWER_BYTES: u64 = 16 * 1024 * 1024;

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
    #[error("podman {call} did not end within {} s; see what holds it up with: podman ps --all", limit.as_secs())]
    TimedOut {
        /// Its subcommand.
        call: String,
        /// How long we waited.
        limit: Duration,
    },
    /// No way to run a container was found.
    #[error("podman can run no container on this host; what was tried:\n{0}")]
    NoWay(String),
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

/// What podman says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// Its version.
    pub version: String,
    /// Whether it runs without root.
    pub rootless: bool,
    /// Where it keeps images and containers.
    pub graph_root: PathBuf,
    /// Its storage driver, such as `overlay`.
    pub graph_driver: String,
    /// The runtime that it takes by itself.
    pub default_runtime: String,
    /// `v1` or `v2`; empty where podman doesn't say.
    pub cgroup_version: String,
    /// Who makes cgroups: `systemd` or `cgroupfs`; empty where podman doesn't say.
    pub cgroup_manager: String,
}

/// A podman that works; cheap to clone. Can be handed to another process, which has a gate of
/// its own then.
#[derive(Clone, Serialize, Deserialize)]
pub struct Engine {
    program: PathBuf,
    #[serde(skip, default = "gate")]
    gate: Arc<Semaphore>,
    way: Way,
    facts: Facts,
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

    /// Runs a short podman command and answers what it printed on stdout.
    pub async fn call(&self, arguments: &[&str], limit: Duration) -> Result<String, EngineError> {
        // The semaphore is never closed.
        let _permit = self.gate.acquire().await;
        call(&self.program, arguments, limit, |_| ()).await
    }

    /// Fetches an image; `note` hears each line that podman says meanwhile. Takes long, so it doesn't
    /// count as one of the short calls.
    async fn pull(
        &self,
        image: &str,
        limit: Duration,
        note: impl FnMut(&str),
    ) -> Result<(), EngineError> {
        let image = format!("docker://{image}");
        call(&self.program, &["pull", &image], limit, note)
            .await
            .map(drop)
    }

    /// Removes a tree that a job may have written, following no links out of it; `init` is our own
    /// binary. What can't be removed is left, and said.
    pub async fn remove_tree(&self, init: &Path, tree: &Path) {
        let here = tree.to_owned();
        let removed = tokio::task::spawn_blocking(move || remove_tree(&here)).await;
        let error = match removed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let outcome = match (init.to_str(), tree.to_str()) {
            // Rootless, what a job's users wrote belongs to subordinate ids and can only be removed
            // from inside podman's user namespace. Takes long for a large tree, so it doesn't count
            // as one of the short calls.
            (Some(init), Some(tree)) if self.facts.rootless => {
                let arguments = ["unshare", init, REMOVE_ARGUMENT, tree];
                call(&self.program, &arguments, REMOVE_LIMIT, |_| ())
                    .await
                    .map_err(|error| error.to_string())
            }
            _ => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(tree = %tree.display(), error, "a workspace could not be removed; the next start tries again");
        }
    }

    /// Removes a container, whatever its state; one that is gone is fine.
    pub async fn remove_container(&self, name: &str) {
        let arguments = ["rm", "--force", "--ignore", "--time=0", name];
        if let Err(error) = self.call(&arguments, SWEEP_LIMIT).await {
            tracing::warn!(%error, name, "podman could not remove a container; the next start tries again");
        }
    }

    /// Starts a container in the foreground of a podman of its own.
    pub fn spawn(&self, spec: &ContainerSpec<'_>) -> Result<Container, EngineError> {
        container::spawn(self, spec)
    }
}

fn gate() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(GATE))
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    // A group of its own: Ctrl-C at a terminal is for us, and we end our containers in order.
    command.stdin(Stdio::null()).process_group(0);
    // Podman and conmon live as long as a job does.
    environment::close(&mut command);
    command
}

fn start(program: &Path, command: &mut Command) -> Result<Child, EngineError> {
    command.spawn().map_err(|source| EngineError::NotFound {
        program: program.to_owned(),
        source,
    })
}

/// `note` hears each line that podman says on stderr.
async fn call(
    program: &Path,
    arguments: &[&str],
    limit: Duration,
    note: impl FnMut(&str),
) -> Result<String, EngineError> {
    let name = arguments
        .iter()
        .take(2)
        .copied()
        .collect::<Vec<_>>()
        .join(" ");
    let mut command = command(program);
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(program, &mut command)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (out, err, status) = tokio::join!(
            read_up_to(stdout, ANSWER_BYTES),
            read_tail(stderr, note),
            child.wait()
        );
        Ok::<_, io::Error>((out?, err, status?))
    };
    match tokio::time::timeout(limit, work).await {
        Ok(done) => {
            let (out, message, status) = done?;
            if status.success() {
                return Ok(String::from_utf8_lossy(&out).into_owned());
            }
            Err(EngineError::Failed {
                call: name,
                message: or_status(message, status),
            })
        }
        Err(_) => {
            end(&mut child).await;
            Err(EngineError::TimedOut { call: name, limit })
        }
    }
}

/// TERM, and KILL to a podman that doesn't heed it.
async fn end(child: &mut Child) {
    if let Some(pid) = child
        .id()
        .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()))
    {
        // It may have ended by itself just now.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(TERM_GRACE, child.wait())
        .await
        .is_err()
    {
        tracing::warn!("podman ignores TERM and is killed");
        let _ = child.kill().await;
    }
}

fn or_status(message: String, status: ExitStatus) -> String {
    if message.is_empty() {
        format!("it said nothing ({status})")
    } else {
        message
    }
}

async fn read_up_to(stream: Option<impl AsyncRead + Unpin>, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(limit).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Reads to the end and keeps the last [`MESSAGE_BYTES`], without podman's `Error: `; `note` hears
/// each line, or what is read of one at a time.
async fn read_tail(stream: Option<impl AsyncRead + Unpin>, mut note: impl FnMut(&str)) -> String {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        let mut buffer = [0; 4096];
        // A pipe that fails to be read has nothing more to tell.
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            for line in String::from_utf8_lossy(&buffer[..n]).lines() {
                note(line);
            }
            kept.extend_from_slice(&buffer[..n]);
            let surplus = kept.len().saturating_sub(MESSAGE_BYTES);
            kept.drain(..surplus);
        }
    }
    let text = String::from_utf8_lossy(&kept);
    text.trim().trim_start_matches("Error: ").to_owned()
}
