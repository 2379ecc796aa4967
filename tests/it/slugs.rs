//! Ownership of a slug: it belongs to the machine that registered it first, until an admin deletes the node.

use crate::support::{
    Api, Cluster, Node, Orchestrator, StandIn,
    cluster::{PSK, connect, wait_ready},
    eventually,
    process::at_terminal,
    stage::{Stage, well},
    stand_in::capability,
};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const KEY: &str = "a key of this machine";
const OTHER: &str = "a key of another machine";

/// A stand-in of the slug `box` that shows this key.
fn machine(orchestrator: &Orchestrator, key: Option<&str>) -> StandIn {
    let mut machine = StandIn::idle(orchestrator, "box");
    machine.key = key.map(str::to_owned);
    machine
}

fn forget(user: &Api, slug: &str) -> crate::support::Reply {
    user.call("DELETE", &format!("/v1/nodes/{slug}"), &[], b"")
}

fn detail(problem: &Value) -> &str {
    problem["detail"].as_str().unwrap()
}

#[test]
fn slug_belongs_to_first_registered_key() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let mut owner = machine(&orchestrator, Some(KEY));
    owner.ask_to_register().json(201);
    owner.ask_to_register().json(200);
    owner.join();
    let before = orchestrator.login().get("/v1/nodes/box").json(200);
    for key in [None, Some(OTHER), Some(&KEY[..16])] {
        let problem = machine(&orchestrator, key)
            .ask_to_register()
            .problem(409, "slug-taken");
        for text in ["box", "--slug", "cynode nodes forget box"] {
            assert!(detail(&problem).contains(text), "{problem}");
        }
    }
    let after = orchestrator.login().get("/v1/nodes/box").json(200);
    assert_eq!(after, before, "a refused machine changes nothing");
    owner.config();
    // The owner of the slug survives a restart of the orchestrator.
    drop(orchestrator);
    let orchestrator = Orchestrator::start(home.path(), &[]);
    machine(&orchestrator, Some(OTHER))
        .ask_to_register()
        .problem(409, "slug-taken");
    machine(&orchestrator, Some(KEY))
        .ask_to_register()
        .json(200);
}

#[test]
fn keyless_slug_stays_keyless() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    machine(&orchestrator, None).ask_to_register().json(201);
    for key in [Some(KEY), Some(OTHER), None] {
        machine(&orchestrator, key).ask_to_register().json(200);
    }
}

#[test]
fn key_length_is_checked_after_psk() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let ask = |psk: &str, key: Value| {
        let capability = capability("box", "http://127.0.0.1:1");
        let body = json!({"psk": psk, "node_key": key, "capability": capability});
        orchestrator.control.post("/v1/nodes/register", &body)
    };
    for key in [
        json!(""),
        json!("x".repeat(15)),
        json!("x".repeat(257)),
        json!(16),
    ] {
        let problem = ask(PSK, key).problem(400, "invalid-request");
        assert!(detail(&problem).contains("node_key"), "{problem}");
    }
    ask(PSK, json!("x".repeat(256))).json(201);
    ask(PSK, json!("x".repeat(16))).problem(409, "slug-taken");
    // Only a caller with the pre-shared key learns that a slug is taken or a key is malformed.
    for key in [json!("x".repeat(16)), json!("")] {
        ask("wrong", key).problem(401, "unauthorized");
    }
}

#[test]
fn deleted_node_frees_its_slug() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut gone = machine(&orchestrator, Some(KEY));
    gone.join();
    wait_ready(&orchestrator);
    forget(&user, "nobody").problem(404, "not-found");
    forget(&user, "box").expect(204);
    forget(&user, "box").problem(404, "not-found");
    assert_eq!(
        user.get("/v1/nodes").json(200),
        json!({"nodes": [], "next_cursor": ""})
    );
    let report = capability("box", &gone.url);
    gone.report(&report).problem(401, "unauthorized");
    gone.ack(&json!("1"), "applied")
        .problem(401, "unauthorized");
    gone.control
        .get("/v1/nodes/config")
        .problem(401, "unauthorized");

    let mut next = machine(&orchestrator, Some(OTHER));
    next.ask_to_register().json(201);
    next.join();
    assert_eq!(
        next.config()["config_version"],
        "1",
        "its versions start over"
    );
    gone.report(&report).problem(401, "unauthorized");
    gone.ask_to_register().problem(409, "slug-taken");
}

#[test]
fn node_with_jobs_stays_and_results_survive() {
    let held = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&held);
    let stage = Stage::set(move |run, call, answer| {
        if run == 2 {
            *keep.lock().unwrap() = Some((call.clone(), answer.stream()));
        } else {
            well(call, answer);
        }
    });
    let first = stage.create(json!({}));
    let (_, before) = stage.finish(&first);
    assert_eq!(before["node_slug"], "box");
    let second = stage.create(json!({}));
    let (call, events) = eventually("the second job runs", || held.lock().unwrap().take());
    let problem = forget(&stage.user, "box").problem(409, "conflict");
    for text in ["1 running job;", "cancel", "wait", "a minute at most"] {
        assert!(detail(&problem).contains(text), "{problem}");
    }
    stage.user.get("/v1/nodes/box").expect(200);
    events.end(1, &call.result("second\n"));
    stage.finish(&second);
    forget(&stage.user, "box").expect(204);
    let job = |task: &str| {
        let result = stage.user.get(&format!("/v1/tasks/{task}/result"));
        result.json(200)["jobs"][0].clone()
    };
    assert_eq!(job(&first), before);
    assert_eq!(
        (
            &job(&second)["node_slug"],
            &job(&second)["result_object"]["stdout"]
        ),
        (&json!("box"), &json!("second\n"))
    );
    // The queue outlives the node as well.
    let third = stage.create(json!({}));
    let mut next = StandIn::start(&stage.orchestrator, "other", |call, answer| {
        well(call, answer)
    });
    next.join();
    assert_eq!(stage.finish(&third).1["node_slug"], "other");
    assert_eq!(job(&first), before);
}

#[test]
fn only_admins_may_forget_node() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    machine(&orchestrator, None).register();
    let database = Connection::open(orchestrator.data_dir.join("cynode.db")).unwrap();
    let admin = |is_admin: bool| {
        database
            .execute("UPDATE users SET is_admin = ?1", [is_admin])
            .unwrap();
    };
    admin(false);
    for slug in ["box", "nobody"] {
        forget(&user, slug).problem(403, "forbidden");
    }
    admin(true);
    user.get("/v1/nodes/box").expect(200);
}

#[test]
fn deleted_running_node_returns_and_client_warns() {
    let cluster = Cluster::start();
    let first = cluster.user.get("/v1/nodes/box").json(200);
    let done = cluster.run(&["nodes", "forget", "box", "--yes"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    assert!(done.stderr.contains("stop it there first"), "{done:?}");
    let repeated = cluster.run(&["nodes", "forget", "box", "--yes"]).code;
    // One with a tunnel loses it at once, and may be back.
    assert!(
        repeated == 4 || connect() == "dial" && repeated == 0,
        "{repeated}"
    );
    // The node registers again, and the orchestrator calls it with the new token.
    let id = cluster.script("echo again");
    assert_eq!(cluster.finish(&id)["status"], "completed");
    let again = cluster.user.get("/v1/nodes/box").json(200);
    assert_eq!(
        again["worker_api_target_url"],
        first["worker_api_target_url"]
    );
}

#[test]
fn forgetting_live_node_asks_first() {
    let mut cluster = Cluster::start();
    let unasked = cluster.run(&["nodes", "forget", "box"]);
    assert_eq!(unasked.code, 2, "{unasked:?}");
    for text in ["box is online", "--yes"] {
        assert!(unasked.stderr.contains(text), "{unasked:?}");
    }
    let no = at_terminal(&mut cluster.cli(&["nodes", "forget", "box"]), "n\n");
    assert!(no.stdout.contains("Forget it anyway? [y/N]"), "{no:?}");
    assert_eq!(no.code, 2, "{no:?}");
    cluster.user.get("/v1/nodes/box").expect(200);
    // A stopped node is not alive, so the client asks nothing.
    assert_eq!(cluster.node.process.terminate(), 0);
    let done = cluster.run(&["nodes", "forget", "box"]);
    assert_eq!(done.code, 0, "{done:?}");
    cluster.user.get("/v1/nodes/box").problem(404, "not-found");
}

#[test]
fn drain_outlives_forgotten_node() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let status = || user.get("/v1/nodes/box").json(200)["status"].clone();
    let mut box_ = machine(&orchestrator, Some(KEY));
    box_.join();
    user.act("/v1/nodes/box/drain").expect(204);
    forget(&user, "box").expect(204);
    // Another machine with the same name isn't drained.
    let mut other = machine(&orchestrator, Some(OTHER));
    other.join();
    assert_eq!(status(), "ready");
    forget(&user, "box").expect(204);
    box_.join();
    assert_eq!(status(), "draining");
    // The drain applies once: a resumed node stays resumed.
    user.act("/v1/nodes/box/resume").expect(204);
    box_.join();
    assert_eq!(status(), "ready");
    forget(&user, "box").expect(204);
    box_.join();
    assert_eq!(status(), "ready");
}

#[test]
fn taken_slug_ends_node_with_advice() {
    let cluster = Cluster::start();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut other = Node::launch(
        elsewhere.path(),
        "box",
        &cluster.orchestrator.control_url,
        &[],
    );
    assert_eq!(other.process.code(), 5);
    let stderr = other.process.stderr();
    for text in ["--slug", "cynode nodes forget box"] {
        assert!(stderr.contains(text), "{stderr}");
    }
    let id = cluster.script("echo still here");
    assert_eq!(cluster.finish(&id)["status"], "completed");
}
