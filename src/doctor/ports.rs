//! Addresses that roles listen on: free, or in use by cynode itself.

use super::{Check, Status};
use crate::{
    api::{nodes::InferenceMode, problem::TYPE_BASE},
    cli::DoctorArgs,
    http::client::Client,
    node::MODEL_SERVER_PORT,
    worker::DEFAULT_LISTEN as WORKER_LISTEN,
};
use http::{Method, StatusCode};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

/// Time limit to identify the program that uses an address.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(3);

/// An address that a role listens on.
struct Port {
    name: &'static str,
    /// API that is served there.
    whose: &'static str,
    /// Flag that changes the address.
    flag: &'static str,
    address: SocketAddr,
    /// Program that may already use it.
    expected: PortOwner,
    /// Result when another program uses it.
    taken: Status,
}

/// Program that uses an address.
#[derive(Clone, PartialEq, Eq, Debug)]
enum PortOwner {
    Cynode,
    /// Ollama, with its version.
    Ollama(String),
    Stranger,
}

/// State of an address.
#[derive(Debug)]
enum PortState {
    /// Free.
    Free,
    /// In use.
    Taken(PortOwner),
    /// Not available to this process.
    Refused(io::Error),
}

/// Port of the model server; `None` where a node here runs none.
pub(super) fn model_server(args: &DoctorArgs) -> Option<u16> {
    let port = args.inference_port.unwrap_or(MODEL_SERVER_PORT);
    (args.inference != Some(InferenceMode::Off)).then_some(port)
}

/// Checks all addresses at the same time. The model server's is the last.
pub(super) async fn checks(args: &DoctorArgs) -> [Check; 4] {
    // A machine is mostly either an orchestrator or a node, and more often a node.
    let port = |name, whose, flag, address, taken| Port {
        name,
        whose,
        flag,
        address,
        expected: PortOwner::Cynode,
        taken,
    };
    let model_port = model_server(args);
    let model_server = (Ipv4Addr::LOCALHOST, model_port.unwrap_or_default());
    let client = Client::default();
    let [gateway, control, worker, mut inference] = [
        port(
            "gateway-port",
            "the User API",
            "--gateway-listen",
            args.gateway_listen,
            Status::Warn,
        ),
        port(
            "control-port",
            "the Node API",
            "--control-listen",
            args.control_listen,
            Status::Warn,
        ),
        port(
            "worker-port",
            "the Worker API",
            "--worker-listen",
            args.worker_listen.unwrap_or(WORKER_LISTEN),
            // With a tunnel, a node without that flag does not listen.
            if args.worker_listen.is_some() {
                Status::Fail
            } else {
                Status::Warn
            },
        ),
        port(
            "inference-port",
            "the model server",
            "--inference-port",
            model_server.into(),
            Status::Fail,
        ),
    ];
    inference.expected = PortOwner::Ollama(String::new());
    let check = async |port: Port| port.verdict(&look(&client, port.address).await);
    let check_inference = async {
        if model_port.is_none() {
            return Check::ok(inference.name, "not needed: no model server runs here");
        }
        check(inference).await
    };
    tokio::join!(
        check(gateway),
        check(control),
        check(worker),
        check_inference
    )
    .into()
}

async fn look(client: &Client, address: SocketAddr) -> PortState {
    match TcpListener::bind(address) {
        // The listener is closed at once.
        Ok(_) => PortState::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            PortState::Taken(owner(client, reachable(address)).await)
        }
        Err(error) => PortState::Refused(error),
    }
}

/// Address to connect to: a program that listens everywhere also listens on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Sends both requests at the same time: a program that doesn't answer one doesn't answer the other either.
async fn owner(client: &Client, address: SocketAddr) -> PortOwner {
    let ask = async |path: &str| {
        let call = client.call(Method::GET, format!("http://{address}{path}"));
        let look = call.probe(IDENTIFY_TIMEOUT).await.ok()?;
        let is_known = look.status == StatusCode::OK || is_problem(&look.body_start);
        is_known.then_some(look.body_start)
    };
    let (health, version) = tokio::join!(ask("/healthz"), ask("/api/version"));
    identify(health.as_deref(), version.as_deref())
}

/// Whether an answer is a problem of cynode: an encrypted listener answers plain HTTP with one.
fn is_problem(body: &str) -> bool {
    body.contains(TYPE_BASE)
}

/// Identifies a program by its answers to `/healthz` and `/api/version`.
fn identify(health: Option<&str>, version: Option<&str>) -> PortOwner {
    #[derive(serde::Deserialize)]
    struct Version {
        version: String,
    }
    if health.is_some_and(|text| text == "ok" || is_problem(text)) {
        return PortOwner::Cynode;
    }
    version
        .and_then(|text| serde_json::from_str::<Version>(text).ok())
        .map_or(PortOwner::Stranger, |ollama| {
            PortOwner::Ollama(ollama.version)
        })
}

impl Port {
    fn verdict(&self, found: &PortState) -> Check {
        let Self {
            name,
            whose,
            flag,
            address,
            ..
        } = self;
        let elsewhere = format!("choose another address for {whose} with {flag}");
        match (found, &self.expected) {
            (PortState::Free, _) if address.port() == 0 => Check::ok(
                name,
                format!("any free port of {} for {whose}", address.ip()),
            ),
            (PortState::Free, _) => Check::ok(name, format!("{address} is free for {whose}")),
            (PortState::Taken(PortOwner::Cynode), PortOwner::Cynode) => {
                Check::ok(name, format!("cynode answers at {address}"))
            }
            (PortState::Taken(PortOwner::Ollama(version)), PortOwner::Ollama(_)) => {
                Check::ok(name, format!("Ollama {version} answers at {address}"))
            }
            (PortState::Taken(owner), _) => {
                let owner = match owner {
                    PortOwner::Cynode => "cynode".to_owned(),
                    PortOwner::Ollama(version) => format!("Ollama {version}"),
                    PortOwner::Stranger => "a program that is neither cynode nor Ollama".to_owned(),
                };
                let port = address.port();
                Check::bad(
                    name,
                    self.taken,
                    format!("{address}, needed by {whose}, is in use by {owner}"),
                    format!(
                        "stop that program (ss -ltnp 'sport = :{port}', run as root, shows it), or {elsewhere}"
                    ),
                )
            }
            (PortState::Refused(error), _) => Check::bad(
                name,
                self.taken,
                format!("{whose} can't listen on {address}: {error}"),
                elsewhere,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_is_identified_by_answer() {
        let ollama = PortOwner::Ollama("0.5.1".to_owned());
        for (health, version, expected) in [
            (Some("ok"), None, PortOwner::Cynode),
            (None, Some(r#"{"version":"0.5.1"}"#), ollama),
            (
                Some(r#"{"type":"https://cynode.ai/problems/invalid-request"}"#),
                None,
                PortOwner::Cynode,
            ),
            (Some("OK, fine"), Some("ok"), PortOwner::Stranger),
            (None, Some("{}"), PortOwner::Stranger),
            (None, None, PortOwner::Stranger),
        ] {
            assert_eq!(
                identify(health, version),
                expected,
                "{health:?} {version:?}"
            );
        }
    }

    #[test]
    fn wildcard_address_is_reached_on_loopback() {
        for (listen, ask) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("192.0.2.1:1", "192.0.2.1:1"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), ask.parse().unwrap());
        }
    }

    #[test]
    fn only_expected_program_may_use_address() {
        let ollama = || PortOwner::Ollama("1".to_owned());
        let verdict = |expected, found| {
            let port = Port {
                name: "p",
                whose: "the P",
                flag: "--p",
                address: "127.0.0.1:1".parse().unwrap(),
                expected,
                taken: Status::Fail,
            };
            port.verdict(&found)
        };
        let status = |expected, found| verdict(expected, found).status;
        assert_eq!(status(PortOwner::Cynode, PortState::Free), Status::Ok);
        assert_eq!(
            status(PortOwner::Cynode, PortState::Taken(PortOwner::Cynode)),
            Status::Ok
        );
        assert_eq!(
            status(PortOwner::Cynode, PortState::Taken(ollama())),
            Status::Fail
        );
        assert_eq!(status(ollama(), PortState::Taken(ollama())), Status::Ok);
        assert_eq!(
            status(ollama(), PortState::Taken(PortOwner::Cynode)),
            Status::Fail
        );
        for found in [
            PortState::Taken(PortOwner::Stranger),
            PortState::Refused(io::ErrorKind::PermissionDenied.into()),
        ] {
            let check = verdict(PortOwner::Cynode, found);
            assert_eq!(check.status, Status::Fail);
            assert!(check.fix.unwrap().ends_with("with --p"));
        }
    }
}
