//! Phases, events and actions of the life of a sandbox.

use crate::{
    engine::ClientEnd,
    sandbox::{exit::SandboxExit, stop::StopRequest},
    sandbox_init::wire::ExecEnd,
};
use std::time::Duration;

/// Phase of a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sandbox) enum Phase {
    /// Podman makes the container.
    Starting,
    /// Init runs and waits for a command.
    Ready,
    /// Init has a command.
    InUse,
    /// The sandbox is being ended, or its container removed.
    Ending(Step),
    /// Nothing is left of it.
    Cleared,
}

/// Step of the end of a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sandbox) enum Step {
    /// The command was sent TERM, and may end by itself.
    CommandEnds,
    /// Init kills all processes.
    InitKills,
    /// Podman kills the container.
    EngineKills,
    /// The exit is known; conmon has podman remove the container, as `--rm` says.
    EngineRemoves,
    /// The container is removed by its name.
    ForcedRemoval,
}

/// Input of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::sandbox) enum Event {
    /// Init reported that it runs.
    InitReady,
    /// A command with these limits is to run in the sandbox.
    Assigned(ExecLimits),
    /// The command was handed to init.
    ExecSent,
    /// Nothing may be run in the sandbox.
    ExecRefused(SandboxExit),
    /// Init reported that the command runs.
    ExecStarted,
    /// Init reported that a signal is sent to the command, which had not ended before.
    ExecSignaled,
    /// Init reported how the command ended.
    ExecEnded(ExecEnd),
    /// Init reported that it does nothing in this sandbox.
    InitRefused(SandboxExit),
    /// Init's socket was closed.
    ReportsClosed,
    /// The podman client has ended; `is_reporting` while init's socket is open.
    ClientExited { end: ClientEnd, is_reporting: bool },
    /// No client and no init is left that could report.
    ClientGone(LastWords),
    /// The end of the sandbox was requested, or a shorter grace.
    StopRequested(StopRequest),
    /// The deadline has passed.
    DeadlinePassed,
    /// The owner of an exit now waits for the removal of the container, for the first time or again.
    RemovalAwaited,
    /// The container was removed, or could not be.
    Removed(bool),
}

/// Evidence of how a sandbox ended that has neither a podman client nor an init.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(in crate::sandbox) struct LastWords {
    /// Last report of init, read after its end.
    pub(in crate::sandbox) report: Option<ExecEnd>,
    /// Whether init reported that the command runs, as the last that it did.
    pub(in crate::sandbox) has_started: bool,
    /// Error message of the podman client.
    pub(in crate::sandbox) message: Option<String>,
}

/// Output of the machine: the one thing to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::sandbox) enum Action {
    Wait,
    /// Look at the image a last time, answer with `ExecRefused` where nothing may run in it, and take a command else.
    BecomeReady,
    /// Hand the command to init, and answer with `ExecSent` or `ExecRefused`.
    SendExec,
    /// Have init send TERM to the command's process group.
    SendTerm,
    /// Have init kill all processes and end.
    SendKill,
    /// Have podman kill the container.
    KillContainer,
    /// Read what init reported last, and answer with `ClientGone`.
    CollectLastWords,
    /// Report this exit. The container is still to be removed.
    Exit(SandboxExit),
    /// The same, after the podman client was ended.
    EndClient(SandboxExit),
    /// End the podman client and remove the container by its name.
    RemoveContainer,
}

/// Limits on the time of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ExecLimits {
    /// Time limit, from the start of the command on.
    pub(crate) timeout: Duration,
    /// Time between TERM and KILL, when it is stopped.
    pub(crate) grace: Duration,
}
