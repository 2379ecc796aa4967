//! `/openapi.json`: complete, public, and in agreement with the gateway's answers.

use crate::support::{Cluster, Orchestrator};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Calls `see` with every object of the document.
fn walk(value: &Value, see: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            see(object);
            object.values().for_each(|value| walk(value, see));
        }
        Value::Array(array) => array.iter().for_each(|value| walk(value, see)),
        _ => {}
    }
}

/// Fails unless the document describes this body for this answer.
#[track_caller]
fn assert_described(
    document: &Value,
    [path, method, status]: [&str; 3],
    media: &str,
    body: &Value,
) {
    let mut answer = &document["paths"][path][method]["responses"][status];
    if let Some(reference) = answer["$ref"].as_str() {
        answer = document.pointer(&reference[1..]).unwrap();
    }
    let mut schema = answer["content"][media]["schema"].clone();
    assert!(schema.is_object(), "{method} {path} has no {status}");
    schema["components"] = document["components"].clone();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(body)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert_eq!(
        errors,
        Vec::<String>::new(),
        "{method} {path} {status}: {body}"
    );
}

#[test]
fn document_is_complete_and_needs_no_login() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let document = orchestrator.gateway.get("/openapi.json").json(200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut references = 0;
    walk(&document, &mut |object| {
        if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
            let target = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(target).is_some(), "{reference}");
            references += 1;
        }
    });
    assert!(references > 100, "{references}");
    let (mut operations, mut ids) = (0, BTreeSet::new());
    for methods in document["paths"].as_object().unwrap().values() {
        for operation in methods.as_object().unwrap().values() {
            operations += 1;
            ids.insert(operation["operationId"].as_str().unwrap());
            assert!(operation["summary"].is_string() && operation["security"].is_array());
        }
    }
    assert!(operations > 15, "{operations}");
    assert_eq!(ids.len(), operations, "one operationId twice: {ids:?}");
}

#[test]
fn answers_match_document() {
    let cluster = Cluster::start();
    let user = &cluster.user;
    let document = user.get("/openapi.json").json(200);
    let answered =
        |answer, body: &Value| assert_described(&document, answer, "application/json", body);
    let task = user
        .post("/v1/tasks", &json!({"script": "echo hello"}))
        .json(201);
    answered(["/v1/tasks", "post", "201"], &task);
    let path = format!("/v1/tasks/{}", task["id"].as_str().unwrap());
    cluster.finish(task["id"].as_str().unwrap());
    answered(["/v1/tasks/{id}", "get", "200"], &user.get(&path).json(200));
    let result = user.get(&format!("{path}/result")).json(200);
    assert_eq!(result["jobs"][0]["result_object"]["stdout"], "hello\n");
    answered(["/v1/tasks/{id}/result", "get", "200"], &result);
    let logs = user.get(&format!("{path}/logs")).json(200);
    answered(["/v1/tasks/{id}/logs", "get", "200"], &logs);
    answered(
        ["/v1/tasks", "get", "200"],
        &user.get("/v1/tasks").json(200),
    );
    answered(
        ["/v1/nodes", "get", "200"],
        &user.get("/v1/nodes").json(200),
    );
    answered(
        ["/v1/users/me", "get", "200"],
        &user.get("/v1/users/me").json(200),
    );

    let problem = |answer, body: &Value| {
        assert_described(&document, answer, "application/problem+json", body)
    };
    let refused = user.post("/v1/tasks", &json!({"script": ""}));
    problem(
        ["/v1/tasks", "post", "400"],
        &refused.problem(400, "invalid-request"),
    );
    let unknown = user.anonymous().get(&path);
    problem(
        ["/v1/tasks/{id}", "get", "401"],
        &unknown.problem(401, "unauthorized"),
    );
}

#[test]
fn ignored_request_parts_are_named() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let document = user.get("/openapi.json").json(200);
    let unknown = |field: &str, what: &str| json!({"field": field, "detail": format!("unknown {what}; ignored")});
    let task = json!({"script": "true", "timout_seconds": 5, "sandbox": {"image": "x"}, "env": {"A": "b"}});
    let created = user.post("/v1/tasks?dry_run=1", &task).json(201);
    assert_eq!(
        created["warnings"],
        json!([
            unknown("sandbox", "field"),
            unknown("timout_seconds", "field"),
            unknown("dry_run", "query parameter"),
        ])
    );
    assert_described(
        &document,
        ["/v1/tasks", "post", "201"],
        "application/json",
        &created,
    );
    let listed = user.get("/v1/tasks?limit=1&statuss=queued").json(200);
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 1);
    assert_eq!(
        listed["warnings"],
        json!([unknown("statuss", "query parameter")])
    );
    let path = format!("/v1/tasks/{}", created["id"].as_str().unwrap());
    for quiet in [
        user.get(&format!("{path}/logs?stream=all&follow=false")),
        user.get("/v1/tasks?limit=1&cursor=&status=queued&name=x&offset=0"),
        user.get("/v1/users?limit=1&cursor="),
        user.get("/v1/audit?limit=1&action=auth.login&who=x"),
    ] {
        assert_eq!(quiet.json(200)["warnings"], Value::Null);
    }
    let ann = json!({"handle": "ann", "password": "a password of ann", "admin": true});
    let made = user.post("/v1/users", &ann).json(201);
    assert_eq!(made["warnings"], json!([unknown("admin", "field")]));
    let login = json!({"handle": "ann", "password": "a password of ann", "otp": 1});
    let tokens = user.anonymous().post("/v1/auth/login", &login).json(200);
    assert_eq!(tokens["warnings"], json!([unknown("otp", "field")]));
    assert_eq!(user.get("/openapi.json?x=1").json(200), document);
    // However many parts are unknown, the warnings stay short.
    let mut many = json!({"script": "true"});
    for n in 0..1500 {
        many[format!("{n:05}{}", "x".repeat(1000))] = json!(1);
    }
    let answer = user.post("/v1/tasks", &many);
    let warnings = answer.json(201)["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 17);
    assert_eq!(warnings[16]["detail"], "1484 more were ignored");
    assert!(answer.body.len() < 8192);
}
