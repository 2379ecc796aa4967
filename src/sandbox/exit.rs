//! Exit of a sandbox: how its command ended, or why there was none.

use super::stop::StopReason;
use crate::sandbox_init::{
    PATH, WORKSPACE,
    wire::{ExecEnd, InitRefusal},
};
use std::io;

/// How a sandbox ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SandboxExit {
    /// The command ended with this code.
    Exited(i32),
    /// This signal ended the command.
    Signaled(i32),
    /// The sandbox was stopped before the command ended by itself.
    Stopped(StopReason),
    /// Podman refused to start the container; its message.
    Refused(String),
    /// Podman, the runtime or init failed, and the command did not run.
    EngineFailed(String),
    /// Nothing can be run in the image.
    ImageNotRunnable(String),
    /// The command may or may not have run to its end.
    Lost(String),
}

impl SandboxExit {
    /// Why a sandbox ended that had no command, for a log.
    pub(crate) fn reason_without_command(&self) -> &str {
        match self {
            Self::Refused(message)
            | Self::EngineFailed(message)
            | Self::ImageNotRunnable(message)
            | Self::Lost(message) => message,
            Self::Stopped(_) => "it was stopped",
            Self::Exited(_) | Self::Signaled(_) => "its init ended",
        }
    }
}

/// Exit of a sandbox whose command ended so. A command that ended before the stop reached it ended by itself; one that
/// ended after it was sent TERM (`is_signaled`) was stopped, whatever it made of the signal.
pub(super) fn classify_exit(
    end: ExecEnd,
    stop: Option<StopReason>,
    is_signaled: bool,
) -> SandboxExit {
    match (end, stop) {
        (ExecEnd::NotStarted(errno), _) => {
            let reason = io::Error::from_raw_os_error(errno);
            SandboxExit::EngineFailed(format!("the system could not start the command: {reason}"))
        }
        (_, Some(reason)) if is_signaled => SandboxExit::Stopped(reason),
        (ExecEnd::Killed(libc::SIGKILL), Some(reason)) => SandboxExit::Stopped(reason),
        (ExecEnd::Exited(code), _) => SandboxExit::Exited(code),
        (ExecEnd::Killed(signal), _) => SandboxExit::Signaled(signal),
    }
}

/// Exit of a sandbox in which init does nothing.
pub(super) fn refused_by_init(refusal: InitRefusal) -> SandboxExit {
    match refusal {
        InitRefusal::SharedNamespace => SandboxExit::EngineFailed(
            "the sandbox was given no PID namespace of its own, so nothing was run in it; see: cynode doctor".to_owned(),
        ),
        InitRefusal::PathIsLink => SandboxExit::ImageNotRunnable(format!(
            "{WORKSPACE} or {PATH} is a link in the image, and the directory that it points to would be hidden"
        )),
        InitRefusal::UnsupportedVersion => SandboxExit::EngineFailed(
            "the sandbox's init is of another release; restart the node".to_owned(),
        ),
    }
}
