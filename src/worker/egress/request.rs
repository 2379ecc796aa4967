//! Requests to the proxy: which host they are for, and what of them is passed on. Pure.
//!
//! Two forms (RFC 9112, sections 3.2.2 and 3.2.3): `CONNECT host:port`, and `GET http://host/path`. In the second, the
//! URL says where the request goes; a `Host` that says something else is refused, since the server would read that one. In
//! a tunnel whose TLS the proxy opens, the tunnel says where requests go, and they have a path alone.

use super::refusal::Refusal;
use crate::api::egress::{HTTP_PORT, HTTPS_PORT, HostName, InvalidHost};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use std::{fmt, net::IpAddr};

/// Headers that are for the next hop alone, or for a proxy. `Expect` is answered here.
const HOP_HEADERS: [HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::EXPECT,
];
/// The same, which have no constants.
const OLD_HOP_HEADERS: [&str; 2] = ["keep-alive", "proxy-connection"];

/// Host and port that a request is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub(super) host: HostName,
    pub(super) port: u16,
}

impl Target {
    /// Entry of a list that would allow it.
    pub(super) fn entry(&self) -> String {
        match self.port {
            HTTP_PORT | HTTPS_PORT => self.host.to_string(),
            _ => self.to_string(),
        }
    }

    /// Whether a tunnel there must carry TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.port == HTTPS_PORT
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Where a request goes: to a path at a host, plain or inside of TLS.
pub(super) struct Destination<'a> {
    pub(super) target: &'a Target,
    pub(super) path: Uri,
    pub(super) is_encrypted: bool,
}

impl Destination<'_> {
    /// Scheme of its URL.
    pub(super) fn scheme(&self) -> &'static str {
        match self.is_encrypted {
            true => "https",
            false => "http",
        }
    }

    /// Header `Host` of the request.
    pub(super) fn host_header(&self) -> Option<HeaderValue> {
        let text = match self.target.port == default_port(self.is_encrypted) {
            true => self.target.host.to_string(),
            false => self.target.to_string(),
        };
        HeaderValue::try_from(text).ok()
    }
}

/// Port of requests that name none.
fn default_port(is_encrypted: bool) -> u16 {
    match is_encrypted {
        true => HTTPS_PORT,
        false => HTTP_PORT,
    }
}

/// What a request wants.
#[derive(Debug)]
pub(super) enum Wanted {
    /// Bytes in both directions.
    Tunnel(Target),
    /// An answer of plain HTTP, to this path and query.
    Exchange(Target, Uri),
}

/// Reads what a request wants. Fails where it is not one for a proxy.
pub(super) fn wanted(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Wanted, Refusal> {
    let bad = |detail: &str| Refusal::malformed(StatusCode::BAD_REQUEST, detail);
    let authority = uri.authority().ok_or_else(|| {
        bad("this is an HTTP proxy: ask it for a whole URL, as in GET http://host/path, or for CONNECT host:443")
    })?;
    if *method == Method::CONNECT {
        let port = authority
            .port_u16()
            .ok_or_else(|| bad("CONNECT needs a host and a port, as in CONNECT host:443"))?;
        return Ok(Wanted::Tunnel(target(authority, port)?));
    }
    check_method(method)?;
    if uri.scheme() != Some(&Scheme::HTTP) {
        return Err(bad(
            "only http:// URLs can be asked for; for https:// use CONNECT host:443",
        ));
    }
    let target = target(authority, authority.port_u16().unwrap_or(HTTP_PORT))?;
    if names_host(headers, &target, false) == Some(false) {
        return Err(bad(
            "the header Host differs from the host of the URL; send the same host in both",
        ));
    }
    let path = uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    Ok(Wanted::Exchange(target, Uri::from(path)))
}

/// Path of a request in a tunnel to `target` whose TLS the proxy has opened. Fails where it is not one for that host.
pub(super) fn wanted_inside(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    target: &Target,
) -> Result<Uri, Refusal> {
    let bad = |detail: &str| Refusal::malformed(StatusCode::BAD_REQUEST, detail);
    check_method(method)?;
    let path = uri.path_and_query();
    let path = path.filter(|path| uri.authority().is_none() && path.as_str().starts_with('/'));
    let path = path.filter(|_| *method != Method::CONNECT);
    let path = path.ok_or_else(|| {
        bad("inside of a tunnel a request names a path alone, as in GET /path; open another tunnel for another host")
    })?;
    match names_host(headers, target, true) {
        Some(true) => Ok(Uri::from(path.clone())),
        _ => Err(bad(
            "the header Host does not name the host of the tunnel; send the same host in both, and open another tunnel for \
             another host",
        )),
    }
}

fn check_method(method: &Method) -> Result<(), Refusal> {
    if *method == Method::TRACE {
        let detail = "TRACE is not passed on; use another method";
        return Err(Refusal::malformed(StatusCode::METHOD_NOT_ALLOWED, detail));
    }
    Ok(())
}

/// Host of an authority, with a port.
fn target(authority: &Authority, port: u16) -> Result<Target, Refusal> {
    let host = authority.host();
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = literal.parse::<IpAddr>() {
        return Err(Refusal::literal(address));
    }
    let host = host.parse::<HostName>().map_err(|error| {
        let status = match error {
            InvalidHost::Address => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_REQUEST,
        };
        Refusal::malformed(status, format!("the host of the request {error}"))
    })?;
    match port {
        0 => {
            let detail = "port 0 can't be reached; name another";
            Err(Refusal::malformed(StatusCode::BAD_REQUEST, detail))
        }
        port => Ok(Target { host, port }),
    }
}

/// Whether the header `Host` names the target of a request, and nothing else does; `None` where it is missing.
fn names_host(headers: &HeaderMap, target: &Target, is_encrypted: bool) -> Option<bool> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next()?;
    Some(hosts.next().is_none() && is_same(host, target, is_encrypted))
}

/// Whether a header `Host` names the target of a request.
fn is_same(host: &HeaderValue, wanted: &Target, is_encrypted: bool) -> bool {
    let Ok(authority) = Authority::try_from(host.as_bytes()) else {
        return false;
    };
    let port = authority.port_u16();
    let port = port.unwrap_or_else(|| default_port(is_encrypted));
    target(&authority, port).is_ok_and(|named| named == *wanted)
}

/// Removes what is for one hop alone (RFC 9110, section 7.6.1), and the credentials for a proxy.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter();
    let named = named.filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> = named
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse::<HeaderName>().ok())
        // The length of the body, and who is asked, are not of one hop, whoever says so.
        .filter(|name| *name != header::CONTENT_LENGTH && *name != header::HOST)
        .collect();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // A length beside it is not the body's (RFC 9112, section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in named.iter().chain(&HOP_HEADERS) {
        headers.remove(name);
    }
    for name in OLD_HOP_HEADERS {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, uri: &str, host: &[&'static str]) -> Result<Wanted, Refusal> {
        let mut headers = HeaderMap::new();
        for host in host.iter().copied() {
            headers.append(header::HOST, HeaderValue::from_static(host));
        }
        wanted(&method.parse().unwrap(), &uri.parse().unwrap(), &headers)
    }

    fn host_header(target: &Target, is_encrypted: bool) -> HeaderValue {
        let path = Uri::from_static("/");
        let to = Destination {
            target,
            path,
            is_encrypted,
        };
        to.host_header().unwrap()
    }

    #[test]
    fn request_in_tunnel_is_for_its_host() {
        let target = |port| Target {
            host: "a.example".parse().unwrap(),
            port,
        };
        let read = |method: &str, uri: &str, host: &[&'static str], port| {
            let mut headers = HeaderMap::new();
            for host in host.iter().copied() {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            let (method, uri) = (method.parse().unwrap(), uri.parse().unwrap());
            let read = wanted_inside(&method, &uri, &headers, &target(port));
            read.map(|path| path.to_string())
                .map_err(|refusal| refusal.status.as_u16())
        };
        for (host, port) in [
            ("a.example", 443),
            ("A.example:443", 443),
            ("a.example:8443", 8443),
        ] {
            let path = read("GET", "/a?b=c", &[host], port);
            assert_eq!(path.as_deref(), Ok("/a?b=c"), "{host}");
        }
        for host in [
            &["b.example"][..],
            &[],
            &["a.example:80"],
            &["a.example", "a.example"],
            &["127.0.0.1"],
            &[""],
        ] {
            assert_eq!(read("GET", "/", host, 443), Err(400), "{host:?}");
        }
        assert_eq!(read("GET", "/", &["a.example"], 8443), Err(400));
        for uri in [
            "https://a.example/",
            "http://b.example/",
            "*",
            "a.example:443",
        ] {
            assert_eq!(read("OPTIONS", uri, &["a.example"], 443), Err(400), "{uri}");
        }
        assert_eq!(read("CONNECT", "/", &["a.example"], 443), Err(400));
        assert_eq!(read("TRACE", "/", &["a.example"], 443), Err(405));
        assert_eq!(host_header(&target(443), true), "a.example");
        assert_eq!(host_header(&target(443), false), "a.example:443");
        assert_eq!(host_header(&target(80), true), "a.example:80");
    }

    fn status(method: &str, uri: &str, host: &[&'static str]) -> u16 {
        read(method, uri, host).unwrap_err().status.as_u16()
    }

    #[test]
    fn both_forms_name_their_target() {
        let Wanted::Tunnel(target) = read("CONNECT", "API.example.com:443", &["x"]).unwrap() else {
            panic!("no tunnel");
        };
        assert_eq!(target.to_string(), "api.example.com:443");
        let url = "http://user:pw@a.example:8080/path?q=1#f";
        let Wanted::Exchange(target, path) = read("GET", url, &["a.example:8080"]).unwrap() else {
            panic!("no exchange");
        };
        assert_eq!(target.to_string(), "a.example:8080");
        assert_eq!(path.to_string(), "/path?q=1");
        assert_eq!(host_header(&target, false), "a.example:8080");
        let read = read("GET", "http://a.example", &["A.example:80"]).unwrap();
        assert!(matches!(read, Wanted::Exchange(target, path) if target.port == 80 && path == "/"));
    }

    #[test]
    fn other_requests_are_refused() {
        assert_eq!(status("GET", "/path", &["a.example"]), 400);
        assert_eq!(status("GET", "https://a.example/", &["a.example"]), 400);
        assert_eq!(status("GET", "ftp://a.example/", &["a.example"]), 400);
        assert_eq!(status("TRACE", "http://a.example/", &["a.example"]), 405);
        assert_eq!(status("CONNECT", "a.example:0", &[]), 400);
        for host in [
            &["b.example"][..],
            &["a.example:81"],
            &["a.example", "a.example"],
            &[""],
        ] {
            assert_eq!(status("GET", "http://a.example/", host), 400, "{host:?}");
        }
        for literal in ["127.0.0.1:443", "[::1]:443", "[::ffff:10.0.0.1]:443"] {
            let refusal = read("CONNECT", literal, &[]).unwrap_err();
            assert_eq!(refusal.status.as_u16(), 403);
            assert!(
                refusal.detail.contains("use the host's name"),
                "{refusal:?}"
            );
        }
        assert_eq!(status("GET", "http://169.254.169.254/latest", &[]), 403);
    }

    #[test]
    fn headers_of_one_hop_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private, content-length"),
            ("x-private", "1"),
            ("proxy-authorization", "Basic eDp5"),
            ("proxy-connection", "keep-alive"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("authorization", "Bearer x"),
            ("content-length", "3"),
            ("host", "a.example"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-length", "host"]);
        headers.append("transfer-encoding", HeaderValue::from_static("chunked"));
        strip(&mut headers);
        assert!(!headers.contains_key("content-length"));
    }
}
