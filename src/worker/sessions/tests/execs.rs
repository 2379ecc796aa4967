//! Start of execs, their logs and their stdin.

use super::*;
use crate::{
    api::events::ResultEvent,
    api::{jobs::Outcome, problem::ProblemKind, sandboxes::exec::MAX_ANSWER_BYTES},
    spool::ExecSpool,
};
use futures_util::StreamExt as _;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::json;
use std::sync::atomic::Ordering;

const EVENTS: [(&str, &str); 2] = [
    ("content-type", "application/json"),
    ("accept", "text/event-stream"),
];

#[tokio::test(flavor = "multi_thread")]
async fn parallel_execs_are_not_mixed() {
    let sandbox = Sandbox::start().await;
    let calls = (0..64).map(|n| {
        let text = format!("exec {n} says é");
        let sandbox = &sandbox;
        async move {
            let answer = sandbox.exec(json!({"command": ["print", text]})).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
            let answer = answer.json();
            assert_eq!(answer["stdout"], *text);
            assert_eq!(answer["exit_code"], 0);
            assert_eq!(answer["truncated"], false);
        }
    });
    // A listener takes fewer connections at a time from one who shows no token, and those that end count for a moment.
    let answered = futures_util::stream::iter(calls).buffer_unordered(12);
    answered.collect::<()>().await;
    assert_eq!(sandbox.stand_in.shim.starts.load(Ordering::SeqCst), 64);
    let listed = sandbox.get("/execs").await.json();
    assert_eq!(listed["execs"].as_array().unwrap().len(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_record_ends_wait_for_exec() {
    let sandbox = Sandbox::start().await;
    let body = json!({"command": ["wait"], "background": true});
    let id = id_in(&sandbox.exec(body).await);
    let job = Arc::clone(&sandbox.stand_in.job);
    let exec = records::find(&job, id).await.unwrap();
    ExecSpool::at(job.spool.path(), id).remove().unwrap();
    let ended = records::ExecFollower::new(job, exec).ended();
    let ended = tokio::time::timeout(LIMIT, ended).await.unwrap();
    let error = records::look_error(ended.unwrap_err());
    assert_eq!(error.kind(), ProblemKind::Gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_exec_id_starts_nothing_again() {
    let sandbox = Sandbox::start().await;
    let id = ExecId::new();
    let body = json!({"exec_id": id, "command": ["wait"], "background": true});
    let started = sandbox.exec(body.clone()).await;
    assert_eq!(started.status, StatusCode::CREATED);
    assert_eq!(started.json()["status"], "running");
    let again = sandbox.exec(body).await;
    assert_eq!(
        (again.status, again.json()),
        (StatusCode::OK, started.json())
    );
    let waiting = sandbox.exec(json!({"exec_id": id, "command": ["wait"]}));
    let ended = async {
        sandbox.stand_in.shim.print(id, b"out");
        sandbox.stand_in.shim.end(id, 7);
    };
    let (waited, ()) = tokio::join!(waiting, ended);
    let waited = waited.json();
    assert_eq!(
        (&waited["exit_code"], &waited["stdout"]),
        (&json!(7), &json!("out"))
    );
    assert_eq!(sandbox.stand_in.shim.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn flooding_exec_has_bounded_answer() {
    let sandbox = Sandbox::start().await;
    let flood = (8 << 20).to_string();
    let answer = sandbox
        .exec(json!({"command": ["flood", flood]}))
        .await
        .json();
    assert_eq!(answer["stdout"].as_str().unwrap().len(), MAX_ANSWER_BYTES);
    assert_eq!(answer["truncated"], true);
    let path = format!("/execs/{}/logs", answer["exec_id"].as_str().unwrap());
    let log = sandbox.get(&path).await.json();
    assert_eq!(log["stdout"].as_str().unwrap().len(), 8 << 20);
    assert_eq!(log["stderr"], "");
    let tail = sandbox
        .get(&format!("{path}?encoding=base64&stream=stderr"))
        .await;
    assert_eq!(tail.json()["stderr_base64"], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_resumes_behind_its_last_event() {
    let sandbox = Sandbox::start().await;
    let id = ExecId::new();
    let shim = &sandbox.stand_in.shim;
    let body = json!({"exec_id": id, "command": ["wait"]}).to_string();
    let opened = sandbox
        .open(Method::POST, "/exec", &EVENTS, whole(body))
        .await;
    let mut body = opened.into_body();
    let mut events = String::new();
    let mut printed = 0;
    while !events.contains("event: stdout") {
        if events.contains("event: started") && printed == 0 {
            shim.print(id, b"one");
            printed = 1;
        }
        let frame = tokio::time::timeout(LIMIT, body.frame()).await.unwrap();
        let data = frame.unwrap().unwrap().into_data().unwrap();
        events.push_str(std::str::from_utf8(&data).unwrap());
    }
    assert!(
        events.starts_with("id: 1-0\nevent: started\ndata: {\"exec_id\":"),
        "{events}"
    );
    assert!(
        events.contains("id: 1-2\nevent: stdout\ndata: {\"data\":\"one\""),
        "{events}"
    );
    drop(body);
    shim.print(id, b"two");
    shim.end(id, 3);
    let resumed = [("accept", "text/event-stream"), ("last-event-id", "1-2")];
    let path = format!("/execs/{id}/logs");
    let rest = sandbox.call(Method::GET, &path, &resumed, "").await;
    let rest = rest.text();
    assert!(
        rest.starts_with("id: 1-3\nevent: stdout\ndata: {\"data\":\"two\""),
        "{rest}"
    );
    let exit = rest.split("event: exit\ndata: ").nth(1).unwrap();
    let exit: Value = serde_json::from_str(exit.trim()).unwrap();
    assert_eq!(
        (&exit["exit_code"], &exit["status"]),
        (&json!(3), &json!("exited"))
    );
    let wrong = [("last-event-id", "x")];
    let wrong = sandbox.call(Method::GET, &path, &wrong, "").await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn user_of_exec_is_that_of_sandbox() {
    let sandbox = Sandbox::start().await;
    let body = json!({"command": ["print", "x"], "user": "root"});
    let refused = sandbox.exec(body).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let text = refused.text();
    assert!(text.contains("#/user") && text.contains("USER"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_of_any_size_is_streamed() {
    let sandbox = Sandbox::start().await;
    let id = ExecId::new();
    let body = json!({"exec_id": id, "command": ["cat"], "interactive": true, "background": true});
    sandbox.exec(body).await;
    let block = Bytes::from(vec![b'y'; 1 << 20]);
    let blocks = futures_util::stream::repeat(block).take(24);
    let frames = blocks.map(|block| Ok::<_, std::io::Error>(Frame::data(block)));
    let body = StreamBody::new(frames).boxed_unsync();
    let path = format!("/execs/{id}/stdin?eof=true");
    let answer = sandbox.open(Method::POST, &path, &[], body).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let taken = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(taken, r#"{"bytes":25165824}"#);
    let late = sandbox.call(Method::POST, &path, &[], "more").await;
    assert_eq!(late.status, StatusCode::CONFLICT);
    let waited = sandbox
        .exec(json!({"exec_id": id, "command": ["cat"]}))
        .await;
    assert_eq!(waited.json()["exit_code"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_sandbox_is_gone_with_reason() {
    let sandbox = Sandbox::start().await;
    let waiting = sandbox.exec(json!({"command": ["wait"]}));
    let job = &sandbox.stand_in.job;
    let ended = async {
        // An end before the exec is on record would be the answer to its start.
        while ExecSpool::list(job.spool.path()).unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let result: ResultEvent = serde_json::from_value(json!({
            "seq": 1, "version": 1, "task_id": job.accepted.task_id, "job_id": job.accepted.job_id,
            "attempt": 1, "status": "canceled", "stdout": "", "stderr": "", "reason": "idle",
            "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:01Z",
            "truncated": {"stdout": false, "stderr": false},
        }))
        .unwrap();
        job.spool.write_result(&result).unwrap();
        job.set_outcome(Outcome::Canceled);
    };
    let (waited, ()) = tokio::join!(waiting, ended);
    assert_eq!(waited.json()["status"], "lost", "{}", waited.text());
    let refused = sandbox.exec(json!({"command": ["print", "x"]})).await;
    assert_eq!(refused.status, StatusCode::GONE);
    let problem = refused.problem();
    assert_eq!(problem.kind, ProblemKind::Gone.uri());
    assert_eq!(
        problem.detail,
        "the sandbox has ended: idle; create a new one"
    );
    let listed = sandbox.get("/execs").await.json();
    assert_eq!(listed["execs"][0]["status"], "lost");
}
