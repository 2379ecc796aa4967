//! A node's life once it has joined: reports, on change and as often as the configuration says.
//!
//! An orchestrator that is away is mentioned once, when it goes, and once when it is back; running
//! jobs go on meanwhile.

use super::register::Node;
use crate::{backoff::Backoff, errors};
use std::time::Duration;
use tokio::{sync::watch, time::sleep};

const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Reports until it is aborted. Once `closing`, it says so at once, and `final_report_sent` that it has.
pub(super) async fn run_heartbeat(
    mut node: Node,
    mut closing: watch::Receiver<bool>,
    final_report_sent: watch::Sender<bool>,
) {
    let mut changes = node.inference_changes();
    let mut worker_changes = node.worker_changes();
    let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
    loop {
        // One that is away is tried sooner at first, and never by all nodes at the same time.
        let pause = if backoff.is_fresh() {
            node.report_interval()
        } else {
            backoff.next_delay()
        };
        tokio::select! {
            () = sleep(pause) => {}
            Ok(()) = changes.changed() => {}
            Ok(()) = worker_changes.changed() => {}
            Ok(()) = closing.changed() => {}
        }
        let is_closing = *closing.borrow_and_update();
        match node.heartbeat().await {
            Ok(()) if backoff.is_fresh() => {}
            Ok(()) => {
                tracing::info!("the orchestrator is back");
                backoff.reset();
            }
            Err(error) => {
                if backoff.is_fresh() {
                    let error = errors::chain(&error);
                    tracing::warn!(
                        error,
                        "the orchestrator does not take our report; trying on"
                    );
                    backoff.next_delay();
                }
            }
        }
        if is_closing {
            final_report_sent.send_replace(true);
        }
    }
}
