//! Calls of the model server of this machine: `/v1/worker/inference/…`, where `…` is the path at the model server.
//!
//! The orchestrator chooses the node and counts what is under way; here a call passes through as it is. Its end at
//! either side ends it at the other: a dropped request closes the connection to the model server.

use super::api::Api;
use crate::{
    api::problem::{Problem, ProblemKind},
    http::{
        body::BodyChunks,
        client::{CallError, Client},
        request::Request,
        response::Reply,
    },
    inference::{
        Endpoint, MAX_REQUEST_BYTES,
        endpoint::NotAllowed,
        relay::{self, FAULT_HEADER, UPSTREAM_FAILED, UPSTREAM_UNREACHABLE},
    },
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use parking_lot::Mutex;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

/// Time for which an idle connection to the model server is kept. Some servers close theirs after 5 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Model server of this machine, as the API and prompts reach it; cheap to clone.
#[derive(Clone)]
pub(super) struct ModelServer {
    pub(super) client: Client,
    address: Arc<Mutex<Option<SocketAddr>>>,
}

impl Default for ModelServer {
    fn default() -> Self {
        Self {
            client: Client::with_idle_timeout(IDLE_TIMEOUT),
            address: Arc::default(),
        }
    }
}

impl ModelServer {
    /// Address of the model server; `None` where there is none.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        *self.address.lock()
    }

    /// Sets the address of the model server; `None` where there is none.
    pub(super) fn set_address(&self, address: Option<SocketAddr>) {
        *self.address.lock() = address;
    }
}

pub(super) async fn proxy(api: Arc<Api>, mut request: Request) -> Reply {
    api.authorize_long(&request)?;
    let path: String = request.param("path", "call")?;
    let endpoint = Endpoint::find(request.method(), &format!("/{path}")).map_err(refused)?;
    let server = &api.model_server;
    let Some(address) = *server.address.lock() else {
        let detail = "this node runs no model server at present; ask another node";
        return Err(fault(UPSTREAM_UNREACHABLE, detail).into());
    };
    let headers = relay::request_headers(request.headers());
    let body = request.chunks();
    let length = body.announced_size();
    if length.is_some_and(|length| length > MAX_REQUEST_BYTES as u64) {
        return Err(too_large().into());
    }
    let url = format!("http://{address}{}", endpoint.path());
    let (body, fault_of_body) = chunks(body);
    let sent = relay::request(endpoint, &url, headers, length, body);
    let sent = sent.map_err(|error| Problem::internal().caused_by(error))?;
    match server.client.forward(sent).await {
        Ok(answer) => Ok(relay::response(answer)),
        Err(error) => {
            fault_of_body.check()?;
            let is_connected = matches!(
                error,
                CallError::Transport {
                    connected: true,
                    ..
                }
            );
            let problem = if is_connected {
                let detail = "the model server of this node broke off; ask another node";
                fault(UPSTREAM_FAILED, detail)
            } else {
                let detail = "the model server of this node does not answer; ask another node";
                fault(UPSTREAM_UNREACHABLE, detail)
            };
            Err(problem.caused_by(error))
        }
    }
}

/// Reason for which a body that is passed on has ended early: a fault of its sender, not of the next hop.
#[derive(Clone, Default)]
pub(super) struct BodyFault(Arc<Mutex<Option<Problem>>>);

impl BodyFault {
    /// Fails with the reason, if there is one.
    pub(super) fn check(&self) -> Result<(), Problem> {
        self.0.lock().take().map_or(Ok(()), Err)
    }

    fn set(&self, problem: Problem) -> io::Error {
        let error = io::Error::other(problem.detail.clone());
        *self.0.lock() = Some(problem);
        error
    }
}

/// Chunks of a body, up to the limit, and what is wrong with them once they have failed.
pub(super) fn chunks(
    body: BodyChunks,
) -> (
    impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    BodyFault,
) {
    let fault = BodyFault::default();
    let state = (body, 0, fault.clone());
    let chunks = stream::try_unfold(state, |(mut body, length, fault)| async move {
        let next = body.next().await;
        let Some(chunk) = next.map_err(|problem| fault.set(problem))? else {
            return Ok(None);
        };
        let length = length + chunk.len();
        if length > MAX_REQUEST_BYTES {
            return Err(fault.set(too_large()));
        }
        Ok(Some((chunk, (body, length, fault))))
    });
    (chunks, fault)
}

pub(super) fn too_large() -> Problem {
    let detail = format!("the body is larger than {MAX_REQUEST_BYTES} bytes; send less");
    Problem::new(ProblemKind::PayloadTooLarge, detail)
}

fn fault(reason: &str, detail: &str) -> Problem {
    Problem::new(ProblemKind::ModelServerFailed, detail)
        .with_header(FAULT_HEADER, reason.to_owned())
}

fn refused(reason: NotAllowed) -> Problem {
    match reason {
        NotAllowed::Path => Problem::new(
            ProblemKind::Forbidden,
            "no call with this path may reach a model server; docs/api.md lists those that may",
        ),
        NotAllowed::Method(allow) => {
            let detail = format!("this call takes {allow}");
            let mut problem = Problem::new(ProblemKind::MethodNotAllowed, detail);
            problem.allow = Some(allow.to_owned());
            problem
        }
    }
}
