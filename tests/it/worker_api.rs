//! The Worker API without an orchestrator: one job id is one run, attempts fence, events can be read again,
//! and every call needs the token.

use crate::support::{Worker, eventually, uuid};
use serde_json::{Value, json};
use std::{
    thread,
    time::{Duration, Instant},
};

/// A command whose output differs with every run.
const UNIQUE: &[&str] = &["cat", "/proc/sys/kernel/random/uuid"];

/// Fails unless these are all events of the first attempt, with the output `out` and `err`, up to this result.
#[track_caller]
fn assert_events(events: &[Value], result: &Value) {
    assert!(events.iter().all(|event| event["attempt"] == 1));
    assert!(
        events
            .iter()
            .zip(1..)
            .all(|(event, seq)| event["seq"] == seq),
        "{events:?}"
    );
    assert_eq!(
        (&events[0]["event"], &events.last().unwrap()["event"]),
        (&json!("started"), &json!("result"))
    );
    for (stream, text) in [("stdout", "out\n"), ("stderr", "err\n")] {
        let printed: String = events
            .iter()
            .filter(|e| e["event"] == stream)
            .map(|e| e["data"].as_str().unwrap())
            .collect();
        assert_eq!(printed, text);
    }
    let last = events.last().unwrap();
    assert!(
        result
            .as_object()
            .unwrap()
            .iter()
            .all(|(name, value)| last[name] == *value),
        "{last}"
    );
}

#[test]
fn job_answer_is_whole_or_streamed_and_repeatable() {
    let worker = Worker::start(&[]);
    let job = Worker::script("echo out; echo err >&2; exit 5");
    let result = worker.run(&job);
    for field in ["version", "task_id", "job_id"] {
        assert_eq!(result[field], job[field], "{field}");
    }
    assert_eq!(
        (&result["attempt"], &result["status"], &result["exit_code"]),
        (&json!(1), &json!("failed"), &json!(5))
    );
    assert_eq!(
        (&result["stdout"], &result["stderr"]),
        (&json!("out\n"), &json!("err\n"))
    );
    assert_eq!(
        result["truncated"],
        json!({"stdout": false, "stderr": false})
    );
    assert!(
        result["started_at"].as_str() <= result["ended_at"].as_str(),
        "{result}"
    );
    assert_eq!(result.get("error"), None);
    assert_eq!(worker.api.get(&Worker::path(&job)).json(200), result);
    let held = worker.api.get("/v1/worker/jobs").json(200);
    assert_eq!(held["jobs"][0]["job_id"], job["job_id"]);
    assert_eq!(held["jobs"][0]["status"], "failed");

    let events: Vec<Value> = worker.attach(&job, 0).collect();
    assert_events(&events, &result);
    for after in 0..=events.len() {
        assert_eq!(
            worker.attach(&job, after as u64).collect::<Vec<_>>(),
            events[after..],
            "after {after}"
        );
        assert_eq!(
            worker.follow(&job, after as u64).collect::<Vec<_>>(),
            events[after..],
            "run again after {after}"
        );
    }
    let live: Vec<Value> = worker.follow(&Worker::script("echo live"), 0).collect();
    assert_eq!(
        live.iter()
            .map(|event| event["event"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["started", "stdout", "result"]
    );
}

#[test]
fn output_streams_live_and_reader_may_leave() {
    let worker = Worker::start(&[]);
    let job = Worker::script("echo first; until [ -e go ]; do usleep 10000; done; echo second");
    // The first reader leaves early, and the job continues.
    assert!(
        worker
            .follow(&job, 0)
            .any(|event| event["data"] == "first\n")
    );
    assert_eq!(
        worker.api.get(&Worker::path(&job)).json(200)["status"],
        "running"
    );
    assert_eq!(worker.workspaces().len(), 1);
    std::fs::write(worker.workspaces()[0].join("workspace/go"), "").unwrap();
    let rest: Vec<Value> = worker.attach(&job, 2).collect();
    assert_eq!(
        (&rest[0]["data"], &rest[0]["seq"]),
        (&json!("second\n"), &json!(3))
    );
    assert_eq!(rest[1]["stdout"], "first\nsecond\n");
}

#[test]
fn state_subscriber_gets_running_at_once() {
    let worker = Worker::start(&[]);
    let job = Worker::script("echo first; until [ -e go ]; do usleep 10000; done");
    worker
        .follow(&job, 0)
        .find(|event| event["data"] == "first\n");
    let path = format!("{}?after=2&output=false", Worker::path(&job));
    let asked = Instant::now();
    let ndjson = [("Accept", "application/x-ndjson")];
    let mut lines = worker.api.lines("GET", &path, &ndjson, b"");
    assert_eq!(lines.next().unwrap(), r#"{"event":"alive"}"#);
    assert!(
        asked.elapsed() < Duration::from_secs(4),
        "an alive of its own, and not that after 5 s"
    );
    std::fs::write(worker.workspaces()[0].join("workspace/go"), "").unwrap();
    assert!(lines.any(|line| line.contains(r#""event":"result""#)));
}

#[test]
fn one_job_id_runs_once() {
    let worker = Worker::start(&[]);
    let job = Worker::job(UNIQUE);
    let results: Vec<Value> = thread::scope(|scope| {
        let senders: Vec<_> = (0..4).map(|_| scope.spawn(|| worker.run(&job))).collect();
        senders
            .into_iter()
            .map(|sender| sender.join().unwrap())
            .collect()
    });
    assert!(
        results.iter().all(|result| *result == results[0]),
        "{results:?}"
    );
    assert_eq!(worker.run(&job), results[0], "also after its end");

    let mut other = job.clone();
    other["sandbox"]["env"] = json!({"A": "b"});
    worker.send(&other).problem(409, "conflict");
    let mut other = job.clone();
    other["task_id"] = json!(uuid());
    worker.send(&other).problem(409, "conflict");
}

#[test]
fn higher_attempt_replaces_and_fences_lower_one() {
    let worker = Worker::start(&["--max-concurrency", "1"]);
    let first = Worker::script("cat /proc/sys/kernel/random/uuid; sleep 1000");
    let mut second = first.clone();
    second["attempt"] = json!(2);
    let mut old = worker.follow(&first, 0);
    let printed = |event: Option<Value>| event.unwrap()["data"].as_str().unwrap().to_owned();
    assert_eq!(old.next().unwrap()["event"], "started");
    let of_the_first = printed(old.next());

    let mut new = worker.follow(&second, 0);
    assert_eq!(new.next().unwrap()["attempt"], 2);
    assert_ne!(printed(new.next()), of_the_first, "the job runs again");
    let replaced = old.last().unwrap();
    assert_eq!(
        (&replaced["status"], &replaced["attempt"]),
        (&json!("canceled"), &json!(1))
    );
    worker.send(&first).problem(409, "conflict");
    assert_eq!(
        worker.api.get(&Worker::path(&first)).json(200)["attempt"],
        2
    );
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(&second)))
        .expect(200);
    assert_eq!(new.last().unwrap()["status"], "canceled");
    let mut invalid = first;
    invalid["attempt"] = json!(0);
    worker.send(&invalid).problem(400, "invalid-request");
}

#[test]
fn forgotten_job_does_not_return() {
    let worker = Worker::start(&[]);
    let job = Worker::job(UNIQUE);
    let path = Worker::path(&job);
    worker
        .api
        .call("DELETE", &path, &[], b"")
        .problem(404, "not-found");
    let first = worker.run(&job);
    worker.api.call("DELETE", &path, &[], b"").expect(204);
    worker.api.get(&path).problem(404, "not-found");
    assert_eq!(
        worker.api.get("/v1/worker/jobs").json(200),
        json!({"jobs": []})
    );
    worker.send(&job).problem(409, "job-already-finished");
    let mut next = job;
    next["attempt"] = json!(2);
    assert_ne!(
        worker.run(&next)["stdout"],
        first["stdout"],
        "a higher attempt is new work"
    );
}

#[test]
fn canceled_job_ends_with_all_its_processes() {
    let worker = Worker::start(&[]);
    worker
        .api
        .act(&format!("/v1/worker/jobs/{}:cancel", uuid()))
        .problem(404, "not-found");
    let marker = uuid();
    let script =
        format!("trap '' TERM; setsid sh -c 'sleep 1000; true' {marker} & echo up; sleep 1000");
    let job = Worker::script(&script);
    let mut events = worker.follow(&job, 0);
    assert!(events.any(|event| event["data"] == "up\n"));
    eventually("the grandchild runs", || {
        crate::sandbox::anywhere(&marker).then_some(())
    });
    worker
        .api
        .call("DELETE", &Worker::path(&job), &[], b"")
        .problem(409, "conflict");
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(&job)))
        .expect(200);
    let result = events.last().unwrap();
    assert_eq!(
        (&result["status"], &result["stdout"]),
        (&json!("canceled"), &json!("up\n"))
    );
    assert_eq!(result.get("exit_code"), None);
    eventually("the whole process tree is dead", || {
        (!crate::sandbox::anywhere(&marker)).then_some(())
    });
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(&job)))
        .expect(200);
    assert_eq!(
        worker.api.get(&Worker::path(&job)).json(200)["status"],
        "canceled"
    );
}

#[test]
fn full_worker_refuses_and_starts_nothing() {
    let worker = Worker::start(&["--max-concurrency", "1"]);
    let first = Worker::script("echo up; sleep 1000");
    let mut events = worker.follow(&first, 0);
    assert!(events.any(|event| event["data"] == "up\n"));
    let second = Worker::job(&["true"]);
    worker.send(&second).problem(429, "too-many-requests");
    assert_eq!(worker.containers().len(), 1);
    worker
        .api
        .get(&Worker::path(&second))
        .problem(404, "not-found");
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(&first)))
        .expect(200);
    assert_eq!(events.last().unwrap()["status"], "canceled");
    assert_eq!(
        worker.run(&second)["status"],
        "completed",
        "a slot is free again"
    );
}

#[test]
fn worker_api_needs_token() {
    let worker = Worker::start(&[]);
    let id = uuid();
    let calls = [
        ("POST", "/v1/worker/jobs:run".to_owned()),
        ("GET", "/v1/worker/jobs".to_owned()),
        ("GET", format!("/v1/worker/jobs/{id}")),
        ("DELETE", format!("/v1/worker/jobs/{id}")),
        ("POST", format!("/v1/worker/jobs/{id}:cancel")),
    ];
    let body = Worker::job(&["true"]).to_string();
    for (method, path) in calls {
        let json = [("Content-Type", "application/json")];
        worker
            .api
            .anonymous()
            .call(method, &path, &json, body.as_bytes())
            .problem(401, "unauthorized");
        for token in [
            "",
            "wrong",
            &worker.api.token()[1..],
            &format!("{}x", worker.api.token()),
        ] {
            let other = worker.api.with_token(token);
            other
                .call(method, &path, &json, body.as_bytes())
                .problem(401, "unauthorized");
        }
        let basic = format!("Basic {}", worker.api.token());
        let headers = [json[0], ("Authorization", basic.as_str())];
        worker
            .api
            .anonymous()
            .call(method, &path, &headers, body.as_bytes())
            .problem(401, "unauthorized");
    }
    assert_eq!(
        worker.api.get("/v1/worker/jobs").json(200),
        json!({"jobs": []}),
        "no container was started"
    );
    for (path, text) in [("/healthz", "ok"), ("/readyz", "ready")] {
        let reply = worker.api.anonymous().get(path);
        assert_eq!((reply.status, reply.text().trim()), (200, text));
        assert!(
            reply
                .header("content-type")
                .unwrap()
                .starts_with("text/plain"),
            "{path}"
        );
    }
}

#[test]
fn reports_apply_only_to_their_attempt() {
    let worker = Worker::start(&[]);
    let mut job = Worker::script("echo of-the-second");
    job["attempt"] = 2.into();
    worker.run(&job);
    let path = Worker::path(&job);
    let ask = |method, rest: &str| {
        let path = format!("{path}{rest}");
        worker.api.call(method, &path, &[], b"")
    };
    for attempt in [1, 3] {
        ask("GET", &format!("?attempt={attempt}")).problem(409, "conflict");
        ask("POST", &format!(":cancel?attempt={attempt}")).problem(409, "conflict");
        ask("DELETE", &format!("?attempt={attempt}")).problem(409, "conflict");
    }
    ask("GET", "?attempt=first").problem(400, "invalid-request");
    let result = ask("GET", "?attempt=2").json(200);
    assert_eq!(result["stdout"], "of-the-second\n");
    ask("POST", ":cancel?attempt=2").expect(200);
    ask("DELETE", "?attempt=2").expect(204);
    ask("GET", "?attempt=2").problem(404, "not-found");
    // An attempt that is deleted before it arrives is refused.
    ask("DELETE", "?attempt=1").expect(204);
    ask("DELETE", "?attempt=3").expect(204);
    job["attempt"] = 3.into();
    worker.send(&job).problem(409, "job-already-finished");
    job["attempt"] = 4.into();
    assert_eq!(worker.run(&job)["stdout"], "of-the-second\n");
    let unknown = format!("/v1/worker/jobs/{}", uuid());
    let forget = |rest: &str| {
        worker
            .api
            .call("DELETE", &format!("{unknown}{rest}"), &[], b"")
    };
    forget("").problem(404, "not-found");
    forget("?attempt=1").expect(204);
}
