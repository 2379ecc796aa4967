//! A node that is silent, and one that stops, as its orchestrator and users see it.

use crate::support::{Cluster, eventually, eventually_eq};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::net::TcpListener;

fn status(cluster: &Cluster) -> (Value, String) {
    let node = cluster.user.get("/v1/nodes/box").json(200);
    let reason = node["reason"].as_str().unwrap_or_default().to_owned();
    (node["status"].clone(), reason)
}

#[test]
fn silent_node_is_offline_after_30_seconds() {
    let cluster = Cluster::start();
    cluster.node.process.signal(Signal::STOP);
    eventually_eq("it is offline", json!("offline"), || status(&cluster).0);
    assert!(
        status(&cluster).1.starts_with("no contact for 3"),
        "{:?}",
        status(&cluster)
    );
    let logged = |line: &str| {
        let log = cluster.orchestrator.process.stderr();
        log.lines().filter(|logged| logged.contains(line)).count()
    };
    let offline = r#"node is offline node="box" reason="no contact for"#;
    eventually_eq("the log reports it", 1, || logged(offline));
    let ready = cluster.orchestrator.gateway.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(
        ready.text().contains("node box: no contact for 3"),
        "{}",
        ready.text()
    );
    let id = cluster.script("echo back");
    cluster.node.process.signal(Signal::CONT);
    assert_eq!(cluster.finish(&id)["status"], "completed");
    assert_eq!(status(&cluster).0, "ready");
    eventually_eq("the log reports it", 1, || {
        logged(r#"node is back node="box""#)
    });
    assert_eq!(logged(offline), 1, "once");
}

#[test]
fn stopping_node_reports_and_gets_no_jobs() {
    let mut cluster = Cluster::start_with(&["--shutdown-grace", "1m"]);
    let under_way = cluster.script("echo begun; while ! [ -e /workspace/go ]; do sleep 0.1; done");
    cluster.printed(&under_way, "begun");
    let workspace = cluster.node.workspaces().remove(0);
    cluster.node.process.signal(Signal::TERM);
    eventually("the node has reported its stop", || {
        status(&cluster).1.starts_with("stopped at ").then_some(())
    });
    let (state, reason) = status(&cluster);
    assert_eq!(state, "offline");
    assert!(reason.ends_with(" UTC, 1 job continues"), "{reason}");
    let ready = cluster.orchestrator.gateway.get("/readyz").text();
    assert!(ready.contains(&format!("node box: {reason}")), "{ready}");
    let next = cluster.script("true");
    let waits = eventually("a task waits", || {
        let task = cluster.task(&next);
        task["waiting_for"].as_str().map(str::to_owned)
    });
    assert!(waits.contains("node box: stopped at "), "{waits}");
    std::fs::write(workspace.join("workspace/go"), "").unwrap();
    assert_eq!(cluster.finish(&under_way)["status"], "completed");
    assert_eq!(cluster.node.process.code(), 0);
    let (state, reason) = status(&cluster);
    assert_eq!(state, "offline");
    assert!(reason.ends_with(" UTC"), "no job continues: {reason}");
}

#[test]
fn node_and_orchestrator_stop_despite_job() {
    let mut cluster = Cluster::start();
    let id = cluster.script("echo begun; sleep 200");
    cluster.printed(&id, "begun");
    cluster.orchestrator.process.signal(Signal::TERM);
    cluster.node.process.signal(Signal::TERM);
    assert_eq!(cluster.orchestrator.process.code(), 0);
    assert_eq!(
        cluster.node.process.code(),
        0,
        "{}",
        cluster.node.process.stderr()
    );
    let address = cluster.node.url().strip_prefix("http://").unwrap();
    TcpListener::bind(address).expect("its port is free");
    cluster.node.end_shims();
    eventually("no sandbox is left", || {
        cluster.node.containers().is_empty().then_some(())
    });
}
