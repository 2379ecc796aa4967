//! JSON bodies: valid ones with a few changes.

use crate::{near, oracles::bodies};
use cynode::api::{jobs::MAX_ARGUMENT_BYTES, problem::Problem, tasks::CreateTask};
use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

const ID: &str = "0198c0de-0000-7000-8000-000000000001";

fn task() -> Value {
    json!({
        "command": ["echo", "a b"], "task_name": "n", "image": "alpine:3", "env": {"A": "b", "C/D~": "e"},
        "timeout_seconds": 5, "network_policy": "none", "node_labels": ["gpu", "zone=a"],
        "use_inference": false, "max_attempts": 2, "priority": -3,
    })
}

/// A task that reaches hosts.
fn task_with_hosts() -> Value {
    json!({
        "command": ["x"], "network_policy": "allowlist",
        "egress": {"allow": ["a.example", "*.b.example:443"], "profiles": ["python"]},
    })
}

/// A task whose requests get a secret that it never sees.
fn task_with_edge_secret() -> Value {
    json!({
        "command": ["x"], "network_policy": "allowlist",
        "egress": {"allow": ["a.example", "b.example:80"], "terminate": ["a.example"]},
        "secrets": [
            {"name": "A", "host": "a.example", "header": "X-Api-Key"},
            {"name": "A", "env": "B", "host": "b.example:80"},
            "C",
        ],
    })
}

fn job() -> Value {
    json!({
        "version": 1, "task_id": ID, "job_id": ID, "attempt": 2,
        "sandbox": {
            "image": "localhost/t:1", "command": ["sh", "-c", "x"], "env": {"A": "b"}, "timeout_seconds": 9,
            "network_policy": "restricted", "use_inference": false,
        },
    })
}

pub(crate) fn capability() -> Value {
    json!({
        "version": 1, "reported_at": "2026-01-01T00:00:00Z",
        "node": {"node_slug": "box-1", "name": "A box", "labels": ["gpu"]},
        "platform": {"os": "linux", "distro": "d", "arch": "amd64", "kernel_version": "6"},
        "container_runtime": {"runtime": "podman", "version": "5", "rootless_supported": true, "rootless_enabled": false},
        "compute": {"cpu_model": "m", "cpu_cores": 2, "ram_mb": 1, "storage_free_mb": 7},
        "gpu": {"present": true, "devices": [
            {"vendor": "nvidia", "model": "m", "device_id": "GPU-1", "vram_mb": 1, "features": {"f": 0.1}},
        ]},
        "sandbox": {"supported": true, "features": ["x"], "max_concurrency": 2},
        "network": {"orchestrator_reachable": true, "outbound_policy": "none"},
        "inference": {"supported": true, "mode": "m", "running": true, "existing_service": false, "models": ["q:1"],
            "model_details": [{"name": "q:1", "size_bytes": 1, "digest": "d", "loaded": true, "vram_bytes": 1, "context_length": 1}],
            "features": ["proxy"]},
        "worker_api": {"base_url": "http://box:1"}, "tls": {"trust_material_status": "none"},
    })
}

pub(crate) fn registration() -> Value {
    json!({"psk": "key", "node_key": "0123456789abcdef", "capability": capability()})
}

pub(crate) fn acknowledgement() -> Value {
    json!({
        "version": 1, "node_slug": "box-1", "config_version": "1", "ack_at": "2026-01-01T00:00:00Z",
        "status": "failed", "error": {"type": "t", "message": "m", "details": {"a": [1]}}, "effective_config_hash": "h",
    })
}

/// Replacement for a part of a body.
fn other() -> impl Strategy<Value = Value> {
    let sizes = proptest::sample::select(vec![
        63,
        64,
        65,
        200,
        201,
        256,
        257,
        512,
        2048,
        4097,
        MAX_ARGUMENT_BYTES,
        MAX_ARGUMENT_BYTES + 1,
    ]);
    let long = (sizes, "[aé\u{0}]").prop_map(|(n, of)| json!(of.repeat(n)));
    prop_oneof![
        near("aZ0_-./=:@ \u{0}é").prop_map(Value::from),
        long,
        any::<i64>().prop_map(Value::from),
        (0u64..3).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0usize..300, near("ab-")).prop_map(|(n, text)| json!(vec![text; n])),
        near("AB_=~/ ").prop_map(|name| json!({ name: "x" })),
        Just(json!({})),
    ]
}

/// Pointers to everything in a value.
pub(crate) fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Array(list) => {
            for (n, one) in list.iter().enumerate() {
                pointers(one, &format!("{at}/{n}"), all);
            }
        }
        Value::Object(map) => {
            for (name, one) in map {
                let name = name.replace('~', "~0").replace('/', "~1");
                pointers(one, &format!("{at}/{name}"), all);
            }
        }
        _ => {}
    }
}

fn changed(mut body: Value, changes: Vec<(Index, Value)>) -> Value {
    for (at, other) in changes {
        let mut all = Vec::new();
        pointers(&body, "", &mut all);
        if let Some(place) = body.pointer_mut(&all[at.index(all.len())]) {
            *place = other;
        }
    }
    body
}

/// The field that a refusal names exists in the body, or is a required member that its object lacks.
fn names_what_is_there(body: &Value, problem: &Problem) {
    for error in &problem.errors {
        let pointer = error.pointer.trim_start_matches('#');
        let parent = pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
        let is_missing = || {
            error.detail.contains("missing") && body.pointer(parent).is_some_and(Value::is_object)
        };
        assert!(
            body.pointer(pointer).is_some() || is_missing(),
            "{pointer} ({}) of {body}",
            error.detail
        );
    }
}

fn holds<T>(body: &Value, of: fn(&[u8]) -> Result<T, Problem>) {
    let bytes = serde_json::to_vec(body).unwrap();
    bodies::body(&bytes);
    if let Err(problem) = of(&bytes) {
        names_what_is_there(body, &problem);
    }
}

#[test]
fn unchanged_bodies_are_valid() {
    let bytes = |body: Value| serde_json::to_vec(&body).unwrap();
    let mut fine = task();
    fine["env"] = json!({"A": "b"});
    bodies::create(&bytes(fine)).unwrap();
    bodies::create(&bytes(task_with_hosts())).unwrap();
    bodies::create(&bytes(task_with_edge_secret())).unwrap();
    bodies::run(&bytes(job())).unwrap();
    bodies::register(&bytes(registration())).unwrap();
    bodies::report(&bytes(capability())).unwrap();
    bodies::acknowledge(&bytes(acknowledgement())).unwrap();
}

fn changes() -> impl Strategy<Value = Vec<(Index, Value)>> {
    proptest::collection::vec((any::<Index>(), other()), 0..3)
}

proptest! {
    #[test]
    fn task_keeps_limits_or_is_refused(changes in changes(), whole: bool) {
        let mut body = task();
        if whole {
            body["env"] = json!({"A": "b"});
        }
        holds(&changed(body, changes), bodies::create);
    }

    #[test]
    fn task_with_hosts_keeps_limits_or_is_refused(changes in changes()) {
        holds(&changed(task_with_hosts(), changes), bodies::create);
    }

    #[test]
    fn task_with_edge_secret_keeps_limits_or_is_refused(changes in changes()) {
        holds(&changed(task_with_edge_secret(), changes), bodies::create);
    }

    #[test]
    fn job_with_edge_secret_keeps_limits_or_is_refused(changes in changes()) {
        let mut body = job();
        body["sandbox"]["network_policy"] = "allowlist".into();
        body["sandbox"]["egress"] = json!({"allow": ["a.example"], "terminate": ["a.example"]});
        body["sandbox"]["secrets"] = json!([{"name": "A", "env": "A", "host": "a.example", "header": "x-api-key"}]);
        body["secrets"] = json!({"A": "swordfish"});
        holds(&changed(body, changes), bodies::run);
    }

    #[test]
    fn job_with_hosts_keeps_limits_or_is_refused(changes in changes()) {
        let mut body = job();
        body["sandbox"]["network_policy"] = "allowlist".into();
        body["sandbox"]["egress"] = json!({"allow": ["a.example"], "allow_private": ["10.0.0.0/8"], "max_bytes": 1});
        holds(&changed(body, changes), bodies::run);
    }

    #[test]
    fn job_keeps_limits_or_is_refused(changes in changes()) {
        holds(&changed(job(), changes), bodies::run);
    }

    #[test]
    fn registration_is_bounded_or_refused(changes in changes()) {
        holds(&changed(registration(), changes), bodies::register);
    }

    #[test]
    fn report_is_bounded_or_refused(changes in changes()) {
        holds(&changed(capability(), changes), bodies::report);
    }

    #[test]
    fn acknowledgement_is_bounded_or_refused(changes in changes()) {
        holds(&changed(acknowledgement(), changes), bodies::acknowledge);
    }

    #[test]
    fn any_bytes_are_body_or_problem(bytes: Vec<u8>, text in near("{}[]\":,0aé\\u null true e+-.")) {
        bodies::body(&bytes);
        bodies::body(text.as_bytes());
    }

    #[test]
    fn task_limits_are_exact(labels in 60usize..70, name in 195usize..206, attempts in 0u32..103) {
        let of = |labels: usize, name: usize, attempts: u32| {
            let body = json!({
                "script": "x", "node_labels": vec!["a"; labels], "task_name": "é".repeat(name), "max_attempts": attempts,
            });
            bodies::create(&serde_json::to_vec(&body).unwrap()).is_ok()
        };
        prop_assert_eq!(of(labels, 200, 100), labels <= 64);
        prop_assert_eq!(of(64, name, 1), name <= 200);
        prop_assert_eq!(of(0, 0, attempts), (1..=100).contains(&attempts));
    }

    #[test]
    fn report_limits_are_exact(few in 60usize..70, many in 250usize..262) {
        let of = |pointer: &str, value: Value| {
            let mut body = capability();
            *body.pointer_mut(pointer).unwrap() = value;
            bodies::report(&serde_json::to_vec(&body).unwrap()).is_ok()
        };
        prop_assert_eq!(of("/node/labels", json!(vec!["a"; few])), few <= 64);
        prop_assert_eq!(of("/gpu/devices", json!(vec![json!({}); few])), few <= 64);
        for list in ["/inference/models", "/sandbox/features"] {
            prop_assert_eq!(of(list, json!(vec!["a"; many])), many <= 256);
            prop_assert_eq!(of(list, json!(["a".repeat(many)])), many <= 256);
        }
        for text in ["/node/name", "/platform/os", "/platform/distro", "/compute/cpu_model", "/gpu/devices/0/model"] {
            prop_assert_eq!(of(text, json!("a".repeat(many))), many <= 256);
        }
    }

    #[test]
    fn task_has_exactly_one_command_form(command: bool, script: bool, prompt: bool) {
        let text = |there: bool| there.then(|| "x".to_owned());
        let create = CreateTask {
            command: text(command).map(|program| vec![program]),
            script: text(script),
            prompt: text(prompt),
            input_mode: prompt.then_some(cynode::api::tasks::InputMode::Script),
            ..CreateTask::default()
        };
        let ways = [command, script, prompt].into_iter().filter(|way| *way).count();
        prop_assert_eq!(create.resolve("alpine").is_ok(), ways == 1);
    }
}

proptest! {
    // A megabyte each.
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn command_size_limit_is_exact(over in 0usize..2, count in 1usize..9) {
        // Each element costs nine bytes more than its text.
        let room = 1024 * 1024 + over - 9 * (count + 1) - 1;
        let each = room / count;
        let mut command = vec!["x".to_owned()];
        command.extend(vec!["a".repeat(each); count - 1]);
        command.push("a".repeat(room - each * (count - 1)));
        let fits = command.iter().all(|text| text.len() <= MAX_ARGUMENT_BYTES) && over == 0;
        let body = serde_json::to_vec(&json!({ "command": command })).unwrap();
        prop_assert_eq!(bodies::create(&body).is_ok(), fits);
    }
}
