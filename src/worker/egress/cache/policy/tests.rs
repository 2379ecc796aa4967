//! What the cache keeps and answers, and what it never does.

use super::*;
use proptest::{collection::vec, prelude::*, sample::subsequence};

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, HeaderValue::try_from(*value).unwrap());
    }
    headers
}

fn target(host: &str, port: u16) -> Target {
    Target {
        host: host.parse().unwrap(),
        port,
    }
}

fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> request::Parts {
    let request = http::Request::builder().method(method).uri(path).body(());
    let (mut parts, ()) = request.unwrap().into_parts();
    parts.headers = headers(fields);
    parts
}

fn key(parts: &request::Parts) -> Option<Key> {
    let target = target("a.example", 80);
    let origin = Origin {
        scheme: "http",
        target: &target,
        is_private: false,
    };
    key_of(parts, false, &origin)
}

/// Headers of an answer that is kept.
const GOOD: [(&str, &str); 4] = [
    ("etag", "\"v1\""),
    ("content-length", "9"),
    ("content-type", "text/plain"),
    ("cache-control", "public, max-age=60"),
];

fn kept(fields: &[(&str, &str)]) -> Option<Entry> {
    entry_of(StatusCode::OK, &headers(fields), 100)
}

#[test]
fn requests_of_one_client_pass_by() {
    assert!(
        key(&request(
            "GET",
            "/a",
            &[
                ("accept", "*/*"),
                ("npm-session", "x"),
                ("npm-auth-type", "web")
            ]
        ))
        .is_some()
    );
    assert!(key(&request("GET", "/a", &[("cache-control", "no-cache")])).is_some());
    for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(key(&request(method, "/a", &[])), None, "{method}");
    }
    let target = target("a.example", 80);
    for (has_body, is_private) in [(true, false), (false, true)] {
        let origin = Origin {
            scheme: "http",
            target: &target,
            is_private,
        };
        assert_eq!(key_of(&request("GET", "/a", &[]), has_body, &origin), None);
    }
}

#[test]
fn key_names_whole_url_and_codings() {
    let of = |scheme, host: &str, port, path: &str, codings: &str| {
        let target = target(host, port);
        let origin = Origin {
            scheme,
            target: &target,
            is_private: false,
        };
        let parts = request("GET", path, &[("accept-encoding", codings)]);
        key_of(&parts, false, &origin).unwrap()
    };
    let all = [
        of("http", "a.example", 80, "/a", "gzip"),
        of("https", "a.example", 80, "/a", "gzip"),
        of("http", "b.example", 80, "/a", "gzip"),
        of("http", "a.example", 8080, "/a", "gzip"),
        of("http", "a.example", 80, "/A", "gzip"),
        of("http", "a.example", 80, "/a?", "gzip"),
        of("http", "a.example", 80, "/a?b", "gzip"),
        of("http", "a.example", 80, "/a", "br"),
    ];
    for (index, one) in all.iter().enumerate() {
        assert!(Key::is_one(one.as_str()) && !all[..index].contains(one));
    }
    assert_eq!(all[0], of("http", "a.example", 80, "/a", " GZIP ,"));
    let [any, same, list] = ["*/*", " */*", "application/x.index, */*"].map(|types| {
        let parts = request("GET", "/a", &[("accept", types)]);
        key(&parts).unwrap()
    });
    assert!(any == same && any != list);
}

#[test]
fn only_whole_and_strongly_tagged_answers_are_kept() {
    let entry = kept(&GOOD).unwrap();
    assert_eq!((entry.etag.as_str(), entry.length), ("\"v1\"", 9));
    let more = [
        ("link", "</b>; rel=\"next\""),
        ("content-language", "en"),
        ("content-location", "/a.en"),
    ];
    for field in more {
        let kept = kept(&[&GOOD[..], &[field]].concat()).unwrap();
        let header = (field.0.to_owned(), field.1.to_owned());
        assert!(kept.headers.contains(&header), "{header:?}");
        let twice = [&GOOD[..], &[field, field]].concat();
        assert_eq!(entry_of(StatusCode::OK, &headers(&twice), 100), None);
    }
    let names: Vec<_> = entry.headers.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, ["content-type", "etag", "cache-control"]);
    for (name, value) in [
        ("vary", "Accept-Encoding"),
        ("content-encoding", "identity"),
        ("x-other", "1"),
    ] {
        assert!(kept(&[&GOOD[..], &[(name, value)]].concat()).is_some());
    }
    for (name, value) in [
        ("set-cookie", "a=b"),
        ("vary", "*"),
        ("vary", "accept-encoding, origin"),
        ("content-encoding", "gzip"),
        ("content-range", "bytes 0-8/20"),
        ("transfer-encoding", "chunked"),
        ("cache-control", "no-store"),
        ("cache-control", "max-age=1, Private=\"set-cookie\""),
        ("etag", "\"v2\""),
        ("content-length", "9"),
    ] {
        let fields = [&GOOD[..], &[(name, value)]].concat();
        assert_eq!(kept(&fields), None, "{name}: {value}");
    }
    for etag in ["W/\"v1\"", "v1", "\"", "\"\"", "\"a\"b\""] {
        assert_eq!(kept(&[("etag", etag), ("content-length", "9")]), None);
    }
    for length in ["0", "101", "-1", "", "99999999999999999999"] {
        assert_eq!(kept(&[("etag", "\"a\""), ("content-length", length)]), None);
    }
    assert_eq!(kept(&GOOD[1..]), None);
    let long = format!("\"{}\"", "x".repeat(MAX_KEPT_BYTES));
    assert_eq!(kept(&[("etag", &long), ("content-length", "9")]), None);
    for status in [203, 206, 301, 404, 500] {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(entry_of(status, &headers(&GOOD), 100), None);
    }
}

#[test]
fn host_confirms_very_version() {
    let entry = kept(&GOOD).unwrap();
    for (fields, expected) in [
        (&[][..], true),
        (&[("etag", "\"v1\"")], true),
        (&[("etag", "W/\"v1\"")], true),
        (&[("etag", "W/\"v2\"")], false),
        (&[("etag", "W/W/\"v1\"")], false),
        (&[("etag", "\"v2\"")], false),
        (&[("etag", "\"v1\""), ("etag", "\"v1\"")], false),
    ] {
        assert_eq!(confirms(&entry, &headers(fields)), expected, "{fields:?}");
    }
}

#[test]
fn host_updates_what_is_not_of_body() {
    let of_304 = headers(&[
        ("cache-control", "max-age=9"),
        ("date", "now"),
        ("content-length", "0"),
        ("content-type", "text/evil"),
        ("content-encoding", "gzip"),
    ]);
    let merged = merged(&kept(&GOOD).unwrap(), of_304);
    let expected = headers(&[
        ("cache-control", "max-age=9"),
        ("date", "now"),
        ("content-length", "9"),
        ("content-type", "text/plain"),
        ("etag", "\"v1\""),
    ]);
    assert_eq!(merged, expected);
}

proptest! {
    #[test]
    fn forbidden_header_of_request_always_counts(
        harmless in subsequence(vec!["accept", "user-agent", "referer", "x-a", "accept-encoding"], 0..5),
        forbidden in subsequence(
            vec![
                "authorization", "cookie", "range", "if-match", "if-none-match", "if-modified-since", "if-range",
                "if-unmodified-since", "if-new", "x-api-key", "private-token", "x-jfrog-art-api-key", "x-amz-security-token",
                "x-auth-user",
            ],
            1..4,
        ),
        value in "[ -~]{0,20}",
    ) {
        let all = harmless.iter().chain(&forbidden);
        let fields: Vec<_> = all.map(|name| (*name, value.as_str())).collect();
        prop_assert_eq!(key(&request("GET", "/a", &fields)), None);
    }

    #[test]
    fn directive_is_found_among_others(
        before in vec("[a-z]{1,8}(=[a-z0-9]{1,4})?", 0..4),
        word in prop::sample::select(vec!["no-store", "NO-STORE", "private", "Private", "private=\"x\""]),
        after in vec("[a-z]{1,8}(=\"[a-z, ]{1,4}\")?", 0..4),
    ) {
        let directives = [before, vec![word.to_owned()], after].concat().join(", ");
        let fields = [&GOOD[..3], &[("cache-control", directives.as_str())]].concat();
        prop_assert_eq!(kept(&fields), None);
    }

    #[test]
    fn any_answer_has_an_entry_within_limits_or_none(
        etag in "[ -~]{0,12}",
        length in "[ -~]{0,6}",
        vary in "[ -~]{0,8}",
    ) {
        let fields = [("etag", &etag[..]), ("content-length", &length[..]), ("vary", &vary[..])];
        if let Some(entry) = kept(&fields) {
            prop_assert!(entry.length > 0 && entry.length <= 100);
            prop_assert!(entry.etag.starts_with('"') && entry.etag.ends_with('"'));
            prop_assert!(!vary.contains('*'));
            let line = entry.to_line().unwrap();
            prop_assert_eq!(Entry::parse(&line).unwrap(), entry);
        }
    }
}
