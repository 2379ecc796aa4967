//! Host of a request: required, and on loopback one of the listener's own names.

use crate::support::{
    Api, Orchestrator, Worker,
    raw::{connect_from, connect_to, exchange},
};

/// Status of the answer to a request with this line and these header fields.
fn status(api: &Api, line: &str, fields: &str) -> u16 {
    let request = format!("{line}\r\n{fields}connection: close\r\n\r\n");
    status_of(&exchange(connect_to(api), request.as_bytes()))
}

fn status_of(answer: &str) -> u16 {
    answer
        .get(9..12)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("{answer:?}"))
}

fn assert_asks_for_host(api: &Api) {
    let (new, old) = ("GET /healthz HTTP/1.1", "GET /healthz HTTP/1.0");
    let absolute = "GET http://localhost/healthz HTTP/1.1";
    for (line, fields, expected) in [
        (new, "host: localhost\r\n", 200),
        (old, "", 200),
        (old, "host: localhost\r\n", 200),
        (new, "", 400),
        (new, "host: localhost\r\nhost: localhost\r\n", 400),
        (new, "host: localhost\r\nHOST: other\r\n", 400),
        (old, "host: localhost\r\nhost: localhost\r\n", 400),
        (new, "host: local host\r\n", 400),
        (new, "host: ann@localhost\r\n", 400),
        (absolute, "host: localhost\r\n", 200),
        (absolute, "host: evil.example\r\n", 200),
        (absolute, "", 400),
        (
            "GET http://evil.example/healthz HTTP/1.1",
            "host: localhost\r\n",
            421,
        ),
        ("GET http://evil.example/healthz HTTP/1.0", "", 421),
    ] {
        assert_eq!(status(api, line, fields), expected, "{line} {fields:?}");
    }
}

fn assert_answers_own_names_only(api: &Api, flag: &str) {
    for host in [
        "localhost",
        "a.localhost:1",
        "127.0.0.1",
        "127.3.2.1:8",
        "[::1]",
    ] {
        api.call("GET", "/healthz", &[("Host", host)], b"")
            .expect(200);
    }
    for host in [
        "evil.example",
        "127.0.0.1.evil.example",
        "192.0.2.1",
        "localhost.evil.example:1",
    ] {
        for path in ["/healthz", "/metrics", "/v1/tasks", "/nothing"] {
            let refused = api.call("GET", path, &[("Host", host)], b"");
            let detail = refused.problem(421, "misdirected-request")["detail"].clone();
            assert!(detail.as_str().unwrap().contains(flag), "{detail}");
        }
    }
}

#[test]
fn requests_name_exactly_one_host() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    assert_asks_for_host(&orchestrator.gateway);
    assert_asks_for_host(&orchestrator.control);
    assert_asks_for_host(&Worker::start(&[]).api);
}

#[test]
fn loopback_listeners_answer_own_names_only() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    assert_answers_own_names_only(&orchestrator.gateway, "--trusted-proxy");
    assert_answers_own_names_only(&orchestrator.control, "--public-url");
    assert_answers_own_names_only(&Worker::start(&[]).api, "--advertise-url");
}

#[test]
fn proxies_and_public_names_are_accepted() {
    let home = tempfile::tempdir().unwrap();
    let flags = [
        "--trusted-proxy",
        "127.0.0.9",
        "--public-url",
        "http://box.example:8080",
    ];
    let orchestrator = Orchestrator::start(home.path(), &flags);
    let request = b"GET /healthz HTTP/1.1\r\nhost: tasks.example\r\nconnection: close\r\n\r\n";
    for listener in [&orchestrator.gateway, &orchestrator.control] {
        let by_proxy = exchange(connect_from([127, 0, 0, 9], listener), request);
        assert_eq!(status_of(&by_proxy), 200);
        assert_eq!(status_of(&exchange(connect_to(listener), request)), 421);
        listener
            .call("GET", "/healthz", &[("Host", "Box.example")], b"")
            .expect(200);
    }
}

#[test]
fn other_listeners_answer_any_name() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start_at(home.path(), ["0.0.0.0:0", "127.0.0.1:0"], &[]);
    let port = orchestrator
        .gateway
        .address()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    let gateway = Api::new(&format!("127.0.0.1:{port}"));
    gateway
        .call("GET", "/healthz", &[("Host", "box.example")], b"")
        .expect(200);
}
