//! Life of a sandbox: create, list, names, limits, ends, renewals, restarts.

use super::{Scene, delete, end_of, ids, keep, path, report};
use crate::support::{Call, Orchestrator, StandIn, eventually, lasting_port};
use cynode::api::time::Time;
use serde_json::{Value, json};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

#[test]
fn sandbox_runs_without_command() {
    let scene = Scene::set(&[]);
    let body = json!({
        "name": "dev", "env": {"A": "b"}, "lifetime_seconds": 600, "idle_timeout_seconds": 60, "lifetime": 5,
    });
    let reply = scene.admin.post("/v1/sandboxes", &body);
    let created = reply.json(201);
    assert_eq!(reply.header("location"), Some(path(&created, "").as_str()));
    assert_eq!(created["warnings"][0]["field"], "lifetime", "{created}");
    for (field, value) in [
        ("name", json!("dev")),
        ("status", json!("running")),
        ("node_slug", json!("box")),
        ("lifetime_seconds", json!(600)),
        ("idle_timeout_seconds", json!(60)),
        ("owner", json!("admin")),
    ] {
        assert_eq!(created[field], value, "{field}: {created}");
    }
    assert!(created["expires_at"].is_string(), "{created}");
    let run = scene.node.call("run", Call::is_run);
    let sandbox = &run.body["sandbox"];
    assert_eq!(sandbox["command"], json!([]));
    let session = json!({"lifetime_seconds": 600, "idle_timeout_seconds": 60});
    assert_eq!(sandbox["session"], session);
    let shown = eventually("its start is stored", || {
        let shown = scene.get(&created).json(200);
        shown["started_at"].is_string().then_some(shown)
    });
    let time = |field: &str| -> Time { shown[field].as_str().unwrap().parse().unwrap() };
    let lifetime = time("expires_at").since(time("started_at"));
    assert_eq!(lifetime.as_secs(), 600, "{shown}");
}

#[test]
fn calls_about_tasks_show_no_sandbox() {
    let scene = Scene::set(&[]);
    let sandbox = scene.running(&json!({"name": "dev"}));
    let id = sandbox["id"].as_str().unwrap();
    let admin = &scene.admin;
    for name in [id, &id[..13], "dev"] {
        for rest in ["", "/result", "/logs", "/artifacts"] {
            let call = format!("/v1/tasks/{name}{rest}");
            admin.get(&call).problem(404, "not-found");
        }
        admin
            .act(&format!("/v1/tasks/{name}/cancel"))
            .problem(404, "not-found");
        delete(admin, &format!("/v1/tasks/{name}")).problem(404, "not-found");
        let shown = admin.get(&format!("/v1/sandboxes/{name}")).json(200);
        assert_eq!(shown["id"], sandbox["id"]);
    }
    for query in ["", "?status=running", "?name=dev"] {
        let list = admin.get(&format!("/v1/tasks{query}")).json(200);
        assert_eq!(list["tasks"], json!([]), "{query}");
    }
    let task = json!({"command": ["true"], "task_name": "dev", "node_labels": ["none"]});
    let task = admin.post("/v1/tasks", &task).json(201);
    assert_eq!(task["task_name"], "dev", "names of tasks are their own");
    let call = format!("/v1/sandboxes/{}", task["id"].as_str().unwrap());
    admin.get(&call).problem(404, "not-found");
    delete(admin, &call).problem(404, "not-found");
    let metrics = admin.get("/metrics").text();
    for line in [
        "cynode_sandboxes 1",
        "cynode_sandboxes_total{status=\"created\"} 1",
        "cynode_tasks_total{status=\"created\"} 1",
    ] {
        assert!(
            metrics.lines().any(|have| have == line),
            "{line}: {metrics}"
        );
    }
}

#[test]
fn deleted_sandbox_ends_and_then_goes() {
    let scene = Scene::set(&[]);
    let admin = &scene.admin;
    let sandbox = scene.running(&json!({"name": "dev"}));
    delete(admin, "/v1/sandboxes/dev").expect(204);
    let is_forced = |call: &Call| call.path.contains(":cancel") && call.path.contains("force=true");
    scene.node.call("end it at once", is_forced);
    let ended = scene.get(&sandbox).json(200);
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&json!("ended"), &json!("deleted"))
    );
    assert!(
        ended["ended_at"].is_string() && ended.get("detail").is_none(),
        "{ended}"
    );
    assert_eq!(ids(&admin.get("/v1/sandboxes").json(200)), [""; 0]);
    let all = admin.get("/v1/sandboxes?all=true").json(200);
    assert_eq!(ids(&all), [sandbox["id"].as_str().unwrap()]);
    delete(admin, "/v1/sandboxes/dev").expect(204);
    scene.get(&sandbox).problem(404, "not-found");
    delete(admin, "/v1/sandboxes/dev").problem(404, "not-found");
    let events = admin.get("/v1/audit?action=sandbox.delete").json(200);
    assert_eq!(events["events"].as_array().unwrap().len(), 2, "{events}");
    assert_eq!(events["events"][0]["target"], sandbox["id"]);
}

#[test]
fn queued_sandbox_says_why_and_is_deleted() {
    let scene = Scene::set(&[]);
    let body = json!({"name": "dev", "node_labels": ["nowhere"], "wait_seconds": 0});
    let created = scene.admin.post("/v1/sandboxes", &body).json(201);
    assert_eq!(created["status"], "queued");
    assert_eq!(created["detail"], "no node has the label nowhere");
    assert!(created.get("expires_at").is_none(), "{created}");
    delete(&scene.admin, &path(&created, "")).expect(204);
    let ended = scene.get(&created).json(200);
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&json!("ended"), &json!("deleted"))
    );
}

#[test]
fn live_name_is_taken() {
    let scene = Scene::set(&[]);
    let (admin, body) = (&scene.admin, json!({"name": "dev"}));
    let first = scene.running(&body);
    let taken = admin.post("/v1/sandboxes", &body).problem(409, "conflict");
    assert_eq!(taken["errors"][0]["pointer"], "#/name");
    let detail = taken["detail"].as_str().unwrap();
    assert!(detail.contains("cynode sandbox rm dev"), "{detail}");
    let ann = scene.orchestrator.add_user(admin, "ann");
    let hers = ann.post("/v1/sandboxes", &body).json(201);
    assert_eq!(hers["name"], "dev", "{hers}");
    scene.end(&first, "timeout", Some("idle"));
    let shown = admin.get("/v1/sandboxes/dev").json(200);
    assert_eq!(
        shown["id"], first["id"],
        "an ended one has its name until it is taken"
    );
    let second = scene.running(&body);
    let shown = admin.get("/v1/sandboxes/dev").json(200);
    assert_eq!(shown["id"], second["id"]);
}

#[test]
fn user_has_bounded_number_of_sandboxes() {
    let flags = ["--max-sandboxes-per-user", "2", "--max-sandboxes", "3"];
    let scene = Scene::set(&flags);
    let admin = &scene.admin;
    let [first, _second] = [(); 2].map(|()| scene.running(&json!({})));
    let refused = admin.post("/v1/sandboxes", &json!({}));
    let problem = refused.problem(429, "too-many-requests");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("--max-sandboxes-per-user"), "{detail}");
    let ann = scene.orchestrator.add_user(admin, "ann");
    ann.post("/v1/sandboxes", &json!({})).json(201);
    let refused = ann.post("/v1/sandboxes", &json!({}));
    let problem = refused.problem(429, "too-many-requests");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("--max-sandboxes "),
        "{problem}"
    );
    delete(admin, &path(&first, "")).expect(204);
    ann.post("/v1/sandboxes", &json!({})).json(201);
}

#[test]
fn invalid_sandboxes_are_refused() {
    let scene = Scene::set(&[]);
    for (body, field) in [
        (json!({"name": "A b"}), "#/name"),
        (json!({"lifetime_seconds": 86_401}), "#/lifetime_seconds"),
        (json!({"idle_timeout_seconds": 0}), "#/idle_timeout_seconds"),
        (json!({"wait_seconds": 61}), "#/wait_seconds"),
        (json!({"memory": "1"}), "#/memory"),
        (json!({"network_policy": "open"}), "#/network_policy"),
        (json!({"gpus": 0}), "#/gpus"),
        (json!({"env": {"A B": ""}}), "#/env/A B"),
    ] {
        let refused = scene.admin.post("/v1/sandboxes", &body);
        let problem = refused.problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], field, "{body}");
    }
    let list = scene.admin.get("/v1/sandboxes?all=true").json(200);
    assert_eq!(ids(&list), [""; 0]);
}

#[test]
fn node_gives_reason_of_end() {
    let scene = Scene::set(&[]);
    for (status, reason) in [
        ("timeout", "idle"),
        ("timeout", "lifetime"),
        ("canceled", "shutdown"),
        ("canceled", "oom"),
    ] {
        let sandbox = scene.running(&json!({}));
        let ended = scene.end(&sandbox, status, Some(reason));
        assert_eq!(ended["reason"], reason, "{ended}");
        let renew = json!({"lifetime_seconds": 60});
        let gone = scene.admin.post(&path(&sandbox, "/renew"), &renew);
        let detail = gone.problem(410, "gone")["detail"].to_string();
        assert!(detail.contains(reason), "{detail}");
    }
}

#[test]
fn sandbox_of_lost_node_never_moves() {
    let scene = Scene::set(&["--lease", "1s", "--lease-growth", "off"]);
    let sandbox = scene.running(&json!({}));
    let mut other = StandIn::idle(&scene.orchestrator, "other");
    other.join();
    report(&other, 8);
    drop(scene.node);
    let ended = eventually("the sandbox is lost", || {
        let shown = scene.admin.get(&path(&sandbox, "")).json(200);
        (shown["status"] == "ended").then_some(shown)
    });
    assert_eq!(ended["reason"], "node-lost");
    let detail = ended["detail"].as_str().unwrap();
    assert!(
        detail.contains("silent") && detail.contains("--lease"),
        "{detail}"
    );
    assert!(
        !other.calls().iter().any(Call::is_run),
        "it begins nowhere again"
    );
}

#[test]
fn refused_sandbox_goes_to_another_node() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let ends = super::Ends::default();
    let refused = Arc::<AtomicBool>::default();
    // Keeps the node for as long as the test runs.
    let join = |slug: &str| {
        let (ends, refused) = (ends.clone(), Arc::clone(&refused));
        let mut node = StandIn::start(&orchestrator, slug, move |call, answer| {
            if !call.is_run() || refused.swap(true, Ordering::SeqCst) {
                return keep(&ends, call, answer);
            }
            let mut result = end_of(call, "failed", None);
            result["error"] = json!({"type": "image-not-allowed", "message": "not here"});
            answer.stream().end(1, &result);
        });
        node.join();
        report(&node, 1);
        node
    };
    let nodes = [join("one"), join("two")];
    let admin = orchestrator.login();
    let created = admin.post("/v1/sandboxes", &json!({})).json(201);
    assert_eq!(created["status"], "running", "{created}");
    let runs = |node: &StandIn| node.calls().into_iter().filter(Call::is_run).count();
    assert_eq!(nodes.each_ref().map(runs), [1, 1]);
}

#[test]
fn sandbox_outlives_orchestrator() {
    let home = tempfile::tempdir().unwrap();
    let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let start = || {
        let addresses = addresses.each_ref().map(String::as_str);
        Orchestrator::start_at(home.path(), addresses, &[])
    };
    let mut orchestrator = start();
    let ends = super::Ends::default();
    let run = Arc::new(Mutex::new(None::<Call>));
    let (known, last) = (ends.clone(), run.clone());
    let mut node = StandIn::start(&orchestrator, "box", move |call, answer| {
        if call.is_run() {
            *last.lock().unwrap() = Some(call.clone());
        }
        let run = last.lock().unwrap().clone();
        match run {
            Some(run)
                if call.method == "GET"
                    && call.path.contains(run.body["job_id"].as_str().unwrap()) =>
            {
                let started = json!({"event": "started", "attempt": 1, "seq": 1});
                let mut events = answer.stream();
                events.send(&started);
                known.wait(run.body["job_id"].as_str().unwrap());
                events.end(2, &end_of(&run, "timeout", Some("lifetime")));
            }
            _ => keep(&known, call, answer),
        }
    });
    node.join();
    report(&node, 1);
    let created = orchestrator
        .login()
        .post("/v1/sandboxes", &json!({"name": "dev"}))
        .json(201);
    let stored = |orchestrator: &Orchestrator| {
        let admin = orchestrator.login();
        eventually("its start is stored", || {
            let shown = admin.get("/v1/sandboxes/dev").json(200);
            shown["started_at"].is_string().then_some(shown)
        })
    };
    let before = stored(&orchestrator);
    orchestrator.process.kill();
    orchestrator = start();
    let after = stored(&orchestrator);
    assert_eq!(
        (&after["id"], &after["status"]),
        (&created["id"], &json!("running"))
    );
    assert_eq!(
        after["expires_at"], before["expires_at"],
        "a restart is no renewal"
    );
    let job = run.lock().unwrap().as_ref().unwrap().body["job_id"].clone();
    ends.set(job.as_str().unwrap(), Value::Null);
    let admin = orchestrator.login();
    let ended = eventually("it has ended", || {
        let shown = admin.get("/v1/sandboxes/dev").json(200);
        (shown["status"] == "ended").then_some(shown)
    });
    assert_eq!(ended["reason"], "lifetime");
}

#[test]
fn renewed_sandbox_lives_longer() {
    let scene = Scene::with(&[], |call, answer| {
        assert!(call.path.ends_with("/renew"), "{}", call.path);
        let seconds = call.body["lifetime_seconds"].as_u64().unwrap();
        let job = call.path.split('/').nth(4).unwrap();
        let state = json!({"session_id": job, "expires_in_ms": seconds * 1000, "running_execs": 0});
        answer.status(200, &state);
    });
    let sandbox = scene.running(&json!({"name": "dev", "lifetime_seconds": 60}));
    let renewed = scene
        .admin
        .post(
            "/v1/sandboxes/dev/renew",
            &json!({"lifetime_seconds": 7200}),
        )
        .json(200);
    let end: Time = renewed["expires_at"].as_str().unwrap().parse().unwrap();
    let left = end.since(Time::now()).as_secs();
    assert!((7100..=7200).contains(&left), "{renewed}");
    assert_eq!(
        scene.get(&sandbox).json(200)["expires_at"],
        renewed["expires_at"]
    );
    let events = scene.admin.get("/v1/audit?action=sandbox.renew").json(200);
    assert_eq!(events["events"][0]["target"], sandbox["id"]);
    for seconds in [0, 86_401] {
        let body = json!({ "lifetime_seconds": seconds });
        let refused = scene.admin.post("/v1/sandboxes/dev/renew", &body);
        refused.problem(400, "invalid-request");
    }
}

#[test]
fn sandboxes_are_listed_in_pages() {
    let scene = Scene::set(&[]);
    let created: Vec<Value> = (0..3).map(|_| scene.running(&json!({}))).collect();
    scene.end(&created[1], "timeout", Some("idle"));
    let mut expected: Vec<&str> = created
        .iter()
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    expected.reverse();
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let call = format!("/v1/sandboxes?all=true&limit=2&cursor={cursor}");
        let page = scene.admin.get(&call).json(200);
        found.extend(ids(&page).into_iter().map(str::to_owned));
        cursor = page["next_cursor"].as_str().unwrap().to_owned();
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(found, expected);
    let live = scene.admin.get("/v1/sandboxes").json(200);
    assert_eq!(ids(&live), [expected[0], expected[2]]);
    let ann = scene.orchestrator.add_user(&scene.admin, "ann");
    assert_eq!(ids(&ann.get("/v1/sandboxes?all=true").json(200)), [""; 0]);
    ann.get(&path(&created[0], "")).problem(404, "not-found");
    delete(&ann, &path(&created[0], "")).problem(404, "not-found");
}
