//! Authentication: passwords, tokens, sessions, and the list of calls that need none.

use crate::support::{Api, Orchestrator, PASSWORD, StandIn};
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
