//! Nodes in a network of their own, into which no connection is let.

use crate::support::{
    Node, Orchestrator, OrchestratorStandIn, Step,
    cluster::{finish, wait_ready},
    podman_host::is_root,
};
use network::Segment;
use serde_json::json;
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

#[path = "../chaos/network.rs"]
#[allow(dead_code, reason = "most of it is another target's")]
mod network;

/// Port at which a node listens by default.
const WORKER_PORT: u16 = 12090;
/// State of a socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// Whether a test can have a network of its own; says so if it can't.
fn has_namespaces() -> bool {
    let has_tool = Command::new("ip").arg("-V").output().is_ok();
    let has_all = is_root() && has_tool;
    if !has_all {
        eprintln!("not tried: a network namespace needs root and the tool ip");
    }
    has_all
}

/// Drops all connections that others open from outside.
fn drop_incoming(segment: &Segment) {
    let rule = "-A INPUT -i eth0 -p tcp --syn -j DROP";
    let status = segment.inside(|| Command::new("iptables").args(rule.split(' ')).status());
    if !status.is_ok_and(|status| status.success()) {
        eprintln!(
            "no filter: there is no iptables here; the listeners of the node are looked at alone"
        );
    }
}

/// Addresses at which anything listens in the network of a process.
fn listeners(pid: u32) -> Vec<String> {
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        // Without IPv6 there is no such table.
        let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        let rows = table.lines().skip(1).map(|line| line.split_whitespace());
        found.extend(rows.filter_map(|mut words| {
            let address = words.nth(1)?.to_owned();
            (words.nth(1)? == LISTENS).then_some(address)
        }));
    }
    found
}

#[test]
fn node_that_lets_nothing_in_runs_tasks() {
    if !has_namespaces() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let segment = Segment::new(60);
    drop_incoming(&segment);
    // At an address that the node's network reaches.
    let orchestrator = Orchestrator::start_at(home.path(), ["127.0.0.1:0", "0.0.0.0:0"], &[]);
    let port = orchestrator.control.address().rsplit(':').next().unwrap();
    let url = format!("http://{}:{port}", segment.host);
    let node = segment.inside(|| Node::dial(home.path(), "box", &url, &[]));
    wait_ready(&orchestrator);
    let user = orchestrator.login();
    let run = |script: &str| {
        let created = user.post("/v1/tasks", &json!({"script": script})).json(201);
        created["id"].as_str().unwrap().to_owned()
    };
    let id = run("echo here");
    assert_eq!(finish(&user, &id)["status"], "completed");
    let id = run("sleep 600");
    let canceled = user.act(&format!("/v1/tasks/{id}/cancel"));
    assert_eq!(canceled.json(200)["canceled"], true);
    assert_eq!(listeners(node.process.pid()), Vec::<String>::new());
    let address: SocketAddr = format!("{}:{WORKER_PORT}", segment.node).parse().unwrap();
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).unwrap_err();
}

#[test]
fn node_listens_by_default_without_tunnels() {
    if !has_namespaces() {
        return;
    }
    // Its default port is free there.
    Segment::new(61).inside(|| {
        let home = tempfile::tempdir().unwrap();
        let orchestrator = OrchestratorStandIn::start();
        orchestrator.offer_tunnel();
        let flags = ["--connect", "auto"];
        let environment = [("CYNODE_WORKER_LISTEN", "")];
        let mut node = Node::launch_in(home.path(), "box", &orchestrator.url, &flags, &environment);
        let ack = orchestrator.call(Step::Ack, 1);
        assert_eq!(ack.body["status"], "applied", "{ack:?}");
        node.process.assert_runs();
        TcpStream::connect(("127.0.0.1", WORKER_PORT)).unwrap();
        let port = format!(":{WORKER_PORT:04X}");
        let found = listeners(node.process.pid());
        assert!(
            found.iter().any(|address| address.ends_with(&port)),
            "{found:?}"
        );
    });
}
