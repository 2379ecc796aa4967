//! Resolution of host names, in Rust.
//!
//! The binary is linked statically, and a static glibc's `getaddrinfo` loads NSS modules of
//! the host's own glibc, which can crash. So names are resolved by hickory, which reads
//! `/etc/hosts` and `/etc/resolv.conf` again for each name: a machine that starts before its network is up, or
//! moves to another one, has other name servers then.

use crate::{
    api::nodes::Reach,
    tls::{ClientStream, Trust},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use hickory_resolver::TokioResolver;
use http::{Uri, uri::Scheme};
use hyper_util::{
    client::legacy::connect::{HttpConnector, dns::Name},
    rt::TokioIo,
};
use ipnet::IpNet;
use std::{
    error::Error,
    future::{Future, ready},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
    vec,
};
use tokio::time::timeout;

/// Time for the handshake of TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of `host`: a literal address, `localhost`, or a name to look up.
pub async fn resolve_host(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Some(address) = parse_literal(host) {
        return Ok(vec![address]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let failed = |error: &dyn std::fmt::Display| {
        io::Error::other(format!(
            "can't resolve the host {host:?}: {error}; check the name, or use its IP address"
        ))
    };
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|error| failed(&error))?;
    let found = resolver
        .lookup_ip(host)
        .await
        .map_err(|error| failed(&error))?;
    Ok(found.iter().collect())
}

/// Port of a URL: its own, or the one of its scheme.
pub fn port_of(url: &Uri) -> u16 {
    let is_encrypted = url.scheme() == Some(&Scheme::HTTPS);
    url.port_u16()
        .unwrap_or(if is_encrypted { 443 } else { 80 })
}

/// Address that a host is a literal of; `None` for a name.
fn parse_literal(host: &str) -> Option<IpAddr> {
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    literal.parse().ok()
}

/// Restriction of the addresses that calls may go to. Enforced where a connection is made, since a name may
/// have another address each time it is looked up.
#[derive(Clone, Debug)]
pub struct AddressGuard {
    reach: Reach,
    networks: Arc<[IpNet]>,
}

impl AddressGuard {
    /// Guard that allows addresses of this reach, and only in these networks if there are any.
    pub fn new(reach: Reach, networks: Arc<[IpNet]>) -> Self {
        Self { reach, networks }
    }

    /// Whether a call may go to this address.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.reach.allows_within(&self.networks, address)
    }

    /// Addresses that a call may go to. Fails where there are none left; the error says what to do.
    pub fn filter(&self, host: &str, mut addresses: Vec<IpAddr>) -> io::Result<Vec<IpAddr>> {
        let named = addresses.first().copied();
        addresses.retain(|address| self.allows(*address));
        match named {
            Some(named) if addresses.is_empty() => Err(io::Error::other(self.refusal(host, named))),
            _ => Ok(addresses),
        }
    }

    /// Error text for an address that is not allowed, with what to do.
    fn refusal(&self, host: &str, address: IpAddr) -> String {
        let advice = "start the node with --advertise-url and an address under which the orchestrator reaches it, \
                      or start the orchestrator with --worker-url SLUG=URL";
        if self.reach.allows(address) {
            return format!(
                "{host:.255} ({address}) is outside the networks of --worker-url-allow; {advice}"
            );
        }
        format!(
            "{host:.255} ({address}) is a loopback, link-local, metadata or otherwise special address; {advice}"
        )
    }
}

/// Connector for hyper that enforces an [`AddressGuard`], on literal addresses, too, and encrypts connections for
/// `https://`.
#[derive(Clone)]
pub(super) struct Connector {
    guard: AddressGuard,
    trust: Trust,
    inner: HttpConnector<HyperResolver>,
}

impl Connector {
    pub(super) fn new(
        guard: AddressGuard,
        trust: Trust,
        set: impl FnOnce(&mut HttpConnector<HyperResolver>),
    ) -> Self {
        let mut inner = HttpConnector::new_with_resolver(HyperResolver(guard.clone()));
        inner.enforce_http(false);
        set(&mut inner);
        Self {
            guard,
            trust,
            inner,
        }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<ClientStream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // hyper does not resolve literal addresses.
        let host = uri.host().unwrap_or_default().to_owned();
        if let Some(address) = parse_literal(&host)
            && let Err(refused) = self.guard.filter(&host, vec![address])
        {
            return ready(Err(refused.into())).boxed();
        }
        let trust = (uri.scheme() == Some(&Scheme::HTTPS)).then(|| self.trust.clone());
        let connecting = self.inner.call(uri);
        async move {
            let stream = connecting.await?.into_inner();
            let Some(trust) = trust else {
                return Ok(TokioIo::new(ClientStream::Plain(stream)));
            };
            let encrypted = timeout(HANDSHAKE_TIMEOUT, trust.connect(&host, stream)).await;
            let encrypted = encrypted.map_err(|_| {
                io::Error::other(
                    "no TLS handshake within 5 s; check that the URL is that of an orchestrator",
                )
            })?;
            Ok(TokioIo::new(encrypted?))
        }
        .boxed()
    }
}

/// Resolver for hyper.
#[derive(Clone)]
pub(super) struct HyperResolver(AddressGuard);

impl tower::Service<Name> for HyperResolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guard = self.0.clone();
        Box::pin(async move {
            let found = guard.filter(name.as_str(), resolve_host(name.as_str()).await?)?;
            // hyper replaces the port 0 by that of the URL.
            Ok(found
                .into_iter()
                .map(|ip| SocketAddr::new(ip, 0))
                .collect::<Vec<_>>()
                .into_iter())
        })
    }
}
