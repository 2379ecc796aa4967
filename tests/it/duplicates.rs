//! Two machines with one copied data directory: they are detected, and neither gets jobs.

use crate::support::{
    Api, Cluster, IMAGE, Node, Orchestrator, OrchestratorStandIn, Reply, StandIn, Step,
    cluster::PSK, eventually, eventually_eq, stand_in::capability, uuid,
};
use serde_json::{Value, json};

const KEY: &str = "a key in a data directory";

/// One of the machines.
struct Machine {
    instance: &'static str,
    node: StandIn,
}

impl Machine {
    fn new(orchestrator: &Orchestrator, instance: &'static str) -> Self {
        let node = StandIn::idle(orchestrator, "box");
        Self { instance, node }
    }

    fn capability(&self) -> Value {
        let mut capability = capability("box", &self.node.url);
        capability["node"]["instance_id"] = self.instance.into();
        capability
    }

    fn register(&mut self) -> Reply {
        let body = json!({"psk": PSK, "node_key": KEY, "capability": self.capability()});
        let control = self.node.control.anonymous();
        let reply = control.post("/v1/nodes/register", &body);
        if reply.status < 300 {
            let bootstrap: Value = serde_json::from_slice(&reply.body).unwrap();
            let token = bootstrap["auth"]["node_jwt"].as_str().unwrap();
            self.node.control = control.with_token(token);
        }
        reply
    }

    fn join(&mut self) {
        let status = self.register().status;
        assert!([200, 201].contains(&status), "{status}");
        let version = self.node.config()["config_version"].clone();
        self.node.ack(&version, "applied").expect(204);
    }

    fn report(&self) -> Reply {
        self.node.report(&self.capability())
    }
}

#[test]
fn machines_sharing_node_identity_get_no_jobs() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let view = || admin.get("/v1/nodes/box").json(200);
    let mut a = Machine::new(&orchestrator, "process-a");
    let mut b = Machine::new(&orchestrator, "process-b");
    a.join();
    a.report().expect(204);
    // This looks like a restart.
    b.join();
    assert_eq!(view()["status"], "ready");
    // This doesn't look like one.
    a.report().problem(401, "unauthorized");
    for reply in [a.register(), b.report(), a.register()] {
        let problem = reply.problem(409, "duplicate-instance");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("--data-dir"), "{detail}");
    }
    let seen = view();
    let reason = seen["reason"].as_str().unwrap();
    assert_eq!(seen["status"], "not_ready");
    assert!(reason.contains("same data directory"), "{reason}");
    let ready = orchestrator.gateway.get("/readyz");
    let ready = ready.problem(503, "unavailable");
    assert!(
        ready["detail"].as_str().unwrap().contains(reason),
        "{ready}"
    );
    let log = admin.get("/v1/audit?action=node.duplicate").json(200);
    assert_eq!(log["events"].as_array().unwrap().len(), 1, "{log}");
    assert!(
        orchestrator
            .process
            .stderr()
            .contains("same data directory")
    );
    // A stranger with the pre-shared key, but another data directory, changes nothing.
    let mut body =
        json!({"psk": PSK, "node_key": "of another machine", "capability": b.capability()});
    body["capability"]["node"]["instance_id"] = "process-c".into();
    let stranger = orchestrator.control.post("/v1/nodes/register", &body);
    stranger.problem(409, "slug-taken");
    // One of the two machines is stopped.
    eventually("the remaining node is accepted again", || {
        (b.report().status == 204).then_some(())
    });
    assert_eq!(view()["status"], "ready");
}

#[test]
fn restarted_and_nameless_nodes_are_no_duplicates() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let mut first = Machine::new(&orchestrator, "process-a");
    first.join();
    let mut second = Machine::new(&orchestrator, "process-b");
    second.join();
    second.join();
    second.report().expect(204);
    let mut peer = StandIn::idle(&orchestrator, "peer");
    for _ in 0..3 {
        peer.join();
        peer.report(&capability("peer", &peer.url)).expect(204);
    }
    let mut wrong = second.capability();
    wrong["node"]["instance_id"] = "x".repeat(65).into();
    second.node.report(&wrong).problem(400, "invalid-request");
}

#[test]
fn node_names_another_process_at_each_start() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let mut node = Node::start(home.path(), "box", &orchestrator.url, &[]);
    let id = |nth| {
        let call = orchestrator.call(Step::Register, nth);
        call.body["capability"]["node"]["instance_id"].clone()
    };
    let first = id(1);
    assert_eq!(first.as_str().unwrap().len(), 36, "{first}");
    let report = orchestrator.call(Step::Report, 1);
    assert_eq!(report.body["node"]["instance_id"], first);
    assert_eq!(node.process.terminate(), 0);
    let _again = Node::start(home.path(), "box", &orchestrator.url, &[]);
    let second = id(2);
    assert_ne!(second, first);
}

#[test]
fn orchestrators_sharing_identity_start_no_jobs() {
    let cluster = Cluster::start();
    let config = std::fs::read(cluster.home().join("box/node/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let token = config["worker_api"]["orchestrator_bearer_token"].as_str();
    let api = Api::new(cluster.node.url().trim_start_matches("http://"));
    let bearer = format!("Bearer {}", token.unwrap());
    let task =
        cluster.create(&json!({"script": "until [ -e go ]; do usleep 5000; done; echo after"}));
    eventually_eq("it runs", json!("running"), || {
        cluster.user.get(&format!("/v1/tasks/{task}")).json(200)["status"].clone()
    });
    let copy = |method: &str, path: &str, body: &[u8]| {
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Content-Type", "application/json"),
            ("Cynode-Instance-Id", "a-copy"),
        ];
        api.call(method, path, &headers, body)
    };
    let other = |path: &str| copy("GET", path, b"").expect(200).status;
    // The original, the copy, and the original again are seen at the next call.
    other("/v1/worker/jobs");
    let waiting = cluster.create(&json!({"script": "echo next"}));
    eventually("the orchestrator reports why no job starts", || {
        other("/v1/worker/jobs");
        let node = cluster.user.get("/v1/nodes/box").json(200);
        node["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("two orchestrators"))
            .then_some(())
    });
    let run = json!({"version": 1, "task_id": uuid(), "job_id": uuid(),
        "attempt": 1, "sandbox": {"image": IMAGE, "command": ["true"]}});
    let refused = copy("POST", "/v1/worker/jobs:run", run.to_string().as_bytes());
    let problem = refused.problem(503, "unavailable");
    assert!(problem.to_string().contains("data directory"), "{problem}");
    let job = cluster.result(&task)["jobs"][0]["id"].clone();
    let path = format!("/v1/worker/jobs/{}", job.as_str().unwrap());
    copy("DELETE", &path, b"").problem(503, "unavailable");
    for job in cluster.node.workspaces() {
        std::fs::write(job.join("workspace/go"), "").unwrap();
    }
    assert_eq!(
        cluster.finish(&task)["status"],
        "completed",
        "running jobs continue"
    );
    // The copy is stopped: only one calls.
    assert_eq!(cluster.finish(&waiting)["status"], "completed");
}

#[test]
fn second_process_on_data_directory_exits() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let _first = Node::start(home.path(), "box", &orchestrator.url, &[]);
    let mut second = Node::launch(home.path(), "box", &orchestrator.url, &[]);
    assert_ne!(second.process.code(), 0);
    let said = second.process.stderr();
    assert!(
        said.contains("data directory") || said.contains("--data-dir"),
        "{said}"
    );
}
