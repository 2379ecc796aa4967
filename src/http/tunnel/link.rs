//! Way of calls over a tunnel, whichever connection it has now.

use super::frames::NonEmptyFrames;
use crate::{
    errors,
    http::{call_error::CallError, client::CallBody},
};
use http::{Method, StatusCode, header};
use hyper::{body::Incoming, client::conn::http2::SendRequest, ext::Protocol};
use parking_lot::Mutex;
use std::sync::Arc;

/// Reason of a call while the node has no connection.
pub const NOT_CONNECTED: &str =
    "its tunnel is not connected; a node that runs connects again by itself";

/// Sender of requests on one connection.
pub(super) type Sender = SendRequest<NonEmptyFrames<CallBody>>;

/// Way to one node; clones share its connection.
#[derive(Clone, Default)]
pub struct TunnelLink(Arc<Mutex<Option<Current>>>);

struct Current {
    generation: u64,
    sender: Sender,
}

impl TunnelLink {
    /// Leads over this connection from now on.
    pub(super) fn connect(&self, generation: u64, sender: Sender) {
        *self.0.lock() = Some(Current { generation, sender });
    }

    /// Leads nowhere any more, unless another connection has come since that of this generation.
    pub fn disconnect(&self, generation: u64) {
        let mut current = self.0.lock();
        *current = current
            .take()
            .filter(|current| current.generation != generation);
    }

    /// Sender of the connection that counts now.
    fn sender(&self) -> Option<Sender> {
        let current = self.0.lock();
        current.as_ref().map(|current| current.sender.clone())
    }

    /// Sends a request, and receives the head of its answer. A request for another protocol is sent as an extended CONNECT
    /// (RFC 8441), and its success comes back as a 101.
    pub(in crate::http) async fn request(
        &self,
        url: &str,
        mut request: http::Request<CallBody>,
    ) -> Result<http::Response<Incoming>, CallError> {
        let mut sender = self
            .sender()
            .ok_or_else(|| failed(url, NOT_CONNECTED.to_owned(), false))?;
        let is_upgrade = make_connect(&mut request);
        let answer = sender.send_request(request.map(NonEmptyFrames)).await;
        let mut answer = answer.map_err(|error| {
            if error.is_canceled() || error.is_closed() {
                return failed(url, NOT_CONNECTED.to_owned(), false);
            }
            failed(url, errors::chain(&error), true)
        })?;
        if is_upgrade && answer.status() == StatusCode::OK {
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        Ok(answer)
    }
}

/// Error of a call without an answer; one that was not sent can't have been acted on.
fn failed(url: &str, reason: String, connected: bool) -> CallError {
    CallError::Transport {
        url: url.to_owned(),
        reason,
        connected,
    }
}

/// Makes a request for another protocol an extended CONNECT; false for any other.
fn make_connect<B>(request: &mut http::Request<B>) -> bool {
    let protocol = request.headers_mut().remove(header::UPGRADE);
    request.headers_mut().remove(header::CONNECTION);
    let protocol = protocol.as_ref().and_then(|value| value.to_str().ok());
    let Some(protocol) = protocol.map(Protocol::from) else {
        return false;
    };
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(protocol);
    true
}
