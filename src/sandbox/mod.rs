//! Sandbox: a closed container of podman's in which our init runs a command. It knows no job.
//!
//! ```text
//! owner (a worker) ──▶ shim ──▶ podman run ──▶ conmon ──▶ init (PID 1) ──▶ command
//!                       └── socket, two pipes ─────────────┘
//! ```
//!
//! | file | contents |
//! |---|---|
//! | [`lifecycle`] | starting → ready → in use → ending → cleared, a pure state machine |
//! | [`supervisor`], [`guest`] | drives one container by it, without a command and with one |
//! | [`cleanup`] | removal of a container whose exit is known |
//! | [`pool`] | how many are worth starting before there are commands for them |
//! | [`listeners`] | listeners in it for calls of models and for the proxy, which its owner serves |
//! | [`access`] | what its owner needs to serve them, kept in the memory of the shim |
//! | [`execs`], [`outbox`] | commands beside the first, and messages with descriptors to init |
//! | [`stdin`] | what the command reads, on its way to init |
//! | [`start`] | starts a container; where podman refuses, tells a fault of the image from one of podman |
//! | [`shim`] | the process in which a sandbox is supervised, and which outlives its owner |
//!
//! A sandbox is described by a [`SandboxConfig`] and runs an [`Exec`]. All that happens in it goes to an
//! [`OutputSink`], [`Stops`] end it early, and its [`SandboxExit`] says how it ended. The
//! purpose of a sandbox stands in its labels and in its owner's records, not here: today one job uses it once (`worker::job`).
//!
//! Guarantees:
//! - The command runs at most once, and never after [`OutputSink::exec_starting`] has failed.
//! - The exit is what init reports, or is called [`Lost`](SandboxExit::Lost) as soon as the command may have run.
//! - An exit means that every process of the sandbox is dead and that all its output was passed on. The container is
//!   removed after that ([`cleanup`]).

pub(crate) mod access;
mod cleanup;
mod execs;
mod exit;
mod guest;
mod lifecycle;
pub(crate) mod listeners;
mod ordered_sink;
mod outbox;
pub(crate) mod pool;
pub(crate) mod shim;
mod start;
mod stdin;
mod stop;
mod streams;
mod supervisor;

pub(crate) use cleanup::ContainerCleanup;
pub(crate) use execs::{ExecControl, ExecHandle, ExecPort};
pub(crate) use exit::SandboxExit;
pub(crate) use lifecycle::ExecLimits;
pub(crate) use start::{Start, start};
pub(crate) use stdin::StdinSource;
pub(crate) use stop::{Excess, Overuse, StopReason, StopRequest, Stops};
pub(crate) use supervisor::Sandbox;

use crate::{
    api::events::Stream,
    engine::{Engine, IndexStamp, limits::Limits},
    sandbox_init::wire::ExecSpec,
};
use serde::{Deserialize, Serialize};
use std::{fmt, io, path::PathBuf};
use uuid::Uuid;

/// Id of a sandbox. Never used again, since the podman of a shim that was killed may still make its container.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct SandboxId(Uuid);

impl SandboxId {
    pub(crate) fn random() -> Self {
        Self(Uuid::now_v7())
    }

    /// Name of its container. Earlier releases named it `cynode-<job>-<attempt>.<start>`: nothing but this function
    /// may rely on the form of a name.
    pub(crate) fn container_name(self) -> String {
        format!("cynode-{self}")
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Everything about a sandbox but its command. None of it can be chosen by a job.
#[derive(Serialize, Deserialize)]
pub(crate) struct SandboxConfig {
    pub(crate) id: SandboxId,
    /// Node to which its container belongs.
    pub(crate) node_uuid: String,
    /// Podman, in the configuration that was found to work.
    pub(crate) engine: Engine,
    /// Our static binary, to be its init.
    pub(crate) init: PathBuf,
    pub(crate) image_id: String,
    /// Stamp of podman's image index when the image was checked.
    pub(crate) image_index: Option<IndexStamp>,
    /// Directory that the command sees as `/workspace`.
    pub(crate) workspace: PathBuf,
    /// Directory for the container that is started where podman refuses this one.
    pub(crate) scratch: PathBuf,
    /// Labels of the container, beside those of node and sandbox.
    pub(crate) labels: Vec<(String, String)>,
    /// Limits of its resources.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// Podman's arguments for the devices that it is given.
    #[serde(default)]
    pub(crate) device_args: Vec<String>,
    /// Whether init opens listeners for calls of models.
    #[serde(default)]
    pub(crate) inference: bool,
    /// Whether init opens listeners for the proxy.
    #[serde(default)]
    pub(crate) egress: bool,
}

/// Command to run in a sandbox.
pub(crate) struct Exec {
    pub(crate) spec: ExecSpec,
    /// Source of its stdin; empty where there is none.
    pub(crate) stdin: Option<StdinSource>,
    pub(crate) limits: ExecLimits,
}

/// Receiver of what happens in a sandbox, called in this order.
pub(crate) trait OutputSink: Sync {
    /// The command is about to be handed over, and may run from now on. After an error nothing is run.
    fn exec_starting(&self) -> io::Result<()>;
    /// The command runs.
    fn exec_started(&self);
    /// The command has printed.
    fn output(&self, stream: Stream, bytes: &[u8]);
    /// The command has read of its stdin, or reads no more.
    fn stdin_taken(&self);
}
