//! Tables of invalid bodies, calls and fields.

use crate::support::Api;
use serde_json::{Value, json};

/// Invalid bodies that every call with a JSON body answers alike: body, content type,
/// status, slug.
pub(super) fn broken_bodies() -> Vec<(Vec<u8>, Option<&'static str>, u16, &'static str)> {
    let json = Some("application/json");
    let nested = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let deep_field = [
        b"{\"env\":".repeat(10_000),
        b"1".to_vec(),
        b"}".repeat(10_000),
    ]
    .concat();
    vec![
        (b"".to_vec(), json, 400, "invalid-request"),
        (b"{".to_vec(), json, 400, "invalid-request"),
        (
            b"{\"command\":[\"a\"".to_vec(),
            json,
            400,
            "invalid-request",
        ),
        (b"{} {}".to_vec(), json, 400, "invalid-request"),
        (
            b"\x00\xff\xfe\x80 garbage".to_vec(),
            json,
            400,
            "invalid-request",
        ),
        (
            b"{\"command\":[\"\xff\"]}".to_vec(),
            json,
            400,
            "invalid-request",
        ),
        (
            b"{\"command\":[\"\\ud800\"]}".to_vec(),
            json,
            400,
            "invalid-request",
        ),
        (b"null".to_vec(), json, 400, "invalid-request"),
        (b"[]".to_vec(), json, 400, "invalid-request"),
        (b"\"text\"".to_vec(), json, 400, "invalid-request"),
        (b"7".to_vec(), json, 400, "invalid-request"),
        (nested, json, 400, "invalid-request"),
        (deep_field, json, 400, "invalid-request"),
        (
            b"{}".to_vec(),
            Some("text/plain"),
            415,
            "unsupported-media-type",
        ),
        (
            b"{}".to_vec(),
            Some("application/x-www-form-urlencoded"),
            415,
            "unsupported-media-type",
        ),
        (b"{}".to_vec(), None, 415, "unsupported-media-type"),
        (vec![b' '; 15 * 1024 * 1024], json, 413, "payload-too-large"),
    ]
}

/// Limit of a body on every listener.
pub(super) const LIMIT: usize = 10 * 1024 * 1024;

/// Sends them all to each path; bodies longer than `limit` are refused as too large.
pub(super) fn send_broken_bodies(api: &Api, paths: &[&str], limit: usize) {
    for path in paths {
        for (body, media_type, mut status, mut slug) in broken_bodies() {
            if body.len() > limit {
                (status, slug) = (413, "payload-too-large");
            }
            let headers: Vec<_> = media_type
                .map(|value| ("Content-Type", value))
                .into_iter()
                .collect();
            eprintln!(
                "POST {path} {:.40} as {media_type:?}",
                String::from_utf8_lossy(&body)
            );
            api.call("POST", path, &headers, &body)
                .problem(status, slug);
        }
    }
}

/// Calls of unknown paths, or with a method that the path doesn't have: method, path, status, slug.
pub(super) fn send_wrong_calls(api: &Api, calls: &[(&str, &str, u16, &str)]) {
    for (method, path, status, slug) in calls {
        eprintln!("{method} {path}");
        let reply = api.call(method, path, &[], b"");
        reply.problem(*status, slug);
        if *status == 405 {
            assert!(
                !reply
                    .header("allow")
                    .unwrap()
                    .split(", ")
                    .any(|allowed| allowed == *method)
            );
        }
    }
}

/// Invalid fields of a task: field, value, slug. The Worker API refuses those that it
/// has, too.
pub(super) fn wrong_fields() -> Vec<(&'static str, Value, &'static str)> {
    let long = "x".repeat(121 * 1024);
    let many = vec!["x".repeat(100 * 1024); 11];
    let invalid = "invalid-request";
    let mut cases = vec![
        ("command", json!([]), invalid),
        ("command", json!([""]), invalid),
        ("command", json!("echo hello"), invalid),
        ("command", json!([1]), invalid),
        ("command", json!(["echo", null]), invalid),
        ("command", json!(["echo", "a\u{0}b"]), invalid),
        ("command", json!(["echo", long]), invalid),
        ("command", json!(many), invalid),
        ("image", json!(7), invalid),
        ("env", json!([]), invalid),
        ("env", json!({"A": 1}), invalid),
        ("env", json!({"": "x"}), invalid),
        ("env", json!({"1A": "x"}), invalid),
        ("env", json!({"A B": "x"}), invalid),
        ("env", json!({"A=B": "x"}), invalid),
        ("env", json!({"é": "x"}), invalid),
        ("env", json!({"A\u{0}": "x"}), invalid),
        ("env", json!({"A": "x\u{0}"}), invalid),
        ("env", json!({"A": long}), invalid),
        ("env", json!({"CYNODE_JOB_ID": "x"}), invalid),
        ("env", json!({"CYNODE_ARTIFACTS_DIR": "x"}), invalid),
        ("timeout_seconds", json!(0), invalid),
        ("timeout_seconds", json!(-1), invalid),
        ("timeout_seconds", json!(1.5), invalid),
        ("timeout_seconds", json!("5"), invalid),
        ("timeout_seconds", json!(1e30), invalid),
        ("network_policy", json!("open"), invalid),
        ("network_policy", json!("None"), invalid),
        ("network_policy", json!("host"), invalid),
        ("use_inference", json!("yes"), invalid),
    ];
    let images = [
        "",
        " ",
        "-v",
        "--privileged",
        "-v/etc:/x",
        "dir:/etc",
        "oci:/tmp/x",
        "docker-archive:/x.tar",
        "docker://alpine",
        "Upper/Case",
        "a b",
        "a\n",
        "../a",
        "localhost/t:",
        "x@sha256:12",
    ];
    cases.extend(images.map(|image| ("image", json!(image), invalid)));
    cases
}
