//! A sandbox that stays, through the User API.

use super::{Api, Reply, eventually};
use serde_json::{Value, json};

/// Sandbox of a user.
pub(crate) struct Sandbox {
    /// The User API as its user.
    pub(crate) user: Api,
    /// Id.
    pub(crate) id: String,
}

impl Sandbox {
    /// Creates one that runs.
    #[track_caller]
    pub(crate) fn create(user: &Api, wanted: &Value) -> Self {
        let sandbox = user.post("/v1/sandboxes", wanted).json(201);
        assert_eq!(sandbox["status"], "running", "{sandbox}");
        let sandbox = Self {
            user: user.clone(),
            id: sandbox["id"].as_str().unwrap().to_owned(),
        };
        // Each test begins with an empty workspace.
        sandbox.output("rmdir artifacts");
        sandbox
    }

    /// Path of a call about it.
    pub(crate) fn path(&self, call: &str) -> String {
        format!("/v1/sandboxes/{}/{call}", self.id)
    }

    /// State as it is now.
    pub(crate) fn state(&self) -> Value {
        self.user
            .get(&format!("/v1/sandboxes/{}", self.id))
            .json(200)
    }

    /// Runs a script to its end; its result.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.exec(&json!({"script": script}))
    }

    /// Runs a command to its end; its result.
    pub(crate) fn exec(&self, wanted: &Value) -> Value {
        self.user.post(&self.path("exec"), wanted).json(200)
    }

    /// Runs a script that succeeds; its stdout.
    #[track_caller]
    pub(crate) fn output(&self, script: &str) -> String {
        let result = self.run(script);
        assert_eq!(result["exit_code"], 0, "{script}: {result}");
        result["stdout"].as_str().unwrap().to_owned()
    }

    /// Calls with a body that is not JSON.
    pub(crate) fn call(&self, method: &str, call: &str, body: &[u8]) -> Reply {
        self.user.call(method, &self.path(call), &[], body)
    }

    /// GET.
    pub(crate) fn get(&self, call: &str) -> Reply {
        self.call("GET", call, b"")
    }

    /// PUT.
    pub(crate) fn put(&self, call: &str, body: &[u8]) -> Reply {
        self.call("PUT", call, body)
    }

    /// POST of JSON.
    pub(crate) fn post(&self, call: &str, body: &Value) -> Reply {
        self.user.post(&self.path(call), body)
    }

    /// Waits for its end; the reason.
    pub(crate) fn end(&self) -> Value {
        eventually("the sandbox ends", || {
            let state = self.state();
            (state["status"] == "ended").then(|| state["reason"].clone())
        })
    }

    /// Deletes it, and waits until it has ended.
    pub(crate) fn delete(&self) {
        let path = format!("/v1/sandboxes/{}", self.id);
        let deleted = self.user.call("DELETE", &path, &[], b"");
        assert!(deleted.status < 300, "{}", deleted.text());
        assert_eq!(self.end(), "deleted");
    }
}
