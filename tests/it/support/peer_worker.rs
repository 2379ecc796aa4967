//! Worker of another implementation: it speaks the published contract and nothing more.
//!
//! `jobs:run` answers one JSON document once the command has ended, without an attempt and without an
//! exit code of 0; it sends no events, reads no query parameters, and knows no other call about jobs.

use super::{Answer, Call, Orchestrator, StandIn, stand_in::capability};
use serde_json::{Value, json};

/// Answers what every such worker answers, and anything else with its web framework's 404.
pub(crate) fn nothing_more(call: &Call, answer: Answer) {
    match (call.method.as_str(), call.path.as_str()) {
        ("GET", "/healthz") => answer.bytes(200, "text/plain", "ok"),
        ("GET", "/readyz") => answer.bytes(200, "text/plain", "ready"),
        _ => answer.bytes(404, "text/plain", "404 page not found\n"),
    }
}

impl Call {
    /// The result that such a worker answers for a command with this exit code.
    pub(crate) fn plain_result(&self, exit_code: i64, stdout: &str) -> Value {
        let now = "2026-01-01T00:00:00Z";
        let mut result = json!({
            "version": 1, "task_id": self.body["task_id"], "job_id": self.body["job_id"], "status": "completed",
            "stdout": stdout, "stderr": "", "started_at": now, "ended_at": now,
            "truncated": {"stdout": false, "stderr": false},
        });
        if exit_code != 0 {
            (result["status"], result["exit_code"]) = ("failed".into(), exit_code.into());
        }
        result
    }
}

/// Node of another implementation.
pub(crate) struct PeerWorker;

impl PeerWorker {
    /// Joins one that answers calls to run as `run` says.
    pub(crate) fn join(
        orchestrator: &Orchestrator,
        slug: &str,
        run: impl Fn(&Call, Answer) + Send + Sync + 'static,
    ) -> StandIn {
        Self::join_with(orchestrator, slug, move |call, answer| {
            if call.is_run() {
                run(call, answer);
            } else {
                nothing_more(call, answer);
            }
        })
    }

    /// The same where all calls are the script's to answer.
    pub(crate) fn join_with(
        orchestrator: &Orchestrator,
        slug: &str,
        script: impl Fn(&Call, Answer) + Send + Sync + 'static,
    ) -> StandIn {
        let mut node = StandIn::start_bare(orchestrator, slug, script);
        node.join();
        node.report(&capability(slug, &node.url)).expect(204);
        node
    }
}
