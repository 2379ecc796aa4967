//! Policy of a listener: limits on connections, accepted host names, trusted proxies.

use super::{
    connection_limiter::{ConnectionLimiter, ConnectionPermit},
    host::{self, AllowedHosts},
};
use crate::api::problem::Problem;
use http::{HeaderMap, HeaderName, uri::Authority};
use ipnet::IpNet;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

/// Most connections of one listener at a time, where the system has file descriptors for them.
const MAX_CONNECTIONS: usize = 2048;
/// File descriptors that are reserved for everything else: the database, nodes, podman's pipes.
const RESERVED_DESCRIPTORS: u64 = 128;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// File descriptors of this process that connections and running jobs share; `None` where there is no limit.
pub fn available_descriptors() -> Option<u64> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    files.map(|files| files.saturating_sub(RESERVED_DESCRIPTORS))
}

/// Connections that one listener accepts at a time.
pub fn connection_limit() -> usize {
    // Two listeners share a process, and half of its descriptors are left for running jobs.
    let room = available_descriptors().map(|files| files / 4);
    let room = room.and_then(|room| usize::try_from(room).ok());
    MAX_CONNECTIONS.min(room.unwrap_or(usize::MAX)).max(1)
}

/// Policy of a listener; clones share their counts.
#[derive(Clone)]
pub struct ListenerPolicy {
    proxies: Arc<[IpNet]>,
    hosts: Arc<AllowedHosts>,
    limiter: ConnectionLimiter,
}

impl ListenerPolicy {
    /// Policy that trusts `X-Forwarded-For` of these proxies and, on loopback, accepts these host names.
    pub fn new(proxies: &[IpNet], hosts: AllowedHosts) -> Self {
        Self {
            proxies: proxies.into(),
            hosts: Arc::new(hosts),
            limiter: ConnectionLimiter::new(connection_limit()),
        }
    }

    /// Policy of a listener that one client has to itself.
    pub(super) fn private() -> Self {
        Self::new(&[], AllowedHosts::default())
    }

    /// Policy of a tunnel, on which one client may have `limit` streams.
    pub(super) fn of_tunnel(limit: usize) -> Self {
        Self {
            // The peer of every stream: a trusted one may have all.
            proxies: [IpNet::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))].into(),
            hosts: Arc::default(),
            limiter: ConnectionLimiter::new(limit),
        }
    }

    /// Permit for a connection from `peer`; `None` where too many are open.
    pub(super) fn acquire(&self, peer: IpAddr) -> Option<ConnectionPermit> {
        let is_trusted = self.is_trusted_proxy(peer.to_canonical());
        self.limiter.acquire(peer, is_trusted, Instant::now())
    }

    /// Permit for a stream on this connection from `peer`, which counts as one more connection.
    pub(super) fn acquire_stream(
        &self,
        connection: &Arc<ConnectionPermit>,
        peer: IpAddr,
    ) -> Option<ConnectionPermit> {
        let is_trusted = self.is_trusted_proxy(peer.to_canonical());
        let beside = Some(connection.as_ref());
        let permit = self
            .limiter
            .acquire_beside(beside, peer, is_trusted, Instant::now())?;
        Some(permit.of_stream(connection))
    }

    /// Authority that a request names. Fails with 400 where HTTP/1.1 names none, and with 421 where a listener on
    /// loopback does not accept the name, unless a trusted proxy sends it.
    pub(super) fn authority<B>(
        &self,
        request: &http::Request<B>,
        listener: SocketAddr,
        peer: IpAddr,
    ) -> Result<Option<Authority>, Problem> {
        let authority = host::authority(request)?;
        if listener.ip().to_canonical().is_loopback() && !self.is_trusted_proxy(peer.to_canonical())
        {
            self.hosts.check(authority.as_ref())?;
        }
        Ok(authority)
    }

    /// Address of the client: the peer or, where that is a trusted proxy, the last address in `X-Forwarded-For`
    /// that is not one. Anything before that may be forged.
    pub(super) fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let values = headers.get_all(&X_FORWARDED_FOR).into_iter();
        let hops: Vec<&str> = values
            .flat_map(|value| value.to_str().unwrap_or("?").split(','))
            .collect();
        for hop in hops.into_iter().rev() {
            if !self.is_trusted_proxy(client) {
                break;
            }
            let Some(address) = parse_address(hop) else {
                break;
            };
            client = address;
        }
        client
    }

    /// Whether the client's connection is encrypted: the one of `peer` or, where that is a trusted proxy which says so in
    /// `X-Forwarded-Proto`, the one to the proxy.
    pub(super) fn is_encrypted(
        &self,
        peer: IpAddr,
        is_encrypted: bool,
        headers: &HeaderMap,
    ) -> bool {
        let forwarded = headers.get(&X_FORWARDED_PROTO);
        let forwarded = forwarded.filter(|_| self.is_trusted_proxy(peer.to_canonical()));
        // A chain of proxies lists the scheme of the client first.
        let forwarded = forwarded
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(',').next())
            .map(|scheme| scheme.trim().to_ascii_lowercase());
        match forwarded.as_deref() {
            Some("https") => true,
            Some("http") => false,
            _ => is_encrypted,
        }
    }

    fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|proxy| proxy.contains(&address))
    }
}

/// Address as proxies write it: alone, in brackets, or with a port.
fn parse_address(hop: &str) -> Option<IpAddr> {
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

    fn client(gate: &ListenerPolicy, peer: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(&X_FORWARDED_FOR, value.parse().unwrap());
        }
        gate.client_address(ip(peer), &headers).to_string()
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
    fn only_trusted_proxy_is_believed() {
        let gate = gate(&["10.0.0.0/8", "::1/128"]);
        for (peer, forwarded, expected) in [
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
            assert_eq!(
                client(&gate, peer, forwarded),
                expected,
                "{peer} {forwarded:?}"
            );
        }
    }

    #[test]
    fn scheme_of_trusted_proxy_counts() {
        let gate = gate(&["10.0.0.0/8"]);
        for (peer, forwarded, is_tls, expected) in [
            ("192.0.2.1", "https", false, false),
            ("10.0.0.1", "https", false, true),
            ("10.0.0.1", "HTTPS, http", false, true),
            ("10.0.0.1", "http", true, false),
            ("10.0.0.1", "nonsense", true, true),
            ("192.0.2.1", "http", true, true),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(&X_FORWARDED_PROTO, forwarded.parse().unwrap());
            let seen = gate.is_encrypted(ip(peer), is_tls, &headers);
            assert_eq!(seen, expected, "{peer} {forwarded} {is_tls}");
        }
    }

    proptest! {
        #[test]
        fn any_registration_input_is_handled(forwarded in "[ -~]{0,60}") {
            let gate = gate(&["10.0.0.0/8"]);
            prop_assert_eq!(client(&gate, "192.0.2.1", &[&forwarded]), "192.0.2.1");
            // Entries of the client precede the one of the proxy, and don't count.
            let seen = format!("{forwarded}, 198.51.100.7");
            prop_assert_eq!(client(&gate, "10.0.0.1", &[&seen]), "198.51.100.7");
        }
    }
}
