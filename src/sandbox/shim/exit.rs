//! How a sandbox ends, and the order to end it.

use super::Excess;
use crate::{
    sandbox_init::{
        PATH, WORKSPACE,
        wire::{ExecEnd, InitRefusal, Report},
    },
    wait,
};
use std::io;
use tokio::sync::watch;

/// How it ended.
#[derive(Debug)]
pub(super) enum SandboxExit {
    Exited(i32),
    Signaled(i32),
    Stopped(StopReason),
    /// Podman ended with an error before init ran.
    Refused(String),
    /// podman or init failed, and the command did not run.
    EngineFailed(String),
    /// Nothing can be run in the image.
    ImageNotRunnable(String),
    /// The command may or may not have run to its end.
    Lost(String),
}

/// Why it is ended before its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StopReason {
    Timeout,
    Canceled,
    /// The node is short of room, for which this job accounts the most.
    OutOfDisk(Excess),
    /// The machine goes down.
    Shutdown,
}

/// Orders a reason; the first order counts.
pub(super) fn request_stop(stops: &watch::Sender<Option<StopReason>>, reason: StopReason) {
    stops.send_if_modified(|order| {
        let is_first = order.is_none();
        order.get_or_insert(reason);
        is_first
    });
}

/// Waits for an order.
pub(super) async fn stop_requested(stops: &mut watch::Receiver<Option<StopReason>>) -> StopReason {
    match wait::until(stops, Option::is_some).await {
        Ok(Some(order)) => order,
        // Nobody can order any more, so nobody will.
        _ => std::future::pending().await,
    }
}

/// A command that ended before the order reached it ended by itself.
pub(super) fn classify_exit(last: Report, reason: Option<StopReason>) -> SandboxExit {
    match (last, reason) {
        (Report::Ended(ExecEnd::Exited(code)), _) => SandboxExit::Exited(code),
        (Report::Ended(ExecEnd::Killed(libc::SIGKILL)), Some(reason)) => SandboxExit::Stopped(reason),
        (Report::Ended(ExecEnd::Killed(signal)), _) => SandboxExit::Signaled(signal),
        (Report::Ended(ExecEnd::NotStarted(errno)), _) => {
            let reason = io::Error::from_raw_os_error(errno);
            SandboxExit::EngineFailed(format!("the system could not start the command: {reason}"))
        }
        (Report::Refused(InitRefusal::SharedNamespace), _) => SandboxExit::EngineFailed(
            "the sandbox was given no PID namespace of its own, so nothing was run in it; see: cynode doctor".to_owned(),
        ),
        (Report::Refused(InitRefusal::PathIsLink), _) => SandboxExit::ImageNotRunnable(format!(
            "{WORKSPACE} or {PATH} is a link in the image, and whatever it points to would be hidden"
        )),
        (Report::Refused(InitRefusal::UnsupportedVersion), _) => SandboxExit::EngineFailed(
            "the sandbox's init is of another release; restart the node".to_owned(),
        ),
        _ => {
            SandboxExit::Lost("init said twice that the command runs".to_owned())
        }
    }
}
