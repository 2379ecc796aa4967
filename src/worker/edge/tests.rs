//! What goes to the command, to the proxy and to nobody.

use super::*;
use http::header::AUTHORIZATION;
use serde_json::json;

/// Job with a secret for its command, one for TLS and one for plain HTTP.
fn divided(terminate: &[&str]) -> Divided {
    let spec = json!({
        "image": "i",
        "command": ["c"],
        "network_policy": "allowlist",
        "egress": {"allow": ["api.example"], "terminate": terminate},
        "secrets": [
            {"name": "PLAIN", "env": "PLAIN"},
            {"name": "TOKEN", "env": "KEY", "host": "api.example", "header": "authorization"},
            {"name": "TOKEN", "env": "OTHER", "host": "api.example:80", "header": "x-key"},
        ],
    });
    let values = json!({"PLAIN": "plain value", "KEY": "swordfish", "OTHER": "swordfish"});
    let spec = serde_json::from_value(spec).unwrap();
    Divided::new(&spec, &serde_json::from_value(values).unwrap()).unwrap()
}

fn texts(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    let text = |text: OsString| text.into_string().unwrap();
    variables
        .map(|(name, value)| (text(name), text(value)))
        .collect()
}

/// Value of a header that is sent to a host.
fn sent(edge: &Edge, at: (&str, u16), is_encrypted: bool, (name, value): (&str, &str)) -> String {
    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(&name, value.parse().unwrap());
    let host = at.0.parse().unwrap();
    let is_swapped = edge.swap((&host, at.1), is_encrypted, &mut headers);
    let sent = headers[&name].to_str().unwrap().to_owned();
    assert_eq!(is_swapped, Ok(sent != value));
    sent
}

#[test]
fn command_gets_placeholders_alone() {
    let divided = divided(&["api.example"]);
    let given: Vec<_> = divided.for_command.iter().collect();
    assert_eq!(given, [("PLAIN", "plain value")]);
    let edge = divided.edge.unwrap();
    let placeholders = texts(edge.placeholders());
    for ((name, value), expected) in placeholders.iter().zip(["KEY", "OTHER"]) {
        assert_eq!(name, expected);
        let random = value.strip_prefix("cynode-secret-TOKEN-").unwrap();
        assert_eq!(random.len(), 32);
        assert!(random.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    assert_ne!(placeholders[0].1, placeholders[1].1);
    let trust = texts(edge.variables());
    assert!(trust.contains(&("SSL_CERT_FILE".to_owned(), "/run/cynode/ca.pem".to_owned())));
    assert!(edge.authority().starts_with(b"-----BEGIN CERTIFICATE-----"));
    let masked = masked(&divided.for_command, Some(&edge));
    let masked: Vec<_> = masked.iter().map(|(_, value)| value).collect();
    assert_eq!(masked, ["swordfish", "swordfish", "plain value"]);
    let shown = format!("{edge:?}");
    assert!(
        !shown.contains("swordfish") && !shown.contains("PRIVATE"),
        "{shown}"
    );
}

#[test]
fn value_goes_to_its_host_in_its_header_alone() {
    let access = divided(&["api.example"]).edge.unwrap();
    let placeholders = texts(access.placeholders());
    let [key, other] = [0, 1].map(|n| placeholders[n].1.as_str());
    // As the next process reads it.
    let access = EdgeAccess::decode(&access.encode().unwrap());
    let edge = Edge::new(Some(access.unwrap()));
    let tls = ("api.example", 443);
    assert_eq!(sent(&edge, tls, true, ("authorization", key)), "swordfish");
    assert_eq!(sent(&edge, tls, true, ("x-key", key)), key);
    assert_eq!(sent(&edge, tls, true, ("authorization", other)), other);
    assert_eq!(sent(&edge, tls, false, ("x-other", key)), key);
    let mut in_clear = HeaderMap::from_iter([(AUTHORIZATION, key.parse().unwrap())]);
    let fault = edge.swap((&tls.0.parse().unwrap(), tls.1), false, &mut in_clear);
    assert!(
        matches!(fault, Err(SwapFault::InClear(_))) && in_clear[AUTHORIZATION] == key,
        "{fault:?}"
    );
    let plain = ("api.example", 80);
    assert_eq!(sent(&edge, plain, false, ("x-key", other)), "swordfish");
    assert_eq!(sent(&edge, plain, false, ("authorization", key)), key);
    for at in [
        ("other.example", 443),
        ("api.example", 8443),
        ("b.api.example", 443),
    ] {
        for is_encrypted in [true, false] {
            assert_eq!(sent(&edge, at, is_encrypted, ("authorization", key)), key);
        }
    }
}

#[test]
fn authority_is_made_where_tls_is_opened() {
    let without = divided(&[]).edge.unwrap();
    assert!(without.authority().is_empty());
    assert_eq!(without.variables().count(), 0);
    let host = "api.example".parse().unwrap();
    let edge = Edge::new(Some(without));
    assert!(!edge.terminates(&host, 443) && edge.server(&host).is_err());
    let edge = Edge::new(divided(&["api.example"]).edge);
    assert!(edge.terminates(&host, 443) && !edge.terminates(&host, 8443));
    let first = edge.server(&host).unwrap();
    assert!(Arc::ptr_eq(&first, &edge.server(&host).unwrap()), "kept");
}

#[test]
fn job_without_edge_has_none() {
    let spec = json!({"image": "i", "command": ["c"], "secrets": [{"name": "A", "env": "A"}]});
    let spec = serde_json::from_value(spec).unwrap();
    let values = serde_json::from_value(json!({"A": "x"})).unwrap();
    let divided = Divided::new(&spec, &values).unwrap();
    assert!(divided.edge.is_none());
    assert!(divided.for_command == values);
    assert_eq!(masked(&values, None), values);
    assert!(EdgeAccess::decode(b"{").is_none());
}
