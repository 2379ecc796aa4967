//! Finished tasks that are deleted before their retention ends.

use crate::support::{
    Api, Orchestrator,
    cluster::Cluster,
    stage::{Stage, well},
};
use serde_json::{Value, json};

fn delete(user: &Api, id: &str) -> crate::support::Reply {
    user.call("DELETE", &format!("/v1/tasks/{id}"), &[], b"")
}

fn create(user: &Api, key: &str) -> String {
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", key),
    ];
    let task = json!({"command": ["true"], "task_name": "build"}).to_string();
    let created = user
        .call("POST", "/v1/tasks", &headers, task.as_bytes())
        .json(201);
    created["id"].as_str().unwrap().to_owned()
}

fn cancel(user: &Api, id: &str) {
    user.act(&format!("/v1/tasks/{id}/cancel")).expect(200);
}

#[test]
fn owners_and_admins_delete_finished_tasks() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let [ann, bob] = ["ann", "bob"].map(|handle| orchestrator.add_user(&admin, handle));
    let [first, second] = ["a", "b"].map(|key| create(&ann, key));
    let problem = delete(&ann, &first).problem(409, "conflict");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("queued") && detail.contains("cancel"),
        "{detail}"
    );
    cancel(&ann, &first);
    cancel(&ann, &second);
    delete(&bob, &first).problem(404, "not-found");
    delete(&ann, &first).expect(204);
    delete(&ann, &first).problem(404, "not-found");
    for path in ["", "/result", "/logs"] {
        let gone = ann.get(&format!("/v1/tasks/{first}{path}"));
        gone.problem(404, "not-found");
    }
    // Its key and its name are free again.
    let repeated = create(&ann, "a");
    assert_ne!(repeated, first);
    let named = ann.get("/v1/tasks/build").json(200);
    assert_eq!(named["id"], repeated.as_str());
    delete(&admin, "build-2").expect(204);
    delete(&ann, &second).problem(404, "not-found");

    let log = admin.get("/v1/audit?action=task.delete").json(200);
    let rows: Vec<[&Value; 3]> = log["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| [&event["actor"], &event["target"], &event["outcome"]])
        .collect();
    assert_eq!(
        json!(rows),
        json!([["admin", second, "success"], ["ann", first, "success"]])
    );
}

#[test]
fn running_task_is_not_deleted() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let receiver = std::sync::Mutex::new(receiver);
    let stage = Stage::set(move |_, call, answer| {
        if call.is_run() {
            let _ = receiver.lock().unwrap().recv();
        }
        well(call, answer);
    });
    let id = stage.create(json!({}));
    stage.node.call("run", crate::support::Call::is_run);
    delete(&stage.user, &id).problem(409, "conflict");
    sender.send(()).unwrap();
    stage.finish(&id);
    delete(&stage.user, &id).expect(204);
}

#[test]
fn client_deletes_several_tasks() {
    let cluster = Cluster::start();
    let ids = [cluster.script("true"), cluster.script("true")];
    for id in &ids {
        cluster.finish(id);
    }
    let done = cluster.run(&["task", "delete", &ids[0], &ids[1]]);
    assert_eq!(
        (done.code, done.stdout),
        (0, format!("{} deleted\n{} deleted\n", ids[0], ids[1]))
    );
    let done = cluster.run(&["task", "delete", &ids[0]]);
    assert_eq!(done.code, 4, "{done:?}");
}
