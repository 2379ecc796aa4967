//! Audit log: every login and every action of an admin, without secrets.

use crate::support::{Orchestrator, PASSWORD, StandIn, uuid};
use serde_json::{Value, json};

/// Events as rows of actor, action, target and outcome.
fn rows(log: &Value) -> Vec<[String; 4]> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let events = log["events"].as_array().unwrap().iter().rev();
    let outcome = |event: &Value| match event["reason"].as_str() {
        Some(reason) => format!("{}: {reason}", text(&event["outcome"])),
        None => text(&event["outcome"]),
    };
    events
        .map(|event| {
            [
                text(&event["actor"]),
                text(&event["action"]),
                text(&event["target"]),
                outcome(event),
            ]
        })
        .collect()
}

/// Rows that the acts of `audit_records_actor_action_and_outcome` leave.
const EXPECTED: [[&str; 4]; 24] = [
    ["-", "user.create", "admin", "success"],
    ["admin", "auth.login", "-", "success"],
    ["-", "auth.login", "-", "failure: unknown-handle"],
    ["admin", "auth.login", "-", "failure: wrong-password"],
    ["admin", "user.create", "ann", "success"],
    ["admin", "user.create", "ann", "failure: conflict"],
    ["ann", "auth.login", "-", "success"],
    ["ann", "admin.read", "-", "denied: forbidden"],
    ["ann", "node.drain", "-", "denied: forbidden"],
    ["ann", "auth.refresh", "-", "success"],
    ["ann", "auth.refresh", "-", "failure: reused"],
    ["admin", "user.disable", "ann", "success"],
    ["ann", "auth.login", "-", "failure: disabled-or-changed"],
    ["admin", "user.enable", "ann", "success"],
    ["admin", "user.revoke_sessions", "ann", "success"],
    ["admin", "user.reset_password", "ann", "success"],
    ["admin", "user.disable", "admin", "failure: last-admin"],
    ["box", "node.register", "-", "success"],
    ["-", "node.register", "-", "failure: unauthorized"],
    ["admin", "node.drain", "box", "success"],
    ["admin", "node.resume", "box", "success"],
    ["admin", "node.forget", "box", "success"],
    ["admin", "auth.login", "-", "success"],
    ["admin", "auth.logout", "-", "success"],
];

#[test]
fn audit_records_actor_action_and_outcome() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (admin, gateway) = (orchestrator.login(), &orchestrator.gateway);
    let typed = "a password in the wrong field";
    for (handle, password) in [(typed, "x"), ("admin", "a wrong password")] {
        let login = json!({"handle": handle, "password": password});
        gateway.post("/v1/auth/login", &login).expect(401);
    }
    let ann = json!({"handle": "ann", "password": "a good password"});
    let id = admin.post("/v1/users", &ann).json(201)["id"].clone();
    let path = |action: &str| format!("/v1/users/{}/{action}", id.as_str().unwrap());
    admin.post("/v1/users", &ann).expect(409);
    let session = gateway.post("/v1/auth/login", &ann).json(200);
    let user = gateway.with_token(session["access_token"].as_str().unwrap());
    user.get("/v1/users").expect(403);
    user.act("/v1/nodes/box/drain").expect(403);
    let refresh = json!({"refresh_token": session["refresh_token"]});
    gateway.post("/v1/auth/refresh", &refresh).expect(200);
    gateway.post("/v1/auth/refresh", &refresh).expect(401);
    gateway
        .post("/v1/auth/refresh", &json!({"refresh_token": "made up"}))
        .expect(401);
    admin.act(&path("disable")).expect(204);
    gateway.post("/v1/auth/login", &ann).expect(401);
    admin.act(&path("enable")).expect(204);
    admin.act(&path("revoke_sessions")).expect(204);
    let password = json!({"password": "another good password"});
    admin.post(&path("reset_password"), &password).expect(204);
    let me = admin.get("/v1/users/me").json(200)["id"].clone();
    admin
        .act(&format!("/v1/users/{}/disable", me.as_str().unwrap()))
        .expect(409);
    let mut node = StandIn::idle(&orchestrator, "box");
    node.register();
    let control = &orchestrator.control;
    let wrong = json!({"psk": "wrong", "capability": crate::support::stand_in::capability("box", "http://127.0.0.1:1")});
    control.post("/v1/nodes/register", &wrong).expect(401);
    for action in ["drain", "resume"] {
        admin.act(&format!("/v1/nodes/box/{action}")).expect(204);
    }
    admin.call("DELETE", "/v1/nodes/box", &[], b"").expect(204);
    orchestrator.login().act("/v1/auth/logout").expect(204);

    let log = admin.get("/v1/audit").json(200);
    assert_eq!(rows(&log), EXPECTED.map(|row| row.map(str::to_owned)));
    let text = log.to_string();
    for secret in [
        typed,
        PASSWORD,
        "a good password",
        "a wrong password",
        "made up",
    ] {
        assert!(!text.contains(secret), "{secret}");
    }
    let login = &log["events"][1];
    assert_eq!(login["address"], "127.0.0.1");
    assert_eq!(login["actor_id"], me);
    assert!(login["at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(login["request_id"].as_str().map(str::len), Some(36));
}

#[test]
fn audit_log_pages_and_filters() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    for n in 0..5 {
        let user = json!({"handle": format!("user-{n}"), "password": "a good password"});
        admin.post("/v1/users", &user).expect(201);
    }
    let (mut seqs, mut path) = (Vec::new(), "/v1/audit?limit=2".to_owned());
    loop {
        let page = admin.get(&path).json(200);
        let events = page["events"].as_array().unwrap();
        assert!(events.len() <= 2);
        seqs.extend(events.iter().map(|event| event["seq"].as_i64().unwrap()));
        let cursor = page["next_cursor"].as_str().unwrap();
        if cursor.is_empty() {
            break;
        }
        path = format!("/v1/audit?limit=2&cursor={cursor}");
        // New events do not move the pages.
        let nobody = json!({"handle": uuid(), "password": "x"});
        orchestrator.gateway.post("/v1/auth/login", &nobody);
    }
    let mut sorted = seqs.clone();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted.dedup();
    assert_eq!((seqs.len(), &seqs), (7, &sorted), "each once, newest first");
    let of = |query: &str| rows(&admin.get(&format!("/v1/audit?{query}")).json(200));
    assert_eq!(
        of("who=user-3"),
        [["admin", "user.create", "user-3", "success"]]
    );
    assert_eq!(of("action=user.create").len(), 6);
    for wrong in ["action=nonsense", "cursor=x", "limit=0", "limit=201"] {
        admin
            .get(&format!("/v1/audit?{wrong}"))
            .problem(400, "invalid-request");
    }
}
