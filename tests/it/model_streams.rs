//! Streams of models: passed as they come, ended with either side, queued by user, recorded without contents.

use crate::support::{
    Answer, Api, Call, Orchestrator, eventually, eventually_eq,
    listener::Pieces,
    model_node::{chat, completion, model_node},
    raw::connect_to,
};
use serde_json::{Value, json};
use std::{
    io::Write as _,
    sync::{Arc, Mutex, mpsc},
    thread,
};

const CHAT: &str = "/v1/chat/completions";
const EVENTS: &str = "text/event-stream";

/// Answers that a test gives by itself.
type Held = mpsc::Receiver<Answer>;

/// Script that hands each answer to the test.
fn holding() -> (impl Fn(&Call, Answer) + Send + Sync + 'static, Held) {
    let (sender, held) = mpsc::channel();
    let sender = Mutex::new(sender);
    let script = move |_: &Call, answer| {
        let _ = sender.lock().unwrap().send(answer);
    };
    (script, held)
}

fn stream_request() -> Value {
    let mut request = chat("tiny");
    request["stream"] = true.into();
    request
}

fn event(text: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"choices": [{"delta": {"content": text}}]})
    )
}

/// Request on a connection of its own, whose answer is not read.
fn send(user: &Api, body: &Value) -> std::net::TcpStream {
    let mut stream = connect_to(user);
    let (body, token, host) = (body.to_string(), user.token(), user.address());
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .unwrap();
    stream
}

#[test]
fn events_pass_one_by_one() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (script, held) = holding();
    let _node = model_node(&orchestrator, "a", &["tiny:latest"], script);
    let user = orchestrator.login();
    let body = stream_request().to_string();
    let reading = thread::spawn(move || user.lines("POST", CHAT, &[], body.as_bytes()));
    let mut pieces = held.recv().unwrap().pieces(EVENTS);
    pieces.send(&event("one"));
    let mut lines = reading.join().unwrap();
    for text in ["one", "two"] {
        // The next event is sent only after the last one has arrived.
        assert_eq!(format!("{}\n\n", lines.next().unwrap()), event(text));
        assert_eq!(lines.next().unwrap(), "");
        if text == "one" {
            pieces.send(&event("two"));
        }
    }
    pieces.send("data: [DONE]\n\n");
    pieces.end();
    assert_eq!(lines.collect::<Vec<_>>(), ["data: [DONE]", ""]);
}

#[test]
fn cut_stream_ends_with_error() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let script = |call: &Call, answer: Answer| {
        let is_ollama = call.is_model_call("/api/chat");
        let mut pieces = answer.pieces(if is_ollama {
            "application/x-ndjson"
        } else {
            EVENTS
        });
        pieces.send(call.body["piece"].as_str().unwrap());
    };
    let _node = model_node(&orchestrator, "a", &["tiny:latest"], script);
    let user = orchestrator.login();
    let call = |path: &str, piece: &str| {
        let mut request = stream_request();
        request["piece"] = piece.into();
        user.try_call("POST", path, &[], request.to_string().as_bytes())
    };
    let whole = call(CHAT, &event("one")).unwrap().text();
    let (first, last) = whole
        .strip_suffix("\n\n")
        .unwrap()
        .split_once("\n\n")
        .unwrap();
    assert_eq!(format!("{first}\n\n"), event("one"));
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "upstream_error");
    let whole = call("/v1/messages", "event: ping\ndata: {}\n\n")
        .unwrap()
        .text();
    assert!(whole.contains("\n\nevent: error\ndata: {"), "{whole}");
    let whole = call("/api/chat", "{}\n").unwrap().text();
    assert!(whole.starts_with("{}\n{\"error\":"), "{whole}");
    // In the middle of an event nothing may follow.
    call(CHAT, "data: {\"cho").unwrap_err();
    call("/api/chat", "{\"mess").unwrap_err();
}

#[test]
fn client_that_leaves_ends_call_upstream() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (script, held) = holding();
    let _node = model_node(&orchestrator, "a", &["tiny:latest"], script);
    let user = orchestrator.login();
    // Before the first byte.
    let client = send(&user, &chat("tiny"));
    let mut answer = held.recv().unwrap();
    drop(client);
    answer.wait_gone();
    // In a stream.
    let client = send(&user, &stream_request());
    let mut pieces: Pieces = held.recv().unwrap().pieces(EVENTS);
    pieces.send(&event("one"));
    let mut byte = [0];
    std::io::Read::read_exact(&mut &client, &mut byte).unwrap();
    drop(client);
    pieces.wait_gone();
}

#[test]
fn calls_wait_in_turns_by_user() {
    let home = tempfile::tempdir().unwrap();
    let limits = ["--inference-concurrency", "1", "--inference-queue", "3"];
    let orchestrator = Orchestrator::start(home.path(), &limits);
    let (sender, held) = mpsc::channel();
    let sender = Mutex::new(sender);
    let script = move |call: &Call, answer: Answer| {
        let name = call.body["name"].as_str().unwrap().to_owned();
        let _ = sender.lock().unwrap().send((name, answer));
    };
    let _node = model_node(&orchestrator, "a", &["tiny:latest"], script);
    let admin = orchestrator.login();
    let other = orchestrator.add_user(&admin, "other");
    let named = |name: &str| {
        let mut request = chat("tiny");
        request["name"] = name.into();
        request
    };
    let queued = |count: u64| {
        eventually_eq("calls wait", count, || {
            let text = admin.anonymous().get("/metrics").text();
            let line = text
                .lines()
                .find(|line| line.starts_with("cynode_inference_queued "));
            line.and_then(|line| line.split(' ').next_back()?.parse().ok())
                .unwrap_or(0)
        });
    };
    let mut clients = vec![send(&admin, &named("admin 1"))];
    let (name, first) = held.recv().unwrap();
    assert_eq!(name, "admin 1");
    for (n, (user, name)) in [
        (&admin, "admin 2"),
        (&admin, "admin 3"),
        (&other, "other 1"),
    ]
    .into_iter()
    .enumerate()
    {
        clients.push(send(user, &named(name)));
        queued(n as u64 + 1);
    }
    let refused = admin.post(CHAT, &named("admin 4"));
    assert_eq!(refused.json(429)["error"]["code"], "rate_limit_exceeded");
    assert!(refused.header("retry-after").is_some());
    first.status(200, &completion("x"));
    for expected in ["admin 2", "other 1", "admin 3"] {
        let (name, answer) = held.recv().unwrap();
        assert_eq!(name, expected);
        answer.status(200, &completion("x"));
    }
}

#[test]
fn waiting_stream_gets_comments() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (script, held) = holding();
    let _node = model_node(&orchestrator, "a", &["tiny:latest"], script);
    let user = orchestrator.login();
    let body = stream_request().to_string();
    let mut lines = user.lines("POST", CHAT, &[], body.as_bytes());
    assert!(lines.next().unwrap().starts_with(": "));
    assert_eq!(lines.next().unwrap(), "");
    let mut pieces = held.recv().unwrap().pieces(EVENTS);
    pieces.send(&event("one"));
    let next = lines.find(|line| !line.is_empty() && !line.starts_with(": "));
    assert_eq!(format!("{}\n\n", next.unwrap()), event("one"));
    pieces.end();
}

#[test]
fn logout_ends_running_stream() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (script, held) = holding();
    let _node = model_node(&orchestrator, "a", &["tiny:latest"], script);
    let user = orchestrator.login();
    let (reader, body) = (user.clone(), stream_request().to_string());
    let reading = thread::spawn(move || {
        let lines = reader.lines("POST", CHAT, &[], body.as_bytes());
        lines.collect::<Vec<_>>()
    });
    let mut pieces = held.recv().unwrap().pieces(EVENTS);
    pieces.send(&event("one"));
    user.post("/v1/auth/logout", &json!({})).expect(204);
    pieces.wait_gone();
    let lines = reading.join().unwrap();
    let last = lines.iter().rfind(|line| !line.is_empty()).unwrap();
    assert!(last.contains("invalid_api_key"), "{lines:?}");
}

#[test]
fn calls_are_recorded_without_contents() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let _node = model_node(&orchestrator, "a", &["tiny:latest"], |_, answer| {
        answer.status(200, &completion("a secret answer"));
    });
    let admin = orchestrator.login();
    admin.post(CHAT, &chat("tiny")).expect(200);
    let event = eventually("the call is recorded", || {
        let log = admin.get("/v1/audit?action=inference.request").json(200);
        log["events"].as_array().unwrap().first().cloned()
    });
    assert_eq!(
        (&event["actor"], &event["target"]),
        (&json!("admin"), &json!("tiny:latest"))
    );
    let reason = event["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("node a, 3 tokens in, 5 out, "),
        "{reason}"
    );
    let log = orchestrator.process.stderr();
    for content in ["a secret question", "a secret answer"] {
        assert!(
            !log.contains(content) && !event.to_string().contains(content),
            "{log}"
        );
    }
}

/// Many streams at a time, each with one event, all held open.
#[test]
fn many_streams_are_open_at_once() {
    const STREAMS: usize = 150;
    let home = tempfile::tempdir().unwrap();
    let concurrency = STREAMS.to_string();
    let orchestrator = Orchestrator::start(home.path(), &["--inference-concurrency", &concurrency]);
    let (script, held) = holding();
    let _node = model_node(&orchestrator, "a", &["tiny:latest"], script);
    let user = orchestrator.login();
    let clients: Vec<_> = (0..STREAMS)
        .map(|_| send(&user, &stream_request()))
        .collect();
    let pieces: Vec<_> = (0..STREAMS)
        .map(|_| {
            let mut pieces = held.recv().unwrap().pieces(EVENTS);
            pieces.send(&event("one"));
            pieces
        })
        .collect();
    for mut client in &clients {
        let mut start = [0; 15];
        std::io::Read::read_exact(&mut client, &mut start).unwrap();
        assert_eq!(&start, b"HTTP/1.1 200 OK");
    }
    drop(clients);
    let pieces = Arc::new(Mutex::new(pieces));
    for pieces in pieces.lock().unwrap().iter_mut() {
        pieces.wait_gone();
    }
    // All places are free again.
    let reading = thread::spawn(move || user.post(CHAT, &chat("tiny")));
    held.recv().unwrap().status(200, &completion("x"));
    reading.join().unwrap().expect(200);
}
