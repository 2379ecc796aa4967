//! Faulty nodes: stand-ins that refuse, fail, lose jobs or lie.

use crate::support::{
    Answer, Call, eventually_eq,
    stage::{Stage, well},
    stand_in::capability,
};
use serde_json::{Value, json};

#[test]
fn full_or_unreachable_node_uses_no_attempt() {
    let stage = Stage::set(|run, call, answer| match run {
        1 => answer.refuse(429),
        2 => answer.refuse(503),
        _ => well(call, answer),
    });
    let id = stage.create(json!({"max_attempts": 1}));
    let (task, job) = stage.finish(&id);
    assert_eq!(
        (&task["status"], &job["attempt"]),
        (&json!("completed"), &json!(1))
    );
    assert_eq!(stage.attempts(), [1, 1, 1]);

    let url = stage.node.url.clone();
    stage
        .node
        .report(&capability("box", "http://127.0.0.1:1"))
        .expect(204);
    let id = stage.create(json!({"max_attempts": 1}));
    eventually_eq("the job waits for a reachable node", true, || {
        stage.orchestrator.process.stderr().contains("127.0.0.1:1")
    });
    stage.node.report(&capability("box", &url)).expect(204);
    let (task, job) = stage.finish(&id);
    assert_eq!(
        (&task["status"], &job["attempt"]),
        (&json!("completed"), &json!(1))
    );
}

#[test]
fn only_infrastructure_faults_are_retried() {
    let failed = |call: &Call, kind: &str| {
        let mut result = call.result("");
        result["status"] = json!("failed");
        result["error"] = json!({"type": kind, "message": "on purpose"});
        result.as_object_mut().unwrap().remove("exit_code");
        result
    };
    let stage = Stage::set(move |_, call, answer| {
        let kind = call.body["sandbox"]["env"]["KIND"]
            .as_str()
            .unwrap_or_default();
        match kind {
            "" => answer.status(204, &Value::Null),
            "exit" => {
                let mut result = call.result("");
                (result["status"], result["exit_code"]) = (json!("failed"), json!(9));
                answer.stream().end(1, &result);
            }
            _ if call.body["attempt"] == 3 => answer.stream().end(1, &call.result("at last")),
            kind => answer.stream().end(1, &failed(call, kind)),
        }
    });
    let cases = [
        ("engine-error", 2, "failed", 2),
        ("engine-error", 3, "completed", 3),
        ("image-pull-failed", 2, "failed", 2),
        ("image-not-found", 3, "failed", 1),
        ("image-not-allowed", 3, "failed", 1),
        ("image-not-runnable", 3, "failed", 1),
        ("exit", 3, "failed", 1),
    ];
    let mut before = 0;
    for (kind, max_attempts, status, attempts) in cases {
        let id = stage.create(json!({"env": {"KIND": kind}, "max_attempts": max_attempts}));
        let (task, job) = stage.finish(&id);
        assert_eq!(
            (&task["status"], &job["attempt"]),
            (&json!(status), &json!(attempts)),
            "{kind}"
        );
        assert_eq!(
            stage.attempts()[before..],
            (1..=attempts).collect::<Vec<u64>>(),
            "{kind}"
        );
        before = stage.attempts().len();
        if kind.starts_with("image") {
            assert!(task["summary"].as_str().unwrap().contains(kind), "{task}");
            assert_eq!(job["result_object"]["error"]["message"], "on purpose");
        }
    }
}

/// Starts a job and cuts its stream.
fn begin_and_break_off(call: &Call, answer: Answer) {
    let attempt = &call.body["attempt"];
    answer
        .stream()
        .send(&json!({"event": "started", "attempt": attempt, "seq": 1}))
        .send(&json!({"event": "stdout", "attempt": attempt, "seq": 2, "data": "half"}));
}

#[test]
fn job_forgotten_by_node_is_lost_or_retried() {
    let stage = Stage::set(|run, call, answer| match (run, call.method.as_str()) {
        (3, _) => well(call, answer),
        (1 | 2, _) => begin_and_break_off(call, answer),
        (_, "GET") => answer.refuse(404),
        _ => answer.status(204, &Value::Null),
    });
    let once = stage.create(json!({"max_attempts": 1}));
    let (task, job) = stage.finish(&once);
    assert_eq!(
        (&task["status"], &job["status"], &job["attempt"]),
        (&json!("failed"), &json!("lost"), &json!(1))
    );
    assert!(
        task["summary"].as_str().unwrap().starts_with("lost"),
        "{task}"
    );
    assert_eq!((task.get("exit_code"), job.get("result")), (None, None));
    assert_eq!(stage.attempts(), [1], "never twice");

    let again = stage.create(json!({}));
    let (task, job) = stage.finish(&again);
    assert_eq!(
        (&task["status"], &job["attempt"]),
        (&json!("completed"), &json!(2))
    );
    assert_eq!(job["result_object"]["stdout"], "done\n");
    let logs: Vec<_> = stage
        .user
        .events(&format!("/v1/tasks/{again}/logs"), Some("1-2"))
        .collect();
    assert!(
        logs.iter().all(|event| event.id.starts_with("2-")),
        "no output of the lost attempt: {logs:?}"
    );
}

#[test]
fn cut_stream_resumes_without_gap_or_duplicate() {
    // Reads of the log have further parameters.
    let reads_after =
        |path: &str, seq| path.contains(&format!("after={seq}")) && !path.contains("output=false");
    let stage = Stage::set(move |run, call, answer| {
        let event = |seq: u64, data: &str| json!({"event": "stdout", "attempt": 1, "seq": seq, "data": data});
        match (run, call.method.as_str()) {
            (1.., _) => begin_and_break_off(call, answer),
            (_, "GET") if reads_after(&call.path, 0) => {
                answer.stream().send(&event(2, "half"));
            }
            (_, "GET") if reads_after(&call.path, 2) => {
                // The stream repeats an event, continues, and is cut again.
                answer
                    .stream()
                    .send(&event(2, "half"))
                    .send(&event(3, " and"))
                    .send(&event(4, " more"));
            }
            (_, "GET") => answer.refuse(503),
            _ => answer.status(204, &Value::Null),
        }
    });
    let id = stage.create(json!({}));
    let attach = stage.node.call("attach after the last event", |call| {
        call.path.ends_with("after=2&output=false")
    });
    assert_eq!(attach.method, "GET");
    let mut events = stage.user.events(&format!("/v1/tasks/{id}/logs"), None);
    let texts: Vec<_> = events
        .by_ref()
        .filter(|event| event.name == "stdout")
        .take(3)
        .collect();
    let line: String = texts
        .iter()
        .map(|event| event.data["data"].as_str().unwrap())
        .collect();
    assert_eq!(line, "half and more");
    assert_eq!(
        texts
            .iter()
            .map(|event| event.id.as_str())
            .collect::<Vec<_>>(),
        ["1-2", "1-3", "1-4"]
    );
    stage
        .node
        .call("resume the log stream", |call| reads_after(&call.path, 4));
    assert_eq!(
        stage.attempts(),
        [1],
        "the attempt is attached to, never sent again"
    );
    // The node reports no end, so the task ends without one.
    assert_eq!(
        stage.user.act(&format!("/v1/tasks/{id}/cancel")).json(200)["canceled"],
        true
    );
    let task = stage.user.get(&format!("/v1/tasks/{id}")).json(200);
    assert_eq!(task["status"], "canceled");
    stage.node.call("cancel", |call| {
        call.method == "POST" && call.path.ends_with(":cancel?attempt=1")
    });
}

#[test]
fn output_timing_of_node_is_not_trusted() {
    let outlines = [
        (json!([[0, 0], [1, 2], [5, 3], [1, 3]]), vec!["1-2", "1-6"]),
        (json!([[1, 6]]), vec!["1-1"]),
        (json!([[5, u64::MAX], [5, 1], [1, 5]]), vec!["1-1"]),
        (json!([[9, 0], [1, 5]]), vec!["1-1"]),
    ];
    let invalid: Vec<_> = outlines
        .iter()
        .map(|(outline, _)| outline.clone())
        .collect();
    let stage = Stage::set(move |run, call, answer| {
        let Some(outline) = run.checked_sub(1).and_then(|n| invalid.get(n)) else {
            return answer.status(204, &Value::Null);
        };
        let mut result = call.result("done\n");
        result["outline"] = outline.clone();
        answer.stream().end(1, &result);
    });
    for (outline, ids) in outlines {
        let id = stage.create(json!({}));
        stage.finish(&id);
        let events = stage.user.events(&format!("/v1/tasks/{id}/logs"), None);
        let printed: Vec<_> = events.filter(|event| event.name == "stdout").collect();
        let found: Vec<_> = printed.iter().map(|event| event.id.as_str()).collect();
        assert_eq!(found, ids, "{outline}");
    }
}

#[test]
fn result_of_another_job_is_not_stored() {
    let lies = [
        ("job_id", json!("01900000-0000-7000-8000-000000000000")),
        ("task_id", json!("01900000-0000-7000-8000-000000000000")),
        ("attempt", json!(7)),
        ("status", json!("failed")),
        ("status", json!("timeout")),
        ("status", json!("splendid")),
        ("exit_code", json!(1)),
        ("exit_code", Value::Null),
        (
            "error",
            json!({"type": "engine-error", "message": "and yet completed"}),
        ),
        ("stdout", json!("x".repeat(262_145))),
        ("stdout", json!(7)),
    ];
    let count = lies.len();
    let stage = Stage::set(move |run, call, answer| {
        let Some((field, value)) = run.checked_sub(1).and_then(|n| lies.get(n)) else {
            return answer.refuse(404);
        };
        let mut result = call.result("forged");
        result[field] = value.clone();
        answer.stream().end(1, &result);
    });
    for n in 0..count {
        let id = stage.create(json!({"max_attempts": 3}));
        let (task, job) = stage.finish(&id);
        assert_eq!(
            (&task["status"], &job["status"]),
            (&json!("failed"), &json!("lost")),
            "lie {n}: {task} {job}"
        );
        assert_eq!(
            (job.get("result"), task.get("exit_code")),
            (None, None),
            "lie {n}"
        );
        let logs = stage.user.get(&format!("/v1/tasks/{id}/logs")).json(200);
        assert_eq!(logs["stdout"], "", "lie {n}");
    }
    assert_eq!(stage.attempts(), vec![1; count], "the command has run");
}

#[test]
fn proxy_answer_is_not_nodes_answer() {
    // The node may have started the job, so it is asked, and not sent the job again.
    let wanted = std::sync::Mutex::new(None);
    let stage = Stage::set(move |run, call, answer| match (run, call.method.as_str()) {
        (1, _) => {
            *wanted.lock().unwrap() = Some(call.clone());
            answer.status(503, &json!("a proxy's page"));
        }
        (_, "GET") => {
            let wanted = wanted.lock().unwrap().clone().unwrap();
            answer
                .stream()
                .end(1, &wanted.result("the job had started"));
        }
        _ => answer.status(204, &Value::Null),
    });
    let id = stage.create(json!({"max_attempts": 1}));
    let (task, job) = stage.finish(&id);
    assert_eq!(task["status"], "completed", "{task}");
    assert_eq!(job["result_object"]["stdout"], "the job had started");
    assert_eq!(stage.attempts(), [1]);
}
