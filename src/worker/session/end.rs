//! Ends of sandboxes that stay, by the exits of their containers.

use crate::{
    api::{jobs::JobErrorKind, sandboxes::EndReason},
    sandbox::{SandboxExit, StopReason},
    spool::JobEnd,
    worker::job_end::{job_end, stopped},
};

/// End of the job of a sandbox that ended so.
pub(in crate::worker) fn session_end(exit: SandboxExit, is_oom_killed: bool) -> JobEnd {
    let (reason, end) = match exit {
        SandboxExit::Stopped(reason) => (reason_of(reason), stopped(reason)),
        // It has no command that could have ended: its init was killed.
        SandboxExit::Exited(_) | SandboxExit::Signaled(_) if is_oom_killed => {
            let message = "the kernel killed the sandbox for want of memory; use less, or ask for more with --memory";
            (
                EndReason::Oom,
                JobEnd::failed(JobErrorKind::OutOfMemory, message),
            )
        }
        SandboxExit::Exited(_) | SandboxExit::Signaled(_) => {
            let message = "the sandbox's container was killed on its node";
            (
                EndReason::Failed,
                JobEnd::failed(JobErrorKind::EngineError, message),
            )
        }
        exit @ SandboxExit::Lost(_) => (EndReason::NodeLost, job_end(exit)),
        exit => (EndReason::Failed, job_end(exit)),
    };
    JobEnd {
        session: Some(reason),
        ..end
    }
}

fn reason_of(reason: StopReason) -> EndReason {
    match reason {
        StopReason::Canceled => EndReason::Deleted,
        StopReason::Idle => EndReason::Idle,
        StopReason::Lifetime => EndReason::Lifetime,
        StopReason::Shutdown | StopReason::Closing => EndReason::Shutdown,
        StopReason::OutOfMemory(_) => EndReason::Oom,
        _ => EndReason::Failed,
    }
}
