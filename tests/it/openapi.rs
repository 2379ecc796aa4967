//! `/openapi.json`: whole, open to anybody, and true of what the gateway answers.

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
fn the_document_is_whole_and_needs_no_login() {
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
fn answers_are_as_the_document_says() {
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
