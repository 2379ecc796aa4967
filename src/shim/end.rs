//! How a sandbox ends, and the order to end it.

use super::Excess;
use crate::{
    sandbox_init::{
        PATH, WORKSPACE,
        wire::{Report, Unfit},
    },
    wait,
};
use std::io;
use tokio::sync::watch;

/// How it ended.
#[derive(Debug)]
pub(super) enum End {
    Exited(i32),
    Killed(i32),
    Halted(Halt),
    /// Podman ended with an error before init ran.
    Refused(String),
    /// podman or init failed, and the command did not run.
    Engine(String),
    /// Nothing can be run in the image.
    Image(String),
    /// The command may or may not have run to its end.
    Lost(String),
}

/// Why it is ended before its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Halt {
    Timeout,
    Canceled,
    /// The node is short of room, for which this job accounts the most.
    NoRoom(Excess),
    /// The machine goes down.
    Shutdown,
}

/// Orders a halt; the first order counts.
pub(super) fn halt(orders: &watch::Sender<Option<Halt>>, halt: Halt) {
    orders.send_if_modified(|order| {
        let is_first = order.is_none();
        order.get_or_insert(halt);
        is_first
    });
}

/// Waits for an order.
pub(super) async fn ordered(orders: &mut watch::Receiver<Option<Halt>>) -> Halt {
    match wait::until(orders, Option::is_some).await {
        Ok(Some(order)) => order,
        // Nobody can order any more, so nobody will.
        _ => std::future::pending().await,
    }
}

/// A command that ended before the order reached it ended by itself.
pub(super) fn judge(last: Report, halt: Option<Halt>) -> End {
    match (last, halt) {
        (Report::Exited(code), _) => End::Exited(code),
        (Report::Killed(libc::SIGKILL), Some(halt)) => End::Halted(halt),
        (Report::Killed(signal), _) => End::Killed(signal),
        (Report::NotStarted(errno), _) => {
            let reason = io::Error::from_raw_os_error(errno);
            End::Engine(format!("the system could not start the command: {reason}"))
        }
        (Report::Unfit(Unfit::NotAlone), _) => End::Engine(
            "the sandbox was given no PID namespace of its own, so nothing was run in it; see: cynode doctor".to_owned(),
        ),
        (Report::Unfit(Unfit::Misplaced), _) => End::Image(format!(
            "{WORKSPACE} or {PATH} is a link in the image, and whatever it points to would be hidden"
        )),
        (Report::Ready(_) | Report::Started, _) => {
            End::Lost("init said twice that the command runs".to_owned())
        }
    }
}
