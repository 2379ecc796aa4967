//! A stand-in node: it speaks the Node API as a test directs, and serves the Worker API from the
//! test's script.

use super::{
    Api, Orchestrator, Reply,
    cluster::PSK,
    listener::{Answer, Call, Calls, Listener},
};
use serde_json::{Value, json};
use std::{
    io::Write as _,
    net::TcpStream,
    sync::{Arc, Mutex},
};

impl Call {
    /// Whether it is a `jobs:run`.
    pub(crate) fn is_run(&self) -> bool {
        self.path.starts_with("/v1/worker/jobs:run")
    }

    /// The sound result of the job that this call wants to be run.
    pub(crate) fn result(&self, stdout: &str) -> Value {
        let now = "2026-01-01T00:00:00Z";
        json!({
            "version": 1, "task_id": self.body["task_id"], "job_id": self.body["job_id"],
            "attempt": self.body["attempt"], "status": "completed", "exit_code": 0, "stdout": stdout,
            "stderr": "", "started_at": now, "ended_at": now, "truncated": {"stdout": false, "stderr": false},
        })
    }
}

impl Answer {
    /// Begins a stream of events; unless it is ended by a result, it is cut when dropped.
    pub(crate) fn stream(mut self) -> Events {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        let _ = self.0.write_all(head.as_bytes());
        Events(self.0)
    }
}

/// A stream of events under way.
pub(crate) struct Events(TcpStream);

impl Events {
    /// Sends one event.
    pub(crate) fn send(&mut self, event: &Value) -> &mut Self {
        let line = format!("{event}\n");
        let _ = self
            .0
            .write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes());
        self
    }

    /// Sends the result as the last event, and ends the stream.
    pub(crate) fn end(mut self, seq: u64, result: &Value) {
        let mut event = result.clone();
        event["event"] = "result".into();
        event["seq"] = seq.into();
        self.send(&event);
        let _ = self.0.write_all(b"0\r\n\r\n");
    }
}

/// A node that is none.
pub(crate) struct StandIn {
    /// Its name.
    pub(crate) slug: String,
    /// The key by which its slug is its own, if it shows one.
    pub(crate) key: Option<String>,
    /// Where its Worker API is.
    pub(crate) url: String,
    /// The Node API, with the node's token once it is registered.
    pub(crate) control: Api,
    /// Jobs that it lists.
    pub(crate) jobs: Arc<Mutex<Vec<Value>>>,
    /// Answer to `GET /readyz`: 404 by default, so that only its reports show that it is alive.
    pub(crate) readyz: Arc<Mutex<(u16, String)>>,
    calls: Calls,
    _listener: Listener,
}

impl StandIn {
    /// Starts its Worker API. It is unknown to the orchestrator until it registers.
    pub(crate) fn start(
        orchestrator: &Orchestrator,
        slug: &str,
        script: impl Fn(&Call, Answer) + Send + Sync + 'static,
    ) -> Self {
        let jobs = Arc::<Mutex<Vec<Value>>>::default();
        let readyz = Arc::new(Mutex::new((404, String::new())));
        let (has, ready) = (Arc::clone(&jobs), Arc::clone(&readyz));
        let mut node = Self::start_bare(orchestrator, slug, move |call, answer| {
            match (call.method.as_str(), call.path.as_str()) {
                ("GET", "/v1/worker/jobs") => {
                    answer.status(200, &json!({ "jobs": *has.lock().unwrap() }));
                }
                ("GET", "/readyz") => {
                    let (status, text) = ready.lock().unwrap().clone();
                    answer.text(status, &text);
                }
                // It is alive where a test says anything of its readiness.
                ("GET", "/healthz") if ready.lock().unwrap().0 != 404 => answer.text(200, "ok"),
                _ => script(call, answer),
            }
        });
        (node.jobs, node.readyz) = (jobs, readyz);
        node
    }

    /// The same where every call is the script's to answer.
    pub(crate) fn start_bare(
        orchestrator: &Orchestrator,
        slug: &str,
        script: impl Fn(&Call, Answer) + Send + Sync + 'static,
    ) -> Self {
        let calls = Calls::default();
        let listener = Listener::open("127.0.0.1:0", &calls, script);
        Self {
            slug: slug.to_owned(),
            key: None,
            url: format!("http://{}", listener.address),
            control: orchestrator.control.clone(),
            jobs: Arc::default(),
            readyz: Arc::default(),
            calls,
            _listener: listener,
        }
    }

    /// Starts one whose Worker API takes nothing.
    pub(crate) fn idle(orchestrator: &Orchestrator, slug: &str) -> Self {
        Self::start(orchestrator, slug, |_, answer| answer.refuse(503))
    }

    /// Registers, fetches the configuration and acknowledges it: the orchestrator may give it jobs.
    pub(crate) fn join(&mut self) {
        self.register();
        let version = self.config()["config_version"].clone();
        self.ack(&version, "applied").expect(204);
    }

    /// Registers; the bootstrap payload.
    pub(crate) fn register(&mut self) -> Value {
        let reply = self.ask_to_register();
        assert!([200, 201].contains(&reply.status), "{}", reply.text());
        let bootstrap: Value = serde_json::from_slice(&reply.body).unwrap();
        self.control = self
            .control
            .with_token(bootstrap["auth"]["node_jwt"].as_str().unwrap());
        bootstrap
    }

    /// Sends a registration and returns the answer.
    pub(crate) fn ask_to_register(&self) -> Reply {
        let mut body = json!({"psk": PSK, "capability": capability(&self.slug, &self.url)});
        if let Some(key) = &self.key {
            body["node_key"] = key.as_str().into();
        }
        self.control.anonymous().post("/v1/nodes/register", &body)
    }

    /// Fetches the configuration.
    pub(crate) fn config(&self) -> Value {
        self.control.get("/v1/nodes/config").json(200)
    }

    /// Acknowledges a version.
    pub(crate) fn ack(&self, version: &Value, status: &str) -> Reply {
        let ack = json!({
            "version": 1, "node_slug": self.slug, "config_version": version,
            "ack_at": "2026-01-01T00:00:00Z", "status": status,
        });
        self.control.post("/v1/nodes/config", &ack)
    }

    /// Sends a capability report.
    pub(crate) fn report(&self, report: &Value) -> Reply {
        self.control.post("/v1/nodes/report", report)
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.all()
    }

    /// Waits for a call that is like this.
    pub(crate) fn call(&self, what: &str, like: impl Fn(&Call) -> bool) -> Call {
        self.calls.wait(what, like)
    }
}

/// A capability report that says no more than it must.
pub(crate) fn capability(slug: &str, url: &str) -> Value {
    json!({
        "version": 1, "reported_at": "2026-01-01T00:00:00Z", "node": {"node_slug": slug, "labels": ["stand-in"]},
        "platform": {"os": "linux", "arch": "amd64"}, "compute": {"cpu_cores": 1, "ram_mb": 1},
        "sandbox": {"supported": true, "max_concurrency": 2}, "worker_api": {"base_url": url},
    })
}
