//! Upgrade of a connection to a tunnel, at the node.

use super::PROTOCOL;
use crate::{
    api::{INSTANCE_HEADER, nodes::Reach},
    background,
    http::{
        call_error::{CallError, malformed, no_answer},
        client::{CallBody, refusal, whole},
        resolve::{AddressGuard, Connector},
        transport::connector,
    },
    tls::Trust,
};
use bytes::Bytes;
use http::{StatusCode, Uri, header};
use hyper::{body::Incoming, client::conn::http1, upgrade::Upgraded};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tower::ServiceExt as _;

/// Time for the answer to the upgrade, and for the body of a refusal.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Client that opens tunnels; cheap to clone.
#[derive(Clone)]
pub struct Dialer(Connector);

/// Identity that a node shows.
pub struct DialIdentity<'a> {
    /// Token of the node.
    pub token: &'a str,
    /// Id of the process.
    pub instance: Option<&'a str>,
}

impl Dialer {
    /// Dialer that connects to servers of `https://` URLs only where this trust holds.
    pub fn new(trust: Trust) -> Self {
        Self(connector(
            AddressGuard::new(Reach::Anywhere, Arc::new([])),
            trust,
        ))
    }

    /// Opens a tunnel at `url`. What the server sends next is HTTP/2.
    pub async fn dial(&self, url: &str, identity: DialIdentity<'_>) -> Result<Upgraded, CallError> {
        let uri: Uri = url
            .parse()
            .map_err(|error: http::uri::InvalidUri| malformed(url, error.to_string()))?;
        let request = request(&uri, &identity);
        let request = request.map_err(|error| malformed(url, error.to_string()))?;
        let connected = self.0.clone().oneshot(uri).await;
        let stream = connected.map_err(|error| no_answer(url, &*error, false))?;
        let broken = |error: hyper::Error| no_answer(url, &error, true);
        let handshake = http1::handshake::<_, CallBody>(stream).await;
        let (mut sender, connection) = handshake.map_err(broken)?;
        background::spawn("tunnel_dial", async move {
            // A failure reaches the request.
            let _ = connection.with_upgrades().await;
        });
        let answer = timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        let answer = answer.map_err(|_| CallError::timed_out(url, ANSWER_TIMEOUT))?;
        let answer = answer.map_err(broken)?;
        upgraded(url, answer).await?.await.map_err(broken)
    }
}

/// Upgrade of an answer. Fails where the server does not accept it.
async fn upgraded(
    url: &str,
    answer: http::Response<Incoming>,
) -> Result<hyper::upgrade::OnUpgrade, CallError> {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = answer.into_parts();
        return Err(refusal(url.to_owned(), head.status, body, ANSWER_TIMEOUT).await);
    }
    let protocol = answer.headers().get(header::UPGRADE);
    if protocol.is_none_or(|name| !name.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes())) {
        return Err(malformed(url, format!("it does not upgrade to {PROTOCOL}")));
    }
    Ok(hyper::upgrade::on(answer))
}

fn request(uri: &Uri, identity: &DialIdentity<'_>) -> http::Result<http::Request<CallBody>> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let mut request = http::Request::get(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .header(header::AUTHORIZATION, format!("Bearer {}", identity.token));
    if let Some(instance) = identity.instance {
        request = request.header(INSTANCE_HEADER, instance);
    }
    request.body(whole(Bytes::new()))
}
