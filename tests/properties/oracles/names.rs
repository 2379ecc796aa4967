//! Slugs, labels, models, variables and URLs.

use super::{refused, shaped};
use cynode::api::{
    jobs::{Env, check_env},
    nodes::{check_label, check_model, check_slug, check_url, slug_from_host_name},
    problem::Problem,
};

/// Exactly the valid names are accepted; a refusal names the field.
pub fn name(text: &str) {
    check("/slug", slug(text), check_slug("/slug", text));
    check("/label", label(text), check_label("/label", text));
    check("/model", model(text), check_model("/model", text));
    let of = slug_from_host_name(text);
    assert!(slug(&of), "{text:?} gives {of:?}");
    assert_eq!(slug_from_host_name(&of), of, "the slug of a slug is itself");
    variable(text);
}

fn check(field: &str, expected: bool, outcome: Result<(), Problem>) {
    assert_eq!(outcome.is_ok(), expected, "{field}");
    if let Err(problem) = outcome {
        refused(&problem);
        assert_eq!(problem.errors[0].pointer, format!("#{field}"));
    }
}

/// `[a-z0-9][a-z0-9-]{0,62}`.
pub fn slug(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let more = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    shaped(text, plain, more, 62)
}

/// `[A-Za-z0-9][A-Za-z0-9._/=-]{0,62}`.
pub fn label(text: &str) -> bool {
    let more = |c: char| c.is_ascii_alphanumeric() || "._/=-".contains(c);
    shaped(text, |c| c.is_ascii_alphanumeric(), more, 62)
}

/// `[A-Za-z0-9][A-Za-z0-9._:/-]{0,255}`.
fn model(text: &str) -> bool {
    let more = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
    shaped(text, |c| c.is_ascii_alphanumeric(), more, 255)
}

/// `[A-Za-z_][A-Za-z0-9_]*`, and none of cynode's own.
pub fn env_name(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let more = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let own = ["TASK_ID", "JOB_ID", "WORKSPACE_DIR", "ARTIFACTS_DIR"];
    let is_own = text
        .strip_prefix("CYNODE_")
        .is_some_and(|rest| own.contains(&rest));
    shaped(text, first, more, usize::MAX) && !is_own
}

/// A value that a variable can have.
pub fn env_value(text: &str) -> bool {
    !text.contains('\0') && text.len() <= 120 * 1024
}

fn variable(text: &str) {
    for (name, value, expected) in [(text, "x", env_name(text)), ("X", text, env_value(text))] {
        let env = Env::from([(name.to_owned(), value.to_owned())]);
        let outcome = check_env("/env", Some(&env));
        assert_eq!(outcome.is_ok(), expected, "{name:?}={value:?}");
        if let Err(problem) = outcome {
            refused(&problem);
        }
    }
}

/// An accepted URL can be called, at the host and port in its text.
pub fn url(text: &str) {
    if let Err(problem) = check_url("/url", text) {
        return refused(&problem);
    }
    assert!(text.len() <= 2048);
    let visible = |c: char| !c.is_control() && !c.is_whitespace();
    assert!(text.chars().all(visible), "{text:?}");
    let (scheme, rest) = text.split_once("://").expect("a scheme");
    let is_known = ["http", "https"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known));
    assert!(is_known, "{text}");
    let authority = rest.split('/').next().unwrap_or_default();
    assert!(!authority.contains(['@', '?', '#', '\\']), "{text}");
    let uri: http::Uri = format!("{}/v1/x", text.trim_end_matches('/'))
        .parse()
        .expect("a path can be put behind it");
    let host = uri.host().expect("a host");
    assert!(authority.starts_with(host), "{text}");
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    assert!(
        shaped(host, word, word, 2048) || address.parse::<std::net::Ipv6Addr>().is_ok(),
        "{text}"
    );
    let port = &authority[host.len()..];
    if let Some(port) = port.strip_prefix(':') {
        let number: u16 = port.parse().expect("a port");
        assert!(number > 0, "{text}");
        assert_eq!(uri.port_u16(), Some(number), "{text}");
    } else {
        assert_eq!((port, uri.port_u16()), ("", None), "{text}");
    }
    assert!(uri.path().ends_with("/v1/x") && uri.query().is_none());
}
