//! Cancels that cross the result of their job: the answer is the final state of the task.

use crate::support::{
    Call, Process, cynode, eventually,
    stage::{Stage, well},
};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Jobs of a stand-in to end, and their exits.
#[derive(Clone, Default)]
struct Ends(Arc<Mutex<HashSet<(String, &'static str)>>>);

impl Ends {
    fn order(&self, job: &str, how: &'static str) {
        self.0.lock().unwrap().insert((job.to_owned(), how));
    }

    /// Waits until a job is to end.
    fn wait(&self, job: &str) -> &'static str {
        eventually("the test ends the job", || {
            let ends = self.0.lock().unwrap();
            ["failed", "canceled"]
                .into_iter()
                .find(|how| ends.contains(&(job.to_owned(), how)))
        })
    }
}

/// A node whose jobs run until the test ends them, or a cancel unless the node is `deaf`.
fn stage(ends: &Ends, deaf: bool) -> Stage {
    let ends = ends.clone();
    Stage::set(move |_, call, answer| {
        if call.is_run() {
            let job = call.body["job_id"].as_str().unwrap();
            let mut events = answer.stream();
            events.send(&json!({"event": "started", "attempt": 1, "seq": 1}));
            let mut result = call.result("");
            match ends.wait(job) {
                "failed" => (result["status"], result["exit_code"]) = (json!("failed"), json!(7)),
                how => (result["status"], result["exit_code"]) = (json!(how), Value::Null),
            }
            events.end(2, &result);
        } else if let Some((path, _)) = call.path.split_once(":cancel") {
            if !deaf {
                ends.order(path.rsplit('/').next().unwrap(), "canceled");
            }
            answer.status(200, &json!({"status": "running"}));
        } else {
            well(call, answer);
        }
    })
}

/// The job of a task, once its node has it.
fn job_of(stage: &Stage, task: &str) -> String {
    let run = stage.node.call("run", |call: &Call| {
        call.is_run() && call.body["task_id"] == task
    });
    run.body["job_id"].as_str().unwrap().to_owned()
}

#[test]
fn cancel_returns_final_task_state() {
    let ends = Ends::default();
    let deaf = stage(&ends, true);
    let id = deaf.create(json!({}));
    let job = job_of(&deaf, &id);
    thread::scope(|scope| {
        let cancel = scope.spawn(|| deaf.user.act(&format!("/v1/tasks/{id}/cancel")).json(200));
        deaf.node
            .call("cancel", |call| call.path.contains(":cancel"));
        // Its command had ended before the cancel came.
        ends.order(&job, "failed");
        let answer = cancel.join().unwrap();
        assert_eq!(answer, json!({"task_id": id, "canceled": false}));
    });
    let (task, _) = deaf.finish(&id);
    assert_eq!(
        (&task["status"], &task["exit_code"]),
        (&json!("failed"), &json!(7))
    );
    let again = deaf.user.act(&format!("/v1/tasks/{id}/cancel")).json(200);
    assert_eq!(again["canceled"], false);
}

#[test]
fn racing_cancel_and_result_agree() {
    let ends = Ends::default();
    let stage = stage(&ends, false);
    for n in 0..60 {
        let id = stage.create(json!({"max_attempts": 1}));
        let job = job_of(&stage, &id);
        let start = Barrier::new(2);
        let answer = thread::scope(|scope| {
            let cancel = scope.spawn(|| {
                start.wait();
                stage.user.act(&format!("/v1/tasks/{id}/cancel")).json(200)
            });
            start.wait();
            ends.order(&job, "failed");
            cancel.join().unwrap()
        });
        // Read immediately: an answer that becomes true only later fails here.
        let status = stage.user.get(&format!("/v1/tasks/{id}")).json(200)["status"].clone();
        assert_eq!(answer["canceled"], status == "canceled", "{n}: {status}");
        assert!(
            ["canceled", "failed"].contains(&status.as_str().unwrap()),
            "{n}: {status}"
        );
    }
}

#[test]
fn cancel_during_shutdown_stays_pending() {
    let ends = Ends::default();
    let mut stage = stage(&ends, true);
    let id = stage.create(json!({}));
    let job = job_of(&stage, &id);
    let user = stage.user.clone();
    let path = format!("/v1/tasks/{id}/cancel");
    let cancel = thread::spawn(move || user.act(&path));
    stage
        .node
        .call("cancel", |call| call.path.contains(":cancel"));
    assert_eq!(stage.orchestrator.process.terminate(), 0);
    cancel.join().unwrap().problem(503, "unavailable");
    ends.order(&job, "canceled");
}

#[test]
fn client_reports_cancel_pending_at_node() {
    let ends = Ends::default();
    let stage = stage(&ends, true);
    let id = stage.create(json!({}));
    let job = job_of(&stage, &id);
    let home = stage.home.path();
    let mut command = cynode(home);
    command
        .args(["task", "cancel", &id])
        .env("CYNODE_GATEWAY_URL", &stage.orchestrator.gateway_url)
        .env("CYNODE_TOKEN", stage.user.token());
    let mut client = Process::start("client", home, &mut command);
    eventually("the task shows the reason for its wait", || {
        let said = client.stderr();
        said.contains("waiting for the node to confirm")
            .then_some(())
    });
    ends.order(&job, "canceled");
    assert_eq!(client.code(), 0);
    assert_eq!(client.stdout(), "canceled\n");
}

#[test]
fn repeated_cancel_of_a_node_is_no_warning() {
    let ends = Ends::default();
    let (seen, cancels) = (ends.clone(), AtomicUsize::new(0));
    let stage = Stage::set(move |_, call, answer| {
        if call.is_run() {
            let job = call.body["job_id"].as_str().unwrap();
            let mut events = answer.stream();
            events.send(&json!({"event": "started", "attempt": 1, "seq": 1}));
            let mut result = call.result("");
            (result["status"], result["exit_code"]) = (json!(seen.wait(job)), Value::Null);
            events.end(2, &result);
        } else if let Some((path, _)) = call.path.split_once(":cancel") {
            // As while the request that runs the job is under way.
            if cancels.fetch_add(1, Ordering::SeqCst) < 2 {
                return answer.problem(404, "not-found");
            }
            seen.order(path.rsplit('/').next().unwrap(), "canceled");
            answer.status(200, &json!({"status": "running"}));
        } else {
            well(call, answer);
        }
    });
    let id = stage.create(json!({}));
    job_of(&stage, &id);
    let answer = stage.user.act(&format!("/v1/tasks/{id}/cancel"));
    assert_eq!(answer.json(200)["canceled"], true);
    let log = stage.orchestrator.process.stderr();
    assert!(!log.contains("cancel an attempt"), "{log}");
    assert!(!log.contains("retries"), "{log}");
}
