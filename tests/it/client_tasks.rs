//! Client commands about tasks: several ids, settings, owners, and an orchestrator that goes away.

use crate::support::{
    Cluster, Orchestrator, StandIn,
    client::{client, fails},
    eventually, lasting_port,
    process::run,
    uuid,
};
use serde_json::{Value, json};

/// Cluster whose orchestrator can restart at its addresses, and those addresses.
fn lasting_cluster() -> (Cluster, [String; 2]) {
    let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let cluster = Cluster::start_at([&addresses[0], &addresses[1]], &[]);
    (cluster, addresses)
}

#[test]
fn several_tasks_are_waited_for() {
    let cluster = Cluster::start();
    let [good, bad, worse] = ["exit 0", "exit 3", "exit 4"].map(|script| cluster.script(script));
    let done = cluster.run(&["task", "wait", &good, &bad, &worse]);
    assert_eq!((done.code, done.stderr.as_str()), (3, ""), "{done:?}");
    for line in [
        format!("{good}: completed: exit 0"),
        format!("{bad}: failed: exit 3"),
        format!("{worse}: failed: exit 4"),
    ] {
        assert!(done.stdout.lines().any(|found| found == line), "{done:?}");
    }
    assert_eq!(cluster.run(&["task", "wait", &good, &good[..13]]).code, 0);
    assert_eq!(cluster.run(&["task", "wait", &bad, "nowhere"]).code, 3);
    let done = cluster.run(&["task", "wait", &good, "nowhere", "--output", "json"]);
    assert_eq!(done.code, 4);
    assert!(
        done.stderr
            .contains("nowhere: there is no task \"nowhere\""),
        "{done:?}"
    );
    let shown: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(shown["tasks"][0]["task_id"], json!(good));
    cluster.node.assert_clean();
}

#[test]
fn several_tasks_are_canceled_and_deleted() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let cli = |arguments: &[&str]| {
        run(client(home.path(), &orchestrator.gateway_url, arguments)
            .env("CYNODE_TOKEN", user.token()))
    };
    for name in ["one", "two"] {
        let task = json!({"command": ["true"], "task_name": name});
        user.post("/v1/tasks", &task).expect(201);
    }
    let unknown = uuid();
    let done = cli(&["task", "cancel", "one", &unknown, "two"]);
    assert_eq!(done.code, 4, "{done:?}");
    assert_eq!(done.stdout, "one: canceled\ntwo: canceled\n", "{done:?}");
    let message = format!("error: {unknown}: there is no task \"{unknown}\"");
    assert!(done.stderr.starts_with(&message), "{done:?}");
    let done = cli(&["task", "rm", "one", "two", "two"]);
    assert_eq!(done.stdout, "one deleted\ntwo deleted\n");
    assert_eq!(done.code, 4, "{done:?}");
    // One task alone is named by the command line already.
    fails(
        &cli(&["task", "cancel", "one"]),
        4,
        "error: there is no task ",
    );
}

/// Creates a task that has every setting.
const CREATE: &[&str] = &[
    "task",
    "create",
    "--name",
    "mine",
    "--env",
    "KEY=secret value",
    "--label",
    "gpu",
    "--timeout",
    "90s",
    "--grace",
    "30s",
    "--cpus",
    "1.5",
    "--memory",
    "1GiB",
    "--pids",
    "100",
    "--shm-size",
    "64MiB",
    "--gpus",
    "2",
    "--artifact",
    "out/*.json",
    "--artifact-limit",
    "500MiB",
    "--max-attempts",
    "2",
    "--",
    "sh",
    "-c",
    "echo $KEY",
];

#[test]
fn task_get_shows_settings_without_values() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let ann = orchestrator.add_user(&admin, "ann");
    let cli = |token: &str, arguments: &[&str]| {
        run(client(home.path(), &orchestrator.gateway_url, arguments).env("CYNODE_TOKEN", token))
    };
    let done = cli(ann.token(), CREATE);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    let shown = cli(ann.token(), &["task", "get", "mine"]).stdout;
    let value = |name: &str| {
        let line = shown
            .lines()
            .find(|line| line.starts_with(&format!("{name:<12} ")));
        line.map(|line| line[13..].to_owned())
    };
    for (name, expected) in [
        ("owner", "ann"),
        ("node", "-"),
        ("attempt", "0 of 2"),
        ("command", "sh -c 'echo $KEY'"),
        ("time limit", "90 s"),
        ("grace", "30 s"),
        ("labels", "gpu"),
        ("env", "KEY"),
        ("gpus", "2"),
        ("cpus", "1.5"),
        ("memory", "1GiB"),
        ("pids", "100"),
        ("shm size", "64MiB"),
        ("artifacts", "out/*.json"),
        ("artifact max", "500MiB"),
    ] {
        assert_eq!(value(name).as_deref(), Some(expected), "{shown}");
    }
    assert!(!shown.contains("secret value"), "{shown}");

    // Only an admin sees tasks of several users, so only their lists have owners.
    let list = cli(admin.token(), &["task", "list"]).stdout;
    assert!(list.contains("OWNER") && list.contains("ann"), "{list}");
    let list = cli(ann.token(), &["task", "list"]).stdout;
    assert!(!list.contains("OWNER"), "{list}");
    let listed = &ann.get("/v1/tasks").json(200)["tasks"][0];
    assert_eq!(
        (&listed["owner"], &listed["env_names"]),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn accepted_cancel_is_audited_once() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let ann = orchestrator.add_user(&admin, "ann");
    StandIn::idle(&orchestrator, "box").join();
    let task = json!({"command": ["true"], "node_labels": ["nowhere"]});
    let id = ann.post("/v1/tasks", &task).json(201)["id"].clone();
    let cancel = format!("/v1/tasks/{}/cancel", id.as_str().unwrap());
    assert_eq!(admin.act(&cancel).json(200)["canceled"], true);
    assert_eq!(ann.act(&cancel).json(200)["canceled"], true);
    let events = admin.get("/v1/audit?action=task.cancel").json(200);
    let events = events["events"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (
            &events[0]["actor"],
            &events[0]["target"],
            &events[0]["outcome"]
        ),
        (&json!("admin"), &id, &json!("success"))
    );
}

#[test]
fn run_outlives_orchestrator_restart() {
    let (mut cluster, addresses) = lasting_cluster();
    let script = "echo before; until [ -e go ]; do usleep 5000; done; echo after";
    let mut client = cluster.spawn(&["run", "--", "sh", "-c", script]);
    eventually("its output is here", || {
        (client.stdout() == "before\n").then_some(())
    });
    let away = "orchestrator unreachable; the job goes on; retrying";
    cluster.orchestrator.process.kill();
    eventually("the outage is reported", || {
        client.stderr().contains(away).then_some(())
    });
    let again = [addresses[0].as_str(), addresses[1].as_str()];
    cluster.orchestrator = Orchestrator::start_at(cluster.home(), again, &[]);
    let workspace = cluster.node.workspaces().remove(0);
    std::fs::write(workspace.join("workspace/go"), "").unwrap();
    assert_eq!(client.code(), 0, "{}", client.stderr());
    assert_eq!(client.stdout(), "before\nafter\n");
    assert_eq!(
        client.stderr().matches(away).count(),
        1,
        "{}",
        client.stderr()
    );
    cluster.node.assert_clean();
}

#[test]
fn waiting_reason_is_printed_once() {
    let (mut cluster, addresses) = lasting_cluster();
    let mut client = cluster.spawn(&["run", "--name", "mine", "--label", "nowhere", "--", "true"]);
    let reason = "waiting: no node has the label nowhere";
    eventually("the reason is here", || {
        client.stderr().contains(reason).then_some(())
    });
    cluster.orchestrator.process.kill();
    eventually("the outage is reported", || {
        client.stderr().contains("unreachable").then_some(())
    });
    let again = [addresses[0].as_str(), addresses[1].as_str()];
    cluster.orchestrator = Orchestrator::start_at(cluster.home(), again, &[]);
    eventually("it is back", || {
        client.stderr().contains("reachable again").then_some(())
    });
    cluster.user.act("/v1/tasks/mine/cancel").expect(200);
    assert_eq!(client.code(), 130);
    assert_eq!(
        client.stderr().matches(reason).count(),
        1,
        "{}",
        client.stderr()
    );
}
