//! A stand-in for a gateway with one sandbox that stays, called `box`.

use super::{
    Answer, Call,
    client::client,
    listener::{Calls, Listener},
};
use serde_json::{Value, json};
use std::{path::Path, process::Command};

/// Id of the sandbox, and of an exec.
pub(crate) const ID: &str = "019a0000-0000-7000-8000-000000000001";

/// Gateway with the sandbox `box`.
pub(crate) struct Gateway {
    listener: Listener,
    pub(crate) calls: Calls,
}

impl Gateway {
    /// Starts one whose calls below the sandbox are the script's to answer; it gets the rest of their path.
    pub(crate) fn start(script: impl Fn(&str, &Call, Answer) + Send + Sync + 'static) -> Self {
        let calls = Calls::default();
        let listener = Listener::open("127.0.0.1:0", &calls, move |call, answer| {
            let path = call.path.strip_prefix("/v1/sandboxes/box");
            let path = path.or_else(|| call.path.strip_prefix(&format!("/v1/sandboxes/{ID}")));
            match (call.method.as_str(), path) {
                ("GET", Some("")) => answer.status(200, &sandbox("running")),
                (_, Some(rest)) => script(rest, call, answer),
                _ => script(&call.path, call, answer),
            }
        });
        Self { listener, calls }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listener.address)
    }

    pub(crate) fn command(&self, home: &Path, arguments: &[&str]) -> Command {
        let mut command = client(home, &self.url(), arguments);
        command.env("CYNODE_TOKEN", "cyk_test").env("NO_COLOR", "1");
        command
    }

    /// Calls whose path ends so, before its query.
    pub(crate) fn calls_of(&self, method: &str, end: &str) -> Vec<Call> {
        let mut calls = self.calls.all();
        calls.retain(|call| {
            let path = call.path.split('?').next().unwrap();
            call.method == method && path.ends_with(end)
        });
        calls
    }
}

/// The sandbox, in this state.
pub(crate) fn sandbox(status: &str) -> Value {
    json!({
        "id": ID, "name": "box", "status": status, "node_slug": "n1", "image": "docker.io/library/alpine:3",
        "lifetime_seconds": 3600, "idle_timeout_seconds": 900, "created_at": "2026-01-01T00:00:00Z",
        "expires_at": "2126-01-01T00:00:00Z",
    })
}

/// An exec in this state.
pub(crate) fn exec(id: &str, status: &str, code: Option<i32>) -> Value {
    json!({
        "exec_id": id, "status": status, "exit_code": code, "command": ["x"], "tty": true,
        "started_at": "2026-01-01T00:00:00Z",
    })
}
