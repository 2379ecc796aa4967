//! Heartbeat: reports on each change, and at the interval of the configuration.
//!
//! An outage of the orchestrator is logged once, and its end once. An outage that turns into a server that is not trusted,
//! or speaks TLS only, is logged again: a person has to decide then. Running jobs go on meanwhile.

use super::{
    NodeError, capability::Machine, orchestrator_client::OrchestratorClient, register::Node,
};
use crate::{backoff::Backoff, errors, http::client::CallError};
use std::{future::Future, time::Duration};
use tokio::{sync::watch, time::sleep};

const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Sends heartbeats until it is aborted. Sets `final_report_sent` after the first one since `closing`.
pub(super) async fn run_heartbeat(
    mut node: Node,
    mut closing: watch::Receiver<bool>,
    final_report_sent: watch::Sender<bool>,
) {
    let mut changes = node.inference_changes();
    let mut worker_changes = node.worker_changes();
    let mut tunnel_changes = node.tunnel_changes();
    let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
    let mut was_for_person = false;
    loop {
        // During an outage sooner at first, and never all nodes at the same time.
        let pause = if backoff.is_fresh() {
            node.report_interval()
        } else {
            backoff.next_delay()
        };
        tokio::select! {
            () = sleep(pause) => {}
            Ok(()) = changes.changed() => {}
            Ok(()) = worker_changes.changed() => {}
            // The orchestrator may not know this node any more.
            Ok(()) = tunnel_changes.changed() => {}
            Ok(()) = closing.changed() => {}
        }
        let is_closing = *closing.borrow_and_update();
        match node.heartbeat().await {
            Ok(()) if backoff.is_fresh() => {}
            Ok(()) => {
                tracing::info!("heartbeat accepted again");
                backoff.reset();
                was_for_person = false;
            }
            Err(error) => {
                let is_for_person = is_for_person(&error);
                if backoff.is_fresh() || (is_for_person && !was_for_person) {
                    let error = errors::chain(&error);
                    tracing::warn!(error, "heartbeat failed; retrying");
                }
                if backoff.is_fresh() {
                    backoff.next_delay();
                }
                was_for_person |= is_for_person;
            }
        }
        if is_closing {
            final_report_sent.send_replace(true);
        }
    }
}

/// Whether only a person ends the outage: the server has a key or certificate that is not trusted, or speaks TLS where this
/// node has an `http://` URL.
fn is_for_person(error: &NodeError) -> bool {
    match error {
        NodeError::TlsOnly { .. }
        | NodeError::PlainJoinToken { .. }
        | NodeError::Call(CallError::Untrusted { .. }) => true,
        NodeError::Call(error) => error.is_tls_only(),
        _ => false,
    }
}

/// Runs `work` to its end, and sends reports meanwhile.
pub(super) async fn report_while<T>(
    orchestrator: &OrchestratorClient,
    machine: &Machine,
    interval: Duration,
    work: impl Future<Output = T>,
) -> T {
    let report = async {
        loop {
            sleep(interval).await;
            if let Err(error) = orchestrator.send_report(machine).await {
                tracing::debug!(%error, "report failed");
            }
        }
    };
    tokio::select! {
        output = work => output,
        never = report => never,
    }
}
