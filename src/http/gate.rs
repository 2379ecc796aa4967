//! Whom a listener lets in: how many connections, from where, and whose word on an address counts.

use crate::network::network;
use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Connections at the same time, where the system has descriptors for so many.
const CONNECTIONS: usize = 1024;
/// Descriptors that are kept for everything else: the database, nodes, podman's pipes.
const KEPT: u64 = 128;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What a listener puts up with; cheap to clone, and counted together.
#[derive(Clone)]
pub struct Gate {
    proxies: Arc<[IpNet]>,
    limit: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// Descriptors of this process that connections and running jobs share; `None` where there is no limit.
pub fn descriptors() -> Option<u64> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    files.map(|files| files.saturating_sub(KEPT))
}

impl Gate {
    /// One that believes these proxies what they say of where a request came from.
    pub fn new(proxies: &[IpNet]) -> Self {
        // Two listeners share a process, and leave half for running jobs.
        let room = descriptors().map(|files| files / 4);
        let room = room.and_then(|room| usize::try_from(room).ok());
        Self {
            proxies: proxies.into(),
            limit: CONNECTIONS.min(room.unwrap_or(usize::MAX)).max(1),
            open: Arc::default(),
        }
    }

    /// A place for a connection from there, until it is dropped; none where there are too many. One
    /// network gets a quarter of them, so that it can't keep all others out.
    pub(super) fn admit(&self, peer: IpAddr) -> Option<Place> {
        let share = if self.trusts(peer.to_canonical()) {
            self.limit
        } else {
            self.limit.div_ceil(4)
        };
        let peer = network(peer);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().sum();
        let from_there = open.get(&peer).copied().unwrap_or(0);
        if all >= self.limit || from_there >= share {
            return None;
        }
        open.insert(peer, from_there + 1);
        Some(Place {
            open: Arc::clone(&self.open),
            peer,
        })
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

/// The place of a connection.
pub(super) struct Place {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    peer: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gate(limit: usize, proxies: &[&str]) -> Gate {
        let proxies: Vec<IpNet> = proxies.iter().map(|net| net.parse().unwrap()).collect();
        Gate {
            limit,
            ..Gate::new(&proxies)
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(gate: &Gate, peer: &str, told: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in told {
            headers.append(&X_FORWARDED_FOR, value.parse().unwrap());
        }
        gate.client(ip(peer), &headers).to_string()
    }

    #[test]
    fn one_network_gets_a_quarter_and_gives_it_back() {
        let gate = gate(8, &["10.0.0.0/8"]);
        let [greedy, other, proxy] = ["192.0.2.1", "::ffff:192.0.2.2", "10.1.1.1"].map(ip);
        let _more = [1, 2, 3, 4].map(|_| gate.admit(proxy).unwrap());
        let first = gate.admit(greedy).unwrap();
        let _second = gate.admit(greedy).unwrap();
        assert!(gate.admit(greedy).is_none());
        let third = gate.admit(other).unwrap();
        let _fourth = gate.admit(proxy).unwrap();
        assert!(gate.admit(proxy).is_none(), "there is no more room");
        drop(third);
        assert!(gate.admit(greedy).is_none());
        drop(first);
        let _again = gate.admit(greedy).unwrap();
        assert!(gate.admit(proxy).is_some(), "a proxy may have all");
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let gate = gate(9, &["10.0.0.0/8", "::1/128"]);
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
        fn a_stranger_can_say_what_they_like(told in "[ -~]{0,60}") {
            let gate = gate(9, &["10.0.0.0/8"]);
            prop_assert_eq!(client(&gate, "192.0.2.1", &[&told]), "192.0.2.1");
            // Nor does it count before what the proxy itself has seen.
            let seen = format!("{told}, 198.51.100.7");
            prop_assert_eq!(client(&gate, "10.0.0.1", &[&seen]), "198.51.100.7");
        }
    }
}
