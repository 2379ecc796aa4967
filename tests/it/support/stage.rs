//! An orchestrator with one stand-in node.

use super::{Answer, Api, Call, Orchestrator, StandIn, cluster::finish};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// An orchestrator, a stand-in node that has joined, and the admin.
pub(crate) struct Stage {
    /// The User API as the admin.
    pub(crate) user: Api,
    /// The node.
    pub(crate) node: StandIn,
    /// The orchestrator.
    pub(crate) orchestrator: Orchestrator,
    /// The directory below which everything lies.
    pub(crate) home: TempDir,
}

/// Answers a call to run with a stream that ends at once; anything else with 204.
pub(crate) fn well(call: &Call, answer: Answer) {
    if call.is_run() {
        answer.stream().end(1, &call.result("done\n"));
    } else {
        answer.status(204, &Value::Null);
    }
}

impl Stage {
    /// The node answers calls as `script` says; the first argument counts the calls to run, from 1.
    pub(crate) fn set(script: impl Fn(usize, &Call, Answer) + Send + Sync + 'static) -> Self {
        Self::set_without_joining(script).joined()
    }

    /// The node joins.
    pub(crate) fn joined(mut self) -> Self {
        self.node.join();
        self
    }

    /// The same with a node that is unknown yet.
    pub(crate) fn set_without_joining(
        script: impl Fn(usize, &Call, Answer) + Send + Sync + 'static,
    ) -> Self {
        Self::raise(tempfile::tempdir().unwrap(), &[], script)
    }

    /// The same below this directory, with what the orchestrator's operator says in `more`.
    pub(crate) fn raise(
        home: TempDir,
        more: &[&str],
        script: impl Fn(usize, &Call, Answer) + Send + Sync + 'static,
    ) -> Self {
        let orchestrator = Orchestrator::start(home.path(), more);
        let runs = AtomicUsize::new(0);
        let node = StandIn::start(&orchestrator, "box", move |call, answer| {
            let run = if call.is_run() {
                runs.fetch_add(1, Ordering::SeqCst) + 1
            } else {
                0
            };
            script(run, call, answer);
        });
        Self {
            user: orchestrator.login(),
            node,
            orchestrator,
            home,
        }
    }

    /// Creates a task; its id.
    pub(crate) fn create(&self, changes: Value) -> String {
        let mut task = json!({"command": ["true"]});
        task.as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        self.user.post("/v1/tasks", &task).json(201)["id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Waits for a task's end: the task, and its job.
    pub(crate) fn finish(&self, id: &str) -> (Value, Value) {
        let task = finish(&self.user, id);
        let result = self.user.get(&format!("/v1/tasks/{id}/result")).json(200);
        (task, result["jobs"][0].clone())
    }

    /// The attempts that the node was asked to run.
    pub(crate) fn attempts(&self) -> Vec<u64> {
        self.node
            .calls()
            .iter()
            .filter(|call| call.is_run())
            .map(|call| call.body["attempt"].as_u64().unwrap())
            .collect()
    }
}
