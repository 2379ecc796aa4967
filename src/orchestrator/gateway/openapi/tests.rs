//! The document lists what the router serves, and its schemas accept what the code accepts.

use super::*;
use crate::{
    api::{
        nodes::{SLUG_PATTERN, check_slug},
        sandboxes::CreateSandbox,
        tasks::CreateTask,
    },
    orchestrator::gateway,
};
use proptest::prelude::*;
use std::{collections::BTreeSet, sync::LazyLock};

#[test]
fn every_route_is_documented() {
    let routes = gateway::routes();
    let served: BTreeSet<String> = routes
        .calls()
        .map(|(method, path)| format!("{method} {path}"))
        .collect();
    let documented: BTreeSet<String> = operations::all()
        .iter()
        .map(|operation| format!("{} {}", operation.method, operation.path))
        .collect();
    assert_eq!(served, documented);
}

#[test]
fn document_is_deterministic() {
    assert_eq!(document().to_string(), document().to_string());
}

/// Whether the schema accepts a task, which the code has to decide alike.
fn accepts(task: &Value) -> bool {
    static SCHEMA: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let mut schema = document();
        schema["$ref"] = json!("#/components/schemas/CreateTask");
        jsonschema::validator_for(&schema).unwrap()
    });
    let by_code = serde_json::from_value::<CreateTask>(task.clone())
        .is_ok_and(|task| task.resolve("alpine").is_ok());
    assert_eq!(SCHEMA.is_valid(task), by_code, "{task:.300}");
    by_code
}

/// Whether the schema of this name accepts a body, which `by_code` has to decide alike.
fn agrees(name: &str, body: &Value, by_code: bool) {
    let mut schema = document();
    schema["$ref"] = json!(format!("#/components/schemas/{name}"));
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert_eq!(validator.is_valid(body), by_code, "{name}: {body:.300}");
}

#[test]
fn sandbox_schema_agrees_with_code() {
    for (body, is_valid) in [
        (json!({}), true),
        (
            json!({"name": "dev-1", "env": {"A": ""}, "gpus": "all", "cpus": 0.5, "memory": "1GiB", "unknown": 1}),
            true,
        ),
        (
            json!({"lifetime_seconds": 86_400, "idle_timeout_seconds": 1, "wait_seconds": 0}),
            true,
        ),
        (
            json!({"name": null, "wait_seconds": null, "pids": null}),
            true,
        ),
        (json!({"name": "Dev"}), false),
        (json!({"name": ""}), false),
        (json!({"name": "x".repeat(64)}), false),
        (json!({"env": {"A B": ""}}), false),
        (json!({"env": {"A": 1}}), false),
        (json!({"node_labels": ["a b"]}), false),
        (json!({"lifetime_seconds": 0}), false),
        (json!({"lifetime_seconds": 86_401}), false),
        (json!({"idle_timeout_seconds": 1.5}), false),
        (json!({"wait_seconds": 61}), false),
        (
            json!({"network_policy": "allowlist", "egress": {"profiles": ["git"]}}),
            true,
        ),
        (json!({"network_policy": "open"}), false),
        (json!({"network_policy": "allowlist"}), false),
        (json!({"egress": {"allow": ["a.b"]}}), false),
        (json!({"image": "A b"}), false),
    ] {
        let by_code = serde_json::from_value::<CreateSandbox>(body.clone())
            .is_ok_and(|create| create.resolve("alpine").is_ok());
        assert_eq!(by_code, is_valid, "{body}");
        agrees("CreateSandbox", &body, by_code);
    }
}

#[test]
fn prompt_schema_agrees_with_code() {
    let script = "x".repeat(256 * 1024);
    for task in [
        json!({"prompt": "x"}),
        json!({"prompt": "x", "input_mode": null, "model": "qwen3:0.6b", "files": []}),
        json!({"prompt": script, "input_mode": "prompt", "model": null, "timeout_seconds": 5, "interactive": false}),
    ] {
        assert!(accepts(&task), "{task:.300}");
    }
    for task in [
        json!({"prompt": "x", "model": "a b"}),
        json!({"prompt": " "}),
        json!({"prompt": "x", "image": "alpine"}),
        json!({"prompt": "x", "env": {}}),
        json!({"prompt": "x", "interactive": true}),
        json!({"prompt": "x", "files": [{"path": "a", "content": ""}]}),
        json!({"prompt": "x", "stdin": ""}),
        json!({"prompt": "x", "input_mode": "script", "model": "m"}),
        json!({"script": "x", "model": "m"}),
    ] {
        assert!(!accepts(&task), "{task:.300}");
    }
}

#[test]
fn egress_schema_agrees_with_code() {
    let body = |policy: Value, egress: Value| json!({"script": "x", "network_policy": policy, "egress": egress});
    let allowlist = json!("allowlist");
    for egress in [
        json!({"allow": ["api.example.com"]}),
        json!({"allow": ["*.example.com:8443", "bücher.example"], "profiles": ["python", "git"], "unknown": 1}),
        json!({"allow": [], "profiles": ["rust"]}),
        json!({"allow": vec!["a.b"; 64]}),
        json!({"allow": ["*.a.b"], "terminate": ["x.a.b", "y.a.b:80"]}),
        json!({"profiles": ["git"], "terminate": []}),
    ] {
        assert!(
            accepts(&body(allowlist.clone(), egress.clone())),
            "{egress}"
        );
        for policy in [json!(null), json!("none"), json!("restricted")] {
            assert!(
                !accepts(&body(policy.clone(), egress.clone())),
                "{policy} {egress}"
            );
            assert!(accepts(&body(policy, json!(null))));
        }
    }
    for egress in [
        json!(null),
        json!([]),
        json!([["a.b"], []]),
        json!("a.b"),
        json!({}),
        json!({"allow": [], "profiles": []}),
        json!({"allow": null, "profiles": ["git"]}),
        json!({"allow": "a.b"}),
        json!({"allow": ["*"]}),
        json!({"allow": ["a.*"]}),
        json!({"allow": ["https://a.b"]}),
        json!({"allow": ["[::1]:443"]}),
        json!({"allow": [""]}),
        json!({"allow": vec!["a.b"; 65]}),
        json!({"profiles": ["perl"]}),
        json!({"profiles": ["Python"]}),
        json!({"terminate": ["a.b"]}),
        json!({"allow": ["*.a.b"], "terminate": ["*.a.b"]}),
        json!({"allow": ["a.b"], "terminate": null}),
        json!({"allow": ["a.b"], "terminate": "a.b"}),
        json!({"allow": ["a.b"], "terminate": vec!["a.b"; 65]}),
    ] {
        assert!(
            !accepts(&body(allowlist.clone(), egress.clone())),
            "{egress}"
        );
    }
    assert!(!accepts(
        &json!({"script": "x", "network_policy": "allowlist"})
    ));
    let prompt =
        json!({"prompt": "x", "network_policy": "allowlist", "egress": {"allow": ["a.b"]}});
    assert!(!accepts(&prompt));
}

#[test]
fn secret_schema_agrees_with_code() {
    let body = |secret: Value| {
        json!({
            "script": "x", "secrets": ["Z", secret], "network_policy": "allowlist",
            "egress": {"allow": ["a.b"], "terminate": ["a.b"]},
        })
    };
    for secret in [
        json!("A"),
        json!({"name": "A", "env": null, "host": null, "header": null}),
        json!({"name": "A", "host": "a.b", "header": null}),
        json!({"name": "A", "host": "a.b:80", "header": "X-Api-Key"}),
    ] {
        assert!(accepts(&body(secret.clone())), "{secret}");
    }
    for secret in [
        json!({"name": "A", "env": "B", "unknown": 1}),
        json!(null),
        json!("a"),
        json!({"env": "B"}),
        json!({"name": "A", "env": "1"}),
        json!({"name": "A", "header": "x-api-key"}),
        json!({"name": "A", "host": null, "header": "x-api-key"}),
        json!({"name": "A", "host": "*.a.b"}),
        json!({"name": "A", "host": ""}),
        json!({"name": "A", "host": 7}),
        json!({"name": "A", "host": "a.b", "header": ""}),
        json!({"name": "A", "host": "a.b", "header": "x y"}),
        json!({"name": "A", "host": "a.b", "header": "x".repeat(129)}),
    ] {
        assert!(!accepts(&body(secret.clone())), "{secret}");
    }
}

#[test]
fn task_schema_agrees_with_code() {
    let (longest, script) = ("x".repeat(120 * 1024), "x".repeat(256 * 1024));
    for task in [
        json!({"command": ["true"]}),
        json!({"command": ["a", ""], "script": null, "input_mode": "script", "unknown": 1}),
        json!({"script": " x\n", "use_inference": false, "network_policy": "none", "env": null}),
        json!({"script": script, "env": {"_A1": longest}, "timeout_seconds": u64::MAX}),
        json!({"prompt": script, "input_mode": "script"}),
        json!({"prompt": "x", "input_mode": "commands", "timeout_seconds": 5.0, "max_attempts": 100}),
        json!({"script": "x", "task_name": "é".repeat(200), "node_labels": vec!["a/b=c"; 64]}),
        json!({"script": "x", "priority": -100}),
        json!({"script": "x", "use_inference": true}),
        json!({"script": "x", "env": {"CYNODE_PROMPT": "p", "CYNODE_JOB_ID_": "x", "CYNODE_": ""}}),
        json!({"script": "x", "priority": 1e2}),
        json!({"script": "x", "attachments": []}),
        json!({"script": "x", "attachments": null}),
        json!({"script": "x", "attachments": ["0192d3a0-0000-7000-8000-000000000000"]}),
        json!({"script": "x", "files": [], "stdin": "", "stdin_base64": null}),
        json!({"script": "x", "files": [{"path": "a", "content": "", "mode": "0755", "extract": false}]}),
        json!({"script": "x", "files": [{"path": "a", "content_base64": "", "artifact_id": null}]}),
    ] {
        assert!(accepts(&task), "{task:.300}");
    }
    let too_long = format!("{longest}x");
    for task in [
        json!({}),
        json!([]),
        json!({"command": []}),
        json!({"command": [""]}),
        json!({"command": ["a", "\u{0}"]}),
        json!({"command": ["true"], "script": "true"}),
        json!({"command": null, "script": null, "prompt": null}),
        json!({"script": format!("{script}x")}),
        json!({"command": ["/bin/sh", "-c", too_long]}),
        json!({"script": "x", "env": {"A": too_long}}),
        json!({"script": "x", "env": {"A": 1}}),
        json!({"script": "x", "env": {"CYNODE_TASK_ID": "x"}}),
        json!({"script": "x", "env": {"CYNODE_ARTIFACTS_DIR": "x"}}),
        json!({"script": "x", "env": {"A": "\u{0}"}}),
        json!({"script": "x", "input_mode": "prompt"}),
        json!({"script": "x", "task_name": "é".repeat(201)}),
        json!({"script": "x", "node_labels": vec!["a"; 65]}),
        json!({"script": "x", "timeout_seconds": 0}),
        json!({"script": "x", "timeout_seconds": 1.5}),
        json!({"script": "x", "timeout_seconds": 2e19}),
        json!({"script": "x", "max_attempts": 101}),
        json!({"script": "x", "network_policy": "open"}),
        json!({"script": "x", "priority": 101}),
        json!({"script": "x", "priority": -101}),
        json!({"script": "x", "priority": 0.5}),
        json!({"script": "x", "priority": "high"}),
        json!({"script": "x", "attachments": ["a"]}),
        json!({"script": "x", "attachments": "a"}),
        json!({"script": "x", "files": [{"path": "a"}]}),
        json!({"script": "x", "files": [{"content": "a"}]}),
        json!({"script": "x", "files": [{"path": "", "content": "a"}]}),
        json!({"script": "x", "files": [{"path": "a", "content": "", "content_base64": ""}]}),
        json!({"script": "x", "files": [{"path": "a", "content": "", "mode": "9"}]}),
        json!({"script": "x", "files": [{"path": "a", "artifact_id": "a"}]}),
    ] {
        assert!(!accepts(&task), "{task:.300}");
    }
}

proptest! {
    #[test]
    fn schema_patterns_agree_with_code(
        script in "[ \ta\0é]{0,4}",
        name in "(CYNODE)?[A_a1é =]{0,3}|CYNODE_(JOB_ID|WORKSPACE_DIR)[_ ]?",
        label in "[-a./=_ é]{0,3}|[a-z]{62,65}",
        slug in "[-a0A_é]{0,3}|[a-z]{62,65}",
    ) {
        accepts(&json!({"script": script}));
        accepts(&json!({"script": "x", "env": {name: ""}}));
        accepts(&json!({"script": "x", "node_labels": [label]}));
        let schema = json!({"pattern": SLUG_PATTERN});
        prop_assert_eq!(jsonschema::is_valid(&schema, &json!(slug)), check_slug("/s", &slug).is_ok());
    }

    #[test]
    fn image_pattern_agrees_with_code(
        image in "[ -~]{0,9}|[aA0.:/@_-]{1,9}|(([aA0.-]{1,4}(:[0-9]{0,6})?/)?[a0]([a0._/-]{0,5}[a0])?(:[aA0._-]{1,3})?(@sha256:[0a]{63,65})?)|[0-9a-f]{63,65}",
    ) {
        accepts(&json!({"script": "x", "image": image}));
    }
}
