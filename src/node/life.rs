//! A node's life once it has joined: reports, on change and as often as the configuration says.
//!
//! An orchestrator that is away is mentioned once, when it goes, and once when it is back; running
//! jobs go on meanwhile.

use super::join::Node;
use crate::{errors, pause::Pauses};
use std::time::Duration;
use tokio::{sync::watch, time::sleep};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Reports until it is aborted. Once `closing`, it says so at once, and `told` that it has.
pub(super) async fn live(
    mut node: Node,
    mut closing: watch::Receiver<bool>,
    told: watch::Sender<bool>,
) {
    let mut changes = node.changes();
    let mut worker_changes = node.worker_changes();
    let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        // One that is away is tried sooner at first, and never by all nodes at the same time.
        let pause = if pauses.is_fresh() {
            node.report_interval()
        } else {
            pauses.take()
        };
        tokio::select! {
            () = sleep(pause) => {}
            Ok(()) = changes.changed() => {}
            Ok(()) = worker_changes.changed() => {}
            Ok(()) = closing.changed() => {}
        }
        let is_closing = *closing.borrow_and_update();
        match node.report().await {
            Ok(()) if pauses.is_fresh() => {}
            Ok(()) => {
                tracing::info!("the orchestrator is back");
                pauses.reset();
            }
            Err(error) => {
                if pauses.is_fresh() {
                    let error = errors::chain(&error);
                    tracing::warn!(
                        error,
                        "the orchestrator does not take our report; trying on"
                    );
                    pauses.take();
                }
            }
        }
        if is_closing {
            told.send_replace(true);
        }
    }
}
