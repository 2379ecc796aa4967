//! Nodes that the orchestrator can't reach, though they reach it: they get no jobs, and the reason says what to do. Their
//! addresses are for admins.

use crate::support::{
    Answer, Api, Call, Node, Orchestrator, StandIn,
    cluster::finish,
    eventually, eventually_eq, lasting_port,
    listener::{Calls, Listener},
    stage::well,
    stand_in::capability,
};
use crate::users::{FIRST, tokens};
use serde_json::{Value, json};

/// A port at which nothing listens.
const CLOSED: &str = "http://127.0.0.1:1";

fn view(user: &Api) -> Value {
    user.get("/v1/nodes/box").json(200)
}

fn create(user: &Api) -> String {
    let task = user.post("/v1/tasks", &json!({"command": ["true"]}));
    task.json(201)["id"].as_str().unwrap().to_owned()
}

/// Fails unless the node is not ready, and waits for a reason with all of these words.
#[track_caller]
fn assert_unreachable(user: &Api, words: &[&str]) {
    let node = view(user);
    assert_eq!(node["status"], "not_ready", "{node}");
    eventually(&format!("the reason has {words:?}"), || {
        let node = view(user);
        let reason = node["reason"].as_str()?;
        words.iter().all(|word| reason.contains(word)).then_some(())
    });
}

/// Waits until the node is ready.
fn wait_ready(user: &Api) {
    eventually_eq("the node is ready", json!("ready"), || {
        view(user)["status"].clone()
    });
}

/// Answers as a Worker API without jobs, that runs what it gets.
fn works(call: &Call, answer: Answer) {
    if call.path == "/v1/worker/jobs" {
        answer.status(200, &json!({"jobs": []}));
    } else {
        well(call, answer);
    }
}

#[test]
fn closed_port_is_reported_before_any_job() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.url = CLOSED.to_owned();
    node.join();
    let words = [CLOSED, "connection refused", "--advertise-url"];
    assert_unreachable(&user, &words);
    // Who is not an admin learns neither the address nor what was found there.
    let assert_short = |text: &str| {
        assert!(text.contains("the orchestrator can't reach it"), "{text}");
        assert!(!text.contains(CLOSED), "{text}");
        assert!(!text.contains("connection refused"), "{text}");
    };
    let problem = orchestrator.gateway.get("/readyz");
    let problem = problem.problem(503, "unavailable");
    assert_short(problem["detail"].as_str().unwrap());
    let id = create(&user);
    let reason = eventually("the task names the reason", || {
        let task = user.get(&format!("/v1/tasks/{id}")).json(200);
        task["waiting_for"].as_str().map(str::to_owned)
    });
    assert_short(&reason);
    let nodes = user.get("/v1/nodes").json(200);
    assert!(nodes.to_string().contains("connection refused"), "{nodes}");
    let log = orchestrator.process.stderr();
    assert_eq!(log.matches("node can't be reached").count(), 1, "{log}");
    // The node learns it, too.
    let reply = node.report(&capability("box", CLOSED));
    reply.expect(204);
    let reason = reply.header("cynode-unreachable").unwrap();
    assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
}

#[test]
fn node_logs_that_it_is_unreachable() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let flags = ["--connect", "listen", "--advertise-url", CLOSED];
    let node = Node::start(home.path(), "box", &orchestrator.control_url, &flags);
    eventually("the node logs the reason", || {
        let log = node.process.stderr();
        let mut lines = log.lines();
        let line = lines.find(|line| line.contains("can't reach this node"))?;
        assert!(line.contains("WARN") && line.contains(CLOSED), "{line}");
        Some(())
    });
}

#[test]
fn node_whose_port_opens_gets_jobs() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let address = format!("127.0.0.1:{}", lasting_port());
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.url = format!("http://{address}");
    node.join();
    assert_unreachable(&user, &["connection refused"]);
    let id = create(&user);
    let calls = Calls::default();
    let listener = Listener::open(&address, &calls, works);
    assert_eq!(finish(&user, &id)["status"], "completed");
    wait_ready(&user);
    eventually("the log says so", || {
        let log = orchestrator.process.stderr();
        log.contains("node can be reached again").then_some(())
    });
    drop(listener);
}

#[test]
fn address_of_node_is_for_admins() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.join();
    let ann = json!({"handle": "ann", "password": FIRST, "is_admin": false});
    admin.post("/v1/users", &ann).json(201);
    let ann = tokens(&orchestrator.gateway, "ann", FIRST);
    let ann = ann["access_token"].as_str().unwrap();
    let ann = orchestrator.gateway.with_token(ann);
    assert_eq!(view(&admin)["worker_api_target_url"], node.url);
    assert_eq!(view(&ann).get("worker_api_target_url"), None);
    let list = ann.get("/v1/nodes").text();
    let is_hidden = list.contains("\"box\"") && !list.contains(&node.url);
    assert!(is_hidden, "{list}");
}

#[test]
fn refused_token_is_named() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    for status in [401, 403] {
        let script = move |_: &Call, answer: Answer| answer.refuse(status);
        let mut node = StandIn::start_bare(&orchestrator, "box", script);
        node.join();
        let words = ["does not accept the token", &status.to_string(), &node.url];
        assert_unreachable(&user, &words);
    }
}

#[test]
fn new_address_is_probed_before_jobs() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.join();
    wait_ready(&user);
    node.report(&capability("box", CLOSED)).expect(204);
    assert_unreachable(&user, &[CLOSED, "connection refused"]);
    node.report(&capability("box", &node.url)).expect(204);
    wait_ready(&user);
    assert_eq!(finish(&user, &create(&user))["status"], "completed");
}

#[test]
fn silent_worker_api_holds_up_nobody() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let script = |_: &Call, answer: Answer| answer.until_closed();
    let mut silent = StandIn::start_bare(&orchestrator, "box", script);
    silent.join();
    assert_unreachable(&user, &["starting", &silent.url]);
    let mut other = StandIn::start(&orchestrator, "other", well);
    other.join();
    assert_eq!(finish(&user, &create(&user))["status"], "completed");
    let still = json!("not_ready");
    eventually_eq("the silence is named", (still, true), || {
        let node = view(&user);
        let is_named = node["reason"].as_str().unwrap().contains("timed out");
        (node["status"].clone(), is_named)
    });
    assert!(!silent.calls().iter().any(Call::is_run));
}

#[test]
fn restarted_orchestrator_finds_closed_port() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.join();
    node.report(&capability("box", CLOSED)).expect(204);
    drop(orchestrator);
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    eventually("the reason is found again", || {
        let reason = view(&user)["reason"].clone();
        let reason = reason.as_str()?;
        reason.contains("connection refused").then_some(())
    });
}

#[test]
fn other_service_passes_only_for_strangers() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let answers: [fn(&Call, Answer); 3] = [
        |_, answer| answer.status(404, &Value::Null),
        |_, answer| answer.text(200, "<html>Welcome</html>"),
        |_, answer| answer.status(200, &json!({"status": "ok"})),
    ];
    for script in answers {
        let mut node = StandIn::start_bare(&orchestrator, "box", script);
        node.join();
        // A node of another implementation may lack the list of jobs.
        wait_ready(&user);
        // Another address has the node probed again.
        let moved = StandIn::start_bare(&orchestrator, "box", script);
        let mut report = capability("box", &moved.url);
        report["sandbox"]["features"] = json!(["stdin", "log-archive"]);
        node.report(&report).expect(204);
        assert_unreachable(&user, &[&moved.url, "--advertise-url"]);
        assert!(!node.calls().iter().any(Call::is_run));
    }
}

#[test]
fn stopped_node_is_not_called_unreachable() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let mut stopped = StandIn::start(&orchestrator, "box", well);
    stopped.join();
    let mut report = capability("box", CLOSED);
    report["node"]["stopping_since"] = json!("2026-01-01T00:00:00Z");
    stopped.report(&report).expect(204);
    let mut gone = StandIn::start(&orchestrator, "gone", well);
    gone.join();
    gone.report(&capability("gone", CLOSED)).expect(204);
    drop(orchestrator);
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let warned = eventually("the other node is found", || {
        let log = orchestrator.process.stderr();
        let lines = log.lines();
        let warned = lines.filter(|line| line.contains("node can't be reached"));
        let warned: Vec<_> = warned.map(str::to_owned).collect();
        (!warned.is_empty()).then_some(warned)
    });
    assert!(
        warned.iter().all(|line| line.contains("gone")),
        "{warned:?}"
    );
    let node = view(&orchestrator.login());
    assert_eq!(node["status"], "offline", "{node}");
}
