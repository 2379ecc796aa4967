//! Job ownership: only the orchestrator that started a job can see, end or delete it, also after restores
//! and moves.

use crate::support::{
    Api, Cluster, Node, Orchestrator, cluster::finish, cynode, eventually, eventually_eq,
    lasting_port, process::run,
};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// Script that prints, waits for [`let_go`], and prints again.
const WAITING: &str = "echo before; until [ -e go ]; do usleep 5000; done; echo after";

/// Cluster whose orchestrator can restart at its addresses, and those addresses.
fn lasting_cluster(node: &[&str]) -> (Cluster, [String; 2]) {
    let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let cluster = Cluster::start_at([&addresses[0], &addresses[1]], node);
    (cluster, addresses)
}

/// Releases every job of a node.
fn let_go(node: &Node) {
    for job in node.workspaces() {
        fs::write(job.join("workspace/go"), "").unwrap();
    }
}

/// Stops a node, whose jobs continue, and starts it for the orchestrator at `control_url`.
fn move_node(node: &mut Node, home: &Path, control_url: &str) {
    assert_eq!(node.process.terminate(), 0);
    *node = Node::start(home, "box", control_url, &["--shutdown-grace=1ms"]);
}

fn node_view(user: &Api) -> Value {
    user.get("/v1/nodes/box").json(200)
}

/// Worker API of a node, with its latest token.
fn worker_api(node: &Node, home: &Path) -> Api {
    let config = fs::read(home.join("box/node/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let token = config["worker_api"]["orchestrator_bearer_token"].as_str();
    Api::new(node.url().trim_start_matches("http://")).with_token(token.unwrap())
}

#[test]
fn job_survives_move_to_another_orchestrator() {
    let slots = ["--shutdown-grace=1ms", "--max-concurrency=2"];
    let (mut cluster, addresses) = lasting_cluster(&slots);
    let home = cluster.home().to_owned();
    let task = cluster.create(&json!({"script": WAITING, "max_attempts": 1}));
    cluster.printed(&task, "before\n");
    let job = cluster.result(&task)["jobs"][0]["id"].clone();
    let job = job.as_str().unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let other = Orchestrator::start(elsewhere.path(), &[]);
    move_node(&mut cluster.node, &home, &other.control_url);
    let user = other.login();
    eventually_eq("one slot is left", (json!("ready"), json!(3)), || {
        let node = node_view(&user);
        (node["status"].clone(), node["max_concurrency"].clone())
    });
    let own = user
        .post("/v1/tasks", &json!({"script": "echo mine"}))
        .json(201);
    assert_eq!(
        finish(&user, own["id"].as_str().unwrap())["status"],
        "completed"
    );

    // The same with the node's own token, which the other orchestrator has.
    let api = worker_api(&cluster.node, &home);
    let path = format!("/v1/worker/jobs/{job}");
    for (method, path) in [
        ("GET", path.clone()),
        ("DELETE", path.clone()),
        ("DELETE", format!("{path}?attempt=1")),
        ("POST", format!("{path}:cancel")),
    ] {
        api.call(method, &path, &[], b"").problem(404, "not-found");
    }
    let listed = api.get("/v1/worker/jobs").json(200);
    assert!(!listed.to_string().contains(job), "{listed}");
    let again = json!({"version": 1, "task_id": task, "job_id": job, "attempt": 2,
        "sandbox": {"image": crate::support::IMAGE, "command": ["true"]}});
    api.post("/v1/worker/jobs:run", &again)
        .problem(409, "conflict");

    move_node(&mut cluster.node, &home, &cluster.orchestrator.control_url);
    let_go(&cluster.node);
    assert_eq!(cluster.finish(&task)["status"], "completed");
    let result = cluster.result(&task);
    assert_eq!(result["jobs"][0]["attempt"], 1, "{result}");
    assert_eq!(
        result["jobs"][0]["result_object"]["stdout"],
        "before\nafter\n"
    );
    drop(addresses);
}

#[test]
fn slots_of_another_orchestrator_are_reported() {
    let (mut cluster, _) = lasting_cluster(&["--shutdown-grace=1ms", "--max-concurrency=4"]);
    let home = cluster.home().to_owned();
    for _ in 0..4 {
        let task = cluster.create(&json!({"script": WAITING}));
        cluster.printed(&task, "before\n");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Orchestrator::start(elsewhere.path(), &[]);
    move_node(&mut cluster.node, &home, &other.control_url);
    let user = other.login();
    let reason = "all its slots are in use by another orchestrator; it accepts jobs when one of them is free";
    eventually_eq(
        "the node shows why it accepts no jobs",
        json!(reason),
        || node_view(&user)["reason"].clone(),
    );
    let task = user
        .post("/v1/tasks", &json!({"script": "echo mine"}))
        .json(201);
    let task = task["id"].as_str().unwrap();
    let waiting = user.get(&format!("/v1/tasks/{task}")).json(200)["waiting_for"].to_string();
    assert!(waiting.contains(reason), "{waiting}");
    let_go(&cluster.node);
    assert_eq!(finish(&user, task)["status"], "completed");
}

#[test]
fn restored_orchestrator_keeps_newer_jobs() {
    let (mut cluster, addresses) = lasting_cluster(&["--shutdown-grace=1ms"]);
    let home = cluster.home().to_owned();
    let old = cluster.create(&json!({"script": WAITING, "max_attempts": 1}));
    cluster.printed(&old, "before\n");
    let copy = home.join("copy.db");
    let data_dir = cluster.orchestrator.data_dir.clone();
    let backup = [
        "backup",
        "--data-dir",
        data_dir.to_str().unwrap(),
        copy.to_str().unwrap(),
    ];
    let done = run(cynode(&home).args(backup));
    assert_eq!(done.code, 0, "{done:?}");
    let new = cluster.create(&json!({"script": WAITING, "max_attempts": 1}));
    cluster.printed(&new, "before\n");
    let job = cluster.result(&new)["jobs"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();

    assert_eq!(cluster.orchestrator.process.terminate(), 0);
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(data_dir.join(format!("cynode.db{suffix}")));
    }
    fs::rename(&copy, data_dir.join("cynode.db")).unwrap();
    let [gateway, control] = &addresses;
    cluster.orchestrator = Orchestrator::start_at(&home, [gateway, control], &[]);
    cluster.user = cluster.orchestrator.login();
    eventually("the node was reconciled", || {
        let log = cluster.orchestrator.process.stderr();
        log.contains("jobs that this database never started")
            .then_some(())
    });
    let_go(&cluster.node);
    assert_eq!(
        cluster.finish(&old)["status"],
        "completed",
        "the orchestrator follows its own job"
    );
    let path = format!("/v1/worker/jobs/{job}");
    let api = worker_api(&cluster.node, &home);
    eventually_eq(
        "the newer job has run to its end",
        json!("completed"),
        || api.get(&path).json(200)["status"].clone(),
    );
    assert_eq!(api.get(&path).json(200)["stdout"], "before\nafter\n");
}
