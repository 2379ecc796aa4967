//! Way to a host: the node resolves its name, checks every address, and dials the very addresses that it checked. So a
//! name that changes between check and dial leads nowhere else.
//!
//! Where the operator names a proxy of their own, all connections go through that, by CONNECT. It resolves the names
//! then, and addresses are not checked here: what it may reach is its own rule.

use super::{address::AddressPolicy, refusal::Refusal, request::Target};
use crate::{
    api::egress::HostName,
    http::resolve::{port_of, resolve_host},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{StatusCode, Uri, uri::Scheme};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use zeroize::Zeroizing;

/// Time to reach a host, its resolution included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to reach one of its addresses.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest head of an answer of the operator's proxy.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Most headers of such an answer.
const MAX_HEADERS: usize = 64;

/// Way from this node to all hosts.
pub(super) enum Route {
    /// Straight.
    Direct,
    /// Through a proxy of the operator.
    Through(Upstream),
    /// Through one that can't be understood, and so nowhere.
    Broken,
}

/// Proxy of the operator.
pub(super) struct Upstream {
    host: String,
    port: u16,
    /// Value of `Proxy-Authorization`.
    credentials: Option<Zeroizing<String>>,
    /// Whether the last try failed: of several failures in a row only the first is a warning, since a job can cause a
    /// hundred each second.
    is_failing: AtomicBool,
}

impl Route {
    /// Way by the operator's setting.
    pub(super) fn new(upstream: Option<&str>) -> Self {
        let Some(url) = upstream else {
            return Self::Direct;
        };
        Upstream::parse(url).map_or_else(
            || {
                tracing::error!(
                    "--egress-upstream is no URL such as http://proxy:3128; jobs reach no host until the node is started \
                     with one"
                );
                Self::Broken
            },
            Self::Through,
        )
    }

    /// Connects to a host that a job may reach.
    pub(super) async fn connect(
        &self,
        target: &Target,
        addresses: &AddressPolicy,
    ) -> Result<TcpStream, Refusal> {
        let connecting = async {
            match self {
                Self::Direct => connect_directly(target, addresses).await,
                Self::Through(upstream) => upstream.connect(target).await,
                Self::Broken => {
                    let detail = "the proxy of this node's operator can't be used; ask the operator to correct \
                                  --egress-upstream";
                    Err(Refusal::unreachable(
                        StatusCode::BAD_GATEWAY,
                        detail.to_owned(),
                    ))
                }
            }
        };
        let connected = timeout(CONNECT_TIMEOUT, connecting).await;
        let stream = connected.unwrap_or_else(|_| {
            let seconds = CONNECT_TIMEOUT.as_secs();
            let detail = format!(
                "{target} can't be reached from this node within {seconds} s; try again, or check that it is up"
            );
            Err(Refusal::unreachable(StatusCode::GATEWAY_TIMEOUT, detail))
        })?;
        // What is passed on is whole as it is.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

async fn connect_directly(target: &Target, policy: &AddressPolicy) -> Result<TcpStream, Refusal> {
    let found = resolve_host(&lookup_name(&target.host)).await;
    let found = found.map_err(|error| {
        tracing::debug!(%error, "name of an allowed host not resolved");
        let detail = format!(
            "this node finds no address for {}; check the name, and the name servers of the node",
            target.host
        );
        Refusal::unreachable(StatusCode::BAD_GATEWAY, detail)
    })?;
    // All of them before the first is dialled: a name that leads to a special address too is not to be trusted.
    for address in &found {
        let checked = match policy.check(*address) {
            Ok(()) if !policy.allows(*address) && is_own(*address) => {
                Err("an address of this node itself")
            }
            checked => checked,
        };
        checked.map_err(|kind| {
            let missing_from = policy.missing_from(*address);
            Refusal::special_address(target, *address, kind, missing_from)
        })?;
    }
    dial(&found, target.port).await.map_err(|error| {
        let detail = format!(
            "{target} can't be reached from this node ({error}); check that it is up, and that the node's network leads there"
        );
        Refusal::unreachable(StatusCode::BAD_GATEWAY, detail)
    })
}

/// Name that is looked up for a host. One with a dot is whole: the search domains of this node would make another name
/// of it, which nobody has allowed. Only a name of the node's own network has none, such as `mirror`.
fn lookup_name(host: &HostName) -> String {
    let dot = if host.as_str().contains('.') { "." } else { "" };
    format!("{host}{dot}")
}

/// Whether an address is one of this machine, which may be public. No firewall in front of the machine sees a call that
/// comes from inside, so a job would reach services that are closed to the internet.
fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let binds = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
    // An address for documentation, which no machine has.
    let nobodys: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    // Where the system lets programs bind any address, this tells nothing.
    binds(address) && !binds(nobodys)
}

/// Connects to the first address that answers.
async fn dial(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in addresses {
        match timeout(ADDRESS_TIMEOUT, TcpStream::connect((*address, port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

impl Upstream {
    /// Reads a URL such as `http://user:password@proxy:3128`.
    fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let authority = uri.authority()?;
        if uri.scheme() != Some(&Scheme::HTTP) {
            return None;
        }
        let user = authority.as_str().rsplit_once('@').map(|(user, _)| user);
        let credentials = user.map(|user| {
            let user = percent_encoding::percent_decode_str(user).collect::<Vec<u8>>();
            Zeroizing::new(format!("Basic {}", STANDARD.encode(user)))
        });
        Some(Self {
            host: authority.host().to_owned(),
            port: port_of(&uri),
            credentials,
            is_failing: AtomicBool::new(false),
        })
    }

    /// Opens a tunnel to a host.
    async fn connect(&self, target: &Target) -> Result<TcpStream, Refusal> {
        let failed = |error: io::Error| {
            if self.is_failing.swap(true, Ordering::Relaxed) {
                tracing::debug!(%error, host = self.host, "proxy of --egress-upstream failed again");
            } else {
                tracing::warn!(%error, host = self.host, "proxy of --egress-upstream failed");
            }
            let detail = format!(
                "{target} can't be reached through the proxy of this node's operator ({error}); ask them to check it"
            );
            Refusal::unreachable(StatusCode::BAD_GATEWAY, detail)
        };
        let found = resolve_host(&self.host).await.map_err(failed)?;
        let mut stream = dial(&found, self.port).await.map_err(failed)?;
        let status = self
            .open_tunnel(&mut stream, target)
            .await
            .map_err(failed)?;
        self.is_failing.store(false, Ordering::Relaxed);
        match status {
            200..=299 => Ok(stream),
            status => {
                let detail = format!(
                    "the proxy of this node's operator refused {target} with {status}; ask them to allow it there"
                );
                Err(Refusal::unreachable(StatusCode::BAD_GATEWAY, detail))
            }
        }
    }

    /// Asks for a tunnel; the status of the answer.
    async fn open_tunnel(&self, stream: &mut TcpStream, target: &Target) -> io::Result<u16> {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(credentials) = &self.credentials {
            request.push_str("Proxy-Authorization: ");
            request.push_str(credentials);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        let request = Zeroizing::new(request);
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        // Byte by byte: what follows the head is the tunnel's.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= MAX_HEAD_BYTES {
                return Err(io::Error::other("its answer is too long"));
            }
            head.push(stream.read_u8().await?);
        }
        status_of(&head).ok_or_else(|| io::Error::other("its answer is not HTTP"))
    }
}

/// Status in the head of an answer.
fn status_of(head: &[u8]) -> Option<u16> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    answer.parse(head).ok()?;
    answer.code
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn target(host: &str, port: u16) -> Target {
        let host = host.parse().unwrap();
        Target { host, port }
    }

    fn networks(texts: &[&str]) -> AddressPolicy {
        let networks = texts.iter().map(|text| text.parse().unwrap());
        AddressPolicy::new(networks.collect(), None)
    }

    #[tokio::test]
    async fn every_address_is_checked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target("localhost", listener.local_addr().unwrap().port());
        for allowed in [&[][..], &["127.0.0.0/8"], &["::1/128"]] {
            let refused = Route::Direct.connect(&target, &networks(allowed)).await;
            let refusal = refused.unwrap_err();
            assert!(refusal.is_by_rule, "{allowed:?}: {refusal:?}");
            assert!(refusal.detail.contains("a loopback address"), "{refusal:?}");
        }
        let both = networks(&["127.0.0.0/8", "::1/128"]);
        Route::Direct.connect(&target, &both).await.unwrap();
    }

    #[test]
    fn name_with_dot_is_whole() {
        for (host, name) in [
            ("api.example.com", "api.example.com."),
            ("api.example.com.", "api.example.com."),
            ("localhost", "localhost"),
            ("mirror", "mirror"),
        ] {
            assert_eq!(lookup_name(&host.parse().unwrap()), name);
        }
    }

    #[test]
    fn own_addresses_are_known() {
        for (address, own) in [
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("192.0.2.7", false),
            ("2001:db8::7", false),
        ] {
            assert_eq!(is_own(address.parse().unwrap()), own, "{address}");
        }
    }

    #[tokio::test]
    async fn operators_proxy_is_asked_for_a_tunnel() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let route = Route::new(Some(&format!("http://me:p%40ss@{address}")));
        let proxy = async {
            let mut requests = Vec::new();
            for answer in ["HTTP/1.1 200 OK\r\n\r\nhello", "HTTP/1.1 403 No\r\n\r\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                requests.push(String::from_utf8(request[..read].to_vec()).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        };
        let nothing = networks(&[]);
        let client = async {
            let target = target("api.example.com", 443);
            let mut stream = route.connect(&target, &nothing).await.unwrap();
            let mut greeting = [0; 5];
            stream.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting, b"hello", "what follows the head is the host's");
            route.connect(&target, &nothing).await.unwrap_err()
        };
        let (requests, refusal) = tokio::join!(proxy, client);
        assert_eq!(
            requests[0],
            "CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\
             Proxy-Authorization: Basic bWU6cEBzcw==\r\n\r\n"
        );
        assert!(
            refusal
                .detail
                .contains("refused api.example.com:443 with 403"),
            "{refusal:?}"
        );
    }

    #[tokio::test]
    async fn unreadable_proxy_leads_nowhere() {
        for url in ["proxy:3128", "https://proxy:3128", "http://"] {
            let route = Route::new(Some(url));
            let refused = route
                .connect(&target("a.example", 80), &networks(&[]))
                .await;
            assert_eq!(
                refused.unwrap_err().status,
                StatusCode::BAD_GATEWAY,
                "{url}"
            );
        }
    }
}
