//! Streams behind a reverse proxy without special settings: a real nginx with `proxy_pass` only.

use crate::support::{
    Api, Cluster, Process, Worker, eventually, lasting_port, server::Server, worker::WORKER_TOKEN,
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

/// An nginx in front of one address.
struct Nginx {
    address: String,
    _process: Process,
    _home: TempDir,
}

impl Nginx {
    fn start(upstream: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", lasting_port());
        // Debian's other settings are paths and a user of its own.
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {what};\n"))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr;
             events {{}}
             http {{
                 access_log off; {temporary}
                 gzip on; gzip_types *; gzip_min_length 1; gzip_http_version 1.0;
                 server {{
                     listen {address};
                     location / {{ proxy_pass http://{upstream}; }}
                 }}
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
