//! Recovery: orchestrator and node are killed, and nothing is lost, duplicated or left.

use crate::{
    sandbox::anywhere,
    support::{
        Cluster, Node, Orchestrator,
        cluster::wait_ready,
        eventually, eventually_eq,
        image::{IMAGE, podman},
        lasting_port,
        server::{containers_of, kill},
        uuid,
    },
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, io, path::PathBuf};

/// Script that prints, waits for its release, and prints again.
const WAITING: &str = "echo before; until [ -e go ]; do usleep 5000; done; echo after";

/// Cluster whose orchestrator can restart at its addresses, and those addresses.
fn lasting_cluster() -> (Cluster, [String; 2]) {
    let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let cluster = Cluster::start_at([&addresses[0], &addresses[1]], &[]);
    (cluster, addresses)
}

/// Releases the one job of a node.
fn let_go(node: &Node) {
    let places = eventually("a job runs", || {
        Some(node.workspaces()).filter(|places| !places.is_empty())
    });
    for place in places {
        // The workspace of an ended job may be removed meanwhile.
        match fs::write(place.join("workspace/go"), "") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            written => written.unwrap(),
        }
    }
}

impl Cluster {
    /// Restarts the orchestrator, with its addresses and state.
    fn restart_orchestrator(&mut self, addresses: &[String; 2]) {
        let again = [addresses[0].as_str(), addresses[1].as_str()];
        self.orchestrator = Orchestrator::start_at(self.home(), again, &[]);
    }

    /// Restarts the node, with its state.
    pub(crate) fn restart_node(&mut self) {
        self.restart_node_with(&[]);
    }

    /// The same with what the node's operator says in `more`.
    pub(crate) fn restart_node_with(&mut self, more: &[&str]) {
        if self.node.process.ended().is_none() {
            self.node.process.terminate();
        }
        self.node = Node::start(self.home(), "box", &self.orchestrator.control_url, more);
        wait_ready(&self.orchestrator);
    }
}

#[test]
fn results_survive_orchestrator_restart() {
    let (mut cluster, addresses) = lasting_cluster();
    let tasks = ["echo one", "echo two >&2; exit 2", "sleep 1000"]
        .map(|script| cluster.create(&json!({"script": script, "timeout_seconds": 1})));
    let finished = tasks
        .each_ref()
        .map(|id| (cluster.finish(id), cluster.result(id)));
    let key = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "once"),
    ];
    let keyed = |cluster: &Cluster| {
        cluster
            .user
            .call("POST", "/v1/tasks", &key, b"{\"script\":\"true\"}")
            .json(201)["id"]
            .clone()
    };
    let first = keyed(&cluster);
    cluster.finish(first.as_str().unwrap());
    for end in ["kill", "terminate"] {
        let process = &mut cluster.orchestrator.process;
        if end == "kill" {
            process.kill()
        } else {
            assert_eq!(process.terminate(), 0)
        }
        cluster.restart_orchestrator(&addresses);
        for (id, (task, result)) in tasks.iter().zip(&finished) {
            assert_eq!(
                (&cluster.task(id), &cluster.result(id)),
                (task, result),
                "after {end}"
            );
        }
        assert_eq!(keyed(&cluster), first, "the idempotency key is known, too");
    }
}

#[test]
fn running_job_survives_orchestrator_restart() {
    let (mut cluster, addresses) = lasting_cluster();
    // A node lowers the timeout; SQLite reads these as floating-point numbers.
    for (end, timeout) in [("kill", u64::MAX), ("terminate", 1 << 63)] {
        let task = json!({"script": WAITING, "max_attempts": 1, "timeout_seconds": timeout});
        let id = cluster.create(&task);
        cluster.printed(&id, "before\n");
        let process = &mut cluster.orchestrator.process;
        if end == "kill" {
            process.kill()
        } else {
            assert_eq!(process.terminate(), 0)
        }
        let_go(&cluster.node);
        cluster.restart_orchestrator(&addresses);
        let seen: Vec<_> = cluster
            .user
            .events(&format!("/v1/tasks/{id}/logs"), Some("1-2"))
            .collect();
        let output: Vec<_> = seen
            .iter()
            .filter(|event| event.name == "stdout")
            .map(|event| &event.data["data"])
            .collect();
        assert_eq!(
            output,
            ["after\n"],
            "a reader resumes at its position: {seen:?}"
        );
        let task = cluster.finish(&id);
        assert_eq!(
            (&task["status"], &task["exit_code"]),
            (&json!("completed"), &json!(0)),
            "after {end}"
        );
        let job = &cluster.result(&id)["jobs"][0];
        assert_eq!(
            (&job["attempt"], &job["result_object"]["stdout"]),
            (&json!(1), &json!("before\nafter\n"))
        );
    }
}

#[test]
fn cancel_and_queue_survive_orchestrator_restart() {
    let (mut cluster, addresses) = lasting_cluster();
    let running = cluster.script("echo up; sleep 1000");
    cluster.printed(&running, "up\n");
    cluster.user.act("/v1/nodes/box/drain").expect(204);
    let queued = cluster.script("echo later");
    cluster.orchestrator.process.kill();
    cluster.restart_orchestrator(&addresses);
    assert_eq!(cluster.task(&queued)["status"], "queued");
    assert_eq!(
        cluster
            .user
            .act(&format!("/v1/tasks/{running}/cancel"))
            .json(200)["canceled"],
        true
    );
    assert_eq!(cluster.finish(&running)["status"], "canceled");
    cluster.user.act("/v1/nodes/box/resume").expect(204);
    assert_eq!(cluster.finish(&queued)["status"], "completed");
}

#[test]
fn job_outlives_node_process_and_runs_once() {
    let mut cluster = Cluster::start();
    let marker = uuid();
    let command = json!(["sh", "-c", format!("{WAITING}; true"), marker]);
    let id = cluster.create(&json!({"command": command, "max_attempts": 1}));
    cluster.printed(&id, "before\n");
    let sandbox = cluster.node.containers();
    cluster.node.process.kill();
    assert!(anywhere(&marker));
    assert_eq!(cluster.task(&id)["status"], "running");

    cluster.restart_node();
    assert_eq!(
        cluster.node.containers(),
        sandbox,
        "the same container goes on"
    );
    let_go(&cluster.node);
    let task = cluster.finish(&id);
    assert_eq!(task["status"], "completed", "{task}");
    let job = &cluster.result(&id)["jobs"][0];
    assert_eq!(
        (&job["attempt"], &job["result_object"]["stdout"]),
        (&json!(1), &json!("before\nafter\n"))
    );
    eventually("the node has removed the job", || {
        cluster.node.spools().is_empty().then_some(())
    });
}

#[test]
fn subscriber_gets_whole_job_after_node_outage() {
    let mut cluster = Cluster::start();
    let script = "echo before; until [ -e go ]; do usleep 5000; done; yes 0123456789abcde | head -c 3000000; exit 3";
    let id = cluster.create(&json!({"script": script, "max_attempts": 1}));
    let path = format!("/v1/tasks/{id}/logs?follow=true");
    let readers = [(); 2].map(|()| {
        let mut events = cluster.user.events(&path, None);
        assert!(events.any(|event| event.data["data"] == "before\n"));
        events
    });
    cluster.node.process.kill();
    let_go(&cluster.node);
    eventually("the job has ended", || {
        cluster.node.shims().is_empty().then_some(())
    });
    cluster.restart_node();
    for events in readers {
        let rest: Vec<_> = events.collect();
        let printed: usize = rest
            .iter()
            .filter(|event| event.name == "stdout")
            .map(|event| event.data["data"].as_str().unwrap().len())
            .sum();
        assert_eq!(printed, 3_000_000);
        assert!(rest.iter().all(|event| event.name != "gap"));
        assert_eq!(rest.last().unwrap().data["exit_code"], 3);
    }
    eventually("the node removes the job", || {
        cluster.node.spools().is_empty().then_some(())
    });
}

#[test]
fn job_without_shim_and_node_is_retried() {
    let mut cluster = Cluster::start();
    let marker = uuid();
    let command = json!(["sh", "-c", format!("{WAITING}; true"), marker]);
    let may = cluster.create(&json!({"command": command}));
    cluster.printed(&may, "before\n");
    let node = cluster.node.node_uuid();
    cluster.node.process.kill();
    for shim in cluster.node.shims() {
        kill(shim, Signal::KILL);
    }
    eventually("the sandbox died with its shim", || {
        (!anywhere(&marker)).then_some(())
    });
    eventually("podman has removed its container", || {
        containers_of(&node).is_empty().then_some(())
    });
    assert_eq!(
        cluster.task(&may)["status"],
        "running",
        "its end is unknown so far"
    );
    cluster.restart_node();
    eventually("the job runs again", || {
        (cluster.result(&may)["jobs"][0]["attempt"] == 2).then_some(())
    });
    cluster.printed(&may, "before\n");
    let_go(&cluster.node);
    assert_eq!(cluster.finish(&may)["status"], "completed");

    let must_not = cluster.create(&json!({"script": WAITING, "max_attempts": 1}));
    cluster.printed(&must_not, "before\n");
    for shim in cluster.node.shims() {
        kill(shim, Signal::KILL);
    }
    let task = cluster.finish(&must_not);
    assert_eq!(task["status"], "failed");
    assert!(
        task["summary"].as_str().unwrap().starts_with("lost"),
        "{task}"
    );
    let job = &cluster.result(&must_not)["jobs"][0];
    assert_eq!(
        (
            &job["status"],
            &job["attempt"],
            &job["result_object"]["stdout"]
        ),
        (&json!("lost"), &json!(1), &json!("before\n")),
        "its output is kept"
    );
}

#[test]
fn stopping_node_leaves_jobs_beyond_grace() {
    let mut cluster = Cluster::start();
    cluster.restart_node_with(&["--shutdown-grace", "0s"]);
    let id = cluster.create(&json!({"script": WAITING, "max_attempts": 1}));
    cluster.printed(&id, "before\n");
    let sandboxes = cluster.node.containers();
    assert_eq!(cluster.node.process.terminate(), 0);
    // One that waits for a job ends with the node.
    let left = cluster.node.containers();
    assert!(
        left.len() == 1 && sandboxes.contains(&left[0]),
        "{sandboxes:?} {left:?}"
    );
    cluster.restart_node();
    let_go(&cluster.node);
    let task = cluster.finish(&id);
    assert_eq!(task["status"], "completed", "{task}");
    let job = &cluster.result(&id)["jobs"][0];
    assert_eq!(job["attempt"], 1);
}

#[test]
fn stopping_node_lets_its_job_finish() {
    let mut cluster = Cluster::start();
    let id = cluster.create(&json!({"script": WAITING, "max_attempts": 1}));
    cluster.printed(&id, "before\n");
    let workspace = cluster.node.workspaces().pop().unwrap();
    cluster.node.process.signal(Signal::TERM);
    eventually("the node handles the signal", || {
        cluster
            .node
            .process
            .stderr()
            .contains("shutting down")
            .then_some(())
    });
    fs::write(workspace.join("workspace/go"), "").unwrap();
    assert_eq!(cluster.node.process.code(), 0);
    let task = cluster.finish(&id);
    assert_eq!(
        (&task["status"], &task["exit_code"]),
        (&json!("completed"), &json!(0)),
        "{task}"
    );
    cluster.node.assert_clean();
}

#[test]
fn start_removes_only_own_orphans() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let mut node = Node::start(home.path(), "box", &orchestrator.control_url, &[]);
    let own = node.node_uuid();
    assert_eq!(node.process.terminate(), 0);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "x").unwrap();
    let left: PathBuf = node.data_dir.join("worker/jobs/left-1/workspace");
    fs::create_dir_all(left.join("deep/deeper")).unwrap();
    std::os::unix::fs::symlink(outside.path(), left.join("link")).unwrap();
    let foreign = uuid();
    let create = |label: &str| {
        let label = format!("--label=io.cynode.node={label}");
        let job = "--label=io.cynode.job-id=any";
        podman(&[
            "create",
            "--quiet",
            &label,
            job,
            "--network=none",
            IMAGE,
            "true",
        ])
        .unwrap()
    };
    create(&own);
    let other = create(&foreign);

    let node = Node::start(home.path(), "box", &orchestrator.control_url, &[]);
    assert!(node.workspaces().is_empty());
    assert_eq!(node.containers(), Vec::<String>::new());
    assert_eq!(
        containers_of(&foreign),
        [other.trim()],
        "another node's container is not touched"
    );
    podman(&["rm", "--force", other.trim()]).unwrap();
    assert!(outside.path().join("precious").exists());
}

#[test]
fn node_waits_for_orchestrator() {
    let home = tempfile::tempdir().unwrap();
    let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let control = format!("http://{}", addresses[1]);
    let mut node = Node::launch(home.path(), "box", &control, &[]);
    eventually("the node has tried", || {
        node.process.assert_runs();
        node.process
            .stderr()
            .contains("operation failed; retrying")
            .then_some(())
    });
    let orchestrator = Orchestrator::start_at(home.path(), [&addresses[0], &addresses[1]], &[]);
    wait_ready(&orchestrator);
    let user = orchestrator.login();
    eventually_eq("the node is ready", Value::from("ready"), || {
        user.get("/v1/nodes/box").json(200)["status"].clone()
    });
}
