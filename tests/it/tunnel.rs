//! Nodes that listen nowhere: the orchestrator calls them on a connection that they open.

use crate::{
    stored_secrets,
    support::{
        Api, Cluster, Node, Orchestrator, OrchestratorStandIn, Sandbox, Step,
        cluster::{connect, wait_ready},
        eventually, eventually_eq,
        orchestrator_stand_in::TUNNEL,
        process::piped,
        terminal::Session,
        wire::Wire,
    },
};
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};

/// Time for which a wire is cut: longer than a call is tried again at once, shorter than a node counts as lost.
const CUT: Duration = Duration::from_secs(6);
/// Time within which a tunnel that went mute is found.
const MUTE_LIMIT: Duration = Duration::from_secs(15);

/// The node `box` as a user sees it.
pub(crate) fn view(user: &Api) -> Value {
    user.get("/v1/nodes/box").json(200)
}

/// Waits until the node takes jobs.
pub(crate) fn wait_takes_jobs(user: &Api) {
    eventually_eq("the node is ready", json!("ready"), || {
        view(user)["status"].clone()
    });
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
    assert_eq!(canceled.json(200)["canceled"], true);
    let done = piped(&mut cluster.cli(&["run", "-i", "--", "cat"]), b"typed\n");
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "typed\n"),
        "{done:?}"
    );
    assert_eq!(wire.tunnels(), 1);
}

#[test]
fn suite_uses_the_chosen_way() {
    let cluster = Cluster::start();
    let is_tunnel = view(&cluster.user)["via_tunnel"] == true;
    assert_eq!(is_tunnel, connect() == "dial");
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
fn only_secrets_wait_for_tunnel_of_node_that_listens() {
    let (cluster, wire) = Cluster::start_with_both_ways();
    stored_secrets::set(&cluster.user, "TOKEN", "swordfish").expect(200);
    wire.cut();
    eventually("the tunnel is gone", || {
        view(&cluster.user)
            .get("via_tunnel")
            .is_none()
            .then_some(())
    });
    let task = json!({"script": "test $TOKEN = swordfish", "secrets": ["TOKEN"]});
    let secret = cluster.create(&task);
    let plain = cluster.script("true");
    assert_eq!(cluster.finish(&plain)["status"], "completed");
    let told = "secrets don't go to the address";
    eventually("the other task was held back", || {
        let log = cluster.orchestrator.process.stderr();
        log.contains(told).then_some(())
    });
    wire.mend();
    let task = cluster.finish(&secret);
    assert_eq!(task["status"], "completed", "{task}");
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
    assert_eq!(canceled.json(200)["canceled"], true);
    // The orchestrator says so at once; the node has to hear of it.
    eventually("the sandbox is gone", || {
        cluster.node.containers().is_empty().then_some(())
    });
    drop(stalled);
}

#[test]
fn two_hundred_logs_are_followed_at_once() {
    let (cluster, wire) = Cluster::start_dialed();
    // One user may not have so many readers.
    let other = cluster.orchestrator.add_user(&cluster.user, "other");
    let users = [&cluster.user, &other];
    let ids = users.map(|user| {
        let task = json!({"script": "echo begun; sleep 600"});
        let created = user.post("/v1/tasks", &task).json(201);
        created["id"].as_str().unwrap().to_owned()
    });
    let readers = (0..200).map(|n| {
        let path = format!("/v1/tasks/{}/logs?follow=true", ids[n % 2]);
        users[n % 2].events(&path, None)
    });
    let mut readers: Vec<_> = readers.collect();
    for reader in &mut readers {
        let begun = reader.find(|event| event.name == "stdout").unwrap();
        assert_eq!(begun.data["data"], "begun\n");
    }
    // There is room for a call while all of them wait.
    for (user, id) in users.iter().zip(&ids) {
        let canceled = user.act(&format!("/v1/tasks/{id}/cancel"));
        assert_eq!(canceled.json(200)["canceled"], true);
    }
    for reader in &mut readers {
        let end = reader.find(|event| event.name == "end").unwrap();
        assert_eq!(end.data["status"], "canceled");
    }
    assert_eq!(wire.tunnels(), 1);
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
fn dial_ends_where_no_tunnel_opens() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.offer_tunnel();
    let mut node = Node::dial(home.path(), "box", &orchestrator.url, &[]);
    assert_ne!(node.process.code(), 0);
    let ack = orchestrator.call(Step::Ack, 1);
    assert_eq!(ack.body["status"], "failed", "{ack:?}");
    let log = node.process.stderr();
    assert!(log.contains("offers no tunnel"), "{log}");
}

#[test]
fn auto_listens_where_no_tunnel_opens() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.offer_tunnel();
    let node = Node::start(
        home.path(),
        "box",
        &orchestrator.url,
        &["--connect", "auto"],
    );
    let ack = orchestrator.call(Step::Ack, 1);
    assert_eq!(ack.body["status"], "applied", "{ack:?}");
    let report = orchestrator.call(Step::Report, 1);
    let api = &report.body["worker_api"];
    assert_eq!(api["base_url"], node.url(), "{api}");
    assert_ne!(api["tunnel"], true, "{api}");
    let worker = Api::new(node.url()).with_token(&orchestrator.worker_token());
    worker.get("/v1/worker/jobs").expect(200);
    node.process.stderr().find("opens no tunnel").unwrap();
}

#[test]
fn auto_listens_behind_proxy_of_bad_requests() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.offer_tunnel();
    orchestrator.script(|call, answer| {
        if call.path != TUNNEL {
            return Some(answer);
        }
        answer.text(400, "Bad Request");
        None
    });
    let connect = ["--connect", "auto"];
    let node = Node::start(home.path(), "box", &orchestrator.url, &connect);
    let ack = orchestrator.call(Step::Ack, 1);
    assert_eq!(ack.body["status"], "applied", "{ack:?}");
    let log = node.process.stderr();
    let warned = log.lines().find(|line| line.contains("opens no tunnel"));
    assert!(warned.is_some_and(|line| line.contains("400")), "{log}");
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
