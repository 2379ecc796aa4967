//! Rules of secrets at the edge, of requests and at nodes.

use super::*;
use crate::api::{
    jobs::SandboxSpec,
    sandboxes::CreateSandbox,
    secrets::{SecretInput, resolve},
    tasks::CreateTask,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Secrets of a request, checked without its hosts.
fn refs(secrets: Value) -> Result<Vec<SecretRef>, Problem> {
    let inputs: Vec<SecretInput> = serde_json::from_value(secrets).unwrap();
    resolve("/secrets", Some(inputs), None)
}

/// Pointer and text of the problem that a request with these secrets and hosts has as a task, and as a sandbox.
fn refused(secrets: &Value, egress: &Value) -> Option<(String, String)> {
    let mut body = json!({"secrets": secrets});
    if !egress.is_null() {
        (body["network_policy"], body["egress"]) = (json!("allowlist"), egress.clone());
    }
    let sandbox: CreateSandbox = serde_json::from_value(body.clone()).unwrap();
    body["script"] = json!("x");
    let task: CreateTask = serde_json::from_value(body).unwrap();
    let [task, sandbox] = [task.resolve("alpine"), sandbox.resolve("alpine")].map(|resolved| {
        let problem = resolved.err()?;
        let error = problem.errors.into_iter().next().unwrap();
        Some((error.pointer, error.detail))
    });
    assert_eq!(task, sandbox);
    task
}

#[test]
fn secret_names_host_and_header() {
    let found = refs(json!([
        {"name": "A", "host": "API.example.com"},
        {"name": "A", "env": "B", "host": "a.b:80", "header": "X-Api-Key"},
        {"name": "A", "env": "C"},
    ]));
    let found = found.unwrap();
    let shown: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["A@api.example.com", "A:B@a.b:80/x-api-key", "A:C"]);
    assert_eq!(found[0].header.as_deref(), Some("authorization"));
    let at_edge: Vec<_> = found.iter().map(SecretRef::is_at_edge).collect();
    assert_eq!(at_edge, [true, true, false]);
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json[2], json!({"name": "A", "env": "C"}));
    assert_eq!(
        json[1],
        json!({"name": "A", "env": "B", "host": "a.b:80", "header": "x-api-key"})
    );
    assert_eq!(
        serde_json::from_value::<Vec<SecretRef>>(json).unwrap(),
        found
    );
}

#[test]
fn header_is_one_that_proxy_may_set() {
    assert_eq!(header_name("X-Api_Key.1").as_deref(), Ok("x-api_key.1"));
    assert!(header_name(&"a".repeat(MAX_HEADER_BYTES)).is_ok());
    let too_long = "a".repeat(MAX_HEADER_BYTES + 1);
    for text in [
        "", "a b", "a:", "a\r\nb", "ä", "a/b", "a\"", "a@b", &too_long,
    ] {
        assert_eq!(header_name(text), Err(InvalidHeader::Form), "{text:?}");
    }
    for text in [
        "Host",
        "CONTENT-LENGTH",
        "Transfer-Encoding",
        "connection",
        "TE",
        "trailer",
        "upgrade",
        "expect",
        "keep-alive",
        "Proxy-Authorization",
        "proxy-",
    ] {
        assert_eq!(header_name(text), Err(InvalidHeader::Reserved), "{text}");
    }
    for (header, part) in [("Host", "sets itself"), ("a b", "such as authorization")] {
        let secrets = json!(["B", {"name": "A", "host": "a.b", "header": header}]);
        let problem = refs(secrets).unwrap_err();
        let error = &problem.errors[0];
        assert_eq!(error.pointer, "#/secrets/1/header");
        assert!(error.detail.contains(part), "{}", error.detail);
    }
    let problem = refs(json!([{"name": "A", "header": "authorization"}])).unwrap_err();
    let error = &problem.errors[0];
    assert_eq!(error.pointer, "#/secrets/0/header");
    assert!(error.detail.starts_with("needs host"), "{}", error.detail);
}

#[test]
fn host_is_one_that_proxy_can_serve() {
    let secret = |host: &str| json!(["B", {"name": "A", "host": host}]);
    let open = json!({"allow": ["*.a.b", "c.d"], "terminate": ["x.a.b"]});
    for (host, egress, advice) in [
        (
            "x.a.b",
            json!(null),
            "set network_policy \"allowlist\", and list the host in egress.allow",
        ),
        ("e.f", open.clone(), "add e.f:443 to egress.allow"),
        ("x.a.b:8443", open.clone(), "add x.a.b:8443 to egress.allow"),
        ("y.a.b", open.clone(), "add y.a.b to egress.terminate"),
    ] {
        let (pointer, detail) = refused(&secret(host), &egress).unwrap();
        assert_eq!(pointer, "#/secrets/1/host");
        assert!(detail.ends_with(advice), "{detail}");
        assert!(detail.starts_with(&format!("names {host}")), "{detail}");
    }
    assert_eq!(refused(&secret("x.a.b"), &open), None);
    // Without TLS that it has to open.
    assert_eq!(refused(&secret("c.d:80"), &open), None);
    let plain = json!({"allow": ["c.d:8080"]});
    assert_eq!(refused(&secret("c.d:8080"), &plain), None);
    let profile = json!({"profiles": ["python"], "terminate": ["pypi.org"]});
    assert_eq!(refused(&secret("pypi.org"), &profile), None);
}

#[test]
fn secrets_may_share_host_and_header() {
    let open = json!({"allow": ["a.b"], "terminate": ["a.b"]});
    let both = json!([
        {"name": "A", "host": "a.b"},
        {"name": "B", "host": "a.b"},
        {"name": "A", "env": "C"},
    ]);
    assert_eq!(refused(&both, &open), None);
    let twice = json!([{"name": "A", "host": "a.b"}, "A"]);
    let (pointer, detail) = refused(&twice, &open).unwrap();
    assert_eq!(pointer, "#/secrets/1");
    assert!(
        detail.contains("give one of the secrets another env"),
        "{detail}"
    );
}

#[test]
fn node_takes_host_with_header_only() {
    let check = |secret: Value, egress: Value| {
        let job = json!({
            "image": "a", "network_policy": egress["allow"].is_array().then_some("allowlist"),
            "egress": egress, "secrets": [secret],
        });
        let job: SandboxSpec = serde_json::from_value(job).unwrap();
        let problem = job.check_extras("/sandbox").err()?;
        problem.errors.into_iter().next().map(|error| error.pointer)
    };
    let whole = json!({"name": "A", "env": "A", "host": "a.b", "header": "x-key"});
    let without = |field: &str| {
        let mut secret = whole.clone();
        secret.as_object_mut().unwrap().remove(field);
        secret
    };
    let mut upper = whole.clone();
    upper["header"] = json!("X-Key");
    // The operator may have shortened the list since.
    let empty = json!({"allow": []});
    for (secret, egress, pointer) in [
        (whole.clone(), empty.clone(), None),
        (whole.clone(), Value::Null, Some("#/sandbox/secrets/0/host")),
        (
            without("header"),
            empty.clone(),
            Some("#/sandbox/secrets/0"),
        ),
        (
            without("host"),
            empty.clone(),
            Some("#/sandbox/secrets/0/header"),
        ),
        (upper, empty, Some("#/sandbox/secrets/0/header")),
    ] {
        assert_eq!(
            check(secret.clone(), egress).as_deref(),
            pointer,
            "{secret}"
        );
    }
}

proptest! {
    #[test]
    fn header_name_is_one_of_http(text in "[a-zA-Z0-9_.-]{1,9}|\\PC{0,9}|[Hh]ost|T[eE]|[Pp]roxy-a") {
        if let Ok(name) = header_name(&text) {
            let parsed = http::HeaderName::from_bytes(text.as_bytes()).unwrap();
            prop_assert_eq!(parsed.as_str(), name.as_str());
            prop_assert_eq!(header_name(&name), Ok(name.clone()));
        }
    }
}
