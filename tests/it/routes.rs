//! Calls of every listener, and which of them need no credentials.

use crate::support::{Orchestrator, Worker, uuid};

/// Every call of every listener, and whether it answers without a token. A new call must be
/// added here.
fn calls(id: &str) -> [Vec<(&'static str, String, bool)>; 3] {
    let open = |path: &str| ("GET", path.to_owned(), true);
    let mut gateway = vec![
        ("POST", "/v1/auth/login".to_owned(), true),
        ("POST", "/v1/auth/refresh".to_owned(), true),
        ("POST", "/v1/auth/logout".to_owned(), false),
        ("GET", "/v1/users/me".to_owned(), false),
        ("POST", "/v1/users/me/password".to_owned(), false),
        ("POST", "/v1/users".to_owned(), false),
        ("GET", "/v1/users".to_owned(), false),
        ("POST", format!("/v1/users/{id}/disable"), false),
        ("POST", format!("/v1/users/{id}/enable"), false),
        ("POST", format!("/v1/users/{id}/revoke_sessions"), false),
        ("POST", format!("/v1/users/{id}/reset_password"), false),
        ("POST", "/v1/keys".to_owned(), false),
        ("GET", "/v1/keys".to_owned(), false),
        ("DELETE", format!("/v1/keys/{id}"), false),
        ("GET", "/v1/audit".to_owned(), false),
        ("GET", "/v1/usage".to_owned(), false),
        ("POST", "/v1/tasks".to_owned(), false),
        ("GET", "/v1/tasks".to_owned(), false),
        ("GET", format!("/v1/tasks/{id}"), false),
        ("DELETE", format!("/v1/tasks/{id}"), false),
        ("GET", format!("/v1/tasks/{id}/result"), false),
        ("GET", format!("/v1/tasks/{id}/logs"), false),
        ("POST", format!("/v1/tasks/{id}/cancel"), false),
        ("POST", format!("/v1/tasks/{id}/stdin"), false),
        ("GET", format!("/v1/tasks/{id}/artifacts"), false),
        ("POST", "/v1/artifacts".to_owned(), false),
        ("GET", "/v1/artifacts".to_owned(), false),
        ("GET", format!("/v1/artifacts/{id}"), false),
        ("DELETE", format!("/v1/artifacts/{id}"), false),
        ("GET", "/v1/nodes".to_owned(), false),
        ("POST", "/v1/join-tokens".to_owned(), false),
        ("GET", "/v1/join-tokens".to_owned(), false),
        ("DELETE", format!("/v1/join-tokens/{id}"), false),
        ("GET", "/v1/secrets".to_owned(), false),
        ("PUT", "/v1/secrets/A".to_owned(), false),
        ("DELETE", "/v1/secrets/A".to_owned(), false),
        ("POST", "/v1/secrets:rotate-key".to_owned(), false),
        ("GET", "/v1/nodes/box".to_owned(), false),
        ("DELETE", "/v1/nodes/box".to_owned(), false),
        ("POST", "/v1/nodes/box/images".to_owned(), false),
        ("POST", "/v1/nodes/box/drain".to_owned(), false),
        ("POST", "/v1/nodes/box/resume".to_owned(), false),
        ("GET", "/v1/nodes/box/models".to_owned(), false),
        ("POST", "/v1/nodes/box/models:pull".to_owned(), false),
        ("DELETE", "/v1/nodes/box/models/tiny".to_owned(), false),
        open("/openapi.json"),
        open("/healthz"),
        open("/readyz"),
        open("/metrics"),
    ];
    gateway.extend(sandbox_calls(id));
    let control = vec![
        ("POST", "/v1/nodes/register".to_owned(), true),
        ("POST", "/v1/nodes/report".to_owned(), false),
        ("POST", "/v1/nodes/capability".to_owned(), false),
        ("GET", "/v1/nodes/config".to_owned(), false),
        ("POST", "/v1/nodes/config".to_owned(), false),
        ("GET", "/v1/nodes/tunnel".to_owned(), false),
        open("/healthz"),
        open("/readyz"),
        open("/metrics"),
    ];
    let worker = worker_calls(id);
    [gateway, control, worker]
}

fn sandbox_calls(id: &str) -> Vec<(&'static str, String, bool)> {
    let mut calls = vec![
        ("POST", "/v1/sandboxes".to_owned(), false),
        ("GET", "/v1/sandboxes".to_owned(), false),
        ("GET", format!("/v1/sandboxes/{id}"), false),
        ("DELETE", format!("/v1/sandboxes/{id}"), false),
        ("POST", format!("/v1/sandboxes/{id}/renew"), false),
        ("GET", format!("/v1/sandboxes/{id}/events"), false),
        ("POST", format!("/v1/sandboxes/{id}/snapshot"), false),
        ("GET", "/v1/snapshots".to_owned(), false),
        ("DELETE", "/v1/snapshots/dev".to_owned(), false),
    ];
    calls.extend(calls_below(&format!("/v1/sandboxes/{id}"), &FILE_CALLS, id));
    for place in ["sandboxes", "tasks"] {
        calls.extend(calls_below(&format!("/v1/{place}/{id}"), &EXEC_CALLS, id));
    }
    calls
}

/// Calls about the files of a sandbox.
const FILE_CALLS: [(&str, &str); 8] = [
    ("GET", "files"),
    ("PUT", "files"),
    ("DELETE", "files"),
    ("GET", "files:list"),
    ("POST", "files:mkdir"),
    ("POST", "files:move"),
    ("GET", "archive"),
    ("PUT", "archive"),
];
/// Calls about the commands in a sandbox.
const EXEC_CALLS: [(&str, &str); 8] = [
    ("POST", "exec"),
    ("GET", "execs"),
    ("GET", "execs/{exec}"),
    ("GET", "execs/{exec}/logs"),
    ("POST", "execs/{exec}/stdin"),
    ("POST", "execs/{exec}/signal"),
    ("POST", "execs/{exec}/resize"),
    ("GET", "terminal"),
];

/// Calls below the path of a sandbox; none of them is open.
fn calls_below(
    path: &str,
    calls: &[(&'static str, &str)],
    id: &str,
) -> Vec<(&'static str, String, bool)> {
    let calls = calls.iter().map(|(method, call)| {
        let call = call.replace("{exec}", id);
        (*method, format!("{path}/{call}"), false)
    });
    calls.collect()
}

/// Calls about sandboxes that stay, at a node.
fn session_calls(id: &str) -> Vec<(&'static str, String, bool)> {
    let path = format!("/v1/worker/sessions/{id}");
    let mut calls = vec![
        ("POST", "/v1/worker/sessions".to_owned(), false),
        ("GET", path.clone(), false),
        ("DELETE", path.clone(), false),
        ("POST", format!("{path}/end"), false),
        ("POST", format!("{path}/renew"), false),
        ("POST", format!("{path}/snapshot"), false),
    ];
    calls.extend(calls_below(&path, &FILE_CALLS, id));
    calls.extend(calls_below(&path, &EXEC_CALLS, id));
    calls
}

fn worker_calls(id: &str) -> Vec<(&'static str, String, bool)> {
    let open = |path: &str| ("GET", path.to_owned(), true);
    let mut calls = vec![
        ("POST", "/v1/worker/jobs:run".to_owned(), false),
        ("GET", "/v1/worker/jobs".to_owned(), false),
        ("GET", format!("/v1/worker/jobs/{id}"), false),
        ("DELETE", format!("/v1/worker/jobs/{id}"), false),
        ("POST", format!("/v1/worker/jobs/{id}:cancel"), false),
        ("POST", format!("/v1/worker/jobs/{id}/stdin"), false),
        ("GET", format!("/v1/worker/jobs/{id}/log"), false),
        ("GET", format!("/v1/worker/jobs/{id}/artifacts/0"), false),
        (
            "GET",
            format!("/v1/worker/contents/{}", "0".repeat(64)),
            false,
        ),
        (
            "PUT",
            format!("/v1/worker/contents/{}", "0".repeat(64)),
            false,
        ),
        ("POST", "/v1/worker/images:load".to_owned(), false),
        ("GET", "/v1/worker/inference/api/tags".to_owned(), false),
        ("POST", "/v1/worker/inference/api/chat".to_owned(), false),
        ("GET", "/v1/worker/models".to_owned(), false),
        ("POST", "/v1/worker/models:pull".to_owned(), false),
        ("DELETE", "/v1/worker/models/tiny".to_owned(), false),
        ("GET", "/v1/worker/snapshots".to_owned(), false),
        (
            "DELETE",
            "/v1/worker/snapshots?image=localhost/x:1".to_owned(),
            false,
        ),
        open("/healthz"),
        open("/readyz"),
        open("/metrics"),
    ];
    calls.extend(session_calls(id));
    calls
}

#[test]
fn only_listed_routes_need_no_token() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let worker = Worker::start(&[]);
    let listeners = [
        &orchestrator.gateway,
        &orchestrator.control,
        &worker.api.anonymous(),
    ];
    for (listener, calls) in listeners.into_iter().zip(calls(&uuid())) {
        for (method, path, open) in calls {
            let json = [("Content-Type", "application/json")];
            let reply = listener.call(method, &path, &json, b"{}");
            if open {
                assert!(
                    ![401, 403, 404, 405].contains(&reply.status),
                    "{method} {path}: {}",
                    reply.text()
                );
            } else {
                reply.problem(401, "unauthorized");
            }
        }
    }
}

#[test]
fn model_calls_need_credentials() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let calls = [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("GET", "/api/version"),
        ("GET", "/api/tags"),
        ("GET", "/api/ps"),
        ("POST", "/api/chat"),
        ("POST", "/api/generate"),
        ("POST", "/api/embed"),
        ("POST", "/api/show"),
    ];
    let json = [("Content-Type", "application/json")];
    for (method, path) in calls {
        let reply = orchestrator.gateway.call(method, path, &json, b"{}");
        assert_eq!(reply.status, 401, "{method} {path}: {}", reply.text());
        let path = format!("/v1/nodes/inference{path}");
        let reply = orchestrator.control.call(method, &path, &json, b"{}");
        assert_eq!(reply.status, 401, "{method} {path}: {}", reply.text());
    }
}

#[test]
fn list_of_routes_is_complete() {
    let sources = [
        &[
            "src/orchestrator/gateway/mod.rs",
            "src/orchestrator/gateway/join_tokens.rs",
            "src/orchestrator/gateway/sandboxes.rs",
            "src/orchestrator/gateway/secrets.rs",
            "src/orchestrator/gateway/sandbox_calls.rs",
            "src/orchestrator/gateway/snapshots.rs",
            "src/orchestrator/health.rs",
        ][..],
        &[
            "src/orchestrator/control_plane/mod.rs",
            "src/orchestrator/control_plane/tunnel.rs",
            "src/orchestrator/health.rs",
        ],
        &[
            "src/worker/api.rs",
            "src/worker/sessions/mod.rs",
            "src/worker/snapshots/api.rs",
        ],
    ];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (files, calls) in sources.iter().zip(calls("{id}")) {
        let routes: usize = files
            .iter()
            .map(|file| {
                crate::support::read(root.join(file))
                    .matches(".route(")
                    .count()
            })
            .sum();
        assert_eq!(
            routes,
            calls.len(),
            "{files:?}: add the new call to the list above, with what it needs"
        );
    }
}
