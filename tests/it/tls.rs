//! TLS of both listeners: who they say they are, and what they answer to those who speak no TLS.

use crate::support::{
    Node, Orchestrator, PASSWORD,
    cluster::{PSK, secret_file},
    eventually, eventually_eq,
    process::{Done, run},
    raw::{connect_to, exchange, is_open},
    read,
    server::role,
    tls::{CertificateFiles, Encrypted, get, pin_at},
};
use rustix::process::Signal;
use serde_json::json;
use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path};

const EXPIRY: &str = "cynode_tls_certificate_expiry_timestamp_seconds";

/// Address of the gateway, as `host:port`.
fn gateway(orchestrator: &Orchestrator) -> &str {
    orchestrator.gateway.address()
}

/// Starts an orchestrator that is expected to refuse these flags.
fn refused(home: &Path, flags: &[&str]) -> Done {
    let psk = secret_file(home, "psk", PSK);
    let mut command = role(home, "serve-orchestrator", &home.join("orchestrator"));
    // An operator gives one or the other.
    command.env_remove("CYNODE_TLS");
    command.args(["--psk-file", &psk, "--gateway-listen", "127.0.0.1:0"]);
    command
        .args(["--control-listen", "127.0.0.1:0"])
        .args(flags);
    run(&mut command)
}

#[test]
fn certificate_stays_across_restarts() {
    let home = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut orchestrator = Orchestrator::start(home.path(), &["--tls", "on"]);
        let shown = Encrypted::open(gateway(&orchestrator)).unwrap();
        let pin = shown.pin();
        assert_eq!(pin_at(orchestrator.control.address()), pin);
        assert_eq!(shown.protocol().as_deref(), Some("http/1.1"));
        let control = orchestrator.control.address();
        let join =
            format!("cynode node --orchestrator https://{control} --pin {pin} --psk-file FILE");
        eventually("it tells how to join", || {
            orchestrator.process.stdout().contains(&join).then_some(())
        });
        assert!(orchestrator.process.stderr().contains(&pin), "in the log");
        seen.push(shown.certificate());
        assert_eq!(orchestrator.process.terminate(), 0);
    }
    assert_eq!(seen[0], seen[1]);
    for file in ["tls.key", "tls.crt"] {
        let path = home.path().join("orchestrator/keys").join(file);
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // The key is what clients know; the certificate around it is made again.
    fs::remove_file(home.path().join("orchestrator/keys/tls.crt")).unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--tls", "on"]);
    let shown = Encrypted::open(gateway(&orchestrator)).unwrap();
    assert_ne!(shown.certificate(), seen[0]);
    let pin = shown.pin();
    drop(orchestrator);

    fs::write(home.path().join("orchestrator/keys/tls.key"), "damaged").unwrap();
    let done = refused(home.path(), &["--tls", "on"]);
    assert_ne!(done.code, 0);
    assert!(done.stderr.contains("restore it from a backup"), "{done:?}");
    assert!(!done.stderr.contains(&pin));
}

#[test]
fn both_listeners_serve_encrypted() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--tls", "on"]);
    let login = json!({"handle": "admin", "password": PASSWORD}).to_string();
    let connection = Encrypted::open(gateway(&orchestrator)).unwrap();
    let tokens = connection.call("POST", "/v1/auth/login", &login).json(200);
    assert!(tokens["access_token"].is_string());
    for address in [gateway(&orchestrator), orchestrator.control.address()] {
        get(address, "/healthz").expect(200);
        let metrics = get(address, "/metrics").text();
        let expiry = metrics.lines().find(|line| line.starts_with(EXPIRY));
        let expiry: f64 = expiry.unwrap()[EXPIRY.len()..].trim().parse().unwrap();
        let day = 24.0 * 3600.0;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let days = (expiry - now.as_secs_f64()) / day;
        assert!((396.0..398.0).contains(&days), "{days}");
    }
    let row = format!("| `{EXPIRY}` | gauge |");
    assert!(
        read("docs/api.md").contains(&row),
        "docs/api.md has no {row}"
    );
    // Errors that name a URL name this one.
    let hint = get(gateway(&orchestrator), "/chat/completions").text();
    let base = format!("https://{}/v1", gateway(&orchestrator));
    assert!(hint.contains(&base), "{hint}");
}

#[test]
fn plain_http_is_answered_with_advice() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--tls", "on"]);
    let login = json!({"handle": "admin", "password": PASSWORD});
    for api in [&orchestrator.gateway, &orchestrator.control] {
        let problem = api
            .post("/v1/auth/login", &login)
            .problem(400, "invalid-request");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains(&format!("https://{}", api.address())),
            "{detail}"
        );
    }
    let text = exchange(connect_to(&orchestrator.gateway), b"\0\0\0\0");
    assert!(text.starts_with("HTTP/1.1 400"), "{text}");
    get(gateway(&orchestrator), "/healthz").expect(200);
}

#[test]
fn slow_handshake_holds_up_nobody() {
    let home = tempfile::tempdir().unwrap();
    let mut orchestrator = Orchestrator::start(home.path(), &["--tls", "on"]);
    let begins: [&[u8]; 4] = [b"", b"\x16", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01"];
    let slow: Vec<_> = begins
        .into_iter()
        .cycle()
        .take(16)
        .map(|begin| {
            let mut stream = connect_to(&orchestrator.gateway);
            stream.write_all(begin).unwrap();
            stream
        })
        .collect();
    get(gateway(&orchestrator), "/healthz").expect(200);
    assert!(slow.iter().any(is_open), "they still wait");
    assert_eq!(orchestrator.process.terminate(), 0);
}

#[test]
fn garbage_for_a_handshake_is_closed() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--tls", "on"]);
    for filling in [0, 0x7f, 0xff] {
        let mut garbage = vec![filling; 20_000];
        garbage[0] = 0x16;
        let answer = exchange(connect_to(&orchestrator.gateway), &garbage);
        assert!(!answer.contains("HTTP"), "{answer}");
    }
    get(gateway(&orchestrator), "/healthz").expect(200);
}

#[test]
fn certificate_files_are_reloaded_on_hangup() {
    let home = tempfile::tempdir().unwrap();
    let files = CertificateFiles::make(home.path(), "first");
    let next = CertificateFiles::make(home.path(), "next");
    let mut orchestrator = Orchestrator::start(home.path(), &files.flags());
    let address = gateway(&orchestrator).to_owned();
    assert_eq!(pin_at(&address), files.pin);

    next.replace(&files);
    orchestrator.process.signal(Signal::HUP);
    eventually_eq("the next is shown", next.pin.clone(), || pin_at(&address));

    fs::write(&files.certificate, "damaged").unwrap();
    orchestrator.process.signal(Signal::HUP);
    eventually("the damaged one is logged", || {
        let log = orchestrator.process.stderr();
        log.contains("certificate not replaced").then_some(())
    });
    orchestrator.process.assert_runs();
    assert_eq!(pin_at(&address), next.pin);
    get(&address, "/healthz").expect(200);
}

#[test]
fn unfit_tls_flags_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let files = CertificateFiles::make(home.path(), "one");
    let other = CertificateFiles::make(home.path(), "other");
    let (certificate, key) = (
        files.certificate.to_str().unwrap(),
        other.key.to_str().unwrap(),
    );
    let cases: [(&[&str], &str); 7] = [
        (
            &["--tls-cert", certificate, "--tls-key", key],
            "is not the key of the certificate",
        ),
        (
            &["--tls-cert", certificate, "--tls-key", "/no/such/file"],
            "--tls-key /no/such/file",
        ),
        (&["--tls-cert", certificate], "--tls-key FILE"),
        (&["--tls-key", key], "--tls-cert FILE"),
        (
            &["--tls", "off", "--tls-cert", certificate, "--tls-key", key],
            "contradicts",
        ),
        (
            &["--tls", "on", "--public-url", "http://box.example:7"],
            "https://",
        ),
        (&["--public-url", "http://box.example:7"], "--tls off"),
    ];
    for (flags, expected) in cases {
        let done = refused(home.path(), flags);
        assert_eq!(done.code, 2, "{flags:?} {done:?}");
        assert!(done.stderr.contains(expected), "{flags:?} {done:?}");
    }
}

#[test]
fn plain_listener_beyond_loopback_is_warned_of() {
    let home = tempfile::tempdir().unwrap();
    for (control, is_warned) in [("0.0.0.0:0", true), ("127.0.0.1:0", false)] {
        let mut orchestrator = Orchestrator::start_at(home.path(), ["127.0.0.1:0", control], &[]);
        let log = orchestrator.process.stderr();
        assert_eq!(log.contains("plain HTTP"), is_warned, "{log}");
        assert_eq!(orchestrator.process.terminate(), 0);
    }
}

#[test]
fn node_joins_encrypted_orchestrator() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--tls", "on"]);
    let address = gateway(&orchestrator).to_owned();
    let url = format!("https://{}", orchestrator.control.address());
    let _node = Node::start(home.path(), "box", &url, &["--pin", &pin_at(&address)]);
    eventually("a node takes jobs", || {
        (get(&address, "/readyz").status == 200).then_some(())
    });
}
