//! Time limits: nodes that allow long ones are preferred, and what is in force is said at once.

use crate::support::{
    Cluster, StandIn,
    stage::{Stage, well},
    stand_in::capability,
};
use serde_json::json;

const HOUR: u64 = 3600;

#[test]
fn long_task_goes_to_node_that_allows_it() {
    let stage = Stage::set(|_, call, answer| well(call, answer));
    let create = |timeout: u64| {
        let task = json!({"command": ["true"], "timeout_seconds": timeout});
        stage.user.post("/v1/tasks", &task).json(201)
    };
    // No node allows it, so any will do, and that is said.
    let created = create(10 * HOUR);
    assert_eq!(created["timeout_seconds"], 10 * HOUR);
    assert_eq!(created["effective_timeout_seconds"], 3 * HOUR);
    let said = created["warnings"][0]["detail"].as_str().unwrap();
    assert!(said.starts_with("reduced from 36000 to 10800,"), "{said}");
    let (task, job) = stage.finish(created["id"].as_str().unwrap());
    assert_eq!(task["effective_timeout_seconds"], 3 * HOUR);
    assert_eq!(job["node_slug"], "box");

    let mut patient = StandIn::start(&stage.orchestrator, "patient", well);
    patient.join();
    let mut report = capability("patient", &patient.url);
    report["sandbox"]["max_timeout_seconds"] = (24 * HOUR).into();
    patient.report(&report).expect(204);
    for _ in 0..3 {
        let created = create(10 * HOUR);
        assert_eq!(created["warnings"], json!(null), "{created}");
        let (task, job) = stage.finish(created["id"].as_str().unwrap());
        assert_eq!(job["node_slug"], "patient");
        assert_eq!(task["timeout_seconds"], 10 * HOUR);
        assert_eq!(task["effective_timeout_seconds"], 10 * HOUR);
    }
    // It waits for that node, since the other would cut it, and not for one that is gone.
    stage.user.act("/v1/nodes/patient/drain").expect(204);
    let (task, job) = stage.finish(create(10 * HOUR)["id"].as_str().unwrap());
    assert_eq!(job["node_slug"], "box");
    assert_eq!(task["effective_timeout_seconds"], 3 * HOUR);
}

#[test]
fn node_allows_days_where_operator_says_so() {
    let cluster = Cluster::start_with(&["--max-timeout", "10d"]);
    let node = cluster.user.get("/v1/nodes").json(200)["nodes"][0].clone();
    assert_eq!(node["max_timeout_seconds"], 240 * HOUR);
    let done = cluster.run(&["run", "--timeout", "200h", "--", "true"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    let tasks = cluster.user.get("/v1/tasks?limit=1").json(200);
    let id = tasks["tasks"][0]["id"].as_str().unwrap();
    let task = cluster.user.get(&format!("/v1/tasks/{id}")).json(200);
    assert_eq!(task["effective_timeout_seconds"], 200 * HOUR);
    let result = cluster.result(id)["jobs"][0]["result_object"].clone();
    assert_eq!(result["effective"]["timeout_seconds"], 200 * HOUR);
    // The default stays.
    let task = cluster.finish(&cluster.script("true"));
    assert_eq!(task["effective_timeout_seconds"], HOUR);
}
