//! From host names to addresses, in Rust.
//!
//! The binary is linked statically, and a static glibc's `getaddrinfo` loads NSS modules of
//! the host's own glibc, which can crash. So names are resolved by hickory, which reads
//! `/etc/hosts` and `/etc/resolv.conf`, anew for each name: a machine that starts before its network
//! is up, or moves to another one, has other name servers then.

use hickory_resolver::TokioResolver;
use hyper_util::client::legacy::connect::dns::Name;
use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    vec,
};

/// The addresses of `host`: a literal, `localhost`, or a name to be looked up.
pub async fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = literal.parse() {
        return Ok(vec![address]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let failed = |error: &dyn std::fmt::Display| {
        io::Error::other(format!(
            "can't find the host {host:?}: {error}; check the name, or use its IP address"
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

/// The same for hyper's connector.
#[derive(Clone)]
pub(super) struct HyperResolver;

impl tower::Service<Name> for HyperResolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let found = addresses(name.as_str()).await?;
            // hyper puts the port of the URL in place of the 0.
            Ok(found
                .into_iter()
                .map(|ip| SocketAddr::new(ip, 0))
                .collect::<Vec<_>>()
                .into_iter())
        })
    }
}
