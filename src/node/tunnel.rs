//! Tunnel of a node: a connection to the orchestrator on which the node serves its Worker API.
//!
//! ```text
//! dial ──▶ 101 ──▶ first call ──▶ connected ──▶ end ──▶ dial again
//!   └── 401: the node registers again
//!   └── 404, 405, 426, 501, several 400 in a row: no tunnels there; the node listens, where its operator lets it
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
use http::StatusCode;
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

/// Answers 400 in a row after which nothing there opens tunnels. Some proxies answer an upgrade so that they don't pass
/// on; one that is just being set up may do it once.
const MAX_BAD_REQUESTS: u32 = 4;

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
            refusals: Refusals::default(),
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
    refusals: Refusals,
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
                    let state = self.refusals.state_after(&error);
                    self.set(state);
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
            self.refusals.has_worked = true;
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

/// Refusals of the tries.
#[derive(Default)]
struct Refusals {
    /// Answers 400 in a row.
    bad_requests: u32,
    /// Whether a tunnel was connected: upgrades are passed on then.
    has_worked: bool,
}

impl Refusals {
    /// State after a try that failed.
    fn state_after(&mut self, error: &CallError) -> TunnelState {
        let is_bad = error.status() == Some(StatusCode::BAD_REQUEST) && !error.is_tls_only();
        self.bad_requests = match is_bad && !self.has_worked {
            true => self.bad_requests + 1,
            false => 0,
        };
        if self.bad_requests < MAX_BAD_REQUESTS {
            return state_of(error);
        }
        self.bad_requests = 0;
        TunnelState::Unsupported(error.to_string())
    }
}

/// State after a try that failed, by its answer alone.
fn state_of(error: &CallError) -> TunnelState {
    match error.status().map(|status| status.as_u16()) {
        Some(401) => TunnelState::Unauthorized,
        Some(404 | 405 | 426 | 501) => TunnelState::Unsupported(error.to_string()),
        _ => TunnelState::Connecting,
    }
}

/// Whether a tunnel opens there. It is closed at once.
pub(super) async fn opens(dialer: &Dialer, target: &TunnelTarget) -> bool {
    let identity = DialIdentity {
        token: &target.token,
        instance: target.instance.as_deref(),
    };
    dialer.dial(&target.url, identity).await.is_ok()
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
    use crate::{api::problem::ProblemBody, tls::Trust};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

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

    #[test]
    fn several_bad_requests_end_the_tries() {
        let mut refusals = Refusals::default();
        for status in [400, 400, 400, 502, 400, 400, 400] {
            let state = refusals.state_after(&refused(status));
            assert_eq!(state, TunnelState::Connecting);
        }
        let TunnelState::Unsupported(reason) = refusals.state_after(&refused(400)) else {
            panic!("the tries go on");
        };
        assert!(reason.contains("400"), "{reason}");
        refusals.has_worked = true;
        for _ in 0..2 * MAX_BAD_REQUESTS {
            let state = refusals.state_after(&refused(400));
            assert_eq!(state, TunnelState::Connecting);
        }
    }

    #[tokio::test]
    async fn tunnel_opens_once_upgrades_are_passed_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = TunnelTarget {
            url: format!("http://{address}/v1/nodes/tunnel"),
            token: Zeroizing::new("token".to_owned()),
            instance: None,
        };
        let proxy = async {
            for answer in [
                "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n",
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: cynode-tunnel\r\n\r\n",
            ] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                assert!(stream.read(&mut head).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let node = async {
            let dialer = Dialer::new(Trust::default());
            let before = opens(&dialer, &target).await;
            (before, opens(&dialer, &target).await)
        };
        let ((), opened) = tokio::join!(proxy, node);
        assert_eq!(opened, (false, true));
    }
}
