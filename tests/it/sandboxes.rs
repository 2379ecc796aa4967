//! Sandboxes that stay, as the User API shows them. The nodes are stand-ins that record their calls.

mod access;
mod life;
mod passed;
mod snapshots;

use crate::support::{Answer, Api, Call, Orchestrator, StandIn, eventually, stand_in::capability};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;

/// Orchestrator with a node that starts sandboxes and keeps them until a test ends them.
struct Scene {
    orchestrator: Orchestrator,
    admin: Api,
    node: StandIn,
    ends: Ends,
    _home: TempDir,
}

/// Results with which the node ends its sandboxes, by job; and its answers to calls about them.
#[derive(Clone, Default)]
struct Ends(Arc<Mutex<HashMap<String, Value>>>);

impl Ends {
    fn set(&self, job: &str, result: Value) {
        self.0.lock().unwrap().insert(job.to_owned(), result);
    }

    fn wait(&self, job: &str) -> Value {
        eventually("the test ends the sandbox", || {
            self.0.lock().unwrap().get(job).cloned()
        })
    }
}

/// Result of a sandbox that ended like this.
fn end_of(run: &Call, status: &str, reason: Option<&str>) -> Value {
    let mut result = run.result("");
    result["status"] = status.into();
    result.as_object_mut().unwrap().remove("exit_code");
    if let Some(reason) = reason {
        result["reason"] = reason.into();
    }
    result
}

/// Runs jobs as sandboxes that stay: each starts at once, and ends as `ends` says, or when it is canceled.
fn keep(ends: &Ends, call: &Call, answer: Answer) {
    if call.is_run() {
        let job = call.body["job_id"].as_str().unwrap();
        let started = json!({"event": "started", "attempt": call.body["attempt"], "seq": 1});
        let mut events = answer.stream();
        events.send(&started);
        let mut result = ends.wait(job);
        if result.is_null() {
            result = end_of(call, "canceled", Some("deleted"));
        } else if let Some(end) = result.as_array() {
            result = end_of(call, end[0].as_str().unwrap(), end[1].as_str());
        }
        return events.end(2, &result);
    }
    let job = call.path.split(['/', ':', '?']).nth(4).unwrap_or_default();
    match call.method.as_str() {
        "POST" if call.path.contains(":cancel") => {
            ends.set(job, Value::Null);
            answer.status(204, &Value::Null);
        }
        "DELETE" => answer.status(204, &Value::Null),
        _ => answer.problem(404, "not-found"),
    }
}

impl Scene {
    /// Node that answers calls about sandboxes as `script` says.
    fn with(flags: &[&str], script: impl Fn(&Call, Answer) + Send + Sync + 'static) -> Self {
        let home = tempfile::tempdir().unwrap();
        let orchestrator = Orchestrator::start(home.path(), flags);
        let ends = Ends::default();
        let known = ends.clone();
        let mut node = StandIn::start(&orchestrator, "box", move |call, answer| {
            let is_asked = ["/v1/worker/sessions/", "/v1/worker/snapshots"];
            if is_asked.iter().any(|start| call.path.starts_with(start)) {
                script(call, answer);
            } else {
                keep(&known, call, answer);
            }
        });
        node.join();
        report(&node, 8);
        Self {
            admin: orchestrator.login(),
            orchestrator,
            node,
            ends,
            _home: home,
        }
    }

    fn set(flags: &[&str]) -> Self {
        Self::with(flags, |_, answer| answer.problem(404, "not-found"))
    }

    /// Sandbox that runs.
    fn running(&self, body: &Value) -> Value {
        let created = self.admin.post("/v1/sandboxes", body).json(201);
        assert_eq!(created["status"], "running", "{created}");
        created
    }

    /// Job of a sandbox, as the node got it.
    fn job(&self, sandbox: &Value) -> String {
        let is_its = |call: &Call| call.is_run() && call.body["task_id"] == sandbox["id"];
        let run = self.node.call("run the sandbox", is_its);
        run.body["job_id"].as_str().unwrap().to_owned()
    }

    /// Has the node end a sandbox; waits until its end shows.
    fn end(&self, sandbox: &Value, status: &str, reason: Option<&str>) -> Value {
        self.ends.set(&self.job(sandbox), json!([status, reason]));
        self.ended(sandbox)
    }

    fn ended(&self, sandbox: &Value) -> Value {
        eventually("the sandbox has ended", || {
            let shown = self.get(sandbox).json(200);
            (shown["status"] == "ended").then_some(shown)
        })
    }

    fn get(&self, sandbox: &Value) -> crate::support::Reply {
        self.admin.get(&path(sandbox, ""))
    }
}

fn report(node: &StandIn, slots: u32) {
    let mut report = capability(&node.slug, &node.url);
    report["sandbox"]["max_concurrency"] = slots.into();
    report["sandbox"]["features"] = json!(["sessions"]);
    node.report(&report).expect(204);
}

/// Path below a sandbox.
fn path(sandbox: &Value, rest: &str) -> String {
    format!("/v1/sandboxes/{}{rest}", sandbox["id"].as_str().unwrap())
}

fn delete(api: &Api, path: &str) -> crate::support::Reply {
    api.call("DELETE", path, &[], b"")
}

/// Ids of a list.
fn ids(list: &Value) -> Vec<&str> {
    let sandboxes = list["sandboxes"].as_array().unwrap().iter();
    sandboxes.map(|one| one["id"].as_str().unwrap()).collect()
}
