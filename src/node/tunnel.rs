//! Tunnel of a node: a connection to the orchestrator on which the node serves its Worker API.
//!
//! ```text
//! dial ──▶ 101 ──▶ first call ──▶ connected ──▶ end ──▶ dial again
//!   └── 401: the node registers again
//!   └── 404, 405, 426, 501: the orchestrator has no tunnels; the node listens, where its operator lets it
//!   └── anything else, and no first call: try again, 0.5 s to 30 s later
//! ```
//!
//! A task per registration keeps the tunnel connected. Each change of its state is logged once. Jobs go on
//! without it.

use super::NodeError;
use crate::{
    background,
    backoff::Backoff,
    errors,
    http::{
        client::CallError,
        tunnel::{DialIdentity, Dialer},
    },
    wait,
    worker::Worker,
};
use hyper::upgrade::Upgraded;
use std::{future::pending, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use zeroize::Zeroizing;

/// Backoff between tries.
const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Age from which on a tunnel that ends in order is opened again at once.
const SETTLED_AGE: Duration = Duration::from_secs(1);
/// Time for the first call of the orchestrator, which comes at once. Pings begin only after that.
const FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for which the start of a node waits for its tunnel.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// State of the tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum TunnelState {
    /// Not connected yet, or not any more.
    Connecting,
    /// The orchestrator has called over it.
    Connected,
    /// The orchestrator does not accept the token.
    Unauthorized,
    /// Nothing at that URL opens tunnels, for this reason.
    Unsupported(String),
}

/// Orchestrator of a tunnel, and the identity of the node there.
pub(super) struct TunnelTarget {
    pub(super) url: String,
    pub(super) token: Zeroizing<String>,
    pub(super) instance: Option<String>,
}

/// Task that keeps a tunnel connected, until it is dropped.
pub(super) struct Tunnel {
    state: watch::Receiver<TunnelState>,
    task: JoinHandle<()>,
}

impl Tunnel {
    /// Connects, and reports to `state`.
    pub(super) fn start(
        dialer: Dialer,
        target: TunnelTarget,
        worker: Worker,
        state: watch::Sender<TunnelState>,
    ) -> Self {
        let receiver = state.subscribe();
        let mut connector = Connector {
            dialer,
            target,
            worker,
            state,
            is_failing: false,
            is_untrusted: false,
        };
        let task = async move { connector.run().await };
        Self {
            state: receiver,
            task: background::spawn("tunnel", task),
        }
    }

    /// State of the tunnel, once it is not connecting any more, or after a while.
    pub(super) async fn settled(&mut self) -> TunnelState {
        let settled = wait::until(&mut self.state, |state| *state != TunnelState::Connecting);
        match timeout(START_TIMEOUT, settled).await {
            Ok(Ok(state)) => state,
            // The sender is the task's, and the node's.
            Ok(Err(_)) | Err(_) => TunnelState::Connecting,
        }
    }

    /// Ends the tunnel, and waits until it reports no more.
    pub(super) async fn end(mut self) {
        self.task.abort();
        // An error is the abort.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Loop of a tunnel.
struct Connector {
    dialer: Dialer,
    target: TunnelTarget,
    worker: Worker,
    state: watch::Sender<TunnelState>,
    /// Whether the failure of the last try was logged.
    is_failing: bool,
    is_untrusted: bool,
}

impl Connector {
    /// Keeps a tunnel connected until the worker stops.
    async fn run(&mut self) {
        let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
        loop {
            let dialed = tokio::select! {
                dialed = self.dial() => dialed,
                () = self.worker.stopped() => return,
            };
            match dialed {
                Ok(stream) => {
                    // Not dropped when the worker stops: it answers the calls under way, and ends by itself.
                    let end = self.serve(stream).await;
                    if self.note(&end) {
                        backoff.reset();
                        if end.is_orderly() && end.age >= SETTLED_AGE {
                            continue;
                        }
                    }
                }
                Err(error) => {
                    self.log(&error);
                    self.set(state_of(&error));
                }
            }
            tokio::select! {
                () = sleep(backoff.next_delay()) => {}
                () = self.worker.stopped() => return,
            }
        }
    }

    /// Opens a tunnel.
    async fn dial(&self) -> Result<Upgraded, CallError> {
        let identity = DialIdentity {
            token: &self.target.token,
            instance: self.target.instance.as_deref(),
        };
        self.dialer.dial(&self.target.url, identity).await
    }

    /// Serves a tunnel to its end.
    async fn serve(&self, stream: Upgraded) -> TunnelEnd {
        let (opened_at, state) = (Instant::now(), self.state.clone());
        let mut called = state.subscribe();
        let on_call = move || {
            let is_new = state.send_if_modified(|state| {
                let is_new = *state != TunnelState::Connected;
                *state = TunnelState::Connected;
                is_new
            });
            if is_new {
                tracing::info!("tunnel connected");
            }
        };
        let is_silent = async {
            let first = wait::until(&mut called, |state| *state == TunnelState::Connected);
            if timeout(FIRST_CALL_TIMEOUT, first).await.is_ok() {
                pending::<()>().await;
            }
        };
        let cause = tokio::select! {
            served = self.worker.serve_tunnel(stream, on_call) => {
                served.err().map(|error| errors::chain(&error))
            }
            () = is_silent => Some("the orchestrator made no call".to_owned()),
        };
        TunnelEnd {
            cause,
            age: opened_at.elapsed(),
        }
    }

    /// Takes note of the end of a tunnel. Returns whether it was connected.
    fn note(&mut self, end: &TunnelEnd) -> bool {
        let was_connected = *self.state.borrow() == TunnelState::Connected;
        self.set(TunnelState::Connecting);
        let cause = end.cause.as_deref();
        if was_connected {
            tracing::info!(cause, "tunnel ended; connecting again");
            (self.is_failing, self.is_untrusted) = (false, false);
        } else if !self.is_failing {
            tracing::warn!(cause, "tunnel ended before the first call; retrying");
            self.is_failing = true;
        }
        was_connected
    }

    fn set(&self, new: TunnelState) {
        self.state.send_if_modified(|state| {
            let is_change = *state != new;
            *state = new;
            is_change
        });
    }

    /// Logs the first failure, and again one that needs a person.
    fn log(&mut self, error: &CallError) {
        let is_untrusted = matches!(error, CallError::Untrusted { .. });
        if !self.is_failing || (is_untrusted && !self.is_untrusted) {
            let error = errors::chain(error);
            tracing::warn!(error, "tunnel can't be opened; retrying");
        }
        self.is_failing = true;
        self.is_untrusted |= is_untrusted;
    }
}

/// End of a tunnel that was open.
struct TunnelEnd {
    /// Fault that ended it; `None` where the orchestrator closed it in order, as at its shutdown.
    cause: Option<String>,
    age: Duration,
}

impl TunnelEnd {
    const fn is_orderly(&self) -> bool {
        self.cause.is_none()
    }
}

/// State after a try that failed.
fn state_of(error: &CallError) -> TunnelState {
    match error.status().map(|status| status.as_u16()) {
        Some(401) => TunnelState::Unauthorized,
        Some(404 | 405 | 426 | 501) => TunnelState::Unsupported(error.to_string()),
        _ => TunnelState::Connecting,
    }
}

/// Error of a node that may only dial, at an orchestrator without tunnels.
pub(super) fn not_offered(reason: &str) -> NodeError {
    NodeError::UnusableAnswer {
        what: "registration",
        detail: format!(
            "it offers no tunnel, which --connect dial needs ({reason}); upgrade the orchestrator, have the proxy in between \
             pass upgrades on, or start this node with --connect listen and a port that the orchestrator reaches"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::ProblemBody;
    use http::StatusCode;

    fn refused(status: u16) -> CallError {
        CallError::Refused {
            url: "https://box/v1/nodes/tunnel".to_owned(),
            status: StatusCode::from_u16(status).unwrap(),
            problem: Box::new(ProblemBody {
                kind: String::new(),
                title: String::new(),
                status,
                detail: "no".to_owned(),
                instance: String::new(),
                errors: Vec::new(),
                missing: Vec::new(),
            }),
        }
    }

    #[test]
    fn only_missing_tunnels_end_the_tries() {
        for status in [404, 405, 426, 501] {
            let state = state_of(&refused(status));
            assert!(matches!(state, TunnelState::Unsupported(_)), "{status}");
        }
        assert_eq!(state_of(&refused(401)), TunnelState::Unauthorized);
        for status in [400, 403, 409, 429, 500, 502, 503] {
            assert_eq!(
                state_of(&refused(status)),
                TunnelState::Connecting,
                "{status}"
            );
        }
    }
}
