//! Administration of users, and its immediate effect.

use crate::support::{Api, DEADLINE, Orchestrator, PASSWORD, uuid};
use serde_json::{Value, json};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
};

/// A password that is long enough.
pub(crate) const FIRST: &str = "the first password";

/// Creates a user; returns the id.
fn make(admin: &Api, handle: &str, is_admin: bool) -> String {
    let user = json!({"handle": handle, "password": FIRST, "is_admin": is_admin});
    let made = admin.post("/v1/users", &user).json(201);
    made["id"].as_str().unwrap().to_owned()
}

/// Answer to a login.
fn log_in(gateway: &Api, handle: &str, password: &str) -> crate::support::Reply {
    let login = json!({"handle": handle, "password": password});
    gateway.post("/v1/auth/login", &login)
}

/// Tokens of a successful login.
pub(crate) fn tokens(gateway: &Api, handle: &str, password: &str) -> Value {
    log_in(gateway, handle, password).json(200)
}

/// API with these tokens.
fn with(gateway: &Api, tokens: &Value) -> Api {
    gateway.with_token(tokens["access_token"].as_str().unwrap())
}

/// Fails unless both tokens are refused.
pub(crate) fn assert_dead(gateway: &Api, tokens: &Value) {
    with(gateway, tokens)
        .get("/v1/users/me")
        .problem(401, "unauthorized");
    let refresh = json!({"refresh_token": tokens["refresh_token"]});
    gateway
        .post("/v1/auth/refresh", &refresh)
        .problem(401, "unauthorized");
}

#[test]
fn admin_creates_and_lists_users() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let ann = json!({"handle": "ann", "password": FIRST, "email": "ann@example.com"});
    let made = admin.post("/v1/users", &ann).json(201);
    assert_eq!(
        (
            &made["handle"],
            &made["email"],
            &made["is_active"],
            &made["is_admin"]
        ),
        (
            &json!("ann"),
            &json!("ann@example.com"),
            &json!(true),
            &json!(false)
        )
    );
    assert_eq!(made.get("password"), None);
    let me = with(
        &orchestrator.gateway,
        &tokens(&orchestrator.gateway, "ann", FIRST),
    );
    assert_eq!(me.get("/v1/users/me").json(200), made);
    let taken = admin.post("/v1/users", &ann).problem(409, "conflict");
    assert!(taken["detail"].as_str().unwrap().contains("another handle"));
    for (field, value) in [
        ("handle", json!("Ann")),
        ("handle", json!("")),
        ("handle", json!("a/b")),
        ("handle", json!(7)),
        ("password", json!("elevenchars")),
        ("password", json!("x".repeat(2000))),
        ("email", json!("nobody")),
        ("is_admin", json!("yes")),
    ] {
        let mut wrong = ann.clone();
        wrong["handle"] = "bob".into();
        wrong[field] = value;
        let problem = admin
            .post("/v1/users", &wrong)
            .problem(400, "invalid-request");
        assert_eq!(
            problem["errors"][0]["pointer"],
            format!("#/{field}"),
            "{wrong}"
        );
    }
    make(&admin, "bob", false);
    let handles = |list: &Value| -> Vec<String> {
        let users = list["users"].as_array().unwrap().iter();
        users
            .map(|user| user["handle"].as_str().unwrap().to_owned())
            .collect()
    };
    let list = admin.get("/v1/users").json(200);
    assert_eq!(handles(&list), ["admin", "ann", "bob"]);
    let first = admin.get("/v1/users?limit=2").json(200);
    assert_eq!(handles(&first), ["admin", "ann"]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = admin.get(&format!("/v1/users?cursor={cursor}")).json(200);
    assert_eq!(
        (handles(&rest), &rest["next_cursor"]),
        (vec!["bob".to_owned()], &json!(""))
    );
}

#[test]
fn users_access_only_own_tasks() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let id = make(&admin, "ann", false);
    let ann = with(
        &orchestrator.gateway,
        &tokens(&orchestrator.gateway, "ann", FIRST),
    );
    for path in ["/v1/users", "/v1/audit"] {
        ann.get(path).problem(403, "forbidden");
    }
    let user = json!({"handle": "bob", "password": FIRST});
    ann.post("/v1/users", &user).problem(403, "forbidden");
    for action in ["disable", "enable", "revoke_sessions", "reset_password"] {
        let path = format!("/v1/users/{id}/{action}");
        ann.post(&path, &json!({"password": FIRST}))
            .problem(403, "forbidden");
    }
    let path = "/v1/tasks";
    let task = admin.post(path, &json!({"script": "true"})).json(201);
    let theirs = format!("{path}/{}", task["id"].as_str().unwrap());
    for path in [
        theirs.clone(),
        format!("{theirs}/result"),
        format!("{theirs}/logs"),
    ] {
        ann.get(&path).problem(404, "not-found");
    }
    ann.act(&format!("{theirs}/cancel"))
        .problem(404, "not-found");
    assert_eq!(ann.get(path).json(200)["tasks"], json!([]));
    let own = ann.post(path, &json!({"script": "true"})).json(201);
    assert_eq!(ann.get(path).json(200)["tasks"][0]["id"], own["id"]);
    assert_eq!(
        admin.get(path).json(200)["tasks"].as_array().unwrap().len(),
        2
    );
}

#[test]
fn session_revocation_is_immediate() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (admin, gateway) = (orchestrator.login(), &orchestrator.gateway);
    let id = make(&admin, "ann", false);
    let act = |action: &str, body: &Value| {
        admin
            .post(&format!("/v1/users/{id}/{action}"), body)
            .expect(204);
    };

    let (here, there) = (tokens(gateway, "ann", FIRST), tokens(gateway, "ann", FIRST));
    act("revoke_sessions", &Value::Null);
    assert_dead(gateway, &here);
    assert_dead(gateway, &there);

    let session = tokens(gateway, "ann", FIRST);
    act("disable", &Value::Null);
    assert_dead(gateway, &session);
    log_in(gateway, "ann", FIRST).problem(401, "unauthorized");
    act("enable", &Value::Null);
    assert_dead(gateway, &session);

    let session = tokens(gateway, "ann", FIRST);
    let short = json!({"password": "short"});
    let reset = format!("/v1/users/{id}/reset_password");
    admin.post(&reset, &short).problem(400, "invalid-request");
    with(gateway, &session).get("/v1/users/me").expect(200);
    act("reset_password", &json!({"password": "another password"}));
    assert_dead(gateway, &session);
    log_in(gateway, "ann", FIRST).problem(401, "unauthorized");
    with(gateway, &tokens(gateway, "ann", "another password"))
        .get("/v1/users/me")
        .expect(200);

    let nobody = format!("/v1/users/{}/disable", uuid());
    admin.act(&nobody).problem(404, "not-found");
    admin
        .act("/v1/users/nonsense/disable")
        .problem(404, "not-found");
}

/// Sends a request without the last byte of its body, calls `meanwhile`, sends that byte, and returns the status.
fn interrupted(api: &Api, path: &str, body: &Value, meanwhile: impl FnOnce()) -> u16 {
    let body = body.to_string();
    let mut stream = TcpStream::connect(api.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        api.token(),
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server asks for the body once it has authenticated the caller.
    let mut line = [0; 25];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    let (most, last) = body.split_at(body.len() - 1);
    stream.write_all(most.as_bytes()).unwrap();
    meanwhile();
    stream.write_all(last.as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    std::str::from_utf8(&status[9..]).unwrap().parse().unwrap()
}

#[test]
fn request_that_outlives_session_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (admin, gateway) = (orchestrator.login(), &orchestrator.gateway);
    let id = make(&admin, "root", true);
    let act = |action: &str| {
        let path = format!("/v1/users/{id}/{action}");
        admin.act(&path).expect(204);
    };
    let backdoor = json!({"handle": "backdoor", "password": FIRST, "is_admin": true});
    let own = format!("/v1/users/{id}/reset_password");
    for (path, body) in [
        ("/v1/users", backdoor),
        (own.as_str(), json!({"password": "a backdoor password"})),
        ("/v1/tasks", json!({"script": "true"})),
    ] {
        let root = with(gateway, &tokens(gateway, "root", FIRST));
        assert_eq!(
            interrupted(&root, path, &body, || act("disable")),
            401,
            "{path}"
        );
        act("enable");
    }
    assert_eq!(
        admin.get("/v1/users").json(200)["users"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(admin.get("/v1/tasks").json(200)["tasks"], json!([]));
    tokens(gateway, "root", FIRST);
}

#[test]
fn stream_ends_with_session() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (admin, gateway) = (orchestrator.login(), &orchestrator.gateway);
    let id = make(&admin, "ann", false);
    let ends: [&dyn Fn(&Value); 3] = [
        &|_| {
            let path = format!("/v1/users/{id}/revoke_sessions");
            admin.act(&path).expect(204);
        },
        &|session| {
            with(gateway, session).act("/v1/auth/logout").expect(204);
        },
        &|session| {
            let refresh = json!({"refresh_token": session["refresh_token"]});
            for status in [200, 401] {
                gateway.post("/v1/auth/refresh", &refresh).expect(status);
            }
        },
    ];
    for end in ends {
        let session = tokens(gateway, "ann", FIRST);
        let ann = with(gateway, &session);
        // Without a node the task waits, and its stream is silent.
        let task = ann.post("/v1/tasks", &json!({"script": "true"})).json(201);
        let path = format!(
            "/v1/tasks/{}/logs?follow=true",
            task["id"].as_str().unwrap()
        );
        let mut events = ann.events(&path, None);
        assert_eq!(events.next().unwrap().name, "status");
        let mut others = admin.events(&path, None);
        assert_eq!(others.next().unwrap().name, "status");
        end(&session);
        assert!(
            events.next().is_none(),
            "the stream ends without an `end` event"
        );
        // Streams of other users continue.
        ann.get("/v1/users/me").problem(401, "unauthorized");
        let cancel = format!("/v1/tasks/{}/cancel", task["id"].as_str().unwrap());
        admin.act(&cancel).expect(200);
        assert_eq!(others.last().unwrap().name, "end");
    }
}

#[test]
fn last_active_admin_cannot_be_disabled() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let first = admin.get("/v1/users/me").json(200)["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let disable = |id: &str| admin.act(&format!("/v1/users/{id}/disable"));
    let refused = disable(&first).problem(409, "conflict");
    assert!(
        refused["detail"]
            .as_str()
            .unwrap()
            .contains("last active admin")
    );
    make(&admin, "ann", false);
    disable(&first).problem(409, "conflict");
    // Two admins are disabled concurrently, in several rounds.
    let second = make(&admin, "root", true);
    for _ in 0..5 {
        let statuses: Vec<u16> = thread::scope(|scope| {
            let both = [&first, &second].map(|id| scope.spawn(|| disable(id).status));
            both.map(|one| one.join().unwrap()).into()
        });
        let disabled = statuses.iter().filter(|status| **status == 204).count();
        assert!(disabled <= 1, "{statuses:?}");
        let gateway = &orchestrator.gateway;
        let (handle, password, other) = if log_in(gateway, "admin", PASSWORD).status == 200 {
            ("admin", PASSWORD, &second)
        } else {
            ("root", FIRST, &first)
        };
        let left = with(gateway, &tokens(gateway, handle, password));
        left.act(&format!("/v1/users/{other}/enable")).expect(204);
        if handle == "root" {
            break;
        }
    }
}

#[test]
fn weak_hash_is_replaced_at_next_login() {
    use argon2::{
        Algorithm, Argon2, Params, Version,
        password_hash::{PasswordHasher as _, SaltString},
    };
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    make(&admin, "ann", false);
    let weak = Argon2::new(
        Algorithm::Argon2id,
        Version::V0x13,
        Params::new(8192, 1, 1, None).unwrap(),
    );
    let salt = SaltString::encode_b64(&[9; 16]).unwrap();
    let weak = weak
        .hash_password(FIRST.as_bytes(), &salt)
        .unwrap()
        .to_string();
    let database = rusqlite::Connection::open(orchestrator.data_dir.join("cynode.db")).unwrap();
    let sql = "UPDATE users SET password_hash = ?1 WHERE handle = 'ann'";
    database.execute(sql, [&weak]).unwrap();
    let stored = || -> String {
        let sql = "SELECT password_hash FROM users WHERE handle = 'ann'";
        database.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    log_in(&orchestrator.gateway, "ann", "a wrong password").expect(401);
    assert_eq!(stored(), weak, "only the right password is hashed again");
    tokens(&orchestrator.gateway, "ann", FIRST);
    assert!(
        stored().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
        "{}",
        stored()
    );
    tokens(&orchestrator.gateway, "ann", FIRST);
}
