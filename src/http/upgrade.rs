//! Connections that leave HTTP for another protocol (RFC 9110, section 7.8), such as a WebSocket.
//!
//! A handler answers 101 with [`accept`]. What follows runs in the task of the connection: it keeps the
//! connection's place in the limits of the listener, may be evicted where the request may, and is cut at a shutdown,
//! without notice. A write that the peer does not read for 30 s fails.

use super::{
    connection_limiter::InFlightRequest,
    response::{Response, whole},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{future::Future, sync::Arc};

/// Connection after its upgrade.
pub type UpgradedStream = TokioIo<Upgraded>;

type Protocol = Box<dyn FnOnce(UpgradedStream) -> BoxFuture<'static, ()> + Send>;

/// Protocol of an answer, among its extensions, which are cloned in theory.
#[derive(Clone)]
struct Accepted(Arc<Mutex<Option<Protocol>>>);

/// 101 to a request with the header `Upgrade: <protocol>`; `serve` speaks the protocol. To a request without it the
/// answer would be an error.
pub fn accept<F>(
    protocol: HeaderValue,
    serve: impl FnOnce(UpgradedStream) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let serve: Protocol = Box::new(move |stream| Box::pin(serve(stream)));
    let mut response = http::Response::new(whole(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
    let accepted = Accepted(Arc::new(Mutex::new(Some(serve))));
    response.extensions_mut().insert(accepted);
    response
}

/// Upgrade of a connection, as soon as one was accepted.
#[derive(Clone, Default)]
pub(super) struct UpgradeSlot(Arc<Mutex<Option<PendingUpgrade>>>);

struct PendingUpgrade {
    stream: OnUpgrade,
    serve: Protocol,
    /// Has the connection count as one with a request.
    in_flight: InFlightRequest,
}

impl UpgradeSlot {
    /// Takes over an answer that accepts an upgrade. Gives the guard of the request back with any other.
    pub(super) fn take_over(
        &self,
        answer: &mut Response,
        stream: Option<OnUpgrade>,
        in_flight: InFlightRequest,
    ) -> Option<InFlightRequest> {
        let accepted = answer.extensions_mut().remove::<Accepted>();
        let serve = accepted.and_then(|Accepted(serve)| serve.lock().take());
        let (Some(stream), Some(serve)) = (stream, serve) else {
            return Some(in_flight);
        };
        *self.0.lock() = Some(PendingUpgrade {
            stream,
            serve,
            in_flight,
        });
        None
    }

    /// Speaks the protocol of the accepted upgrade, if there is one, to its end.
    pub(super) async fn serve(&self) {
        let Some(pending) = self.0.lock().take() else {
            return;
        };
        let _in_flight = pending.in_flight;
        match pending.stream.await {
            Ok(stream) => (pending.serve)(TokioIo::new(stream)).await,
            Err(error) => tracing::debug!(%error, "client left before the protocol changed"),
        }
    }
}

#[cfg(test)]
mod tests;
