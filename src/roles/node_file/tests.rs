//! Any file gives settings, or an error with its position.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(text: &str) -> Result<NodeFile, String> {
    NodeFile::parse(text, Path::new("/etc/node.yaml"))
}

/// Every known key. JSON is YAML, too.
fn whole(text: &str, number: u16) -> Value {
    let time = format!("{number}s");
    json!({
        "orchestrator": {
            "url": text, "pin": format!("sha256:{}", "ab".repeat(32)), "ca_file": "ca.pem", "psk_file": "psk", "timeout": time, "connect": "dial",
        },
        "node": {"slug": text, "name": text, "labels": [text]},
        "worker_api": {"listen": format!("127.0.0.1:{number}"), "advertise_url": text, "max_request_bytes": number},
        "sandbox": {
            "engine": text, "runtime": text, "max_concurrency": number, "allowed_images": [text],
            "prefetch_images": [text], "default_timeout": time, "max_timeout": time, "shutdown_grace": time,
            "reserve_memory": "1GiB", "warm": number, "warm_memory": "1GiB",
        },
        "egress": {"allow": ["*.example.com:443", "profile:git"], "allow_private": ["10.0.0.0/8"], "upstream": "http://proxy:3128", "cache": "1GiB"},
        "inference": {"mode": "off", "port": number, "pull_timeout": time, "start_timeout": time, "context_length": number, "gpu_share": "exclusive"},
        "storage": {
            "data_dir": "state", "jobs_dir": "jobs", "min_free_disk": "1GiB", "workspace_limit": "2GiB", "job_log_size": "9MiB", "content_cache": "9MiB",
            "snapshot_quota": "9MiB", "artifact_limit": "9MiB",
            "result_retention": time, "image_gc": "off",
        },
        "logging": {"level": "debug", "format": "json"},
    })
}

/// A file of another implementation, with every name that differs from ours.
fn foreign() -> Value {
    json!({
        "version": 1,
        "orchestrator": {"url": "http://o:1", "registration_psk_file": "psk"},
        "node": {"id": "box"},
        "worker_api": {"listen_host": "127.0.0.1", "listen_port": 7, "public_base_url": "http://b:7"},
        "sandbox": {
            "mode": "allow", "runtime": "podman", "timeouts": {"default_seconds": 900, "max_seconds": 3600},
        },
        "inference": {"mode": "disabled"},
        "storage": {"state_dir": "state"},
    })
}

#[test]
fn alternative_names_are_equivalent() {
    let file = parse(&foreign().to_string()).unwrap();
    assert_eq!(
        file.orchestrator.psk_file.as_deref(),
        Some(Path::new("/etc/psk"))
    );
    assert_eq!(file.node.slug.as_deref(), Some("box"));
    assert_eq!(file.worker_api.listen, Some("127.0.0.1:7".parse().unwrap()));
    assert_eq!(file.worker_api.advertise_url.as_deref(), Some("http://b:7"));
    assert_eq!(file.sandbox.runtime, None);
    let seconds = |time: Option<Duration>| time.unwrap().as_secs();
    assert_eq!(seconds(file.sandbox.default_timeout), 900);
    assert_eq!(seconds(file.sandbox.max_timeout), 3600);
    assert_eq!(file.inference.mode, Some(InferenceMode::Off));
    assert_eq!(
        file.storage.data_dir.as_deref(),
        Some(Path::new("/etc/state"))
    );
    for (name, mode) in [
        ("allow", InferenceMode::Auto),
        ("require", InferenceMode::On),
        ("on", InferenceMode::On),
    ] {
        let file = parse(&json!({"inference": {"mode": name}}).to_string()).unwrap();
        assert_eq!(file.inference.mode, Some(mode));
    }
    let alone = parse("sandbox: {mode: sandbox_only}").unwrap();
    assert_eq!(alone.inference.mode, Some(InferenceMode::Off));
    let port = parse("worker_api: {listen_port: 9}").unwrap();
    assert_eq!(port.worker_api.listen, Some("0.0.0.0:9".parse().unwrap()));
}

#[test]
fn duplicate_names_of_setting_are_refused() {
    for (part, ours, value) in [
        ("orchestrator", "psk_file", json!("x")),
        ("node", "slug", json!("x")),
        ("worker_api", "listen", json!("127.0.0.1:1")),
        ("worker_api", "advertise_url", json!("x")),
        ("sandbox", "default_timeout", json!("1s")),
        ("sandbox", "max_timeout", json!("1s")),
        ("storage", "data_dir", json!("x")),
    ] {
        let mut file = foreign();
        file[part][ours] = value;
        let error = parse(&file.to_string()).err().unwrap();
        let keep = format!("keep {part}.{ours}");
        assert!(error.contains(&keep), "{error}");
    }
}

#[test]
fn unsupported_sandbox_options_are_refused() {
    for (text, word) in [
        ("version: 2", "version 2"),
        ("sandbox: {mode: disabled}", "sandbox.mode"),
        (
            "sandbox: {mode: everything}",
            "expected one of allow, sandbox_only, disabled",
        ),
        ("sandbox: {runtime: docker}", "docker"),
        (
            "{sandbox: {mode: sandbox_only}, inference: {mode: require}}",
            "contradict",
        ),
        ("worker_api:\n  listen_host: box", "listen_host"),
        (
            "sandbox:\n  timeouts:\n    default_seconds: soon",
            "default_seconds",
        ),
        ("sandbox: {timeouts: {hard: 1}}", "hard"),
    ] {
        let error = parse(text).err().unwrap();
        assert!(error.contains(word), "{text}: {error}");
    }
}

/// Keys of the previous release, their values, and their names now.
const OLD_KEYS: [(&str, &str, &str, &str); 4] = [
    ("worker_api", "public_url", "http://b:7", "advertise_url"),
    ("sandbox", "default_image", "alpine", "prefetch_images"),
    ("inference", "timeout", "1m", "pull_timeout"),
    ("storage", "ledger_retain", "1d", "result_retention"),
];

#[test]
fn old_keys_are_read_and_noticed() {
    for (section, old, value, new) in OLD_KEYS {
        let file = parse(&format!("{section}: {{{old}: '{value}'}}")).unwrap();
        let notices: Vec<_> = file.old_key_notices().collect();
        let expected = format!("node.yaml: {section}.{old} is deprecated; use {section}.{new}");
        assert_eq!(notices, [expected]);
        let new_value = match new {
            "prefetch_images" => json!([value]),
            _ => json!(value),
        };
        let both = json!({section: {old: value, new: new_value}});
        let error = parse(&both.to_string()).err().unwrap();
        assert!(error.contains(&format!("keep {section}.{new}")), "{error}");
    }
    let file = parse(
        "{worker_api: {public_url: 'http://b:7'}, sandbox: {default_image: alpine},\
          inference: {timeout: 1m}, storage: {ledger_retain: 1d}}",
    )
    .unwrap();
    assert_eq!(file.worker_api.advertise_url.as_deref(), Some("http://b:7"));
    assert_eq!(file.sandbox.prefetch_images, ["alpine"]);
    assert_eq!(file.inference.pull_timeout, Some(Duration::from_mins(1)));
    assert_eq!(
        file.storage.result_retention,
        Some(Duration::from_hours(24))
    );
    assert_eq!(file.old_key_notices().count(), 4);
}

#[test]
fn given_trust_replaces_both_keys() {
    let pin = || format!("sha256:{}", "ab".repeat(32)).parse::<Pin>().ok();
    let file = |name: &str| Some(PathBuf::from(name));
    let merged = |pin_flag: Option<Pin>, ca_flag: Option<PathBuf>| {
        let mut flags = TrustFlags {
            pin: pin_flag,
            ca_file: ca_flag,
        };
        set_default_trust(&mut flags, pin(), file("own.pem"));
        (flags.pin.is_some(), flags.ca_file)
    };
    assert_eq!(merged(None, None), (true, file("own.pem")));
    assert_eq!(merged(None, file("given.pem")), (false, file("given.pem")));
    assert_eq!(merged(pin(), None), (true, None));
}

#[test]
fn errors_name_line_key_and_form() {
    for (text, expected) in [
        (
            "node:\n  slog: box",
            "line 2: node.slog: is not a setting; expected one of slug, id, name, labels",
        ),
        (
            "slog: box",
            "line 1: slog: is not a setting; expected one of version, orchestrator, node",
        ),
        (
            "sandbox:\n  max_concurrency: many",
            "line 2: sandbox.max_concurrency: expected a whole number, 1 or more",
        ),
        (
            "sandbox:\n  max_concurrency: 0",
            "line 2: sandbox.max_concurrency: expected a whole number, 1 or more",
        ),
        (
            "sandbox: {max_timeout: soon}",
            "line 1: sandbox.max_timeout: expected a duration such as 90s, 5m or 2h",
        ),
        (
            "storage:\n  image_gc: soon",
            "line 2: storage.image_gc: expected a duration such as 90s, 5m or 2h, or off",
        ),
        (
            "storage:\n  min_free_disk: [1]",
            "line 2: storage.min_free_disk: expected one value",
        ),
        (
            "inference: {port: 70000}",
            "line 1: inference.port: expected a whole number from 1 to 65535",
        ),
        (
            "inference:\n\n  mode: sometimes",
            "line 3: inference.mode: expected one of ",
        ),
        (
            "worker_api:\n  listen: box",
            "line 2: worker_api.listen: expected ADDRESS:PORT",
        ),
        (
            "node:\n  labels: gpu",
            "line 2: node.labels: expected a list such as [a, b]",
        ),
        ("node: box", "line 1: node: expected settings below it"),
        (
            "node: {slug: a}\nnode: {slug: b}",
            "line 2: node: is there twice; keep one of them",
        ),
        (
            "logging:\n  level: [debug]",
            "line 2: logging.level: expected one value",
        ),
        ("- a", "line 1: the file: expected settings below it"),
        ("node: {slug: 'a", "not valid YAML: "),
    ] {
        let error = parse(text).err().unwrap();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn errors_in_network_name_form() {
    for (text, expected) in [
        (
            "egress:\n  allow: [a.b, 10.0.0.1]",
            "line 2: egress.allow: this entry is an IP address",
        ),
        (
            "egress:\n  allow_private: [here]",
            "line 2: egress.allow_private: expected an address or network such as",
        ),
        (
            "egress:\n  upstream: https://user:secret@proxy:1",
            "line 2: egress.upstream: expected http://HOST:PORT",
        ),
        (
            "egress:\n  allow: a.b",
            "line 2: egress.allow: expected a list such as [a, b]",
        ),
    ] {
        let error = parse(text).err().unwrap();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn empty_list_of_hosts_is_kept() {
    let allow = |text: &str| parse(text).unwrap().egress.allow.map(|allow| allow.len());
    assert_eq!(allow("egress: {allow: []}"), Some(0));
    assert_eq!(allow("egress: {allow: ['*']}"), Some(1));
    assert_eq!(allow("egress: {allow_private: []}"), None);
    assert_eq!(allow("egress:\n#  allow: []\n"), None);
}

proptest! {
    #[test]
    fn any_text_parses_or_fails_cleanly(text in any::<String>(), near in "[a-d:\\[\\]{}&*!|>\"'#% \n-]{0,40}") {
        let _ = parse(&text);
        let _ = parse(&near);
    }

    #[test]
    fn node_file_values_are_read(text in "\\PC{0,20}", number in 1u16..) {
        let file = parse(&whole(&text, number).to_string()).unwrap();
        prop_assert_eq!(file.orchestrator.url.as_deref(), Some(&*text));
        prop_assert_eq!(file.orchestrator.psk_file.as_deref(), Some(Path::new("/etc/psk")));
        prop_assert_eq!(&file.node.labels, std::slice::from_ref(&text));
        prop_assert_eq!(file.worker_api.listen.unwrap().port(), number);
        prop_assert_eq!(&file.sandbox.allowed_images, std::slice::from_ref(&text));
        prop_assert_eq!(&file.sandbox.prefetch_images, &[text]);
        prop_assert_eq!(file.sandbox.max_concurrency, Some(u32::from(number)));
        prop_assert_eq!(file.sandbox.max_timeout, Some(Duration::from_secs(number.into())));
        prop_assert_eq!(file.egress.allow.map(|allow| allow.len()), Some(2));
        prop_assert_eq!(file.inference.port, Some(number));
        prop_assert_eq!(file.storage.data_dir.as_deref(), Some(Path::new("/etc/state")));
    }

    #[test]
    fn misspelled_key_is_named(part in 0usize..9, key in "[a-z]{3,8}") {
        let mut file = whole("x", 1);
        let parts = ["", "/orchestrator", "/node", "/worker_api", "/sandbox", "/egress", "/inference", "/storage", "/logging"];
        let at = file.pointer_mut(parts[part]).unwrap().as_object_mut().unwrap();
        prop_assume!(!at.contains_key(&key));
        at.insert(key.clone(), json!(1));
        let error = parse(&file.to_string()).err().unwrap();
        prop_assert!(error.contains(&key) && error.contains("line 1"), "{}", error);
    }
}
