//! Payloads of other implementations of the contract: optional fields may be missing, null or unknown.

use crate::bodies::{acknowledgement, capability, pointers, registration};
use cynode::{
    api::{
        auth::User,
        check_envelope_version,
        nodes::{Bootstrap, CapabilityReport, ConfigAck, NodeConfig, Register},
        problem::Problem,
    },
    http::request::parse_json,
};
use proptest::{prelude::*, sample::Index};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn bootstrap() -> Value {
    json!({
        "version": 1, "issued_at": "2026-01-01T00:00:00Z",
        "orchestrator": {"base_url": "http://o:1", "endpoints": {
            "worker_registration_url": "http://o:1/r", "node_report_url": "http://o:1/n", "node_config_url": "http://o:1/c",
        }},
        "auth": {"node_jwt": "t", "expires_at": "2027-01-01T00:00:00Z"},
    })
}

fn config() -> Value {
    json!({
        "version": 1, "config_version": "01JABCDEFGHJKMNPQRSTVWXYZ0", "issued_at": "2026-01-01T00:00:00Z",
        "node_slug": "box",
        "orchestrator": {"base_url": "http://o:1", "endpoints": {
            "worker_api_target_url": "http://box:1", "node_report_url": "http://o:1/n",
        }},
        "sandbox_registry": {"registry_url": ""},
        "sandbox_registries": [{"registry_url": "docker.io", "pull_token": "t"}],
        "model_cache": {"cache_url": ""},
        "policy": {"sandbox": {"default_network_policy": "restricted", "allowed_images": ["docker.io/*"]}},
        "worker_api": {"orchestrator_bearer_token": "token"},
        "inference_backend": {"enabled": true, "image": "ollama/ollama", "variant": "cpu", "port": 1, "models": ["m"]},
        "constraints": {"max_request_bytes": 10, "max_job_timeout_seconds": 10},
        "report_interval_seconds": 10,
    })
}

fn user() -> Value {
    json!({
        "id": "0198c0de-0000-7000-8000-000000000001", "handle": "ann", "email": "a@b", "is_active": true,
        "is_admin": true,
    })
}

/// A payload, its required fields, and its reader.
type Payload = (
    Value,
    &'static [&'static str],
    fn(&[u8]) -> Result<(), Problem>,
);

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    check_envelope_version(bytes)?;
    parse_json(bytes)
}

fn payloads() -> [Payload; 6] {
    [
        (
            bootstrap(),
            &[
                "/version",
                "/orchestrator/endpoints/node_report_url",
                "/orchestrator/endpoints/node_config_url",
                "/auth/node_jwt",
            ],
            |bytes| read::<Bootstrap>(bytes)?.check(),
        ),
        (
            config(),
            &[
                "/version",
                "/config_version",
                "/worker_api/orchestrator_bearer_token",
            ],
            |bytes| read::<NodeConfig>(bytes)?.check(),
        ),
        (capability(), &["/version", "/node/node_slug"], |bytes| {
            read::<CapabilityReport>(bytes)?.check("")
        }),
        (
            registration(),
            &["/psk", "/capability/version", "/capability/node/node_slug"],
            |bytes| read::<Register>(bytes)?.check(),
        ),
        (
            acknowledgement(),
            &["/version", "/node_slug", "/config_version", "/status"],
            |bytes| read::<ConfigAck>(bytes)?.check(),
        ),
        (user(), &["/id", "/handle"], |bytes| {
            read::<User>(bytes).map(drop)
        }),
    ]
}

/// Fields of objects, except required ones and those that contain one.
fn optional(body: &Value, needed: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    pointers(body, "", &mut all);
    let is_field = |at: &String| {
        let parent = at
            .rsplit_once('/')
            .and_then(|(parent, _)| body.pointer(parent));
        parent.is_some_and(Value::is_object)
    };
    let holds = |at: &str, field: &str| field == at || field.starts_with(&format!("{at}/"));
    all.retain(|at| is_field(at) && !needed.iter().any(|field| holds(at, field)));
    all
}

fn without(body: &mut Value, at: &str) {
    let (parent, name) = at.rsplit_once('/').unwrap();
    if let Some(Value::Object(parent)) = body.pointer_mut(parent) {
        parent.remove(name);
    }
}

#[test]
fn missing_required_field_is_named() {
    for (body, needed, read) in payloads() {
        read(body.to_string().as_bytes()).unwrap();
        for at in needed {
            let mut body = body.clone();
            without(&mut body, at);
            assert!(read(body.to_string().as_bytes()).is_err(), "{at}");
        }
    }
}

#[test]
fn unknown_policy_is_refused() {
    for (at, value) in [
        (
            "/policy/sandbox/default_network_policy",
            json!("allow-list-v2"),
        ),
        (
            "/policy/sandbox/default_network_policy",
            json!("Restricted"),
        ),
        (
            "/policy/sandbox/default_network_policy",
            json!(["restricted"]),
        ),
        ("/policy/sandbox/allowed_images", json!("docker.io/*")),
        ("/policy/sandbox", json!("none")),
        ("/policy", json!("none")),
    ] {
        let mut body = config();
        *body.pointer_mut(at).unwrap() = value;
        let bytes = body.to_string();
        let problem = read::<NodeConfig>(bytes.as_bytes()).and_then(|config| config.check());
        let problem = problem.unwrap_err();
        assert!(
            problem.errors[0].pointer.starts_with("#/policy"),
            "{at}: {problem:?}"
        );
    }
}

#[test]
fn wrong_types_in_unused_fields_are_ignored() {
    for (payload, at) in [
        (bootstrap(), "/issued_at"),
        (bootstrap(), "/orchestrator/base_url"),
        (bootstrap(), "/auth/expires_at"),
        (config(), "/issued_at"),
        (config(), "/node_slug"),
        (config(), "/orchestrator"),
        (config(), "/orchestrator/endpoints/worker_api_target_url"),
        (config(), "/sandbox_registry"),
        (config(), "/sandbox_registries/0"),
        (config(), "/model_cache/cache_url"),
        (config(), "/report_interval_seconds"),
    ] {
        for other in [
            json!(true),
            json!("yesterday"),
            json!([1]),
            json!({"a": 1}),
            json!(-1.5),
        ] {
            let mut body = payload.clone();
            *body.pointer_mut(at).unwrap() = other;
            let bytes = body.to_string();
            let read = if body.get("auth").is_some() {
                read::<Bootstrap>(bytes.as_bytes()).and_then(|bootstrap| bootstrap.check())
            } else {
                read::<NodeConfig>(bytes.as_bytes()).and_then(|config| config.check())
            };
            assert!(read.is_ok(), "{at}: {read:?}");
        }
    }
}

#[test]
fn inference_is_on_unless_disabled() {
    for (backend, enabled) in [
        (json!({}), Some(true)),
        (json!({"enabled": null}), Some(true)),
        (json!({"enabled": true}), Some(true)),
        (json!({"enabled": false}), Some(false)),
        (Value::Null, None),
    ] {
        let mut body = config();
        body["inference_backend"] = backend;
        let config: NodeConfig = read(body.to_string().as_bytes()).unwrap();
        assert_eq!(
            config.inference_backend.map(|backend| backend.enabled),
            enabled
        );
    }
}

#[test]
fn report_intervals_stay_within_bounds() {
    for (asked, seconds) in [
        (json!(null), 10),
        (json!(0), 10),
        (json!("often"), 10),
        (json!(1), 1),
        (json!(60), 60),
        (json!(u64::MAX), 300),
    ] {
        let mut body = config();
        body["report_interval_seconds"] = asked;
        let config: NodeConfig = read(body.to_string().as_bytes()).unwrap();
        assert_eq!(config.report_interval().as_secs(), seconds);
    }
}

proptest! {
    #[test]
    fn optional_fields_may_be_missing_or_null(
        which in 0usize..6,
        changes in proptest::collection::vec((any::<Index>(), 0u8..3, "[a-z_]{1,12}"), 1..6),
    ) {
        let (mut body, needed, read) = payloads().into_iter().nth(which).unwrap();
        for (at, change, name) in changes {
            let optional = optional(&body, needed);
            if optional.is_empty() {
                break;
            }
            let at = &optional[at.index(optional.len())];
            match change {
                0 => without(&mut body, at),
                1 => *body.pointer_mut(at).unwrap() = Value::Null,
                _ => {
                    let (parent, _) = at.rsplit_once('/').unwrap();
                    let unknown = format!("x_{name}");
                    body.pointer_mut(parent).unwrap()[unknown] = json!({"of": ["another", "release"]});
                }
            }
        }
        let outcome = read(body.to_string().as_bytes());
        prop_assert!(outcome.is_ok(), "{body}: {outcome:?}");
    }
}
