//! Restriction of the addresses at which the orchestrator calls nodes.
//!
//! A node reports the address of its Worker API, and any holder of the pre-shared key can register one. That
//! address must not lead the orchestrator to its own loopback services, to a cloud's metadata service, or to
//! services that only answer on the orchestrator's link. A node that calls from such an address may name it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata services of clouds, which hand out credentials to any caller on the machine.
const METADATA_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// Set of addresses that calls to a node may go to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Any address, since the operator named it.
    Anywhere,
    /// Routed addresses: private networks and the internet.
    #[default]
    Routable,
    /// Routed addresses and loopback, for a node on the orchestrator's machine.
    Loopback,
    /// Routed and link-local addresses, for a node that calls from a link-local one.
    LinkLocal,
}

impl Reach {
    /// Every reach, in this order.
    pub const ALL: [Self; 4] = [
        Self::Anywhere,
        Self::Routable,
        Self::Loopback,
        Self::LinkLocal,
    ];

    /// Reach of a node that calls from this address.
    pub fn from_peer(peer: IpAddr) -> Self {
        match peer.to_canonical() {
            peer if peer.is_loopback() => Self::Loopback,
            peer if is_link_local(peer) => Self::LinkLocal,
            _ => Self::Routable,
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn is_routable(&self) -> bool {
        *self == Self::Routable
    }

    /// Whether a call may go to this address.
    pub fn allows(self, address: IpAddr) -> bool {
        let address = embedded_ipv4(address);
        match self {
            Self::Anywhere => true,
            Self::Routable => is_routable(address),
            Self::Loopback => address.is_loopback() || is_routable(address),
            Self::LinkLocal => {
                is_link_local(address) && !is_metadata(address) || is_routable(address)
            }
        }
    }

    /// Whether a call may go to this address, where the operator allows only these networks; an empty list allows
    /// all.
    pub fn allows_within(self, networks: &[IpNet], address: IpAddr) -> bool {
        let is_inside = |network: &IpNet| network.contains(&embedded_ipv4(address));
        self.allows(address)
            && (self == Self::Anywhere || networks.is_empty() || networks.iter().any(is_inside))
    }
}

/// IPv4 address that is embedded in an IPv6 address (mapped, compatible, NAT64 or 6to4); else the address itself.
fn embedded_ipv4(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let v4 = |high: u16, low: u16| {
        let [[a, b], [c, d]] = [high, low].map(u16::to_be_bytes);
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            v4(high, low)
        }
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => METADATA_V4.contains(&address),
        IpAddr::V6(address) => METADATA_V6.contains(&address),
    }
}

fn is_routable(address: IpAddr) -> bool {
    let is_special = match address {
        // "This network", which Linux takes for the machine itself; reserved and broadcast addresses.
        IpAddr::V4(address) => matches!(address.octets()[0], 0 | 240..),
        IpAddr::V6(address) => address.is_unspecified(),
    };
    !(is_special
        || address.is_loopback()
        || address.is_multicast()
        || is_link_local(address)
        || is_metadata(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(reach: Reach, address: &str) -> bool {
        reach.allows(address.parse().unwrap())
    }

    #[test]
    fn only_routable_addresses_are_open_to_all_nodes() {
        for routable in [
            "10.0.0.1",
            "192.168.1.5",
            "172.16.0.1",
            "100.64.0.1",
            "8.8.8.8",
            "fd12::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(allowed(Reach::Routable, routable), "{routable}");
        }
        for special in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert!(!allowed(Reach::Routable, special), "{special}");
        }
    }

    #[test]
    fn node_may_use_address_kind_of_caller() {
        let of = |peer: &str| Reach::from_peer(peer.parse().unwrap());
        let local = of("::ffff:127.0.0.1");
        assert!(allowed(local, "127.0.0.1") && allowed(local, "::1"));
        assert!(!allowed(local, "169.254.1.1") && !allowed(local, "0.0.0.0"));
        let neighbour = of("fe80::7");
        assert!(allowed(neighbour, "169.254.1.1") && !allowed(neighbour, "127.0.0.1"));
        assert!(!allowed(neighbour, "169.254.169.254"));
        assert_eq!(of("10.0.0.1"), Reach::Routable);
    }

    #[test]
    fn allowed_networks_narrow_addresses() {
        let networks = ["10.1.0.0/16".parse().unwrap()];
        let allowed =
            |reach: Reach, address: &str| reach.allows_within(&networks, address.parse().unwrap());
        assert!(allowed(Reach::Routable, "10.1.2.3"));
        assert!(allowed(Reach::Routable, "::ffff:10.1.2.3"));
        assert!(!allowed(Reach::Routable, "10.2.2.3"));
        assert!(!allowed(Reach::Loopback, "127.0.0.1"));
        assert!(allowed(Reach::Anywhere, "127.0.0.1"));
    }
}
