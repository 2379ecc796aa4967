//! Lists of a job: their rules with the network policy, and what a node gets of them.

use super::*;
use proptest::prelude::*;

const ALLOWLIST: Option<NetworkPolicy> = Some(NetworkPolicy::Allowlist);

fn egress(json: Value) -> Egress {
    serde_json::from_value(json).unwrap()
}

fn resolve(json: Value) -> Result<Option<EgressSpec>, Problem> {
    Egress::resolve(Some(&egress(json)), ALLOWLIST)
}

#[test]
fn allowlist_and_egress_need_each_other() {
    let some = egress(json!({"allow": ["a.b"]}));
    for (policy, given, fits) in [
        (None, None, true),
        (Some(NetworkPolicy::None), None, true),
        (Some(NetworkPolicy::Restricted), None, true),
        (ALLOWLIST, None, false),
        (None, Some(&some), false),
        (Some(NetworkPolicy::None), Some(&some), false),
        (Some(NetworkPolicy::Restricted), Some(&some), false),
        (ALLOWLIST, Some(&some), true),
    ] {
        let found = Egress::resolve(given, policy);
        assert_eq!(found.is_ok(), fits, "{policy:?} {given:?}");
        if let Err(problem) = found {
            assert_eq!(problem.errors[0].pointer, "#/egress");
        }
    }
}

#[test]
fn profiles_become_sorted_patterns() {
    let spec = resolve(
        json!({"allow": ["z.example", "A.example", "a.example", "pypi.org:443"], "profiles": ["python", "python"]}),
    );
    let allow = spec.unwrap().unwrap().allow;
    let texts: Vec<_> = allow.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "a.example",
            "files.pythonhosted.org:443",
            "pypi.org:443",
            "z.example"
        ]
    );
    let all: Vec<_> = Profile::ALL
        .iter()
        .map(|profile| profile.as_str())
        .collect();
    let hosts: Vec<_> = (all.len()..MAX_ENTRIES)
        .map(|n| format!("host{n}.example"))
        .collect();
    let most = resolve(json!({"allow": hosts, "profiles": all}))
        .unwrap()
        .unwrap();
    assert!(most.allow.len() <= MAX_PATTERNS);
}

#[test]
fn number_of_entries_is_limited() {
    let hosts = |count: usize| {
        (0..count)
            .map(|n| format!("host{n}.example"))
            .collect::<Vec<_>>()
    };
    assert!(resolve(json!({})).is_err());
    assert!(resolve(json!({"allow": [], "profiles": []})).is_err());
    assert!(resolve(json!({"allow": hosts(MAX_ENTRIES)})).is_ok());
    assert!(resolve(json!({"allow": hosts(MAX_ENTRIES), "profiles": ["git"]})).is_err());
    assert!(resolve(json!({"allow": hosts(MAX_ENTRIES + 1)})).is_err());
}

#[test]
fn wrong_lists_say_what_is_wrong() {
    for (json, text) in [
        ("[]", "expected a JSON object"),
        ("7", "expected a JSON object"),
        (r#"{"allow": null}"#, "expected a sequence"),
        (r#"{"allow": ["10.0.0.1"]}"#, "is an IP address"),
        (r#"{"allow": ["*"]}"#, "has * at another place"),
        (r#"{"allow": ["a.b:0"]}"#, "has an invalid port"),
        (
            r#"{"profiles": ["perl"]}"#,
            "expected one of python, node, rust, debian, alpine, models, git",
        ),
        (r#"{"allow": [], "allow": []}"#, "duplicate field `allow`"),
        (r#"{"terminate": ["*.a.b"]}"#, "name one host"),
        (r#"{"terminate": ["10.0.0.1"]}"#, "is an IP address"),
        (
            r#"{"terminate": [], "terminate": []}"#,
            "duplicate field `terminate`",
        ),
    ] {
        let error = serde_json::from_str::<Egress>(json)
            .unwrap_err()
            .to_string();
        assert!(error.contains(text), "{json}: {error}");
    }
    // A field that is not known is a warning of the whole body.
    let unknown = egress(json!({"allow": ["a.b"], "later": {"a": [1]}}));
    assert_eq!(unknown.allow.len(), 1);
}

#[test]
fn terminated_hosts_are_on_the_list() {
    let terminate = |hosts: Value| {
        resolve(json!({"allow": ["*.a.b", "c.d:8443"], "profiles": ["python"], "terminate": hosts}))
    };
    let spec = terminate(json!([
        "pypi.org",
        "C.d:8443",
        "x.a.b:443",
        "x.a.b",
        "x.a.b:80"
    ]));
    let hosts = spec.unwrap().unwrap().terminate;
    let texts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["c.d:8443", "pypi.org", "x.a.b:80", "x.a.b"]);
    for (host, entry) in [
        ("a.b", "a.b:443"),
        ("c.d", "c.d:443"),
        ("x.a.b:8443", "x.a.b:8443"),
        ("pypi.org:80", "pypi.org:80"),
    ] {
        let problem = terminate(json!(["x.a.b", host])).unwrap_err();
        let error = &problem.errors[0];
        assert_eq!(error.pointer, "#/egress/terminate/1");
        let start = format!("names {host}, which neither egress.allow nor a profile");
        let advice = format!("add {entry} to egress.allow");
        assert!(
            error.detail.starts_with(&start) && error.detail.ends_with(&advice),
            "{}",
            error.detail
        );
    }
    assert!(terminate(json!(vec!["x.a.b"; MAX_ENTRIES])).is_ok());
    let problem = terminate(json!(vec!["x.a.b"; MAX_ENTRIES + 1])).unwrap_err();
    assert_eq!(problem.errors[0].pointer, "#/egress/terminate");
    // It opens what other entries allow, and allows nothing itself.
    assert!(resolve(json!({"terminate": ["a.b"]})).is_err());
}

#[test]
fn node_checks_network_of_job() {
    let job = |policy, egress| SandboxSpec {
        network_policy: policy,
        egress,
        ..SandboxSpec::default()
    };
    let many = |count: usize| EgressSpec {
        allow: (0..count)
            .map(|n| format!("host{n}").parse().unwrap())
            .collect(),
        ..EgressSpec::default()
    };
    let opened = |count: usize| EgressSpec {
        terminate: vec!["a.b".parse().unwrap(); count],
        ..EgressSpec::default()
    };
    for (spec, fits) in [
        (job(ALLOWLIST, Some(opened(MAX_ENTRIES))), true),
        (job(ALLOWLIST, Some(opened(MAX_ENTRIES + 1))), false),
        (job(None, None), true),
        (job(ALLOWLIST, None), false),
        (job(None, Some(many(1))), false),
        // An operator may have shortened the list since.
        (job(ALLOWLIST, Some(many(0))), true),
        (job(ALLOWLIST, Some(many(MAX_PATTERNS))), true),
        (job(ALLOWLIST, Some(many(MAX_PATTERNS + 1))), false),
    ] {
        assert_eq!(spec.check_network("/sandbox").is_ok(), fits);
    }
}

#[test]
fn spec_survives_the_wire() {
    let spec = EgressSpec {
        allow: vec!["*.a.b:443".parse().unwrap()],
        allow_private: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        max_bytes: Some(ByteSize(1 << 30)),
        terminate: vec!["c.a.b".parse().unwrap()],
    };
    let json = serde_json::to_value(&spec).unwrap();
    let wire = json!({
        "allow": ["*.a.b:443"], "allow_private": ["10.0.0.0/8", "fd00::/8"], "max_bytes": 1 << 30, "terminate": ["c.a.b"],
    });
    assert_eq!(json, wire);
    assert_eq!(serde_json::from_value::<EgressSpec>(wire).unwrap(), spec);
    let least: EgressSpec = serde_json::from_value(json!({})).unwrap();
    assert_eq!(least, EgressSpec::default());
}

proptest! {
    #[test]
    fn spec_matches_what_entries_match(
        names in proptest::collection::vec("(\\*\\.)?[ab](\\.[ab])?(:443)?", 1..6),
        host in "[ab](\\.[ab]){0,2}",
        port in proptest::sample::select(vec![80_u16, 443]),
    ) {
        let given = egress(json!({ "allow": names }));
        let host: HostName = host.parse().unwrap();
        let spec = Egress::resolve(Some(&given), ALLOWLIST).unwrap().unwrap();
        let matches = |all: &[EgressPattern]| all.iter().any(|one| one.matches(&host, port));
        prop_assert_eq!(matches(&given.allow), matches(&spec.allow));
        prop_assert!(spec.allow.is_sorted());
    }

    #[test]
    fn operator_who_covers_list_matches_all_of_it(
        allowed in proptest::collection::vec("(\\*\\.)?[ab](\\.[ab])?(:443|:80)?", 0..6),
        wanted in "(\\*\\.)?[ab](\\.[ab])?(:443)?",
        host in "[ab](\\.[ab]){0,2}",
        port in proptest::sample::select(vec![80_u16, 443]),
    ) {
        let entries = allowed.iter().map(|text| text.parse::<AllowedEntry>().unwrap());
        let operator: AllowedHosts = entries.collect();
        let wanted: EgressPattern = wanted.parse().unwrap();
        let host: HostName = host.parse().unwrap();
        if operator.covers(&wanted) && wanted.matches(&host, port) {
            let patterns = operator.into_patterns().unwrap();
            prop_assert!(patterns.iter().any(|one| one.matches(&host, port)));
        }
    }
}
