//! One try of a call at one node, up to the first byte of the answer. Until then nothing has reached the client, so
//! another node can take the place of one that fails.

use super::{body::RequestBody, queue::Permit};
use crate::{
    api::{
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    http::client::CallError,
    inference::{Endpoint, relay},
    orchestrator::{
        AppState,
        node_client::{ModelRequest, is_own_answer},
    },
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::sync::Arc;

/// Answer that has begun.
pub(super) struct Begun {
    pub(super) status: StatusCode,
    /// Headers that pass.
    pub(super) headers: HeaderMap,
    /// First bytes; `None` where the answer is empty.
    pub(super) first: Option<Bytes>,
    pub(super) rest: Incoming,
    pub(super) permit: Permit,
}

/// Tries a call at the node of `permit`. Every failure allows another try.
pub(super) async fn attempt(
    state: &AppState,
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: &Arc<RequestBody>,
    permit: Permit,
) -> Result<Begun, ApiError> {
    let node = &permit.node;
    let failed = |reason: &str| failed(&node.slug, reason);
    let client = state.node_client(node);
    let client = client.ok_or_else(|| failed("the URL of its Worker API is unknown"))?;
    let request = ModelRequest {
        endpoint,
        headers,
        length: body.length(),
    };
    let answer = client.infer(&request, || body.read()).await;
    let answer = answer.map_err(|error| {
        let reason = match &error {
            CallError::Transport {
                connected: false, ..
            } => "it can't be reached",
            _ => "the connection to it broke",
        };
        failed(reason).caused_by(error)
    })?;
    if is_own_answer(&answer) {
        let fault = answer.headers().get(relay::FAULT_HEADER);
        let fault = fault.and_then(|fault| fault.to_str().ok());
        return Err(failed(own_reason(answer.status(), fault)).into());
    }
    let (parts, mut rest) = answer.into_parts();
    let first = next_chunk(&mut rest).await;
    let first = first.map_err(|error| failed("the connection to it broke").caused_by(error))?;
    Ok(Begun {
        status: parts.status,
        headers: relay::response_headers(&parts.headers),
        first,
        rest,
        permit,
    })
}

/// Next bytes of an answer; `None` at its end. Cancel safe.
pub(super) async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Reason of an answer in the words of a worker, in ours: the node is not trusted to word it.
fn own_reason(status: StatusCode, fault: Option<&str>) -> &'static str {
    match (status.as_u16(), fault) {
        (_, Some(relay::UPSTREAM_UNREACHABLE)) => "its model server does not answer",
        (_, Some(relay::UPSTREAM_FAILED)) => "its model server broke off",
        (401, _) => "it does not know the token of this orchestrator; restart the node",
        (403 | 421, _) => "it does not accept this call from here",
        (404 | 405 | 501, _) => "its release of cynode passes no calls of models on; update it",
        (503, _) => "it is not available at present",
        _ => "it refused the call; its log has the reason",
    }
}

fn failed(slug: &str, reason: &str) -> Problem {
    let detail = format!("the node {slug} failed before its answer began: {reason}; try again");
    Problem::new(ProblemKind::ModelServerFailed, detail)
}
