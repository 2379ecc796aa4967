//! Authentication: passwords, tokens, sessions, and the list of calls that need none.

use crate::support::{Api, Orchestrator, PASSWORD, StandIn, Worker, uuid};
use serde_json::{Value, json};

/// Tokens from a login of the admin.
fn log_in(gateway: &Api) -> Value {
    gateway
        .post(
            "/v1/auth/login",
            &json!({"handle": "admin", "password": PASSWORD}),
        )
        .json(200)
}

/// Exchanges a refresh token.
fn refresh(gateway: &Api, tokens: &Value) -> crate::support::Reply {
    gateway.post(
        "/v1/auth/refresh",
        &json!({"refresh_token": tokens["refresh_token"]}),
    )
}

/// API with the access token of these tokens.
fn with(gateway: &Api, tokens: &Value) -> Api {
    gateway.with_token(tokens["access_token"].as_str().unwrap())
}

#[test]
fn login_returns_tokens_for_its_user() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let gateway = &orchestrator.gateway;
    let tokens = log_in(gateway);
    assert_eq!(
        (&tokens["token_type"], &tokens["expires_in"]),
        (&json!("Bearer"), &json!(900))
    );
    let me = with(gateway, &tokens).get("/v1/users/me").json(200);
    assert_eq!(
        (&me["handle"], &me["is_active"], &me["is_admin"]),
        (&json!("admin"), &json!(true), &json!(true))
    );
    assert_eq!(me["id"].as_str().map(str::len), Some(36));
    assert_eq!(me.get("password_hash"), None);

    let wrong = gateway
        .post(
            "/v1/auth/login",
            &json!({"handle": "admin", "password": "wrong"}),
        )
        .problem(401, "unauthorized");
    let unknown = gateway
        .post(
            "/v1/auth/login",
            &json!({"handle": "nobody", "password": "wrong"}),
        )
        .problem(401, "unauthorized");
    assert_eq!(
        wrong["detail"], unknown["detail"],
        "an unknown handle gets the same answer"
    );
    for password in ["", &PASSWORD.to_uppercase(), &format!("{PASSWORD} ")] {
        let reply = gateway.post(
            "/v1/auth/login",
            &json!({"handle": "admin", "password": password}),
        );
        reply.problem(401, "unauthorized");
    }
}

#[test]
fn guesses_are_slowed_but_good_logins_are_not() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let gateway = &orchestrator.gateway;
    for _ in 0..8 {
        log_in(gateway);
    }
    let guess = || {
        gateway.post(
            "/v1/auth/login",
            &json!({"handle": "admin", "password": "guess"}),
        )
    };
    let statuses: Vec<u16> = (0..6).map(|_| guess().status).collect();
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429]);
    let refused = guess();
    refused.problem(429, "too-many-requests");
    assert!(
        refused
            .header("retry-after")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1
    );
}

#[test]
fn reused_refresh_token_ends_session() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let gateway = &orchestrator.gateway;
    let (first, other) = (log_in(gateway), log_in(gateway));
    let second = refresh(gateway, &first).json(200);
    assert_eq!(second["expires_in"], 900);
    assert_ne!(second["refresh_token"], first["refresh_token"]);
    let third = refresh(gateway, &second).json(200);
    with(gateway, &third).get("/v1/users/me").expect(200);

    refresh(gateway, &first).problem(401, "unauthorized");
    for tokens in [&first, &second, &third] {
        with(gateway, tokens)
            .get("/v1/users/me")
            .problem(401, "unauthorized");
        refresh(gateway, tokens).problem(401, "unauthorized");
    }
    with(gateway, &other).get("/v1/users/me").expect(200);
    refresh(gateway, &other).expect(200);
    let unknown = gateway.post("/v1/auth/refresh", &json!({"refresh_token": "unknown"}));
    unknown.problem(401, "unauthorized");
}

#[test]
fn logout_works_at_once() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let gateway = &orchestrator.gateway;
    for body in [
        Value::Null,
        json!({}),
        json!({"refresh_token": "of nobody"}),
    ] {
        let tokens = log_in(gateway);
        let user = with(gateway, &tokens);
        let reply = if body.is_null() {
            user.act("/v1/auth/logout")
        } else {
            user.post("/v1/auth/logout", &body)
        };
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (204, ""),
            "with {body}"
        );
        user.get("/v1/users/me").problem(401, "unauthorized");
        user.post("/v1/tasks", &json!({"script": "true"}))
            .problem(401, "unauthorized");
        refresh(gateway, &tokens).problem(401, "unauthorized");
    }
    let (here, there) = (log_in(gateway), log_in(gateway));
    with(gateway, &here)
        .post(
            "/v1/auth/logout",
            &json!({"refresh_token": there["refresh_token"]}),
        )
        .expect(204);
    with(gateway, &there)
        .get("/v1/users/me")
        .problem(401, "unauthorized");
}

#[test]
fn session_and_logout_outlive_restart() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (kept, ended) = (log_in(&orchestrator.gateway), log_in(&orchestrator.gateway));
    with(&orchestrator.gateway, &ended)
        .act("/v1/auth/logout")
        .expect(204);
    drop(orchestrator);
    let orchestrator = Orchestrator::start(home.path(), &[]);
    with(&orchestrator.gateway, &kept)
        .get("/v1/users/me")
        .expect(200);
    with(&orchestrator.gateway, &ended)
        .get("/v1/users/me")
        .problem(401, "unauthorized");
    log_in(&orchestrator.gateway);
}

#[test]
fn token_serves_one_kind_of_caller() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = StandIn::idle(&orchestrator, "box");
    node.register();
    let worker_token = node.config()["worker_api"]["orchestrator_bearer_token"]
        .as_str()
        .unwrap()
        .to_owned();
    for token in [node.control.token(), &worker_token] {
        user.with_token(token)
            .get("/v1/users/me")
            .problem(401, "unauthorized");
        user.with_token(token)
            .get("/v1/tasks")
            .problem(401, "unauthorized");
    }
    for token in [user.token(), &worker_token] {
        orchestrator
            .control
            .with_token(token)
            .get("/v1/nodes/config")
            .problem(401, "unauthorized");
    }
    let (head, signature) = user.token().rsplit_once('.').unwrap();
    let (header, payload) = head.split_once('.').unwrap();
    let first = if signature.starts_with('A') { "B" } else { "A" };
    // An expired token: {"exp":1} with the signature of a valid one.
    for token in [
        "garbage".to_owned(),
        head.to_owned(),
        format!("{head}."),
        format!("{head}.{first}{}", &signature[1..]),
        format!("eyJhbGciOiJub25lIn0.{payload}."),
        format!("{header}.eyJleHAiOjF9.{signature}"),
        "x".repeat(7000),
    ] {
        user.with_token(&token)
            .get("/v1/users/me")
            .problem(401, "unauthorized");
    }
}

/// Every call of every listener, and whether it answers without a token. A new call must be
/// added here.
fn calls(id: &str) -> [Vec<(&'static str, String, bool)>; 3] {
    let open = |path: &str| ("GET", path.to_owned(), true);
    let gateway = vec![
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
        ("GET", "/v1/nodes/box".to_owned(), false),
        ("DELETE", "/v1/nodes/box".to_owned(), false),
        ("POST", "/v1/nodes/box/images".to_owned(), false),
        ("POST", "/v1/nodes/box/drain".to_owned(), false),
        ("POST", "/v1/nodes/box/resume".to_owned(), false),
        open("/openapi.json"),
        open("/healthz"),
        open("/readyz"),
        open("/metrics"),
    ];
    let control = vec![
        ("POST", "/v1/nodes/register".to_owned(), true),
        ("POST", "/v1/nodes/report".to_owned(), false),
        ("POST", "/v1/nodes/capability".to_owned(), false),
        ("GET", "/v1/nodes/config".to_owned(), false),
        ("POST", "/v1/nodes/config".to_owned(), false),
        open("/healthz"),
        open("/readyz"),
        open("/metrics"),
    ];
    let worker = worker_calls(id);
    [gateway, control, worker]
}

fn worker_calls(id: &str) -> Vec<(&'static str, String, bool)> {
    let open = |path: &str| ("GET", path.to_owned(), true);
    vec![
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
        open("/healthz"),
        open("/readyz"),
        open("/metrics"),
    ]
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
fn list_of_routes_is_complete() {
    let sources = [
        &[
            "src/orchestrator/gateway/mod.rs",
            "src/orchestrator/health.rs",
        ][..],
        &[
            "src/orchestrator/control_plane/mod.rs",
            "src/orchestrator/health.rs",
        ],
        &["src/worker/api.rs"],
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
