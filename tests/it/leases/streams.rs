//! Event streams that stall or break, and logs across two attempts.

use super::*;
use std::sync::atomic::AtomicUsize;

#[test]
fn stalled_stream_is_requested_again() {
    let scene = Scene::set();
    let over = Switch::default();
    let (ended, last) = (over.clone(), LastRun::default());
    let node = scene.join("box", move |call, answer| {
        if call.is_run() {
            last.note(call);
            let started = json!({"event": "started", "attempt": 1, "seq": 1});
            let mut stream = answer.stream();
            stream.send(&started);
            // No event and no end, as of a node without a network.
            ended.wait();
        } else if call.method == "GET" {
            last.end(answer, "done\n");
        } else {
            answer.status(204, &Value::Null);
        }
    });
    let id = scene.create(json!({"max_attempts": 1}));
    let (attempt, ..) = scene.finish(&id);
    assert_eq!(attempt, 1);
    over.turn_on();
    let asked = node.call("attach", is_attach);
    assert!(asked.path.contains("attempt=1&after=1"), "{}", asked.path);
}

#[test]
fn proxy_page_is_not_job_answer() {
    let scene = Scene::set();
    let (last, asked) = (LastRun::default(), AtomicUsize::new(0));
    let node = scene.join("box", move |call, answer| {
        if call.is_run() {
            last.note(call);
            let started = json!({"event": "started", "attempt": 1, "seq": 1});
            // The job starts, and the connection is cut.
            answer.stream().send(&started);
        } else if call.method == "GET" {
            match asked.fetch_add(1, Ordering::SeqCst) {
                0 => answer.bytes(200, "text/html", "<html>back soon</html>"),
                1 => answer.bytes(200, "application/x-ndjson", "<html>\n"),
                2 => answer.status(200, &json!({"status": "splendid"})),
                _ => last.end(answer, "done\n"),
            }
        } else {
            answer.status(204, &Value::Null);
        }
    });
    let id = scene.create(json!({}));
    let (attempt, _, job) = scene.finish(&id);
    assert_eq!((attempt, &job["status"]), (1, &json!("completed")), "{job}");
    let ended = |call: &Call| call.path.contains(":cancel");
    assert!(
        !node.calls().iter().any(ended),
        "the attempt was not canceled"
    );
}

#[test]
fn subscriber_sees_both_attempts() {
    let scene = Scene::set();
    let last = LastRun::default();
    let away = scene.join("away", move |call, answer| {
        let printed = json!({"event": "stdout", "attempt": 1, "seq": 2, "data": "early\n"});
        if call.is_run() {
            last.note(call);
        }
        if call.is_run() || (call.method == "GET" && !is_attach(call)) {
            let started = json!({"event": "started", "attempt": 1, "seq": 1});
            answer.stream().send(&started).send(&printed);
        }
    });
    let id = scene.create(json!({}));
    away.call("run", Call::is_run);
    let user = scene.orchestrator.login();
    let mut events = user.events(&format!("/v1/tasks/{id}/logs?follow=true"), None);
    assert!(events.any(|event| event.data["data"] == "early\n"));
    let last = LastRun::default();
    // The end waits until the reader has the output, which would otherwise come from the result.
    let seen = Switch::default();
    let is_seen = seen.clone();
    let _other = scene.join("other", move |call, answer| {
        if call.is_run() {
            last.note(call);
        }
        if call.is_run() || call.method == "GET" {
            let mut events = answer.stream();
            events.send(&json!({"event": "started", "attempt": 2, "seq": 1}));
            events.send(&json!({"event": "stdout", "attempt": 2, "seq": 2, "data": "done\n"}));
            let run = last.0.lock().unwrap().clone().unwrap();
            is_seen.wait();
            events.end(3, &run.result("done\n"));
        } else {
            answer.status(204, &Value::Null);
        }
    });
    let rest: Vec<_> = events
        .map(|event| {
            if event.name == "stdout" {
                seen.turn_on();
            }
            (event.id, event.name)
        })
        .collect();
    let expected = [("2-0", "status"), ("2-2", "stdout"), ("2-2", "end")];
    assert_eq!(
        rest,
        expected.map(|(id, name)| (id.to_owned(), name.to_owned()))
    );
}
