//! URLs whose calls others can read.

use http::{Uri, uri::Scheme};
use std::net::IpAddr;

/// Whether calls of this URL cross a network in the clear: plain HTTP to another machine than this one.
pub fn is_exposed(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_here = match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    uri.scheme() == Some(&Scheme::HTTP) && !is_here
}

/// Whether calls of this URL are encrypted.
pub fn is_encrypted(url: &str) -> bool {
    url.parse::<Uri>()
        .is_ok_and(|uri| uri.scheme() == Some(&Scheme::HTTPS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_urls_of_others_are_exposed() {
        for (url, exposed) in [
            ("http://127.0.0.1:12080", false),
            ("http://localhost", false),
            ("http://LOCALHOST:1/x", false),
            ("http://[::1]:12080/", false),
            ("http://[::ffff:127.0.0.1]:1", false),
            ("https://box:1", false),
            ("HTTPS://box:1", false),
            ("http://box:1", true),
            ("HTTP://box:1", true),
            ("http://192.168.1.5:12082", true),
            ("http://[2001:db8::1]:1", true),
            ("http://localhost.example", true),
        ] {
            assert_eq!(is_exposed(url), exposed, "{url}");
            assert!(!is_exposed(url) || !is_encrypted(url), "{url}");
        }
    }
}
