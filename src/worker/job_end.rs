//! Ends of jobs by the exits of their sandboxes, in words for users.

use crate::{
    api::{
        jobs::{JobErrorKind, Outcome},
        size::ByteSize,
    },
    engine::not_runnable,
    sandbox::{Excess, Overuse, SandboxExit, StopReason},
    spool::JobEnd,
};

/// End of the job whose sandbox ended so.
pub(super) fn job_end(exit: SandboxExit) -> JobEnd {
    match exit {
        SandboxExit::Exited(code) => JobEnd::exited(code),
        SandboxExit::Signaled(signal) => JobEnd::exited(128 + signal),
        SandboxExit::Stopped(reason) => stopped(reason),
        SandboxExit::ImageNotRunnable(message) => {
            JobEnd::failed(JobErrorKind::ImageNotRunnable, not_runnable(&message))
        }
        SandboxExit::Refused(message) | SandboxExit::EngineFailed(message) => {
            JobEnd::failed(JobErrorKind::EngineError, message)
        }
        SandboxExit::Lost(message) => JobEnd::failed(JobErrorKind::Lost, message),
    }
}

/// End of a job that was stopped for this reason.
pub(super) fn stopped(reason: StopReason) -> JobEnd {
    match reason {
        StopReason::Timeout | StopReason::Idle | StopReason::Lifetime => {
            JobEnd::stopped(Outcome::Timeout)
        }
        StopReason::Canceled | StopReason::Closing => JobEnd::stopped(Outcome::Canceled),
        StopReason::Shutdown => JobEnd::failed(
            JobErrorKind::Lost,
            "the node's machine was shut down while the job ran",
        ),
        StopReason::OutOfDisk(excess) => {
            JobEnd::failed(JobErrorKind::OutOfDisk, out_of_disk(&excess))
        }
        StopReason::OutOfMemory(overuse) => {
            JobEnd::failed(JobErrorKind::OutOfMemory, node_out_of_memory(overuse))
        }
        StopReason::WorkspaceLimit(overuse) => {
            JobEnd::failed(JobErrorKind::WorkspaceLimit, over_workspace_limit(overuse))
        }
        StopReason::StdinUnreadable => JobEnd::failed(
            JobErrorKind::EngineError,
            "ended by its node, which can't read the rest of the job's stdin from its disk; run it again",
        ),
    }
}

/// Explanation of an end for which the kernel killed a process.
pub(super) fn out_of_memory(limit: Option<ByteSize>) -> String {
    match limit {
        Some(limit) => format!(
            "the kernel killed a process of the job at the job's memory limit of {limit}; use less, or ask for more with --memory"
        ),
        None => "the kernel killed a process of the job when its node ran out of memory; use less, or run it on a node with more".to_owned(),
    }
}

fn node_out_of_memory(Overuse { used, limit }: Overuse) -> String {
    format!(
        "ended by its node, which had less than {} MiB of memory left, and this job's use grew the most (to {} MiB); use less, or run it on a node with more memory",
        limit >> 20,
        used >> 20
    )
}

fn over_workspace_limit(Overuse { used, limit }: Overuse) -> String {
    let used = match used {
        u64::MAX => "more than can be measured".to_owned(),
        used => format!("{} MiB", used >> 20),
    };
    format!(
        "ended by its node, which allows a job {} on disk, and this one had {used}; write less, or run it on a node that allows more",
        ByteSize(limit)
    )
}

fn out_of_disk(excess: &Excess) -> String {
    let reserve = excess.of.amount(excess.reserve);
    let used = match excess.used {
        u64::MAX => "more than can be measured".to_owned(),
        used => excess.of.amount(used),
    };
    format!(
        "ended by its node, which had less than {reserve} left on its disk, and this job used the most ({used}); write less, or run it on a node with more room"
    )
}
