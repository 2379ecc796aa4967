//! API keys: what each may do, how they end, and that their secrets stay with their owners.

use crate::support::{Api, Orchestrator, eventually, uuid};
use cynode::api::time::Time;
use serde_json::{Value, json};
use std::{fs, time::Duration};

const SCOPES: [&str; 4] = ["inference", "tasks", "sandboxes", "all"];

/// Creates a key.
fn create(user: &Api, body: &Value) -> Value {
    user.post("/v1/keys", body).json(201)
}

/// API with a new key of these scopes.
fn with_key(user: &Api, scopes: &[&str]) -> Api {
    let created = create(user, &json!({"name": "ci", "scopes": scopes}));
    user.with_token(created["key"].as_str().unwrap())
}

fn names(list: &Value) -> Vec<&str> {
    let keys = list["keys"].as_array().unwrap().iter();
    keys.map(|key| key["name"].as_str().unwrap()).collect()
}

fn revoke(user: &Api, key: &Value) -> crate::support::Reply {
    let path = format!("/v1/keys/{}", key["id"].as_str().unwrap());
    user.call("DELETE", &path, &[], b"")
}

#[test]
fn key_is_shown_once_and_stored_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let body = json!({"name": "ci", "scopes": ["tasks", "inference"], "expires_at": "2999-12-31T00:00:00Z"});
    let created = create(&admin, &body);
    let key = created["key"].as_str().unwrap();
    assert!(key.starts_with("cyk_") && key.len() == 47, "{key}");
    let prefix = created["prefix"].as_str().unwrap();
    assert!(key.starts_with(prefix) && prefix.len() == 12, "{prefix}");
    assert_eq!(created["scopes"], json!(["inference", "tasks"]));
    assert_eq!(created["expires_at"], "2999-12-31T00:00:00.000Z");
    let program = admin.with_token(key);
    program.get("/v1/tasks").expect(200);
    program.get("/v1/audit").problem(403, "forbidden");
    let list = admin.get("/v1/keys").json(200);
    let listed = &list["keys"][0];
    for field in [
        "id",
        "name",
        "prefix",
        "scopes",
        "user",
        "created_at",
        "expires_at",
    ] {
        assert_eq!(listed[field], created[field], "{field}");
    }
    eventually("the last use is noted", || {
        let list = admin.get("/v1/keys").json(200);
        list["keys"][0]["last_used_at"].is_string().then_some(())
    });
    revoke(&admin, &created).expect(204);
    program.get("/v1/tasks").problem(401, "unauthorized");
    let secret = key.trim_start_matches(prefix).as_bytes();
    let mut places = vec![
        list.to_string().into_bytes(),
        admin.get("/v1/audit").text().into_bytes(),
        orchestrator.process.stderr().into_bytes(),
        orchestrator.process.stdout().into_bytes(),
    ];
    for file in ["cynode.db", "cynode.db-wal"] {
        places.push(fs::read(home.path().join("orchestrator").join(file)).unwrap());
    }
    for place in places {
        let has_secret = place.windows(secret.len()).any(|part| part == secret);
        assert!(!has_secret, "{}", String::from_utf8_lossy(&place));
    }
}

/// Scopes of the keys that may make a call, as the document says; `None` where no key may.
fn documented_scopes(operation: &Value) -> Option<Vec<String>> {
    let security = operation["security"].as_array().unwrap();
    let scopes = security.iter().find_map(|one| one.get("apiKey"))?;
    let scopes = scopes.as_array().unwrap().iter();
    Some(
        scopes
            .map(|scope| scope.as_str().unwrap().to_owned())
            .collect(),
    )
}

#[test]
fn key_makes_only_calls_of_its_scopes() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let document = orchestrator.gateway.get("/openapi.json").json(200);
    let mut refused = 0;
    for scope in SCOPES {
        let key = with_key(&admin, &[scope]);
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                if operation["security"] == json!([]) {
                    continue;
                }
                let allowed = documented_scopes(operation);
                if ["keys", "users", "auth"].contains(&path.split('/').nth(2).unwrap()) {
                    assert_eq!(allowed, None, "{path}");
                }
                let may = allowed.is_some_and(|scopes| {
                    scopes.is_empty() || scopes.iter().any(|one| one == scope)
                });
                let call = path.replace("{slug}", "box").replace("{model}", "tiny");
                let call = call.replace("{id}", &uuid()).replace("{exec}", &uuid());
                let json = [("Content-Type", "application/json")];
                // A sandbox is created without a wait for a node.
                let body = br#"{"wait_seconds": 0}"#;
                let reply = key.call(&method.to_uppercase(), &call, &json, body);
                assert_ne!(reply.status, 401, "{scope}: {method} {path}");
                if may {
                    assert_ne!(reply.status, 403, "{scope}: {method} {path}");
                } else {
                    reply.expect(403);
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 60, "{refused}");
}

#[test]
fn key_of_user_is_not_key_of_admin() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let ann = orchestrator.add_user(&admin, "ann");
    let key = with_key(&ann, &["all"]);
    key.get("/v1/audit").problem(403, "forbidden");
    key.act("/v1/nodes/box/drain").problem(403, "forbidden");
    let hers = key.post("/v1/tasks", &json!({"script": "true"})).json(201);
    let task = admin
        .post("/v1/tasks", &json!({"script": "true"}))
        .json(201);
    let path = |task: &Value| format!("/v1/tasks/{}", task["id"].as_str().unwrap());
    key.get(&path(&task)).problem(404, "not-found");
    with_key(&admin, &["tasks"]).get(&path(&hers)).expect(200);
    assert_eq!(key.get("/v1/tasks").json(200)["tasks"][0]["id"], hers["id"]);
}

#[test]
fn keys_belong_to_their_user() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let (ann, bob) = (
        orchestrator.add_user(&admin, "ann"),
        orchestrator.add_user(&admin, "bob"),
    );
    let first = create(&ann, &json!({"name": "first"}));
    assert_eq!(first["scopes"], json!(["all"]), "the default");
    assert_eq!(first["user"], "ann");
    create(&ann, &json!({"name": "second"}));
    create(&bob, &json!({"name": "third"}));
    assert_eq!(names(&ann.get("/v1/keys").json(200)), ["second", "first"]);
    assert_eq!(names(&bob.get("/v1/keys").json(200)), ["third"]);
    let page = admin.get("/v1/keys?limit=2").json(200);
    assert_eq!(names(&page), ["third", "second"]);
    let next = format!("/v1/keys?cursor={}", page["next_cursor"].as_str().unwrap());
    let rest = admin.get(&next).json(200);
    assert_eq!(
        (names(&rest), &rest["next_cursor"]),
        (vec!["first"], &json!(""))
    );

    revoke(&bob, &first).problem(404, "not-found");
    let key = ann.with_token(first["key"].as_str().unwrap());
    key.get("/v1/tasks").expect(200);
    revoke(&admin, &first).expect(204);
    revoke(&ann, &first).problem(404, "not-found");
    key.get("/v1/tasks").problem(401, "unauthorized");
    ann.call("DELETE", "/v1/keys/first", &[], b"")
        .problem(404, "not-found");
}

#[test]
fn key_of_disabled_user_rests() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let ann = orchestrator.add_user(&admin, "ann");
    let id = ann.get("/v1/users/me").json(200)["id"].clone();
    let key = with_key(&ann, &["tasks"]);
    for (action, status) in [("revoke_sessions", 200), ("disable", 401), ("enable", 200)] {
        let path = format!("/v1/users/{}/{action}", id.as_str().unwrap());
        admin.act(&path).expect(204);
        key.get("/v1/tasks").expect(status);
    }
}

#[test]
fn key_is_sent_as_bearer_or_header() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let created = create(&admin, &json!({"name": "ci", "scopes": ["tasks"]}));
    let key = created["key"].as_str().unwrap();
    let with_header = |api: &Api, key: &str| {
        api.call("GET", "/v1/tasks", &[("x-api-key", key)], b"")
            .status
    };
    let anonymous = &orchestrator.gateway;
    assert_eq!(with_header(anonymous, key), 200);
    assert_eq!(with_header(anonymous, "cyk_wrong"), 401);
    assert_eq!(with_header(&admin, "cyk_wrong"), 200, "the bearer counts");
    assert_eq!(with_header(&admin.with_token("wrong"), key), 401);
    let (shorter, upper) = (&key[..key.len() - 1], key.to_uppercase());
    for wrong in [
        "cyk_",
        shorter,
        &format!("{key}A"),
        &upper,
        created["prefix"].as_str().unwrap(),
    ] {
        let refused = admin.with_token(wrong).get("/v1/tasks");
        let problem = refused.problem(401, "unauthorized");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        assert!(!problem.to_string().contains(&key[12..]));
    }
    let control = orchestrator.control.with_token(key);
    control.get("/v1/nodes/config").problem(401, "unauthorized");
}

#[test]
fn revoked_key_ends_its_streams() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    for lifetime in [None, Some(Duration::from_secs(2))] {
        let expires_at = lifetime.map(|lifetime| Time::now().plus(lifetime));
        let created = create(&admin, &json!({"name": "ci", "expires_at": expires_at}));
        let key = admin.with_token(created["key"].as_str().unwrap());
        // Without a node the task waits, and its stream is silent.
        let task = key.post("/v1/tasks", &json!({"script": "true"})).json(201);
        let path = format!(
            "/v1/tasks/{}/logs?follow=true",
            task["id"].as_str().unwrap()
        );
        let mut events = key.events(&path, None);
        assert_eq!(events.next().unwrap().name, "status");
        let mut others = with_key(&admin, &["tasks"]).events(&path, None);
        assert_eq!(others.next().unwrap().name, "status");
        if lifetime.is_none() {
            revoke(&admin, &created).expect(204);
        }
        assert!(
            events.next().is_none(),
            "the stream ends without an `end` event"
        );
        key.get("/v1/tasks").problem(401, "unauthorized");
        let cancel = format!("/v1/tasks/{}/cancel", task["id"].as_str().unwrap());
        admin.act(&cancel).expect(200);
        assert_eq!(others.last().unwrap().name, "end");
    }
}

#[test]
fn invalid_key_field_is_named() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    for (field, value, pointer) in [
        ("name", json!(""), "#/name"),
        ("name", json!("x".repeat(101)), "#/name"),
        ("name", json!("a\u{1b}[2Jb"), "#/name"),
        ("name", json!(7), "#/name"),
        ("scopes", json!([]), "#/scopes"),
        ("scopes", json!(["tasks", "root"]), "#/scopes/1"),
        ("scopes", json!("tasks"), "#/scopes"),
        ("expires_at", json!("2001-01-01T00:00:00Z"), "#/expires_at"),
        ("expires_at", json!("tomorrow"), "#/expires_at"),
    ] {
        let mut body = json!({"name": "ci"});
        body[field] = value;
        let problem = admin
            .post("/v1/keys", &body)
            .problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}");
    }
    admin
        .post("/v1/keys", &json!({}))
        .problem(400, "invalid-request");
    let large = json!({"name": "x".repeat(20_000)});
    admin
        .post("/v1/keys", &large)
        .problem(413, "payload-too-large");
    assert_eq!(admin.get("/v1/keys").json(200)["keys"], json!([]));
}

#[test]
fn audit_log_names_keys() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let created = create(&admin, &json!({"name": "ci", "scopes": ["tasks"]}));
    let (prefix, key) = (
        &created["prefix"],
        admin.with_token(created["key"].as_str().unwrap()),
    );
    let task = key.post("/v1/tasks", &json!({"script": "true"})).json(201);
    let cancel = format!("/v1/tasks/{}/cancel", task["id"].as_str().unwrap());
    key.act(&cancel).expect(200);
    for _ in 0..3 {
        key.get("/v1/users").problem(403, "forbidden");
    }
    revoke(&admin, &created).expect(204);
    let log = admin.get("/v1/audit?limit=4").json(200);
    let rows: Vec<Value> = log["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| {
            json!([
                event["action"],
                event["outcome"],
                event["actor"],
                event["api_key"],
                event["target"],
                event["reason"]
            ])
        })
        .collect();
    let details = "key \"ci\" of admin: tasks";
    assert_eq!(
        rows,
        [
            json!(["key.revoke", "success", "admin", null, prefix, details]),
            json!(["key.use", "denied", "admin", prefix, null, "forbidden"]),
            json!(["task.cancel", "success", "admin", prefix, task["id"], null]),
            json!(["key.create", "success", "admin", null, prefix, details]),
        ]
    );
    let about = format!("/v1/audit?who={}", prefix.as_str().unwrap());
    assert_eq!(
        admin.get(&about).json(200)["events"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn keys_outlive_restart() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let kept = with_key(&admin, &["tasks"]).token().to_owned();
    let gone = create(&admin, &json!({"name": "gone"}));
    revoke(&admin, &gone).expect(204);
    drop(orchestrator);
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let gateway = &orchestrator.gateway;
    gateway.with_token(&kept).get("/v1/tasks").expect(200);
    let gone = gateway.with_token(gone["key"].as_str().unwrap());
    gone.get("/v1/tasks").problem(401, "unauthorized");
}
