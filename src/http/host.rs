//! Check of the host that a request names (RFC 9112, section 3.2).
//!
//! A web page can have its own name resolve to 127.0.0.1 and so reach services that listen on loopback only
//! (DNS rebinding). Such a request carries that name in `Host`, so a listener on loopback refuses names that
//! are not its own. Trusted proxies are exempt: they have names of their own.

use crate::api::problem::{Problem, ProblemKind};
use http::{Request, Version, header, uri::Authority};
use std::net::IpAddr;

/// Host names that a listener on loopback accepts, besides those of loopback itself.
#[derive(Clone, Default)]
pub struct AllowedHosts {
    names: Vec<String>,
    advice: &'static str,
}

impl AllowedHosts {
    /// Host names of these URLs. `advice` names the flag that allows another one, for the error.
    pub fn from_urls<'a>(urls: impl IntoIterator<Item = &'a str>, advice: &'static str) -> Self {
        let uris = urls.into_iter().filter_map(|url| url.parse().ok());
        let names = uris.filter_map(|uri: http::Uri| Some(normalize(uri.host()?)));
        Self {
            names: names.collect(),
            advice,
        }
    }

    /// Fails with 421 unless the host is a loopback name or address, or one of these names. Another address
    /// can't have been rebound, but does not lead here either.
    pub(super) fn check(&self, authority: Option<&Authority>) -> Result<(), Problem> {
        let Some(authority) = authority else {
            return Ok(());
        };
        let name = normalize(authority.host());
        let is_ours = match name.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => name == "localhost" || name.ends_with(".localhost"),
        };
        if is_ours || self.names.contains(&name) {
            return Ok(());
        }
        let shown = name.chars().take(100).collect::<String>();
        Err(Problem::new(
            ProblemKind::Misdirected,
            format!(
                "this listener is on loopback and does not accept the host {shown:?}; use localhost or 127.0.0.1{}",
                self.advice
            ),
        ))
    }
}

/// Normal form of a host: lower case, without brackets and without a final dot.
fn normalize(host: &str) -> String {
    let host = host.strip_prefix('[').unwrap_or(host);
    let host = host.strip_suffix(']').unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Authority that a request names, in its target or else in `Host`; `None` in HTTP/1.0 without either.
pub(super) fn authority<B>(request: &Request<B>) -> Result<Option<Authority>, Problem> {
    let wrong = |text| Err(Problem::new(ProblemKind::InvalidRequest, text));
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return wrong("header `Host` must be sent once, got several");
    }
    if host.is_none() && request.version() >= Version::HTTP_11 {
        return wrong("header `Host` is missing; HTTP/1.1 requires it");
    }
    let host = match host.map(|host| Authority::try_from(host.as_bytes())) {
        None => None,
        Some(Ok(host)) if !host.as_str().contains('@') => Some(host),
        Some(_) => {
            return wrong(
                "header `Host` must be a name or an address, with a port if it is not 80",
            );
        }
    };
    // The target takes precedence over Host.
    Ok(request.uri().authority().cloned().or(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(target: &str, version: Version, hosts: &[&str]) -> Request<()> {
        let request = Request::builder().uri(target).version(version);
        let request = hosts
            .iter()
            .fold(request, |request, host| request.header(header::HOST, *host));
        request.body(()).unwrap()
    }

    fn named(target: &str, version: Version, hosts: &[&str]) -> Result<Option<String>, String> {
        authority(&request(target, version, hosts))
            .map(|authority| authority.map(|authority| authority.to_string()))
            .map_err(|problem| problem.detail)
    }

    #[test]
    fn one_host_is_needed_and_target_counts_first() {
        let (new, old) = (Version::HTTP_11, Version::HTTP_10);
        let some = |host: &str| Ok(Some(host.to_owned()));
        assert_eq!(named("/", new, &["box:1"]), some("box:1"));
        assert_eq!(named("/", old, &["box"]), some("box"));
        assert_eq!(named("/", old, &[]), Ok(None));
        assert_eq!(named("http://box:2/", new, &["other"]), some("box:2"));
        for hosts in [&[][..], &["a", "a"], &["a b"], &["user@a"], &["a/b"], &[""]] {
            named("/", new, hosts).unwrap_err();
            named("http://box/", new, hosts).unwrap_err();
        }
        named("/", old, &["a", "b"]).unwrap_err();
    }

    #[test]
    fn only_own_names_are_answered() {
        let hosts =
            AllowedHosts::from_urls(["http://Box.example:12082/", "http://[2001:db8::7]:1"], "");
        let is_ours = |host: &str| hosts.check(Some(&host.parse().unwrap())).is_ok();
        for ours in [
            "localhost",
            "LOCALHOST:1",
            "localhost.",
            "a.localhost:9",
            "127.0.0.1",
            "127.9.9.9:80",
            "[::1]:12080",
            "[::ffff:127.0.0.1]",
            "box.example",
            "BOX.example.:7",
            "[2001:db8::7]",
        ] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in [
            "evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "192.0.2.1",
            "0.0.0.0",
            "[::]",
            "example",
            "2130706433",
            "0x7f000001",
        ] {
            assert!(!is_ours(other), "{other}");
        }
        assert!(hosts.check(None).is_ok());
    }

    proptest! {
        #[test]
        fn no_host_panics(bytes in prop::collection::vec(32_u8..=255, 0..60)) {
            let request = Request::builder().header(header::HOST, bytes).body(());
            if let Ok(Ok(authority)) = request.map(|request| authority(&request)) {
                let _ = AllowedHosts::default().check(authority.as_ref());
            }
        }
    }
}
