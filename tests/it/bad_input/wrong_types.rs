//! Values of the wrong type in every field of every body: the problem names the field, the expected form
//! and the received type, without serde's terms.

use crate::support::{Api, Orchestrator, Worker, stand_in::capability, uuid};
use serde_json::{Value, json};

/// Field as a JSON pointer, the form that its problem names, and the JSON types that it takes.
type Field = (&'static str, &'static str, &'static [&'static str]);

const ANY_INTEGER: &str = "a whole number of at least 0";
const U32: &str = "a whole number from 0 to 4294967295";
const OPTIONAL_STRING: &[&str] = &["null", "a string"];
const OPTIONAL_ARRAY: &[&str] = &["null", "an array"];
const OPTIONAL_OBJECT: &[&str] = &["null", "an object"];
const OPTIONAL_BOOLEAN: &[&str] = &["null", "a boolean"];
const OPTIONAL_NUMBER: &[&str] = &["null", "a number"];

const TASK: [Field; 15] = [
    ("/prompt", "a string", OPTIONAL_STRING),
    ("/command", "an array", OPTIONAL_ARRAY),
    ("/script", "a string", OPTIONAL_STRING),
    (
        "/input_mode",
        "one of prompt, script, commands",
        OPTIONAL_STRING,
    ),
    ("/task_name", "a string", OPTIONAL_STRING),
    ("/image", "a string", OPTIONAL_STRING),
    ("/env", "a JSON object", OPTIONAL_OBJECT),
    (
        "/timeout_seconds",
        "a whole number of at least 1",
        OPTIONAL_NUMBER,
    ),
    (
        "/network_policy",
        "one of none, restricted, allowlist",
        OPTIONAL_STRING,
    ),
    ("/egress", "a JSON object", OPTIONAL_OBJECT),
    ("/node_labels", "an array", OPTIONAL_ARRAY),
    ("/use_inference", "true or false", OPTIONAL_BOOLEAN),
    (
        "/max_attempts",
        "a whole number from 1 to 100",
        OPTIONAL_NUMBER,
    ),
    (
        "/priority",
        "a whole number from -100 to 100",
        OPTIONAL_NUMBER,
    ),
    ("/attachments", "an array", OPTIONAL_ARRAY),
];

const JOB: [Field; 9] = [
    ("/version", ANY_INTEGER, &["a number"]),
    ("/task_id", "a UUID", &["a string"]),
    ("/job_id", "a UUID", &["a string"]),
    ("/attempt", U32, &["a number"]),
    ("/sandbox", "a JSON object", &["an object"]),
    ("/sandbox/image", "a string", &["a string"]),
    ("/sandbox/command", "an array", &["an array"]),
    ("/sandbox/env", "a JSON object", OPTIONAL_OBJECT),
    ("/sandbox/timeout_seconds", ANY_INTEGER, OPTIONAL_NUMBER),
];

const REGISTRATION: [Field; 7] = [
    ("/psk", "a string", &["a string"]),
    ("/node_key", "a string", OPTIONAL_STRING),
    ("/capability", "a JSON object", &["an object"]),
    ("/capability/node/node_slug", "a string", &["a string"]),
    ("/capability/node/labels", "an array", OPTIONAL_ARRAY),
    ("/capability/compute/cpu_cores", U32, OPTIONAL_NUMBER),
    (
        "/capability/reported_at",
        "a time in RFC 3339, such as 2026-01-31T12:00:00Z",
        OPTIONAL_STRING,
    ),
];

/// One value of each JSON type, with its name in problems.
fn values() -> [(Value, &'static str); 6] {
    [
        (Value::Null, "null"),
        (json!(true), "a boolean"),
        (json!(7), "a number"),
        (json!("word"), "a string"),
        (json!([]), "an array"),
        (json!({}), "an object"),
    ]
}

/// Sends `body` with each field set to a value of each type that it does not take.
fn assert_explained(api: &Api, path: &str, body: &Value, fields: &[Field]) {
    for (pointer, expected, types) in fields {
        for (value, type_name) in values() {
            if types.contains(&type_name) {
                continue;
            }
            let problem = send(api, path, body, pointer, value);
            let field = pointer.trim_start_matches('/').replace('/', ".");
            assert_eq!(
                problem["detail"],
                format!("`{field}` must be {expected}, got {type_name}")
            );
            assert_eq!(problem["errors"][0]["pointer"], format!("#{pointer}"));
        }
    }
}

/// Problem that `body` gets with `value` at `pointer`.
fn send(api: &Api, path: &str, body: &Value, pointer: &str, value: Value) -> Value {
    let mut body = body.clone();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = body.pointer_mut(parent).unwrap();
    parent[name] = value;
    let problem = api.post(path, &body).problem(400, "invalid-request");
    assert_plain(&problem);
    problem
}

/// Fails if the text has one of serde's terms.
fn assert_plain(problem: &Value) {
    let detail = problem["detail"].as_str().unwrap();
    for word in [
        "invalid type",
        "invalid value",
        "line 1 column",
        "missing field",
        "unknown variant",
        "untagged",
        "u64",
        "u32",
        "struct",
        "sequence",
        "integer `",
    ] {
        assert!(!detail.contains(word), "{word}: {detail}");
    }
}

/// Path, body and detail of the problem of calls whose body is wrong.
fn wrong_bodies() -> [(&'static str, Value, &'static str); 9] {
    [
        (
            "/v1/auth/login",
            json!({"handle": "ann"}),
            "`password` is missing",
        ),
        (
            "/v1/tasks",
            json!({"command": ["a", 7]}),
            "`command.1` must be a string, got a number",
        ),
        (
            "/v1/tasks",
            json!({"env": {"A": 12345678}}),
            "`env.A` must be a string, got a number",
        ),
        (
            "/v1/tasks",
            json!({"timeout_seconds": 1.5}),
            "`timeout_seconds` must be a whole number of at least 1, got 1.5",
        ),
        (
            "/v1/tasks",
            json!({"max_attempts": -1}),
            "`max_attempts` must be a whole number from 1 to 100, got -1",
        ),
        (
            "/v1/tasks",
            json!({"max_attempts": 4_294_967_296_u64}),
            "`max_attempts` must be a whole number from 1 to 100, got 4294967296",
        ),
        (
            "/v1/tasks",
            json!({"network_policy": "open"}),
            "`network_policy` must be one of none, restricted, allowlist, got \"open\"",
        ),
        (
            "/v1/tasks",
            json!(null),
            "the body must be a JSON object, got null",
        ),
        (
            "/v1/tasks",
            json!([7]),
            "the body must be a JSON object, got an array",
        ),
    ]
}

#[test]
fn user_api_names_field_form_and_type() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    assert_explained(&user, "/v1/tasks", &json!({}), &TASK);
    let credentials: [Field; 2] = [
        ("/handle", "a string", &["a string"]),
        ("/password", "a string", &["a string"]),
    ];
    let login = json!({"handle": "ann", "password": "correct horse"});
    assert_explained(&user, "/v1/auth/login", &login, &credentials);
    assert_explained(&user, "/v1/users", &login, &credentials);
    let optional: [Field; 2] = [
        ("/email", "a string", OPTIONAL_STRING),
        ("/is_admin", "true or false", OPTIONAL_BOOLEAN),
    ];
    assert_explained(&user, "/v1/users", &login, &optional);
    let token: Field = ("/refresh_token", "a string", &["a string"]);
    assert_explained(&user, "/v1/auth/refresh", &json!({}), &[token]);
    let reset = format!("/v1/users/{}/reset_password", uuid());
    assert_explained(&user, &reset, &json!({}), &credentials[1..]);

    for (path, body, detail) in wrong_bodies() {
        let problem = user.post(path, &body).problem(400, "invalid-request");
        assert_eq!(problem["detail"], detail);
    }
    let broken = user.post_raw("/v1/tasks", b"{\"script\": tru}");
    assert_eq!(
        broken.problem(400, "invalid-request")["detail"],
        "the body is not valid JSON: expected ident (line 1, column 15)"
    );
    for (query, expected) in [
        ("limit=0", "1 to 200, got \"0\""),
        ("limit=x", "1 to 200, got \"x\""),
    ] {
        let problem = user
            .get(&format!("/v1/tasks?{query}"))
            .problem(400, "invalid-request");
        assert_eq!(
            problem["detail"],
            format!("query parameter `limit` must be {expected}")
        );
    }
    let status = user.get("/v1/tasks?status=wrong");
    assert_eq!(
        status.problem(400, "invalid-request")["detail"],
        "query parameter `status` must be queued, running, completed, failed or canceled, got \"wrong\""
    );
}

#[test]
fn control_plane_names_field_form_and_type() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let body = json!({"psk": "x", "capability": capability("box", "http://127.0.0.1:1")});
    assert_explained(
        &orchestrator.control,
        "/v1/nodes/register",
        &body,
        &REGISTRATION,
    );
}

#[test]
fn worker_api_names_field_form_and_type() {
    let worker = Worker::start(&[]);
    let job = Worker::job(&["true"]);
    assert_explained(&worker.api, "/v1/worker/jobs:run", &job, &JOB);
}

#[test]
fn invalid_value_is_named_by_its_field() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    for (task, field) in [
        (json!({"command": ["a", "b\u{0}"]}), "command.1"),
        (
            json!({"script": "x", "timeout_seconds": 0}),
            "timeout_seconds",
        ),
        (json!({"script": "x", "env": {"A B": "c"}}), "env.A B"),
        (json!({"script": "x", "image": "-v"}), "image"),
    ] {
        let problem = user
            .post("/v1/tasks", &task)
            .problem(400, "invalid-request");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with(&format!("`{field}` ")), "{problem}");
        let pointer = format!("#/{}", field.replace('.', "/"));
        assert_eq!(problem["errors"][0]["pointer"], pointer);
    }
    let task = user.post("/v1/tasks", &json!({"prompt": "x", "use_inference": true}));
    let problem = task.problem(400, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "#/use_inference");
}
