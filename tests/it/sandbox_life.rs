//! Sandboxes that stay, in a whole system: what they survive, and how they end.

use crate::support::{
    Cluster, Orchestrator, cluster::wait_ready, eventually, lasting_port, server::kill, uuid,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Script that records each of its runs, prints, waits for its release, and prints again.
const WAITING: &str =
    "echo run >> runs; echo before; until [ -e go ]; do usleep 5000; done; echo after";

impl Cluster {
    /// Creates a sandbox, and waits until it runs; its id.
    fn create_sandbox(&self, wanted: &Value) -> String {
        let sandbox = self.user.post("/v1/sandboxes", wanted).json(201);
        assert_eq!(sandbox["status"], "running", "{sandbox}");
        sandbox["id"].as_str().unwrap().to_owned()
    }

    fn sandbox(&self, id: &str) -> Value {
        self.user.get(&format!("/v1/sandboxes/{id}")).json(200)
    }

    /// Runs a script in a sandbox; its stdout.
    fn exec(&self, id: &str, script: &str) -> String {
        let path = format!("/v1/sandboxes/{id}/exec");
        let result = self.user.post(&path, &json!({"script": script})).json(200);
        assert_eq!(
            (&result["status"], &result["exit_code"]),
            (&json!("exited"), &json!(0))
        );
        result["stdout"].as_str().unwrap().to_owned()
    }

    /// Waits for the end of a sandbox; its reason.
    fn sandbox_end(&self, id: &str) -> Value {
        eventually("the sandbox ends", || {
            let sandbox = self.sandbox(id);
            (sandbox["status"] == "ended").then(|| sandbox["reason"].clone())
        })
    }
}

#[test]
fn sandbox_survives_kill_of_every_role() {
    let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let at = [addresses[0].as_str(), addresses[1].as_str()];
    let mut cluster = Cluster::start_at(at, &[]);
    let id = cluster.create_sandbox(&json!({"name": "stays"}));
    let (path, exec_id) = (format!("/v1/sandboxes/{id}/exec"), uuid());
    let start = json!({"script": WAITING, "exec_id": exec_id, "background": true});
    cluster.user.post(&path, &start).json(201);
    let logs = format!("/v1/sandboxes/{id}/execs/{exec_id}/logs?follow=true");
    let mut events = cluster.user.events(&logs, None);
    let before = events.find(|event| event.data["data"] == "before\n");

    cluster.node.process.kill();
    cluster.restart_node();
    assert_eq!(cluster.exec(&id, "cat runs"), "run\n");

    cluster.orchestrator.process.kill();
    cluster.orchestrator = Orchestrator::start_at(cluster.home(), at, &[]);
    wait_ready(&cluster.orchestrator);
    assert_eq!(cluster.sandbox("stays")["status"], "running");
    cluster.exec(&id, "touch go");

    // Nothing that was read is sent again, and nothing is missing.
    let mut events = cluster.user.events(&logs, Some(&before.unwrap().id));
    let output = events.find(|event| ["stdout", "stderr"].contains(&&*event.name));
    assert_eq!(output.unwrap().data["data"], "after\n");
    let repeated = cluster
        .user
        .post(&path, &json!({"script": WAITING, "exec_id": exec_id}));
    let result = repeated.json(200);
    assert_eq!(
        (&result["stdout"], &result["exit_code"]),
        (&json!("before\nafter\n"), &json!(0))
    );
    assert_eq!(cluster.exec(&id, "cat runs"), "run\n", "started once");

    let deleted = cluster
        .user
        .call("DELETE", &format!("/v1/sandboxes/{id}"), &[], b"");
    assert!(deleted.status < 300, "{}", deleted.text());
    cluster.node.assert_clean();
}

#[test]
fn sandboxes_end_for_their_reasons() {
    let cluster = Cluster::start_with(&["--max-concurrency=8"]);
    let idle = cluster.create_sandbox(&json!({"idle_timeout_seconds": 1}));
    let old = cluster.create_sandbox(&json!({"lifetime_seconds": 5}));
    let (deleted, lost) = (
        cluster.create_sandbox(&json!({})),
        cluster.create_sandbox(&json!({})),
    );
    let sleep = json!({"command": ["sleep", "1000"], "background": true});
    for id in [&old, &lost] {
        cluster
            .user
            .post(&format!("/v1/sandboxes/{id}/exec"), &sleep)
            .json(201);
    }
    cluster
        .user
        .call("DELETE", &format!("/v1/sandboxes/{deleted}"), &[], b"");
    assert_eq!(cluster.sandbox_end(&idle), "idle");
    assert_eq!(
        cluster.sandbox_end(&old),
        "lifetime",
        "a running exec saves none"
    );
    assert_eq!(cluster.sandbox_end(&deleted), "deleted");
    assert_eq!(cluster.sandbox(&lost)["status"], "running");
    for shim in cluster.node.shims() {
        kill(shim, Signal::KILL);
    }
    assert_eq!(cluster.sandbox_end(&lost), "node-lost");
    for (id, reason) in [(&idle, "idle"), (&old, "lifetime"), (&lost, "node-lost")] {
        let path = format!("/v1/sandboxes/{id}/exec");
        let refused = cluster.user.post(&path, &json!({"command": ["true"]}));
        let problem = refused.problem(410, "gone");
        assert!(
            problem["detail"].as_str().unwrap().contains(reason),
            "{problem}"
        );
    }
    cluster.node.assert_clean();
}

#[test]
fn use_keeps_idle_sandbox() {
    let cluster = Cluster::start();
    let id = cluster.create_sandbox(&json!({"idle_timeout_seconds": 2}));
    let began = std::time::Instant::now();
    // Longer than its idle timeout, with an exec at a time and none between two.
    while began.elapsed().as_secs() < 4 {
        cluster.exec(&id, "usleep 100000");
    }
    let renewed = cluster.user.post(
        &format!("/v1/sandboxes/{id}/renew"),
        &json!({"lifetime_seconds": 7200}),
    );
    assert!(renewed.json(200)["expires_at"].is_string());
    assert_eq!(cluster.sandbox(&id)["status"], "running");
    cluster
        .user
        .call("DELETE", &format!("/v1/sandboxes/{id}"), &[], b"");
    assert_eq!(cluster.sandbox_end(&id), "deleted");
}
