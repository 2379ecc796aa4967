//! Nodes that listen nowhere: the orchestrator calls them on a connection that they open.

use crate::support::{
    Api, Cluster, Node, Orchestrator, OrchestratorStandIn, Sandbox, StandIn,
    cluster::wait_ready,
    eventually, eventually_eq,
    process::piped,
    raw::{connect_to, rest},
    stage::well,
    terminal::Session,
    wire::Wire,
};
use cynode::{
    http::{
        metrics::MetricsRegistry,
        response,
        router::Router,
        tunnel::{self, DialIdentity, Dialer},
    },
    tls::Trust,
};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, sync::watch};

/// Time for which a wire is cut: longer than a call is tried again at once, shorter than a node counts as lost.
const CUT: Duration = Duration::from_secs(6);
/// Time within which a tunnel that went mute is found.
const MUTE_LIMIT: Duration = Duration::from_secs(15);

fn view(user: &Api) -> Value {
    user.get("/v1/nodes/box").json(200)
}

/// Waits until the node takes jobs.
fn wait_takes_jobs(user: &Api) {
    eventually_eq("the node is ready", json!("ready"), || {
        view(user)["status"].clone()
    });
}

/// Asks for a tunnel with this token: the stream, and the first line of the answer.
fn open(orchestrator: &Orchestrator, token: &str) -> (TcpStream, String) {
    let mut stream = connect_to(&orchestrator.control);
    let head = format!(
        "GET /v1/nodes/tunnel HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nConnection: upgrade\r\n\
         Upgrade: cynode-tunnel\r\n\r\n",
        orchestrator.control.address()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap())
        .read_line(&mut line)
        .unwrap();
    (stream, line)
}

#[test]
fn node_without_listener_runs_tasks() {
    let (cluster, wire) = Cluster::start_dialed();
    let node = view(&cluster.user);
    assert_eq!(node["via_tunnel"], true, "{node}");
    assert!(node.get("worker_api_target_url").is_none(), "{node}");
    let addresses = fs::read_to_string(cluster.node.data_dir.join("addresses.json"));
    let addresses: Value = serde_json::from_str(&addresses.unwrap_or_default()).unwrap_or_default();
    assert!(addresses["worker"].is_null(), "{addresses}");
    let done = cluster.run(&["nodes", "show", "box"]);
    assert!(done.stdout.contains("via tunnel"), "{done:?}");

    let id = cluster.script("echo begun; sleep 600");
    cluster.printed(&id, "begun");
    let canceled = cluster.user.act(&format!("/v1/tasks/{id}/cancel"));
    assert_eq!(canceled.json(200)["status"], "canceled");
    let done = piped(&mut cluster.cli(&["run", "-i", "--", "cat"]), b"typed\n");
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "typed\n"),
        "{done:?}"
    );
    assert_eq!(wire.tunnels(), 1);
}

#[test]
fn node_without_listener_has_sandboxes() {
    let (cluster, _wire) = Cluster::start_dialed();
    let sandbox = Sandbox::create(&cluster.user, &json!({"name": "dev"}));
    // Larger than the window of a stream.
    let content = vec![7; 3 << 20];
    sandbox.put("files?path=large", &content).expect(201);
    assert_eq!(sandbox.output("wc -c < large").trim(), "3145728");
    let read = sandbox.get("files?path=large");
    assert!(read.expect(200).body == content);
    let mut shell = Session::start(&cluster.cli(&["sandbox", "shell", "dev"]));
    shell.types("echo at$((20+22))\r");
    shell.shows("at42");
    shell.types("exit 3\r");
    let done = shell.ends();
    assert_eq!(done.code, 3, "{done:?}");
    sandbox.delete();
}

#[test]
fn attempt_goes_on_after_cut() {
    let (cluster, wire) = Cluster::start_dialed();
    let script = "echo begun; while [ ! -e end ]; do sleep 0.1; done; echo over";
    let id = cluster.script(&format!("(sleep 9; touch end) & {script}"));
    cluster.printed(&id, "begun");
    wire.cut();
    let cut_at = Instant::now();
    eventually("the reason names the tunnel", || {
        let node = view(&cluster.user);
        let reason = node["reason"].as_str()?;
        reason.contains("its tunnel is not connected").then_some(())
    });
    eventually("the cut has lasted", || {
        (cut_at.elapsed() >= CUT).then_some(())
    });
    wire.mend();
    let task = cluster.finish(&id);
    assert_eq!(task["status"], "completed", "{task}");
    let job = &cluster.result(&id)["jobs"][0];
    assert_eq!(job["attempt"], 1, "{job}");
    assert_eq!(job["result_object"]["stdout"], "begun\nover\n");
    let log = cluster.orchestrator.process.stderr();
    let is_named = log.contains("node has no tunnel yet");
    assert!(is_named && !log.contains("node can't be reached"), "{log}");
    assert!(wire.tunnels() > 1);
}

#[test]
fn mute_tunnel_is_found_and_replaced() {
    let (cluster, wire) = Cluster::start_dialed();
    wire.mute_tunnels();
    let muted_at = Instant::now();
    eventually("another tunnel is opened", || {
        (wire.tunnels() > 1).then_some(())
    });
    // Some time passes until the node has noticed, and dials.
    let elapsed = muted_at.elapsed();
    assert!(elapsed < MUTE_LIMIT + Duration::from_secs(5), "{elapsed:?}");
    wait_takes_jobs(&cluster.user);
    let id = cluster.script("echo again");
    assert_eq!(cluster.finish(&id)["status"], "completed");
}

#[test]
fn stalled_log_reader_holds_up_no_cancel() {
    let (cluster, _wire) = Cluster::start_dialed();
    let id = cluster.script("yes 'a line that nobody reads'");
    cluster.printed(&id, "nobody");
    // Not read any more.
    let path = format!("/v1/tasks/{id}/logs?follow=true");
    let stalled: Vec<_> = (0..4).map(|_| cluster.user.events(&path, None)).collect();
    let canceled = cluster.user.act(&format!("/v1/tasks/{id}/cancel"));
    assert_eq!(canceled.json(200)["status"], "canceled");
    // The orchestrator says so at once; the node has to hear of it.
    eventually("the sandbox is gone", || {
        cluster.node.containers().is_empty().then_some(())
    });
    drop(stalled);
}

#[test]
fn only_nodes_open_tunnels() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    for token in ["", "nonsense", user.token()] {
        let (_, line) = open(&orchestrator, token);
        assert!(line.starts_with("HTTP/1.1 401 "), "{line}");
    }
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.key = Some("the key of a machine".to_owned());
    node.register();
    let old = node.control.token().to_owned();
    node.register();
    let (_, line) = open(&orchestrator, &old);
    assert!(line.starts_with("HTTP/1.1 401 "), "{line}");
    let refused = node.control.get("/v1/nodes/tunnel");
    refused.problem(426, "upgrade-required");
    assert_eq!(refused.header("upgrade"), Some("cynode-tunnel"));
    let (_stream, line) = open(&orchestrator, node.control.token());
    assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
}

#[test]
fn garbage_after_upgrade_is_no_tunnel() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.join();
    wait_takes_jobs(&user);
    let garbage = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nand more than a frame".to_vec(),
        vec![0xff; 100_000],
        vec![0; 100_000],
    ];
    for bytes in garbage {
        let (mut stream, line) = open(&orchestrator, node.control.token());
        assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
        // It may be closed before all was sent.
        let _ = stream.write_all(&bytes);
        rest(stream);
        let node = view(&user);
        assert_eq!(node["status"], "ready", "{node}");
        assert!(node.get("via_tunnel").is_none(), "{node}");
    }
    // One that says nothing is closed, too.
    let (stream, line) = open(&orchestrator, node.control.token());
    assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
    rest(stream);
    orchestrator
        .process
        .stderr()
        .find("tunnel refused")
        .unwrap();
}

#[test]
fn newer_connection_replaces_the_one_before() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.join();
    let runtime = Runtime::new().unwrap();
    let url = format!("{}/v1/nodes/tunnel", orchestrator.control_url);
    let token = node.control.token().to_owned();
    // Ends with the tunnel.
    let serve = || {
        let (url, token) = (url.clone(), token.clone());
        runtime.spawn(async move {
            let identity = DialIdentity {
                token: &token,
                instance: None,
            };
            let stream = Dialer::new(Trust::default()).dial(&url, identity).await;
            let healthz = async |_, _| Ok(response::text(StatusCode::OK, "ok"));
            let router = Router::new()
                .route(Method::GET, "/healthz", healthz)
                .build(Arc::new(()), MetricsRegistry::default().requests("test"));
            let (_stop, stopped) = watch::channel(false);
            let _ = tunnel::serve(stream.unwrap(), router, || (), stopped).await;
        })
    };
    let first = serve();
    eventually_eq("the node has a tunnel", json!(true), || {
        view(&user)["via_tunnel"].clone()
    });
    let second = serve();
    runtime.block_on(first).unwrap();
    assert!(!second.is_finished());
    assert_eq!(view(&user)["via_tunnel"], true);
    node.register();
    runtime.block_on(second).unwrap();
    assert!(view(&user).get("via_tunnel").is_none());
}

#[test]
fn dial_needs_an_offer() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let mut node = Node::dial(home.path(), "box", &orchestrator.url, &[]);
    assert_ne!(node.process.code(), 0);
    let log = node.process.stderr();
    assert!(log.contains("offers no tunnel"), "{log}");
    assert!(log.contains("--connect listen"), "{log}");
}

#[test]
fn listening_node_stays_without_tunnel() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let wire = Wire::to(orchestrator.control.address());
    let node = Node::start(home.path(), "box", &wire.url, &["--connect", "listen"]);
    wait_ready(&orchestrator);
    assert_eq!(wire.tunnels(), 0);
    let shown = view(&user);
    assert_eq!(shown["worker_api_target_url"], node.url());
    assert!(shown.get("via_tunnel").is_none(), "{shown}");
}
