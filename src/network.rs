//! Networks of clients, by which limits are counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Network of a client: its address, or, with IPv6, its whole /64, of which one client has all addresses.
pub(crate) fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        ip => ip,
    }
}

/// Key by which failed logins are counted: the client's network, or all of loopback, where every user has millions
/// of addresses.
pub(crate) fn rate_limit_key(address: IpAddr) -> IpAddr {
    if address.to_canonical().is_loopback() {
        return Ipv4Addr::LOCALHOST.into();
    }
    client_network(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_callers_are_grouped_by_network() {
        let of = |text: &str| client_network(text.parse().unwrap()).to_string();
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }
    #[test]
    fn loopback_counts_as_one_client() {
        let of = |text: &str| rate_limit_key(text.parse().unwrap()).to_string();
        for address in ["127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.2"] {
            assert_eq!(of(address), "127.0.0.1", "{address}");
        }
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        assert_eq!(of("2001:db8:1:2:3::"), of("2001:db8:1:2:4::"));
    }
}
