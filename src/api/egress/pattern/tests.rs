//! Patterns match whole labels and exact ports, cover what they say, and refuse all other texts.

use super::*;
use proptest::prelude::*;

fn pattern(text: &str) -> EgressPattern {
    text.parse().unwrap()
}

fn host(text: &str) -> HostName {
    text.parse().unwrap()
}

#[test]
fn pattern_matches_whole_labels() {
    for (text, name, fits) in [
        ("a.b", "a.b", true),
        ("a.b", "A.B.", true),
        ("a.b", "x.a.b", false),
        ("a.b", "b", false),
        ("*.a.b", "x.a.b", true),
        ("*.a.b", "x.y.a.b", true),
        ("*.a.b", "a.b", false),
        ("*.a.b", "xa.b", false),
        ("*.a.b", "x.a.b.c", false),
        ("*.b", "a.b", true),
        ("*.bücher.example", "x.xn--bcher-kva.example", true),
    ] {
        assert_eq!(
            pattern(text).matches(&host(name), 443),
            fits,
            "{text} {name}"
        );
    }
}

#[test]
fn pattern_without_port_means_web() {
    let name = host("a.b");
    for (text, ports) in [
        ("a.b", [true, true, false]),
        ("a.b:443", [true, false, false]),
        ("a.b:80", [false, true, false]),
        ("a.b:8443", [false, false, true]),
    ] {
        let found = [443, 80, 8443].map(|port| pattern(text).matches(&name, port));
        assert_eq!(found, ports, "{text}");
    }
}

#[test]
fn wider_pattern_covers_narrower_one() {
    for (wide, narrow, covers) in [
        ("a.b", "a.b", true),
        ("a.b", "a.b:443", true),
        ("a.b:443", "a.b", false),
        ("a.b", "a.b:8443", false),
        ("*.b", "a.b", true),
        ("*.b", "*.b", true),
        ("*.b", "*.a.b", true),
        ("*.a.b", "*.b", false),
        ("*.a.b", "a.b", false),
        ("a.b", "*.b", false),
        ("*.b", "*.cb", false),
        ("*.b:443", "x.b:443", true),
        ("*.b:443", "x.b:80", false),
    ] {
        assert_eq!(
            pattern(wide).covers(&pattern(narrow)),
            covers,
            "{wide} {narrow}"
        );
    }
}

#[test]
fn texts_have_one_form() {
    for (text, shown) in [
        ("API.Example.com", "api.example.com"),
        ("*.Example.com.:443", "*.example.com:443"),
        ("localhost:08080", "localhost:8080"),
    ] {
        assert_eq!(pattern(text).to_string(), shown);
        let json = serde_json::to_string(&pattern(text)).unwrap();
        assert_eq!(json, format!("{shown:?}"));
        assert_eq!(
            serde_json::from_str::<EgressPattern>(&json).unwrap(),
            pattern(shown)
        );
    }
}

#[test]
fn hostile_patterns_are_refused() {
    let address = InvalidPattern::Host(InvalidHost::Address);
    let form = InvalidPattern::Host(InvalidHost::Form);
    let empty = InvalidPattern::Host(InvalidHost::Empty);
    for (text, error) in [
        ("", empty),
        (":443", empty),
        ("*.", empty),
        ("*", InvalidPattern::Wildcard),
        ("**.a", InvalidPattern::Wildcard),
        ("*a.b", InvalidPattern::Wildcard),
        ("a.*", InvalidPattern::Wildcard),
        ("*.*.b", InvalidPattern::Wildcard),
        ("*:443", InvalidPattern::Wildcard),
        ("127.0.0.1", address),
        ("127.0.0.1:80", address),
        ("*.0.0.1", address),
        ("[::1]:443", address),
        ("::1", address),
        ("a.b:", InvalidPattern::Port),
        ("a.b:0", InvalidPattern::Port),
        ("a.b:+443", InvalidPattern::Port),
        ("a.b:65536", InvalidPattern::Port),
        ("a.b:https", InvalidPattern::Port),
        ("a.b:99999999999999999999", InvalidPattern::Port),
        ("https://a.b", form),
        ("https://a.b:443", form),
        ("a.b/c", form),
        ("a b", form),
        ("a.b:80:443", form),
        ("user@a.b", form),
    ] {
        assert_eq!(text.parse::<EgressPattern>(), Err(error), "{text:?}");
    }
    let endless = format!("a:{}", "1".repeat(1 << 20));
    assert!(endless.parse::<EgressPattern>().is_err());
    assert!(serde_json::from_str::<EgressPattern>("7").is_err());
}

#[test]
fn schema_accepts_what_code_accepts() {
    let schema = serde_json::to_value(schemars::schema_for!(EgressPattern)).unwrap();
    for text in [
        "a",
        "*.a.b",
        "a.b:443",
        "bücher.example",
        "API.example.com.",
    ] {
        pattern(text);
        assert!(
            jsonschema::is_valid(&schema, &serde_json::json!(text)),
            "{text}"
        );
    }
    for text in ["", "*", "a.*", "[::1]", "https://a", "a:b", "a b"] {
        assert!(
            !jsonschema::is_valid(&schema, &serde_json::json!(text)),
            "{text}"
        );
    }
}

/// Names of few labels, so that they often meet.
fn names() -> impl Strategy<Value = String> {
    proptest::collection::vec("[ab]{1,2}", 1..4).prop_map(|labels| labels.join("."))
}

fn patterns() -> impl Strategy<Value = EgressPattern> {
    let port = proptest::option::of(proptest::sample::select(vec![80_u16, 443, 8443]));
    (any::<bool>(), names(), port).prop_map(|(is_wildcard, name, port)| EgressPattern {
        host: name.parse().unwrap(),
        is_wildcard,
        port,
    })
}

proptest! {
    #[test]
    fn covered_pattern_matches_no_more(
        wide in patterns(), narrow in patterns(), name in names(),
        port in proptest::sample::select(vec![80_u16, 443, 8443]),
    ) {
        let name = host(&name);
        if wide.covers(&narrow) && narrow.matches(&name, port) {
            prop_assert!(wide.matches(&name, port), "{wide} covers {narrow}, but not {name}:{port}");
        }
    }

    #[test]
    fn uncovered_pattern_matches_something_else(wide in patterns(), narrow in patterns()) {
        // The narrow pattern's own names, and one below it that no pattern of this test spells out.
        let name = match narrow.is_wildcard {
            true => host(&format!("zz.{}", narrow.host)),
            false => narrow.host.clone(),
        };
        let all = narrow.ports().iter().all(|port| wide.matches(&name, *port));
        prop_assert_eq!(wide.covers(&narrow), all, "{} {}", wide, narrow);
    }

    #[test]
    fn pattern_covers_itself_and_survives_text(one in patterns()) {
        prop_assert!(one.covers(&one));
        prop_assert_eq!(one.to_string().parse::<EgressPattern>(), Ok(one));
    }

    #[test]
    fn any_text_is_pattern_or_error(text in "[*.a:0-9\\[\\]/ ü-]{0,12}|\\PC{0,12}") {
        if let Ok(found) = text.parse::<EgressPattern>() {
            let shown = found.to_string();
            prop_assert!(shown.is_ascii() && !shown.contains(char::is_whitespace));
            prop_assert_eq!(shown.parse::<EgressPattern>(), Ok(found));
        }
    }
}
