//! Whom a listener lets in: how many connections, by which name, and whose word on an address counts.

use super::{
    connection_limiter::{ConnectionLimiter, ConnectionPermit},
    host::{self, AllowedHosts},
};
use crate::api::problem::Problem;
use http::{HeaderMap, HeaderName, uri::Authority};
use ipnet::IpNet;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

/// ConnectionLimiter at the same time, where the system has descriptors for so many.
const MAX_CONNECTIONS: usize = 1024;
/// Descriptors that are kept for everything else: the database, nodes, podman's pipes.
const RESERVED_DESCRIPTORS: u64 = 128;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Descriptors of this process that connections and running jobs share; `None` where there is no limit.
pub fn available_descriptors() -> Option<u64> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    files.map(|files| files.saturating_sub(RESERVED_DESCRIPTORS))
}

/// ConnectionLimiter that one listener takes at the same time.
pub fn connection_limit() -> usize {
    // Two listeners share a process, and leave half for running jobs.
    let room = available_descriptors().map(|files| files / 4);
    let room = room.and_then(|room| usize::try_from(room).ok());
    MAX_CONNECTIONS.min(room.unwrap_or(usize::MAX)).max(1)
}

/// What a listener puts up with; cheap to clone, and counted together.
#[derive(Clone)]
pub struct ListenerPolicy {
    proxies: Arc<[IpNet]>,
    hosts: Arc<AllowedHosts>,
    connections: ConnectionLimiter,
}

impl ListenerPolicy {
    /// One that believes these proxies what they say of where a request came from, and, on loopback,
    /// answers to these names.
    pub fn new(proxies: &[IpNet], hosts: AllowedHosts) -> Self {
        Self {
            proxies: proxies.into(),
            hosts: Arc::new(hosts),
            connections: ConnectionLimiter::new(connection_limit()),
        }
    }

    /// A place for a connection from there, until it is dropped; none where there are too many.
    pub(super) fn acquire(&self, peer: IpAddr) -> Option<ConnectionPermit> {
        let is_trusted = self.trusts(peer.to_canonical());
        self.connections.acquire(peer, is_trusted, Instant::now())
    }

    /// Checks which host a request names: with HTTP/1.1 there must be one, and on a listener that is bound
    /// to loopback it must be ours, unless a proxy that we trust sends it.
    pub(super) fn authority<B>(
        &self,
        request: &http::Request<B>,
        listener: SocketAddr,
        peer: IpAddr,
    ) -> Result<Option<Authority>, Problem> {
        let authority = host::authority(request)?;
        if listener.ip().to_canonical().is_loopback() && !self.trusts(peer.to_canonical()) {
            self.hosts.check(authority.as_ref())?;
        }
        Ok(authority)
    }

    /// Where a request came from: its peer, or, where that is a proxy that we trust, the last address
    /// in `X-Forwarded-For` that isn't one. What stands before that anybody could have written.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let values = headers.get_all(&X_FORWARDED_FOR).into_iter();
        let told: Vec<&str> = values
            .flat_map(|value| value.to_str().unwrap_or("?").split(','))
            .collect();
        for hop in told.into_iter().rev() {
            if !self.trusts(client) {
                break;
            }
            let Some(address) = address(hop) else { break };
            client = address;
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|proxy| proxy.contains(&address))
    }
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let bare = hop.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let address = match bare {
        Some((address, _)) => address.parse(),
        None => hop
            .parse()
            .or_else(|error| hop.split_once(':').map_or(Err(error), |(ip, _)| ip.parse())),
    };
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gate(proxies: &[&str]) -> ListenerPolicy {
        let proxies: Vec<IpNet> = proxies.iter().map(|net| net.parse().unwrap()).collect();
        ListenerPolicy::new(&proxies, AllowedHosts::default())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(gate: &ListenerPolicy, peer: &str, told: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in told {
            headers.append(&X_FORWARDED_FOR, value.parse().unwrap());
        }
        gate.client(ip(peer), &headers).to_string()
    }

    #[test]
    fn other_names_are_refused_on_loopback_only() {
        let gate = gate(&["127.0.0.9/32"]);
        let request = http::Request::builder().header("host", "evil.example");
        let request = request.body(()).unwrap();
        for (listener, peer, is_taken) in [
            ("127.0.0.1:1", "127.0.0.1", false),
            ("[::1]:1", "::1", false),
            ("127.0.0.1:1", "127.0.0.9", true),
            ("0.0.0.0:1", "127.0.0.1", true),
        ] {
            let named = gate.authority(&request, listener.parse().unwrap(), ip(peer));
            assert_eq!(named.is_ok(), is_taken, "{listener} {peer}");
        }
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let gate = gate(&["10.0.0.0/8", "::1/128"]);
        for (peer, told, expected) in [
            ("192.0.2.1", &["203.0.113.9"][..], "192.0.2.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("::ffff:10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("::1", &["[2001:db8::1]:443"], "2001:db8::1"),
            ("10.0.0.1", &["203.0.113.9:1234"], "203.0.113.9"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
            (
                "10.0.0.1",
                &["1.1.1.1", "203.0.113.9, 10.2.3.4"],
                "203.0.113.9",
            ),
            ("10.0.0.1", &["1.1.1.1, nonsense"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
        ] {
            assert_eq!(client(&gate, peer, told), expected, "{peer} {told:?}");
        }
    }

    proptest! {
        #[test]
        fn any_registration_input_is_handled(told in "[ -~]{0,60}") {
            let gate = gate(&["10.0.0.0/8"]);
            prop_assert_eq!(client(&gate, "192.0.2.1", &[&told]), "192.0.2.1");
            // Nor does it count before what the proxy itself has seen.
            let seen = format!("{told}, 198.51.100.7");
            prop_assert_eq!(client(&gate, "10.0.0.1", &[&seen]), "198.51.100.7");
        }
    }
}
