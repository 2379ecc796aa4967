//! `cynode sandbox …` with a stand-in for the gateway: what is sent, what is printed, and cuts.

use crate::support::{
    Process,
    client::fails,
    eventually,
    process::{piped, run},
    sandbox_gateway::{Gateway, ID, exec, sandbox},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

const STREAM: &str = "text/event-stream";

fn output(id: &str, stream: &str, bytes: &[u8]) -> String {
    let data = json!({"data_base64": BASE64_STANDARD.encode(bytes)});
    format!("id: {id}\nevent: {stream}\ndata: {data}\n\n")
}

fn exit(code: i32) -> String {
    format!("event: exit\ndata: {}\n\n", exec(ID, "exited", Some(code)))
}

/// Whole stream of an exec that prints `text`.
fn prints(text: &str, code: i32) -> String {
    [output("1-2", "stdout", text.as_bytes()), exit(code)].concat()
}

#[test]
fn exec_has_output_and_exit_code_of_command() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(|rest, _, answer| {
        assert_eq!(rest, "/exec?encoding=base64");
        let events = [
            "id: 1-1\nevent: started\ndata: {}\n\n",
            &output("1-2", "stdout", b"out\xff\n"),
            &output("1-3", "stderr", b"err\n"),
            &exit(7),
        ];
        answer.bytes(200, STREAM, &events.concat());
    });
    let arguments = [
        "sandbox",
        "exec",
        "--cwd",
        "/tmp",
        "--timeout",
        "90s",
        "-e",
        "A=b",
        "box",
        "--",
        "sh",
        "-c",
        "exit 7",
    ];
    let output = gateway.command(home.path(), &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(output.stdout, b"out\xff\n");
    assert_eq!(output.stderr, b"err\n");
    let call = &gateway.calls_of("POST", "/exec")[0];
    assert_eq!(call.body["command"], json!(["sh", "-c", "exit 7"]));
    assert_eq!(call.body["cwd"], "/tmp");
    assert_eq!(call.body["timeout_seconds"], 90);
    assert_eq!(call.body["env"], json!({"A": "b"}));
    assert!(call.body["exec_id"].is_string());
    assert!(call.body["interactive"].is_null(), "stdin is /dev/null");
}

#[test]
fn cut_exec_goes_on_without_second_run() {
    let home = tempfile::tempdir().unwrap();
    let tries = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&tries);
    let gateway = Gateway::start(move |rest, call, answer| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        match (number, call.method.as_str()) {
            // The answer is lost, though the command runs.
            (0, "POST") => drop(answer),
            (1, "GET") => answer.status(200, &exec(ID, "running", None)),
            (2, "POST") => answer
                .pieces(STREAM)
                .send(&output("1-2", "stdout", b"one ")),
            (3, "GET") => {
                assert!(
                    rest.ends_with("/logs?follow=true&encoding=base64"),
                    "{rest}"
                );
                let last = ("last-event-id".to_owned(), "1-2".to_owned());
                assert!(call.headers.contains(&last), "{:?}", call.headers);
                answer.bytes(
                    200,
                    STREAM,
                    &[output("1-3", "stdout", b"two\n"), exit(0)].concat(),
                );
            }
            other => panic!("{other:?}: {rest}"),
        }
    });
    let done = run(&mut gateway.command(home.path(), &["sandbox", "exec", "box", "x"]));
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "one two\n"),
        "{done:?}"
    );
    let posts = gateway.calls_of("POST", "/exec");
    assert_eq!(posts.len(), 2);
    assert_eq!(posts[0].body, posts[1].body, "the same exec_id");
}

#[test]
fn piped_stdin_reaches_command_in_order() {
    let home = tempfile::tempdir().unwrap();
    let taken = Arc::new(Mutex::new(String::new()));
    let (sender, ended) = std::sync::mpsc::channel();
    let (all, ended) = (Arc::clone(&taken), Mutex::new(ended));
    let sender = Mutex::new(sender);
    let gateway = Gateway::start(move |rest, call, answer| {
        if call.path.contains("/stdin") {
            all.lock().unwrap().push_str(&call.text);
            let bytes = call.text.len();
            answer.status(200, &json!({ "bytes": bytes }));
            if rest.ends_with("eof=true") {
                sender.lock().unwrap().send(()).unwrap();
            }
            return;
        }
        if call.body["background"] == true {
            return answer.status(201, &exec(ID, "running", None));
        }
        assert_eq!(call.body["interactive"], true);
        let mut pieces = answer.pieces(STREAM);
        pieces.send("id: 1-1\nevent: started\ndata: {}\n\n");
        ended.lock().unwrap().recv().unwrap();
        pieces.send(&prints(&all.lock().unwrap(), 0));
        pieces.end();
    });
    let input: String = (0..40_000).map(|n| format!("line {n}\n")).collect();
    let mut command = gateway.command(home.path(), &["sandbox", "exec", "box", "cat"]);
    let done = piped(&mut command, input.as_bytes());
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout == input, "{} bytes", done.stdout.len());
    let mut command = gateway.command(home.path(), &["sandbox", "exec", "-nd", "box", "cat"]);
    let done = piped(&mut command, b"not for it");
    assert_eq!((done.code, done.stdout.trim()), (0, ID), "{done:?}");
    assert_eq!(gateway.calls_of("POST", "/exec").len(), 2);
}

#[test]
fn command_with_incomplete_stdin_is_ended() {
    let home = tempfile::tempdir().unwrap();
    let (sender, signaled) = std::sync::mpsc::channel();
    let (sender, signaled) = (Mutex::new(sender), Mutex::new(signaled));
    let gateway = Gateway::start(move |rest, call, answer| {
        if call.path.contains("/stdin") && call.text.is_empty() {
            // A node that does not number the bytes of stdin.
            return answer.status(200, &json!({"bytes": 0}));
        }
        if call.path.contains("/stdin") {
            // The command may have got the piece, or not.
            return drop(answer);
        }
        if rest.ends_with("/signal") {
            answer.status(204, &Value::Null);
            return sender.lock().unwrap().send(()).unwrap();
        }
        let mut pieces = answer.pieces(STREAM);
        pieces.send("id: 1-1\nevent: started\ndata: {}\n\n");
        signaled.lock().unwrap().recv().unwrap();
        pieces.send(&exit(143));
        pieces.end();
    });
    let mut command = gateway.command(home.path(), &["sandbox", "exec", "box", "cat"]);
    let done = piped(&mut command, b"a part");
    assert_eq!(done.code, 143, "{done:?}");
    assert!(done.stderr.contains("its input is incomplete"), "{done:?}");
    let call = &gateway.calls_of("POST", "/signal")[0];
    assert_eq!(call.body, json!({"signal": "TERM"}));
    let sent = gateway.calls_of("POST", "/stdin");
    let pieces: Vec<_> = sent.iter().filter(|call| !call.text.is_empty()).collect();
    assert_eq!((sent.len(), pieces.len()), (2, 1), "{sent:?}");
    let path = format!("/v1/sandboxes/{ID}/");
    assert!(call.path.starts_with(&path), "{}", call.path);
}

#[test]
fn uncertain_piece_of_stdin_is_numbered() {
    let home = tempfile::tempdir().unwrap();
    let (sender, ended) = std::sync::mpsc::channel();
    let (sender, ended) = (Mutex::new(sender), Mutex::new(ended));
    let tries = AtomicUsize::new(0);
    let gateway = Gateway::start(move |rest, call, answer| {
        if call.path.contains("/stdin") {
            if call.text.is_empty() {
                answer.status(200, &json!({"bytes": 0, "offset": 6}));
                if rest.ends_with("eof=true") {
                    sender.lock().unwrap().send(()).unwrap();
                }
                return;
            }
            // The command has got the piece each time, and the node knows it.
            return match tries.fetch_add(1, Ordering::Relaxed) {
                0 => drop(answer),
                1 => answer.problem(503, "unavailable"),
                _ => answer.status(200, &json!({"bytes": 6, "offset": 6})),
            };
        }
        let mut pieces = answer.pieces(STREAM);
        pieces.send("id: 1-1\nevent: started\ndata: {}\n\n");
        ended.lock().unwrap().recv().unwrap();
        pieces.send(&exit(0));
        pieces.end();
    });
    let mut command = gateway.command(home.path(), &["sandbox", "exec", "box", "cat"]);
    let done = piped(&mut command, b"a part");
    assert_eq!(done.code, 0, "{done:?}");
    let sent = gateway.calls_of("POST", "/stdin");
    let (ends, pieces): (Vec<_>, Vec<_>) = sent.iter().partition(|call| call.text.is_empty());
    assert_eq!((pieces.len(), ends.len()), (3, 2), "{sent:?}");
    for piece in pieces {
        assert!(piece.path.ends_with("offset=0&eof=false"), "{piece:?}");
    }
    let last = &ends[1].path;
    assert!(last.ends_with("offset=6&eof=true"), "{last}");
}

#[test]
fn first_interrupt_is_commands_second_leaves() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(|rest, _, answer| {
        if rest.ends_with("/signal") {
            return answer.status(204, &Value::Null);
        }
        let mut pieces = answer.pieces(STREAM);
        pieces.send(&output("1-2", "stdout", b"begun\n"));
        pieces.wait_gone();
    });
    let mut command = gateway.command(home.path(), &["sandbox", "exec", "box", "sleep", "9"]);
    let mut client = Process::start("client", home.path(), &mut command);
    eventually("it has begun", || {
        client.stdout().contains("begun").then_some(())
    });
    client.signal(Signal::INT);
    let call = gateway
        .calls
        .wait("send a signal", |call| call.path.ends_with("/signal"));
    assert_eq!(call.body, json!({"signal": "INT"}));
    client.signal(Signal::INT);
    assert_eq!(client.code(), 130);
    let hint = format!(
        "cynode sandbox logs box {} -f",
        call.path.split('/').nth(5).unwrap()
    );
    assert!(client.stderr().contains(&hint), "{}", client.stderr());
}

#[test]
fn interrupted_create_names_sandbox_that_stays() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(
        |rest, call, mut answer| match (call.method.as_str(), rest) {
            ("POST", "/v1/sandboxes") if call.body["name"] == "lost" => answer.wait_gone(),
            ("POST", "/v1/sandboxes") => {
                let mut queued = sandbox("queued");
                queued["id"] = "019a0000-0000-7000-8000-000000000002".into();
                answer.status(201, &queued);
            }
            ("GET", _) => answer.status(200, &sandbox("queued")),
            _ => answer.refuse(404),
        },
    );
    let interrupted = |name: &str, is_asked: &dyn Fn() -> bool| {
        let arguments = ["sandbox", "create", "--name", name];
        let mut command = gateway.command(home.path(), &arguments);
        let mut client = Process::start(name, home.path(), &mut command);
        eventually("it waits", || is_asked().then_some(()));
        client.signal(Signal::INT);
        assert_eq!(client.code(), 130);
        client.stderr()
    };
    let is_posted = || !gateway.calls_of("POST", "/sandboxes").is_empty();
    let note = interrupted("lost", &is_posted);
    let hint = "goes on, if it is created already: cynode sandbox rm lost deletes it";
    assert!(note.contains(hint), "{note}");
    let is_looked_at = || {
        !gateway
            .calls_of("GET", "/019a0000-0000-7000-8000-000000000002")
            .is_empty()
    };
    let note = interrupted("dev", &is_looked_at);
    let hint = "the sandbox goes on: cynode sandbox rm dev deletes it";
    assert!(note.contains(hint), "{note}");
    assert_eq!(gateway.calls_of("DELETE", "").len(), 0);
}

#[test]
fn closed_output_ends_command() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(|rest, _, answer| {
        if rest.ends_with("/signal") {
            return answer.status(204, &Value::Null);
        }
        answer.bytes(200, STREAM, &prints("x\n", 0));
    });
    let (closed, writer) = std::io::pipe().unwrap();
    drop(closed);
    let mut command = gateway.command(home.path(), &["sandbox", "exec", "box", "yes"]);
    let status = command
        .stdout(writer)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(141));
    let call = &gateway.calls_of("POST", "/signal")[0];
    assert_eq!(call.body, json!({"signal": "TERM"}));
}

#[test]
fn create_waits_and_list_shows() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(|rest, call, answer| match (call.method.as_str(), rest) {
        ("POST", "/v1/sandboxes") => answer.status(201, &sandbox("starting")),
        ("GET", "/v1/sandboxes?limit=20") => {
            answer.status(
                200,
                &json!({"sandboxes": [sandbox("running")], "next_cursor": ""}),
            );
        }
        ("GET", "/execs") => answer.status(200, &json!({"execs": [exec(ID, "exited", Some(3))]})),
        ("POST", "/renew") => answer.status(200, &sandbox("running")),
        ("DELETE", "") => answer.status(204, &Value::Null),
        _ => answer.refuse(404),
    });
    let create = [
        "sandbox",
        "create",
        "--name",
        "box",
        "--image",
        "alpine",
        "--lifetime",
        "2h",
        "--memory",
        "1GiB",
        "--label",
        "a",
    ];
    let done = run(&mut gateway.command(home.path(), &create));
    assert_eq!((done.code, done.stdout.trim()), (0, ID), "{done:?}");
    let body = &gateway.calls_of("POST", "/v1/sandboxes")[0].body;
    assert_eq!(body["name"], "box");
    assert_eq!(body["lifetime_seconds"], 7200);
    assert_eq!(body["memory"], 1 << 30);
    assert_eq!(body["node_labels"], json!(["a"]));
    let cli = |arguments: &[&str]| {
        let arguments = [&["sandbox"], arguments].concat();
        run(&mut gateway.command(home.path(), &arguments))
    };
    let done = cli(&["list"]);
    assert!(done.stdout.starts_with("NAME  ID"), "{done:?}");
    assert!(done.stdout.contains("running"), "{done:?}");
    let done = cli(&["show", "box"]);
    assert!(done.stdout.contains("exit 3"), "{done:?}");
    let done = cli(&["renew", "box", "--lifetime", "90m"]);
    assert!(done.stdout.starts_with("ends at 2126-01-01"), "{done:?}");
    let body = &gateway.calls_of("POST", "/renew")[0].body;
    assert_eq!(body, &json!({"lifetime_seconds": 5400}));
    let done = cli(&["rm", "box", "other"]);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (4, "box removed\n"),
        "{done:?}"
    );
}

#[test]
fn sandbox_that_ended_says_why() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(|rest, call, answer| {
        let mut ended = sandbox("ended");
        ended["reason"] = "failed".into();
        ended["detail"] = "there is no such image".into();
        match (call.method.as_str(), rest) {
            ("POST", "/v1/sandboxes") => answer.status(201, &ended),
            _ => answer.problem(410, "gone"),
        }
    });
    let done = run(&mut gateway.command(home.path(), &["sandbox", "create"]));
    fails(&done, 125, "(failed): there is no such image");
    let done = run(&mut gateway.command(home.path(), &["sandbox", "exec", "box", "x"]));
    fails(&done, 5, "on purpose");
}
