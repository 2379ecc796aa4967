//! Prompt tasks: the model server of a node answers, and the answer is the output of a job like any other.

use crate::support::{
    Call,
    client::fails,
    eventually,
    models::{DONE, STREAM, cluster, delta, model_server},
    process::run,
};
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

fn question(call: &Call) -> (&str, &str) {
    let text = |value: &'static str| call.body.pointer(value).and_then(Value::as_str).unwrap();
    (text("/model"), text("/messages/0/content"))
}

#[test]
fn answer_is_output_of_a_task() {
    let (server, _calls) = model_server(|call, answer| {
        let (model, text) = question(call);
        let end = r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        let stream = [
            &delta(&format!("{model}: ")),
            &delta(text),
            end,
            "\n\ndata: [DONE]\n\n",
        ];
        answer.bytes(200, STREAM, &stream.concat());
    });
    let cluster = cluster(&server);
    for (task, stdout, model) in [
        (json!({"prompt": "why?"}), "loaded: why?", "loaded"),
        (
            json!({"prompt": "é\n", "input_mode": "prompt", "model": "a"}),
            "a: é\n",
            "a",
        ),
    ] {
        let id = cluster.create(&task);
        let shown = cluster.finish(&id);
        assert_eq!(
            (&shown["status"], &shown["exit_code"]),
            (&json!("completed"), &json!(0))
        );
        assert_eq!(shown["prompt"], task["prompt"]);
        assert!(
            shown.get("command").is_none() && shown.get("image").is_none(),
            "{shown}"
        );
        let result = cluster.result(&id);
        let job = &result["jobs"][0]["result_object"];
        assert_eq!(job["stdout"], stdout, "{result}");
        let inference = json!({"model": model, "prompt_tokens": 3, "completion_tokens": 5});
        assert_eq!(job["inference"], inference);
    }
    let audit = cluster
        .user
        .get("/v1/audit?action=inference.request")
        .json(200);
    let events = audit["events"].as_array().unwrap().iter();
    let models: Vec<_> = events
        .map(|event| event["target"].as_str().unwrap())
        .collect();
    assert_eq!(models, ["a", "loaded"], "{audit}");
    let done = cluster.run(&["task", "create", "--prompt", "x", "--model", "a"]);
    let id = done.stdout.trim();
    let logs = run(&mut cluster.cli(&["task", "logs", "--follow", id]));
    assert_eq!((logs.code, logs.stdout.as_str()), (0, "a: x"), "{logs:?}");
    for command in ["get", "result"] {
        let shown = cluster.run(&["task", command, id]);
        let line = "\nmodel        a, 3 tokens in, 5 out\n";
        assert!(shown.stdout.contains(line), "{shown:?}");
    }
    let refused = run(&mut cluster.cli(&["run", "--prompt", "x"]));
    fails(
        &refused,
        2,
        "tip: a prompt is a task of its own: cynode task create --prompt",
    );
}

#[test]
fn cancel_and_time_limit_end_the_call() {
    let closed = Arc::<AtomicUsize>::default();
    let seen = Arc::clone(&closed);
    let (server, _calls) = model_server(move |_, answer| {
        let mut answer = answer.begin(STREAM);
        answer.add(&delta("endless"));
        answer.until_closed();
        seen.fetch_add(1, Ordering::SeqCst);
    });
    let cluster = cluster(&server);
    let closes = |times: usize| {
        eventually("the call is closed", || {
            (closed.load(Ordering::SeqCst) == times).then_some(())
        });
    };
    let id = cluster.create(&json!({"prompt": "x"}));
    cluster.printed(&id, "endless");
    let canceled = cluster
        .user
        .act(&format!("/v1/tasks/{id}/cancel"))
        .json(200);
    assert_eq!(canceled["canceled"], true);
    closes(1);
    let result = cluster.result(&id);
    let job = &result["jobs"][0]["result_object"];
    assert_eq!(
        (&job["status"], &job["stdout"]),
        (&json!("canceled"), &json!("endless"))
    );

    let id = cluster.create(&json!({"prompt": "x", "timeout_seconds": 1}));
    cluster.finish(&id);
    closes(2);
    let result = cluster.result(&id);
    assert_eq!(
        result["jobs"][0]["result_object"]["status"], "timeout",
        "{result}"
    );
}

#[test]
fn failures_are_retried_and_refusals_are_not() {
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    let (server, _calls) = model_server(move |call, mut answer| {
        let (_, text) = question(call);
        match (text, count.fetch_add(1, Ordering::SeqCst)) {
            ("flaky", 0) => {
                answer = answer.begin(STREAM);
                answer.add(&delta("half"));
            }
            ("flaky", _) => {
                answer.bytes(200, STREAM, &[&delta("whole"), DONE].concat());
            }
            _ => answer.status(400, &json!({"error": {"message": "too long"}})),
        }
    });
    let cluster = cluster(&server);
    let id = cluster.create(&json!({"prompt": "flaky"}));
    let task = cluster.finish(&id);
    assert_eq!(
        (&task["status"], &task["attempt"]),
        (&json!("completed"), &json!(2))
    );
    let id = cluster.create(&json!({"prompt": "refused"}));
    let task = cluster.finish(&id);
    assert_eq!(
        (&task["status"], &task["exit_code"]),
        (&json!("failed"), &json!(1))
    );
    let result = cluster.result(&id);
    assert_eq!(
        result["jobs"][0]["result_object"]["stderr"], "too long\n",
        "{result}"
    );
    let id = cluster.create(&json!({"prompt": "x", "model": "missing"}));
    eventually("it waits for its model", || {
        let task = cluster.task(&id);
        let reason = task["waiting_for"].as_str().unwrap_or_default().to_owned();
        reason.contains("cynode models pull missing").then_some(())
    });
}
