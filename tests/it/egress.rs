//! Hosts that a job reaches through the proxy of its node, and every way around it.

use crate::support::{
    Api, Call, Cluster, Sandbox, eventually,
    exposition::Exposition,
    listener::{Calls, Listener},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use std::{
    fs,
    io::{ErrorKind, Read as _},
    net::TcpListener,
    sync::Arc,
    thread,
};

/// Flags of an operator who lets jobs reach any host, also those of this machine.
pub(crate) const OPEN: [&str; 4] = [
    "--egress-allow",
    "*",
    "--egress-allow-private",
    "127.0.0.0/8,::1/128",
];
/// Shell functions: `get URL` asks for a page as programs do, `ask HEAD` sends a request to the proxy. A client that is
/// told to keep away from the proxy for `localhost` would ask the sandbox itself. nc closes its side with the end of its
/// input, and a server takes that for a client that has left.
pub(crate) const ASK: &str = r#"unset no_proxy NO_PROXY
get() { wget -q -O - "$1"; }
ask() { { printf "$1"; sleep 1; } | nc 127.0.0.1 3128 | tr -d '\r'; echo; }
"#;

/// Host that answers every call with `hello`.
pub(crate) fn host() -> (Listener, Calls) {
    let calls = Calls::default();
    let listener = Listener::open("127.0.0.1:0", &calls, |_, answer| answer.text(200, "hello"));
    (listener, calls)
}

/// Cluster with such an operator.
pub(crate) fn open_cluster() -> Cluster {
    Cluster::start_orchestrated(&OPEN)
}

/// Task that may reach these hosts, with a script that has the shell functions.
pub(crate) fn task(allow: &[&str], script: &str) -> Value {
    json!({
        "script": format!("{ASK}{script}"),
        "network_policy": "allowlist",
        "egress": {"allow": allow},
    })
}

/// Runs a script to its end in a sandbox that may reach these hosts; its result.
fn run(cluster: &Cluster, allow: &[&str], script: &str) -> Value {
    let id = cluster.create(&task(allow, script));
    cluster.finish(&id);
    cluster.result(&id)["jobs"][0]["result_object"].clone()
}

/// Statuses of the answers in what a script has printed.
fn statuses(result: &Value) -> Vec<&str> {
    let lines = result["stdout"].as_str().unwrap().lines();
    let heads = lines.filter(|line| line.starts_with("HTTP/1.1"));
    heads.map(|head| head.split(' ').nth(1).unwrap()).collect()
}

fn request(method: &str, target: &str, host: &str) -> String {
    format!(
        "ask '{method} {target} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n'\n"
    )
}

#[test]
fn job_reaches_listed_host_without_a_network() {
    let (server, calls) = host();
    let cluster = open_cluster();
    let name = format!("localhost:{}", server.address.port());
    let script = format!(
        "get http://{name}/a?b=c; echo; ls /sys/class/net; ls -A /run/cynode; env | grep -ci '_proxy=http://127.0.0.1:3128'; \
         nc -w 1 127.0.0.1 {} </dev/null && echo open; nc -w 1 192.0.2.1 80 </dev/null && echo network; \
         get http://other.example/ || echo refused",
        server.address.port()
    );
    let result = run(&cluster, &[&name], &script);
    assert_eq!(result["stdout"], "hello\nlo\n6\nrefused\n", "{result}");
    let totals = &result["effective"]["egress"];
    let refusal = totals["last_refusal"].as_str().unwrap_or_default();
    assert!(refusal.contains("other.example"), "{result}");
    let wanted = json!({
        "requests": 2, "refused": 1, "bytes_sent": 0, "bytes_received": 5, "last_refusal": refusal,
    });
    assert_eq!(*totals, wanted);
    assert_eq!(result["effective"]["network"], "none");

    let call = &calls.all()[0];
    assert_eq!(call.path, "/a?b=c");
    let value = |wanted: &str| {
        let mut headers = call.headers.iter();
        headers.find(|(header, _)| header == wanted)
    };
    assert_eq!(value("host").unwrap().1, name);
    for absent in ["via", "forwarded", "x-forwarded-for", "proxy-connection"] {
        assert_eq!(value(absent), None);
    }
    let worker = cluster.node.url().strip_prefix("http://").unwrap();
    let metrics = Exposition::of(&Api::new(worker));
    let count = |verdict: &str| {
        let labels = format!("cynode_node_egress_requests_total{{verdict=\"{verdict}\"}}");
        metrics.value(&labels)
    };
    assert_eq!((count("allowed"), count("refused")), (1.0, 1.0));
}

#[test]
fn job_without_list_has_no_proxy() {
    let cluster = open_cluster();
    let id = cluster.script(
        "env | grep -i proxy; nc -w 1 127.0.0.1 3128 </dev/null && echo open; cat /proc/net/tcp | wc -l",
    );
    cluster.finish(&id);
    let result = &cluster.result(&id)["jobs"][0]["result_object"];
    assert_eq!(result["stdout"], "1\n", "{result}");
    assert!(result["effective"]["egress"].is_null(), "{result}");
}

#[test]
fn ways_around_are_refused() {
    let (server, calls) = host();
    let cluster = open_cluster();
    let port = server.address.port();
    let name = format!("localhost:{port}");
    let (url, other) = (format!("http://{name}/"), format!("localhost:{}", port ^ 1));
    let script = [
        request("GET", "http://other.example/", "other.example"),
        request("CONNECT", "other.example:443", "other.example:443"),
        request("GET", &format!("http://127.0.0.1:{port}/"), &name),
        request("CONNECT", &format!("[::1]:{port}"), &name),
        request("GET", "http://169.254.169.254/latest/", "169.254.169.254"),
        request("GET", "http://2130706433/", "2130706433"),
        request("GET", &url, "other.example"),
        request("GET", &format!("http://{other}/"), &other),
        request("TRACE", &url, &name),
        request("GET", "/", &name),
        request("GET", &format!("https://{name}/"), &name),
        request("GET", &url, &name),
    ]
    .concat();
    let result = run(&cluster, &[&name], &script);
    let expected = [
        "403", "403", "403", "403", "403", "403", "400", "403", "405", "400", "400", "200",
    ];
    assert_eq!(statuses(&result), expected, "{result}");
    let stdout = result["stdout"].as_str().unwrap();
    for sentence in [
        "other.example:80 is not on this job's list of hosts; start the job with --allow other.example",
        "other.example:443 is not on this job's list",
        "127.0.0.1 is an address, and only hosts that are named can be allowed",
        "the header Host differs from the host of the URL",
    ] {
        assert!(stdout.contains(sentence), "{sentence}: {result}");
    }
    assert_eq!(calls.all().len(), 1, "nothing else reached the host");
    assert_eq!(result["effective"]["egress"]["refused"], 11, "{result}");
}

#[test]
fn each_request_is_decided_alone() {
    let (server, calls) = host();
    let cluster = open_cluster();
    let name = format!("localhost:{}", server.address.port());
    let other = "GET http://other.example/ HTTP/1.1\\r\\nHost: other.example\\r\\nConnection: close\\r\\n\\r\\n";
    let smuggle = |version: &str, header: &str| {
        format!(
            "ask 'GET http://{name}/ HTTP/{version}\\r\\nHost: {name}\\r\\n{header}\\r\\n\\r\\n{other}'\n"
        )
    };
    let script = [
        // The first is allowed, and has no body in its answer.
        format!("ask 'HEAD http://{name}/ HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n{other}'\n"),
        smuggle("1.1", "X-Folded: a\\r\\n b"),
        smuggle("1.1", "Content-Length: 1\\r\\nContent-Length: 2"),
        smuggle("1.1", "Transfer-Encoding: chunked, identity"),
        smuggle("1.0", "Transfer-Encoding: chunked"),
        request(
            "GET",
            &format!("http://{name}@other.example/"),
            "other.example",
        ),
    ]
    .concat();
    let result = run(&cluster, &[&name], &script);
    let expected = ["200", "403", "400", "400", "400", "400", "403"];
    assert_eq!(statuses(&result), expected, "{result}");
    assert_eq!(calls.all().len(), 1, "nothing else reached the host");
}

#[test]
fn name_of_private_address_is_refused() {
    let (server, calls) = host();
    let cluster = Cluster::start_orchestrated(&["--egress-allow", "*"]);
    let name = format!("localhost:{}", server.address.port());
    let result = run(
        &cluster,
        &[&name],
        &request("GET", &format!("http://{name}/"), &name),
    );
    assert_eq!(statuses(&result), ["403"], "{result}");
    let stdout = result["stdout"].as_str().unwrap();
    assert!(
        stdout.contains(
            "localhost leads to 127.0.0.1, a loopback address; if the job should reach it"
        ),
        "{result}"
    );
    assert!(calls.all().is_empty());
}

#[test]
fn list_of_node_counts_too() {
    let (server, calls) = host();
    let name = format!("localhost:{}", server.address.port());
    let cluster = Cluster::start_operated(&OPEN, &["--egress-allow", "*.example"]);
    let result = run(
        &cluster,
        &[&name],
        &request("GET", &format!("http://{name}/"), &name),
    );
    assert_eq!(statuses(&result), ["403"], "{result}");
    let stdout = result["stdout"].as_str().unwrap();
    assert!(
        stdout.contains("is not on the list of hosts of this job's node; ask its operator"),
        "{result}"
    );
    assert!(calls.all().is_empty());
}

/// First message of a TLS client that asks for a host, in base64.
fn hello(host: &str) -> String {
    let config = ClientConfig::builder_with_provider(cynode::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    STANDARD.encode(bytes)
}

#[test]
fn tunnel_must_name_its_host() {
    // The one port at which the name is checked. Where this test can't have it, there is nothing to test.
    let listener = match TcpListener::bind("127.0.0.1:443") {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::AddrInUse
            ) =>
        {
            return;
        }
        bound => bound.unwrap(),
    };
    let received = thread::spawn(move || {
        [(); 3].map(|()| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            // A tunnel that is cut may be reset.
            let _ = stream.read_to_end(&mut bytes);
            STANDARD.encode(bytes)
        })
    });
    let cluster = open_cluster();
    let tunnel = |first: &str| {
        format!(
            "{{ printf 'CONNECT localhost:443 HTTP/1.1\\r\\nHost: localhost:443\\r\\n\\r\\n'; {first}; sleep 2; }} \
             | nc 127.0.0.1 3128 | head -n 1\n"
        )
    };
    let good = hello("localhost");
    let script = [
        tunnel(&format!("echo {} | base64 -d", hello("other.example"))),
        tunnel("printf 'GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n'"),
        tunnel(&format!("echo {good} | base64 -d")),
    ]
    .concat();
    let result = run(&cluster, &["localhost"], &script);
    assert_eq!(
        received.join().unwrap(),
        [String::new(), String::new(), good]
    );
    assert_eq!(statuses(&result), ["200"; 3], "{result}");
    let totals = &result["effective"]["egress"];
    assert_eq!(
        (&totals["requests"], &totals["refused"]),
        (&json!(3), &json!(2)),
        "{result}"
    );
}

#[test]
fn connections_beyond_limit_are_told() {
    let cluster = open_cluster();
    let script = "for n in $(seq 270); do { sleep 8 | nc 127.0.0.1 3128 > out.$n & } 2>/dev/null; done; \
        until grep -qs '^HTTP/1.1 503' out.*; do usleep 20000; done; cat out.* | grep -m 1 'too many connections'";
    let result = run(&cluster, &["localhost"], script);
    let stdout = result["stdout"].as_str().unwrap();
    assert!(
        stdout.starts_with("cynode: too many connections"),
        "{result}"
    );
}

#[test]
fn bytes_of_job_are_limited() {
    let calls = Calls::default();
    let server = Listener::open("127.0.0.1:0", &calls, |_, answer| {
        answer.text(200, &"x".repeat(100_000));
    });
    let cluster = Cluster::start_orchestrated(&[&OPEN[..], &["--egress-bytes", "150000"]].concat());
    let name = format!("localhost:{}", server.address.port());
    let script = format!(
        "get http://{name}/ | wc -c; get http://{name}/ | wc -c; {}",
        request("GET", &format!("http://{name}/"), &name)
    );
    let result = run(&cluster, &[&name], &script);
    let stdout = result["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("100000\n"), "{result}");
    assert_eq!(statuses(&result), ["403"], "{result}");
    assert!(stdout.contains("which is its limit"), "{result}");
    assert_eq!(calls.all().len(), 2);
}

#[test]
fn proxy_survives_restart_of_node() {
    let (server, calls) = host();
    let mut cluster = open_cluster();
    let name = format!("localhost:{}", server.address.port());
    let script = format!(
        "get http://{name}/1; echo; until [ -e go ]; do usleep 5000; done; get http://{name}/2; echo"
    );
    let id = cluster.create(&task(&[&name], &script));
    cluster.printed(&id, "hello\n");
    let place = eventually("the sums are saved", || {
        let place = cluster.node.workspaces().pop()?;
        let sums = fs::read_to_string(place.join("egress.json")).ok()?;
        sums.contains("\"bytes_received\":5").then_some(place)
    });
    cluster.node.process.kill();
    cluster.restart_node();
    fs::write(place.join("workspace/go"), "").unwrap();
    cluster.finish(&id);
    let result = &cluster.result(&id)["jobs"][0]["result_object"];
    assert_eq!(result["stdout"], "hello\nhello\n", "{result}");
    let paths: Vec<_> = calls
        .all()
        .iter()
        .map(|call: &Call| call.path.clone())
        .collect();
    assert_eq!(paths, ["/1", "/2"]);
    let totals = json!({"requests": 2, "refused": 0, "bytes_sent": 0, "bytes_received": 10});
    assert_eq!(
        result["effective"]["egress"], totals,
        "both processes counted"
    );
}

#[test]
fn sandbox_that_stays_reaches_its_hosts() {
    let (server, _calls) = host();
    let cluster = open_cluster();
    let name = format!("localhost:{}", server.address.port());
    let wanted = json!({"network_policy": "allowlist", "egress": {"allow": [name]}});
    let sandbox = Sandbox::create(&cluster.user, &wanted);
    for _ in 0..2 {
        let got = sandbox.output(&format!("{ASK}get http://{name}/"));
        assert_eq!(got, "hello");
    }
    let own =
        json!({"script": "echo $HTTP_PROXY $https_proxy", "env": {"HTTP_PROXY": "http://mine:1"}});
    assert_eq!(
        sandbox.exec(&own)["stdout"],
        "http://mine:1 http://127.0.0.1:3128\n"
    );
    sandbox.delete();
}
