//! Connections that have become those of a node: the bytes of either side go to the other.

use super::limits::PassPermit;
use crate::http::{
    response::Response,
    upgrade::{self, UpgradedStream},
};
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;

/// Bytes that are on their way in each direction.
const BUFFER_BYTES: usize = 64 * 1024;
/// Headers of the answer of a node that pass.
const PASSED_HEADERS: [HeaderName; 3] = [
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
];

/// 101 in place of the 101 of a node. The connection ends with that of either side, or with `access_end`.
pub(super) fn pass_on(
    mut answer: http::Response<Incoming>,
    access_end: BoxFuture<'static, ()>,
    permit: PassPermit,
) -> Response {
    let mut passed = Vec::new();
    for name in PASSED_HEADERS {
        passed.extend(
            answer
                .headers_mut()
                .remove(&name)
                .map(|value| (name, value)),
        );
    }
    let websocket = HeaderValue::from_static("websocket");
    let mut response = upgrade::accept(websocket, async move |near: UpgradedStream| {
        let _permit = permit;
        tokio::select! {
            () = copy(near, answer) => {}
            () = access_end => tracing::info!("terminal cut: the access of its user has ended"),
        }
    });
    response.headers_mut().extend(passed);
    response
}

async fn copy(mut near: UpgradedStream, answer: http::Response<Incoming>) {
    let far = match hyper::upgrade::on(answer).await {
        Ok(far) => far,
        Err(error) => return tracing::debug!(%error, "node did not change the protocol"),
    };
    let mut far = TokioIo::new(far);
    let copied = copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER_BYTES, BUFFER_BYTES);
    if let Err(error) = copied.await {
        tracing::debug!(%error, "connection that was passed on ended early");
    }
}
