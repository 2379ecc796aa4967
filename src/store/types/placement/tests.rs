//! Canonical forms of placements.

use super::*;
use proptest::prelude::*;

fn texts() -> impl Strategy<Value = BTreeSet<String>> {
    proptest::collection::btree_set(".{0,6}", 0..4)
}

fn gpus() -> impl Strategy<Value = GpuRequest> {
    let ids = proptest::collection::vec("[a-z0-9]{1,3}", 1..4);
    prop_oneof![
        Just(GpuRequest::All),
        (1..9_u32).prop_map(GpuRequest::Count),
        ids.prop_map(GpuRequest::Ids),
    ]
}

fn requirements() -> impl Strategy<Value = Requirements> {
    use proptest::option::of;
    let limit = of(0..u64::MAX);
    (
        texts(),
        texts(),
        any::<bool>(),
        of(".{0,4}"),
        [of(".{0,4}"), of(".{0,4}")],
        of(gpus()),
        limit,
        0..3_usize,
    )
        .prop_map(
            |(labels, features, inference, model, [node, snapshot], gpus, time_limit, excluded)| {
                let excluded_nodes = (0..excluded).map(|_| NodeId::new()).collect();
                Requirements {
                    labels,
                    inference,
                    model,
                    node,
                    snapshot,
                    features,
                    gpus,
                    time_limit,
                    excluded_nodes,
                }
            },
        )
}

proptest! {
    #[test]
    fn canonical_form_parses_back_to_itself(requirements in requirements()) {
        let placement = Placement::new(requirements.clone());
        let parsed = Placement::parse(placement.canonical()).unwrap();
        prop_assert_eq!(&parsed, &placement);
        prop_assert_eq!(&parsed.0.requirements, &placement.0.requirements);
        prop_assert_eq!(Placement::new(parsed.0.requirements.clone()), placement.clone());
        let excluded = requirements.excluded_nodes.clone();
        prop_assert_eq!(placement.excluding([]).excluding(excluded), placement);
    }
}

fn of(spec: &serde_json::Value) -> String {
    let mut json = serde_json::json!({
        "sandbox": {"image": "a", "command": ["x"]}, "node_labels": [], "max_attempts": 3,
    });
    for (name, value) in spec.as_object().unwrap() {
        match name.as_str() {
            "node_labels" | "node" => json[name] = value.clone(),
            _ => json["sandbox"][name] = value.clone(),
        }
    }
    let spec: TaskSpec = serde_json::from_value(json).unwrap();
    Placement::from_spec(&spec).canonical().to_owned()
}

#[test]
fn equal_requirements_have_one_canonical_form() {
    let labels = |labels: &[&str]| of(&serde_json::json!({"node_labels": labels}));
    assert_eq!(labels(&[]), "{}");
    assert_eq!(labels(&["b", "a/1", "b"]), r#"{"labels":["a/1","b"]}"#);
    let ids = of(&serde_json::json!({"gpus": ["1", "0"]}));
    assert_eq!(ids, r#"{"features":["gpus"],"gpus":["0","1"]}"#);
    let node = NodeId::new();
    let all = Placement::new(Requirements {
        labels: ["a".to_owned()].into(),
        inference: true,
        excluded_nodes: [node].into(),
        ..Requirements::default()
    });
    // As the previous release wrote it.
    let expected = format!(r#"{{"labels":["a"],"inference":true,"except":["{node}"]}}"#);
    assert_eq!(all.canonical(), expected);
}

#[test]
fn fields_of_sandbox_need_features() {
    let content = serde_json::json!({"sha256": "0".repeat(64), "size_bytes": 1});
    let cases = [
        (
            serde_json::json!({"grace_seconds": 9, "pull": "missing"}),
            "{}",
        ),
        (
            serde_json::json!({"node": "box", "pull": "always", "memory": 9_000_000}),
            r#"{"node":"box","features":["limit-memory","pull-policy"]}"#,
        ),
        (
            serde_json::json!({"files": [{"path": "a", "content": content}], "stdin": content}),
            r#"{"features":["files","stdin"]}"#,
        ),
        (
            serde_json::json!({"artifacts": ["*"], "interactive": true}),
            r#"{"features":["artifacts","stdin"]}"#,
        ),
        (
            serde_json::json!({"prompt": {"text": "x", "model": "m:1"}}),
            r#"{"inference":true,"model":"m:1","features":["prompts"]}"#,
        ),
        (
            serde_json::json!({"image": "localhost/cynode-snapshots/u:dev"}),
            r#"{"snapshot":"localhost/cynode-snapshots/u:dev","features":["snapshots"]}"#,
        ),
        (
            serde_json::json!({"network_policy": "allowlist", "egress": {"allow": ["a.b"]}}),
            r#"{"features":["egress"]}"#,
        ),
        (
            serde_json::json!({"network_policy": "allowlist", "egress": {"allow": ["a.b"], "terminate": ["a.b"]}}),
            r#"{"features":["egress","egress-terminate"]}"#,
        ),
        (
            serde_json::json!({
                "network_policy": "allowlist", "egress": {"allow": ["a.b"]},
                "secrets": [{"name": "A", "env": "A", "host": "a.b:80", "header": "authorization"}],
            }),
            r#"{"features":["egress","egress-terminate","secrets"]}"#,
        ),
        (
            serde_json::json!({"secrets": [{"name": "A", "env": "A"}]}),
            r#"{"features":["secrets"]}"#,
        ),
        (serde_json::json!({"network_policy": "restricted"}), "{}"),
        (
            serde_json::json!({"gpus": 2, "timeout_seconds": 10_801}),
            r#"{"features":["gpus"],"gpus":2,"time_limit":14400}"#,
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(of(&spec), expected, "{spec}");
    }
}

#[test]
fn long_time_limits_share_few_steps() {
    let hours = |hours: u64| time_step(hours * HOUR_SECONDS).map(|step| step / HOUR_SECONDS);
    assert_eq!(
        [1, 3, 4, 6, 48, 49].map(hours),
        [None, None, Some(4), Some(6), Some(48), Some(72)]
    );
    assert_eq!([700, 720, 721, 9999].map(hours), [Some(720); 4]);
    assert_eq!(time_step(3 * HOUR_SECONDS + 60), Some(4 * HOUR_SECONDS));
    assert_eq!(time_step(u64::MAX), Some(30 * DAY_SECONDS));
}

#[test]
fn placement_of_earlier_release_parses() {
    let stored = r#"{"features":["limits"],"time_limit":21600}"#;
    let placement = Placement::parse(stored).unwrap();
    assert!(placement.features().contains(features::LIMITS));
    assert_eq!(placement.time_limit(), Some(6 * HOUR_SECONDS));
    assert_eq!(placement.canonical(), stored);
}
