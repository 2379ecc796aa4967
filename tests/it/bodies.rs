//! Memory limits of requests and readers: without a login, per user, and in total.

use crate::support::{
    Api, Orchestrator, PASSWORD, Process, Worker,
    cluster::PSK,
    eventually,
    raw::{connect_from, connect_to, rest},
    stand_in::capability,
};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
};

const MIB: usize = 1024 * 1024;

/// A line of `/proc/PID/status`, in MiB.
fn memory(process: &Process, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

/// Peak growth of a process in MiB while `work` runs.
fn growth(process: &Process, work: impl FnOnce()) -> usize {
    // Resets the peak.
    fs::write(format!("/proc/{}/clear_refs", process.pid()), "5").unwrap();
    let before = memory(process, "VmRSS");
    work();
    memory(process, "VmHWM").saturating_sub(before)
}

fn head(path: &str, token: &str, length: usize, more: &str) -> String {
    let token = match token {
        "" => String::new(),
        token => format!("authorization: Bearer {token}\r\n"),
    };
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\n{token}content-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n{more}\r\n"
    )
}

/// Sends a request whose body is this many spaces, without the last one.
fn hold(mut stream: TcpStream, path: &str, token: &str, length: usize) -> TcpStream {
    let body = vec![b' '; length - 1];
    // The request may be refused before it is sent completely.
    let _ = stream.write_all(head(path, token, length, "").as_bytes());
    let _ = stream.write_all(&body);
    stream
}

fn let_go(mut stream: TcpStream) -> u16 {
    let _ = stream.write_all(b" ");
    let answer = rest(stream);
    answer
        .get(9..12)
        .map_or(0, |status| status.parse().unwrap())
}

/// Answer to a request of which only the head was sent.
fn announced(api: &Api, path: &str, token: &str, length: usize) -> String {
    let mut stream = connect_to(api);
    let head = head(path, token, length, "expect: 100-continue\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    let start = String::from_utf8_lossy(&start).into_owned();
    if start.ends_with("100") {
        return start;
    }
    start + &rest(stream)
}

#[test]
fn answer_arrives_whole_beside_body_that_nobody_reads() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let mut stream = connect_to(&orchestrator.gateway);
    // Most of the answer has to wait for this side.
    set_socket_recv_buffer_size(&stream, 4096).unwrap();
    let head = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.peek(&mut [0; 1]).unwrap();
    stream.write_all(b"{}").unwrap();
    let mut answer = Vec::new();
    // Fails where the connection is reset.
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    serde_json::from_str::<Value>(body).unwrap();
}

#[test]
fn unauthenticated_bodies_use_no_memory() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let worker = Worker::start(&[]);
    let (gateway, control) = (&orchestrator.gateway, &orchestrator.control);
    let send = |api: &Api, path: &str, length: usize| {
        thread::scope(|scope| {
            for from in 1..=100 {
                scope.spawn(move || {
                    let_go(hold(connect_from([127, 0, 9, from], api), path, "", length))
                });
            }
        });
    };
    let grown = growth(&orchestrator.process, || {
        send(control, "/v1/nodes/register", MIB);
        send(control, "/v1/nodes/report", 10 * MIB);
        send(gateway, "/v1/tasks", 10 * MIB);
        send(gateway, "/v1/auth/login", 10 * MIB);
    });
    assert!(grown < 24, "{grown} MiB");
    let grown = growth(&worker.process, || {
        send(&worker.api, "/v1/worker/jobs:run", 10 * MIB)
    });
    assert!(grown < 24, "{grown} MiB");
    for (api, path, status) in [
        (gateway, "/v1/tasks", 401),
        (gateway, "/v1/users", 401),
        (gateway, "/v1/auth/login", 413),
        (control, "/v1/nodes/report", 401),
        (control, "/v1/nodes/config", 401),
        (control, "/v1/nodes/register", 413),
        (&worker.api, "/v1/worker/jobs:run", 401),
    ] {
        let answer = announced(api, path, "", MIB);
        assert!(answer.contains(&format!(" {status}")), "{path}: {answer}");
    }
}

#[test]
fn total_memory_of_bodies_is_bounded() {
    let worker = Worker::start(&[]);
    let (api, path, token) = (&worker.api, "/v1/worker/jobs:run", worker.api.token());
    let before = memory(&worker.process, "VmRSS");
    let held: Vec<_> = (0..6)
        .map(|_| hold(connect_to(api), path, token, 9 * MIB))
        .collect();
    let refused = eventually("another body is refused", || {
        let answer = announced(api, path, token, 9 * MIB);
        (!answer.ends_with("100")).then_some(answer)
    });
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(
        refused.contains("retry-after: 1\r\n") && refused.contains("request bodies"),
        "{refused}"
    );
    for stream in held {
        assert_eq!(let_go(stream), 400, "each held body is read");
    }
    assert!(announced(api, path, token, 9 * MIB).ends_with("100"));
    // Same with bodies that are parsed as JSON.
    let mut job = Worker::script("true");
    job["padding"] = "x".repeat(9 * MIB).into();
    job["version"] = 2.into();
    let job = job.to_string();
    thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| api.post_raw(path, job.as_bytes()).status);
        }
    });
    eventually("the memory is released", || {
        (memory(&worker.process, "VmRSS") < before + 32).then_some(())
    });
}

#[test]
fn bodies_of_one_user_block_no_other() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let ann = orchestrator.add_user(&admin, "ann");
    let gateway = &orchestrator.gateway;
    let held: Vec<_> = (0..7)
        .map(|_| hold(connect_to(gateway), "/v1/tasks", ann.token(), 2 * MIB))
        .collect();
    let refused = eventually("another body of hers is refused", || {
        let answer = announced(gateway, "/v1/tasks", ann.token(), 2 * MIB);
        (!answer.ends_with("100")).then_some(answer)
    });
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    let task = json!({"script": "true"});
    admin.post("/v1/tasks", &task).expect(201);
    for stream in held {
        assert_eq!(let_go(stream), 400);
    }
    ann.post("/v1/tasks", &task).expect(201);
    // No task is longer than that.
    assert!(announced(gateway, "/v1/tasks", ann.token(), 14 * MIB + 1).starts_with("HTTP/1.1 413"));
    let script = "#".repeat(256 * 1024);
    ann.post("/v1/tasks", &json!({"script": script}))
        .expect(201);
}

#[test]
fn stalled_registrations_block_no_login() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (control, path) = (&orchestrator.control, "/v1/nodes/register");
    let from = |from: u8, each: usize| {
        (0..each).map(move |_| {
            let stream = connect_from([127, 0, 0, from], control);
            hold(stream, path, "", 256 * 1024)
        })
    };
    let held: Vec<_> = (11..=14)
        .flat_map(|address| from(address, 8))
        .chain(from(1, 8))
        .collect();
    let login = json!({"handle": "admin", "password": PASSWORD});
    let padded = json!({"handle": "admin", "password": "x".repeat(8_000)});
    let held_logins: Vec<_> = (0..200)
        .map(|n| {
            let stream = connect_from([127, 0, 0, 20 + n / 25], &orchestrator.gateway);
            hold(stream, "/v1/auth/login", "", 16 * 1024)
        })
        .collect();
    orchestrator
        .gateway
        .post("/v1/auth/login", &login)
        .expect(200);
    orchestrator
        .gateway
        .post("/v1/auth/login", &padded)
        .expect(401);
    let body = json!({"psk": PSK, "capability": capability("box", "http://127.0.0.1:1")});
    control.post(path, &body).expect(201);
    drop((held, held_logins));
}

#[test]
fn psk_in_header_is_checked_before_body() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (control, path) = (&orchestrator.control, "/v1/nodes/register");
    let wrong = announced(control, path, "a wrong pre-shared key", MIB);
    assert!(wrong.starts_with("HTTP/1.1 401"), "{wrong}");
    let mut report = capability("box", "http://127.0.0.1:1");
    report["padding"] = "x".repeat(600_000).into();
    let body = json!({"psk": PSK, "capability": report});
    let refused = control.post(path, &body).problem(413, "payload-too-large");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("Authorization: Bearer"), "{detail}");
    control.with_token(PSK).post(path, &body).expect(201);
    let wrong: Value = control
        .with_token("a wrong pre-shared key")
        .post(path, &body)
        .problem(401, "unauthorized");
    assert!(wrong["detail"].as_str().unwrap().contains("pre-shared key"));
}

#[test]
fn log_subscribers_are_limited_by_user() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let ann = orchestrator.add_user(&admin, "ann");
    let logs = |user: &Api| {
        let task = user.post("/v1/tasks", &json!({"script": "true"})).json(201);
        format!(
            "/v1/tasks/{}/logs?follow=true",
            task["id"].as_str().unwrap()
        )
    };
    let (hers, path) = (logs(&ann), logs(&admin));
    let follow = |user: &Api, path: &str| {
        let mut stream = connect_to(&orchestrator.gateway);
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
            user.token()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
        stream
    };
    let mut followers: Vec<_> = (0..128).map(|_| follow(&ann, &hers)).collect();
    let refused = ann.get(&hers).problem(429, "too-many-requests");
    assert!(
        refused["detail"].as_str().unwrap().contains("128"),
        "{refused}"
    );
    ann.get(&hers.replace("true", "false")).expect(200);
    followers.push(follow(&admin, &path));
    followers.swap_remove(0);
    eventually("bodies are accepted again", || {
        let mut stream = connect_to(&orchestrator.gateway);
        let request = format!(
            "GET {hers} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
            ann.token()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).unwrap();
        (start == *b"HTTP/1.1 200").then_some(())
    });
}

#[test]
fn sole_caller_gets_more_readers_than_network() {
    let worker = Worker::start(&[]);
    let job = Worker::script("until [ -e go ]; do usleep 5000; done");
    let mut course = worker.follow(&job, 0);
    course.next().unwrap();
    let readers: Vec<_> = (0..300)
        .map(|n| {
            let mut reader = worker.attach(&job, 0);
            let event = reader.next();
            assert!(event.is_some(), "reader {n}");
            reader
        })
        .collect();
    let canceled = format!("{}:cancel", Worker::path(&job));
    worker.api.call("POST", &canceled, &[], b"").expect(200);
    worker.api.get("/healthz").expect(200);
    assert_eq!(course.last().unwrap()["status"], "canceled");
    drop(readers);
}
