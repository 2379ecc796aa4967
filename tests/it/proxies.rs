//! Reverse proxies, by a real nginx: streams behind one without special settings, with `proxy_pass` only; and users and nodes
//! behind the configuration of docs/network.md.

use crate::support::{
    Api, Cluster, Node, Orchestrator, Process, Sandbox, Worker,
    cluster::wait_ready,
    cynode, eventually, lasting_port,
    process::piped,
    read,
    server::Server,
    terminal::Session,
    tls::{CertificateFiles, get},
    worker::WORKER_TOKEN,
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// Script that prints, and ends once it is released.
const WAITING: &str = "echo begun; until [ -e go ]; do usleep 5000; done; echo over";

/// An nginx.
struct Nginx {
    address: String,
    _process: Process,
    _home: TempDir,
}

impl Nginx {
    /// Starts one in front of one address.
    fn start(upstream: &str) -> Self {
        let address = format!("127.0.0.1:{}", lasting_port());
        let servers = format!(
            "gzip on; gzip_types *; gzip_min_length 1; gzip_http_version 1.0;
             server {{
                 listen {address};
                 location / {{ proxy_pass http://{upstream}; }}
             }}"
        );
        Self::serve(address, &servers)
    }

    /// Starts one with this configuration of servers, one of which has this address.
    fn serve(address: String, servers: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        // Debian's other settings are paths and a user of its own.
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {what};\n"))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr;
             events {{}}
             http {{
                 access_log off; {temporary}
                 {servers}
             }}"
        );
        fs::write(home.path().join("nginx.conf"), config).unwrap();
        let nginx = ["/usr/sbin/nginx", "nginx"];
        let nginx = nginx.iter().find(|path| Path::new(path).exists());
        let mut command = Command::new(nginx.unwrap_or(&"nginx"));
        command
            .arg("-p")
            .arg(home.path())
            .args(["-c", "nginx.conf", "-e", "stderr"])
            .stdin(Stdio::null());
        let mut process = Process::start("nginx", home.path(), &mut command);
        eventually("nginx listens", || {
            process.assert_runs();
            TcpStream::connect(&address).ok()
        });
        Self {
            address,
            _process: process,
            _home: home,
        }
    }
}

/// Releases the only job of a worker.
fn let_go(worker: &Server) {
    let place = eventually("a job runs", || worker.workspaces().pop());
    fs::write(place.join("workspace/go"), "").unwrap();
}

#[test]
fn live_log_passes_plain_proxy() {
    let cluster = Cluster::start();
    let gateway = cluster.orchestrator.gateway.address();
    let nginx = Nginx::start(gateway);
    let user = Api::new(&nginx.address).with_token(cluster.user.token());
    let id = cluster.script(WAITING);
    let path = format!("/v1/tasks/{id}/logs?follow=true");
    let mut events = user.events(&path, None);
    let begun = events.find(|event| event.name == "stdout").unwrap();
    assert_eq!(begun.data["data"], "begun\n");

    // Same for a compressed stream: the first part arrives before the end.
    let mut stream = TcpStream::connect(&nginx.address).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nAccept-Encoding: gzip\r\n\r\n",
        user.token()
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
        .set_read_timeout(Some(crate::support::DEADLINE))
        .unwrap();
    let (mut seen, mut some) = (Vec::new(), [0; 4096]);
    let body_bytes = |seen: &[u8]| {
        let end = seen.windows(4).position(|four| four == b"\r\n\r\n");
        end.map_or(0, |end| seen.len() - end - 4)
    };
    // More than the header of a compressed stream: some data, too.
    while body_bytes(&seen) < 40 {
        let n = stream.read(&mut some).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend(&some[..n]);
    }
    let head = String::from_utf8_lossy(&seen).to_lowercase();
    assert!(head.contains("content-encoding: gzip"), "{head}");
    assert!(head.contains("no-cache, no-transform"), "{head}");

    assert_eq!(cluster.task(&id)["status"], "running");
    let_go(&cluster.node);
    assert_eq!(events.last().unwrap().name, "end");
    let direct = cluster.user.get(&path);
    assert_eq!(direct.header("x-accel-buffering"), Some("no"));
}

#[test]
fn worker_events_pass_plain_proxy() {
    let worker = Worker::start(&[]);
    let nginx = Nginx::start(worker.api.address());
    let job = Worker::script(WAITING);
    let headers = [
        ("Content-Type", "application/json"),
        ("Accept", "application/x-ndjson"),
    ];
    let api = Api::new(&nginx.address).with_token(WORKER_TOKEN);
    let body = job.to_string();
    let lines = api.lines("POST", "/v1/worker/jobs:run", &headers, body.as_bytes());
    let mut events = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let begun = events.find(|event| event["event"] == "stdout").unwrap();
    assert_eq!(begun["data"], json!("begun\n"));
    let_go(&worker);
    assert_eq!(events.last().unwrap()["event"], "result");
    worker.forget(&job);
}

/// The configuration in docs/network.md, with these addresses of its servers and of what they stand in front of, and with
/// this certificate.
fn documented(servers: [&str; 2], upstreams: [&str; 2], files: &CertificateFiles) -> String {
    let text = read("docs/network.md");
    let (_, rest) = text.split_once("```nginx\n").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    let replacements = [
        ("listen 443 ssl", format!("listen {} ssl", servers[0])),
        ("listen 443 ssl", format!("listen {} ssl", servers[1])),
        ("http://127.0.0.1:12080", format!("http://{}", upstreams[0])),
        (
            "https://127.0.0.1:12082",
            format!("https://{}", upstreams[1]),
        ),
    ];
    let mut block = block.to_owned();
    for (from, to) in replacements {
        assert!(block.contains(from), "{from} is not in docs/network.md");
        block = block.replacen(from, &to, 1);
    }
    block
        .replace(
            "/etc/ssl/cynode/fullchain.pem",
            files.certificate.to_str().unwrap(),
        )
        .replace("/etc/ssl/cynode/privkey.pem", files.key.to_str().unwrap())
}

#[test]
fn documented_nginx_serves_users_and_nodes() {
    let home = tempfile::tempdir().unwrap();
    let files = CertificateFiles::make(home.path(), "proxy");
    let [users, nodes] = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let public_url = format!("https://{nodes}");
    let flags = ["--trusted-proxy", "127.0.0.1", "--public-url", &public_url];
    let local = ["127.0.0.1:0", "127.0.0.1:0"];
    let orchestrator = Orchestrator::start_default(home.path(), local, &flags);
    let upstreams = [
        orchestrator.gateway.address(),
        orchestrator.control.address(),
    ];
    let servers = documented([&users, &nodes], upstreams, &files);
    let nginx = Nginx::serve(users.clone(), &servers);
    get(&nginx.address, "/healthz").expect(200);

    let _node = Node::dial(home.path(), "box", &public_url, &["--pin", &files.pin]);
    wait_ready(&orchestrator);
    let admin = orchestrator.login();
    assert_eq!(admin.get("/v1/nodes/box").json(200)["via_tunnel"], true);
    let cli = |arguments: &[&str]| {
        let mut command = cynode(home.path());
        command
            .args(arguments)
            .env("CYNODE_GATEWAY_URL", format!("https://{users}"))
            .env("CYNODE_TOKEN", admin.token())
            .env("CYNODE_PIN", &files.pin);
        command
    };
    let done = piped(&mut cli(&["run", "-i", "--", "cat"]), b"typed\n");
    assert_eq!(done.stdout, "typed\n", "{done:?}");

    let sandbox = Sandbox::create(&admin, &json!({"name": "dev"}));
    // More than nginx takes by itself.
    let large = home.path().join("large");
    fs::write(&large, vec![7; 3 << 20]).unwrap();
    let done = piped(
        &mut cli(&["sandbox", "cp", large.to_str().unwrap(), "dev:/tmp/large"]),
        b"",
    );
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(sandbox.output("wc -c < /tmp/large").trim(), "3145728");
    let mut shell = Session::start(&cli(&["sandbox", "shell", "dev"]));
    shell.types("echo at$((20+22))\r");
    shell.shows("at42");
    shell.types("exit 3\r");
    assert_eq!(shell.ends().code, 3);
    sandbox.delete();
}
