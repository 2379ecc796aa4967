//! Addresses that a job may not reach, whatever name leads there. Pure.
//!
//! A name is its owner's to point anywhere: at this machine, at its neighbours, at the service that hands out a cloud's
//! credentials. So only addresses of the internet are dialled, and those that an operator has named. What is no
//! global unicast address by the registries of IANA is special, and so is an address that embeds a special one.

use super::decision::MissingFrom;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Networks of special addresses that are allowed nevertheless.
pub(super) struct AddressPolicy {
    job: Vec<IpNet>,
    /// `None` where the node has no list of its own.
    node: Option<Vec<IpNet>>,
}

impl AddressPolicy {
    /// Networks that the orchestrator allows to the job, and those of the node where it has a list.
    pub(super) fn new(job: Vec<IpNet>, node: Option<Vec<IpNet>>) -> Self {
        Self { job, node }
    }

    /// Checks one address; fails with its kind, as in "a loopback address".
    pub(super) fn check(&self, address: IpAddr) -> Result<(), &'static str> {
        let address = address.to_canonical();
        if self.allows(address) {
            return Ok(());
        }
        if let Some(kind) = special(address) {
            return Err(kind);
        }
        let refused = |inner: Ipv4Addr| special_v4(inner).filter(|_| !self.allows(inner.into()));
        match embedded(address).into_iter().flatten().find_map(refused) {
            Some(kind) => Err(kind),
            None => Ok(()),
        }
    }

    /// List of an operator that has no network with this address, the first that is asked: what a job is allowed comes
    /// from the orchestrator.
    pub(super) fn missing_from(&self, address: IpAddr) -> MissingFrom {
        let address = address.to_canonical();
        if self.job.iter().any(|network| network.contains(&address)) {
            MissingFrom::Node
        } else {
            MissingFrom::Job
        }
    }

    /// Whether the operators have named a network that has this address.
    pub(super) fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let has = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        has(&self.job) && self.node.as_deref().is_none_or(has)
    }
}

/// Kind of a special address; `None` for one of the internet.
fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        // Linux takes all of it for the machine itself.
        [0, ..] => "an unspecified address",
        [127, ..] => "a loopback address",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "a private address",
        [100, 64..=127, ..] => "an address of carrier-grade NAT",
        // The second is Azure's, a public address otherwise.
        [169, 254, 169, 254] | [168, 63, 129, 16] => "the address of a metadata service",
        [169, 254, ..] => "a link-local address",
        [192, 0, 0, _] | [192, 88, 99, _] => "an address of a special protocol",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "an address for documentation",
        [198, 18..=19, ..] => "an address for benchmarks",
        [224..=239, ..] => "a multicast address",
        [240..=255, ..] => "a reserved or broadcast address",
        _ => return None,
    })
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    Some(match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "an unspecified address",
        [0, 0, 0, 0, 0, 0, 0, 1] => "a loopback address",
        // NAT64, whose embedded address decides.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => return None,
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => {
            "the address of a metadata service"
        }
        [0xfc00..=0xfdff, ..] => "a private address",
        [0xfe80..=0xfebf, ..] => "a link-local address",
        [0xff00..=0xffff, ..] => "a multicast address",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "an address for documentation",
        [0x2001, 2, 0, ..] => "an address for benchmarks",
        // Global unicast, Teredo and 6to4 among it.
        [0x2000..=0x3fff, ..] => return None,
        _ => "an address that is not of the internet",
    })
}

/// IPv4 addresses that an IPv6 address leads to: of NAT64, of 6to4, and the server and the client of Teredo.
fn embedded(address: IpAddr) -> [Option<Ipv4Addr>; 2] {
    let IpAddr::V6(address) = address else {
        return [None, None];
    };
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [v4(high, low), None],
        [0x2002, high, low, ..] => [v4(high, low), None],
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            [v4(high, low), v4(!client_high, !client_low)]
        }
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn policy(job: &[&str], node: Option<&[&str]>) -> AddressPolicy {
        AddressPolicy::new(networks(job), node.map(networks))
    }

    fn is_allowed(policy: &AddressPolicy, address: &str) -> bool {
        policy.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn special_addresses_are_refused() {
        let policy = policy(&[], None);
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "169.254.0.1",
            "168.63.129.16",
            "100.64.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "::8.8.8.8",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::808:808",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2001:0:a00:1::",
            "2001:0:808:808::f5ff:fffe",
        ] {
            assert!(!is_allowed(&policy, address), "{address}");
        }
    }

    #[test]
    fn addresses_of_the_internet_are_allowed() {
        let policy = policy(&[], Some(&[]));
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "192.169.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "2606:4700::1111",
            "2a00:1450::1",
            "64:ff9b::808:808",
            "2002:808:808::1",
        ] {
            assert!(is_allowed(&policy, address), "{address}");
        }
    }

    #[test]
    fn named_networks_open_special_addresses() {
        let named = policy(&["10.1.0.0/16", "::1/128"], None);
        for address in ["10.1.2.3", "::ffff:10.1.2.3", "::1", "64:ff9b::a01:203"] {
            assert!(is_allowed(&named, address), "{address}");
        }
        for address in ["10.2.0.1", "127.0.0.1", "64:ff9b::a02:1"] {
            assert!(!is_allowed(&named, address), "{address}");
        }
        let narrowed = policy(&["10.0.0.0/8"], Some(&["10.1.0.0/16"]));
        assert!(is_allowed(&narrowed, "10.1.2.3") && !is_allowed(&narrowed, "10.2.2.3"));
        assert!(!is_allowed(&policy(&["10.0.0.0/8"], Some(&[])), "10.1.2.3"));
    }

    proptest! {
        #[test]
        fn wrapped_address_is_no_better(address: Ipv4Addr) {
            let policy = policy(&[], None);
            let [a, b, c, d] = address.octets().map(u16::from);
            let (high, low) = ((a << 8) | b, (c << 8) | d);
            let wrapped = [
                Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !high, !low),
            ];
            let plain = policy.check(address.into());
            for wrapped in wrapped {
                prop_assert_eq!(policy.check(wrapped.into()).is_ok(), plain.is_ok(), "{}", wrapped);
            }
        }

        #[test]
        fn all_networks_allow_any_address(address: IpAddr) {
            prop_assert!(policy(&["0.0.0.0/0", "::/0"], None).check(address).is_ok());
        }

        #[test]
        fn only_global_unicast_passes(address: Ipv6Addr) {
            let is_allowed = policy(&[], None).check(address.into()).is_ok();
            let first = address.segments()[0];
            prop_assert!(!is_allowed || (0x2000..0x4000).contains(&first) || first == 0x64
                || address.to_ipv4_mapped().is_some());
        }
    }
}
