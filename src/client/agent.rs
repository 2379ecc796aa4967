//! Connections to a gateway: limits of time, name resolution, and encryption.

use super::tls::TlsLayer;
use crate::{http::resolve, tls::Trust};
use http::Uri;
use std::{net::SocketAddr, time::Duration};
use ureq::{
    Agent,
    config::Config,
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::{Connector as _, DefaultConnector, NextTimeout},
    },
};

/// Time for a connection to be made, name resolution included. Each step of a TLS handshake may take as long again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// HTTP client with this trust, and these times for the head of an answer and between two pieces of one.
pub(super) fn agent(trust: &Trust, answer_timeout: Duration, read_timeout: Duration) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        // A connection that the server closes while it is reused would fail a call that can't be repeated.
        .max_idle_connections(0)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(answer_timeout))
        .timeout_per_read(Some(read_timeout))
        .user_agent(concat!("cynode/", env!("CARGO_PKG_VERSION")))
        .build();
    let connector = DefaultConnector::default().chain(TlsLayer(trust.clone()));
    Agent::with_parts(config, connector, HostResolver)
}

/// Resolver that uses the same name resolution as the rest of this binary; see [`resolve`].
#[derive(Debug)]
struct HostResolver;

impl Resolver for HostResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let limited =
            async { tokio::time::timeout(CONNECT_TIMEOUT, resolve::resolve_host(host)).await };
        let found = runtime
            .block_on(limited)
            .map_err(|_| ureq::Error::HostNotFound)??;
        let mut addresses = self.empty();
        for ip in found.into_iter().take(16) {
            addresses.push(SocketAddr::new(ip, resolve::port_of(uri)));
        }
        if addresses.is_empty() {
            Err(ureq::Error::HostNotFound)
        } else {
            Ok(addresses)
        }
    }
}
