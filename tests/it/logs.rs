//! Logs of a task: followed live, read late, and resumed after a disconnect.

use crate::support::{Call, Cluster, Process, SseEvent, cynode, eventually, stage::Stage};
use serde_json::{Value, json};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Reads the events of a task to their end.
fn events(cluster: &Cluster, id: &str, last: Option<&str>) -> Vec<SseEvent> {
    cluster
        .user
        .events(&format!("/v1/tasks/{id}/logs"), last)
        .collect()
}

/// All events except `status`, which a late reader doesn't get.
fn output(events: &[SseEvent]) -> Vec<SseEvent> {
    events
        .iter()
        .filter(|event| event.name != "status")
        .cloned()
        .collect()
}

/// Output of one stream.
fn printed(events: &[SseEvent], stream: &str) -> String {
    let of_it = events.iter().filter(|event| event.name == stream);
    of_it
        .map(|event| event.data["data"].as_str().unwrap())
        .collect()
}

/// Lets the command of `task_log_follows_live_and_resumes_anywhere` go on where its output is here: nothing is held
/// back.
fn let_go_on(cluster: &Cluster, live: &[SseEvent]) {
    for n in 1..=3 {
        let both = [
            ("stdout", format!("out {n}\n")),
            ("stderr", format!("err {n}\n")),
        ];
        if both
            .iter()
            .all(|(stream, line)| printed(live, stream).contains(line.as_str()))
        {
            let workspace = cluster.node.workspaces().pop();
            let _ =
                workspace.map(|place| std::fs::write(place.join(format!("workspace/go{n}")), ""));
        }
    }
}

#[test]
fn task_log_follows_live_and_resumes_anywhere() {
    let cluster = Cluster::start();
    let id = cluster.script(
        "for n in 1 2 3; do echo out $n; echo err $n >&2; until [ -e go$n ]; do usleep 5000; done; done; exit 4",
    );
    let mut live = Vec::new();
    for event in cluster
        .user
        .events(&format!("/v1/tasks/{id}/logs?follow=true"), None)
    {
        live.push(event);
        let_go_on(&cluster, &live);
    }
    assert_eq!(printed(&live, "stdout"), "out 1\nout 2\nout 3\n");
    assert_eq!(printed(&live, "stderr"), "err 1\nerr 2\nerr 3\n");
    let names: Vec<&str> = live.iter().map(|event| event.name.as_str()).collect();
    assert!(
        live.iter()
            .all(|event| event.id.split('-').all(|part| part.parse::<u32>().is_ok())),
        "{live:?}"
    );
    assert_eq!(names.iter().filter(|name| **name == "end").count(), 1);
    let end = live.last().unwrap();
    assert_eq!(
        (
            end.name.as_str(),
            &end.data["status"],
            &end.data["exit_code"]
        ),
        ("end", &json!("failed"), &json!(4))
    );
    let running = live
        .iter()
        .position(|event| event.data["status"] == "running")
        .unwrap();
    assert!(
        running < names.iter().position(|name| *name == "stdout").unwrap(),
        "{names:?}"
    );

    let all = output(&live);
    assert_eq!(
        output(&events(&cluster, &id, None)),
        all,
        "a late reader gets everything"
    );
    let ids: Vec<_> = all.iter().map(|event| event.id.clone()).collect();
    for (n, last) in ids.iter().enumerate().take(ids.len() - 1) {
        assert_eq!(
            output(&events(&cluster, &id, Some(last))),
            all[n + 1..],
            "after {last}"
        );
    }
    assert_eq!(
        output(&events(&cluster, &id, Some(&end.id))),
        all[all.len() - 1..],
        "the end is told to whoever comes"
    );
}

#[test]
fn disconnected_reader_resumes() {
    let cluster = Cluster::start();
    let id = cluster
        .script("for n in 1 2 3 4 5; do echo $n; until [ -e go$n ]; do usleep 5000; done; done");
    let path = format!("/v1/tasks/{id}/logs");
    let mut seen: Vec<SseEvent> = Vec::new();
    // Each connection reads one line of output and is cut.
    for n in 1..=5 {
        let last = seen.last().map(|event| event.id.clone());
        let mut reader = cluster.user.events(&path, last.as_deref());
        seen.push(reader.find(|event| event.name == "stdout").unwrap());
        let place = eventually("the job has its workspace", || {
            cluster.node.workspaces().pop()
        });
        std::fs::write(place.join(format!("workspace/go{n}")), "").unwrap();
    }
    assert_eq!(printed(&seen, "stdout"), "1\n2\n3\n4\n5\n");
    cluster.finish(&id);
    let again = output(&events(&cluster, &id, None));
    assert_eq!(
        again[..5],
        seen,
        "and a late reader is told the same events"
    );
}

#[test]
fn one_stream_can_be_selected() {
    let cluster = Cluster::start();
    let id = cluster.script("echo out; echo err >&2");
    cluster.finish(&id);
    for (stream, out, err) in [
        ("all", "out\n", "err\n"),
        ("stdout", "out\n", ""),
        ("stderr", "", "err\n"),
    ] {
        let path = format!("/v1/tasks/{id}/logs?stream={stream}");
        let logs = cluster.user.get(&path).json(200);
        let texts = [&logs["task_id"], &logs["stdout"], &logs["stderr"]];
        assert_eq!(texts, [&json!(id), &json!(out), &json!(err)], "{stream}");
        let events: Vec<_> = cluster.user.events(&path, None).collect();
        assert_eq!(
            (printed(&events, "stdout"), printed(&events, "stderr")),
            (out.to_owned(), err.to_owned())
        );
        assert_eq!(events.last().unwrap().name, "end");
    }
    let reply = cluster
        .user
        .get(&format!("/v1/tasks/{id}/logs?follow=true"));
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
}

#[test]
fn output_so_far_is_available() {
    let cluster = Cluster::start();
    let so_far = |id: &str| {
        let logs = cluster.user.get(&format!("/v1/tasks/{id}/logs")).json(200);
        logs["stdout"].as_str().unwrap().to_owned()
    };
    let waiting = cluster.create(&json!({"script": "true", "node_labels": ["nowhere"]}));
    assert_eq!(so_far(&waiting), "");
    let id = cluster.script("echo before; sleep 1000");
    cluster.printed(&id, "before\n");
    assert_eq!(so_far(&id), "before\n");
    let path = format!("/v1/tasks/{id}/logs?stream=stderr");
    assert_eq!(cluster.user.get(&path).json(200)["stdout"], "");
    cluster
        .user
        .act(&format!("/v1/tasks/{id}/cancel"))
        .expect(200);
    cluster.finish(&id);
    assert_eq!(so_far(&id), "before\n", "the output is kept");
}

#[test]
fn queued_task_can_be_followed() {
    let cluster = Cluster::start();
    let id = cluster.create(&json!({"script": "true", "node_labels": ["nowhere"]}));
    let mut reader = cluster.user.events(&format!("/v1/tasks/{id}/logs"), None);
    assert_eq!(reader.next().unwrap().data["status"], "queued");
    assert_eq!(
        cluster
            .user
            .act(&format!("/v1/tasks/{id}/cancel"))
            .json(200),
        json!({"task_id": id, "canceled": true})
    );
    let end = reader.last().unwrap();
    assert_eq!(
        (end.name.as_str(), &end.data["status"]),
        ("end", &json!("canceled"))
    );
    assert_eq!(cluster.finish(&id)["status"], "canceled");
}

/// Whether a call of a live reader asks a node for its output.
fn is_reader(call: &Call) -> bool {
    call.path.contains("after=") && !call.path.contains("output=false")
}

/// `cynode task logs --follow`.
fn follow(stage: &Stage, id: &str) -> Process {
    Process::start(
        "logs",
        stage.home.path(),
        cynode(stage.home.path())
            .args(["task", "logs", "--follow", id])
            .env("CYNODE_GATEWAY_URL", &stage.orchestrator.gateway_url)
            .env("CYNODE_TOKEN", stage.user.token()),
    )
}

fn first_output(events: &[SseEvent]) -> &SseEvent {
    events.iter().find(|event| event.name == "stdout").unwrap()
}

#[test]
fn live_and_late_subscribers_get_their_events() {
    let (readers, forgotten) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (read, forget) = (Arc::clone(&readers), Arc::clone(&forgotten));
    let ended = AtomicBool::new(false);
    let job = Mutex::new(None);
    let stage = Stage::set(move |_, call, answer| {
        if call.is_run() {
            *job.lock().unwrap() = Some(call.clone());
            let mut events = answer.stream();
            events.send(&json!({"event": "started", "attempt": 1, "seq": 2}));
            eventually("somebody reads along", || {
                (read.load(Ordering::SeqCst) == 2).then_some(())
            });
            let mut result = call.result("one");
            result["outline"] = json!([[5, 1], [0, 0], [1, 3]]);
            events.end(5, &result);
            ended.store(true, Ordering::SeqCst);
        } else if call.method == "DELETE" {
            forget.fetch_add(1, Ordering::SeqCst);
            answer.status(204, &Value::Null);
        } else {
            let printed = |seq, data: &str| json!({"event": "stdout", "attempt": 1, "seq": seq, "data": data});
            let mut events = answer.stream();
            events
                .send(&json!({"event": "status", "attempt": 1, "seq": 1, "detail": "pulling it"}))
                .send(&json!({"event": "started", "attempt": 1, "seq": 2}))
                .send(&printed(3, "one"));
            read.fetch_add(1, Ordering::SeqCst);
            // The rest comes when all is over: this reader has it all the same, and until then the node
            // is not let forget it.
            eventually("the result was told", || {
                ended.load(Ordering::SeqCst).then_some(())
            });
            events.send(&printed(4, "two"));
            assert_eq!(forget.load(Ordering::SeqCst), 0);
            let wanted = job.lock().unwrap().clone().unwrap();
            events.end(5, &wanted.result("one"));
        }
    });
    let id = stage.create(json!({}));
    let mut client = follow(&stage, &id);
    let path = format!("/v1/tasks/{id}/logs");
    let live: Vec<_> = stage.user.events(&path, None).collect();
    assert_eq!(printed(&live, "stdout"), "onetwo");
    let detail = live.iter().find(|event| event.data.get("detail").is_some());
    let detail = detail.unwrap();
    assert_eq!(
        (detail.id.as_str(), detail.name.as_str()),
        ("1-1", "status")
    );
    assert_eq!(
        detail.data,
        json!({"status": "running", "detail": "pulling it"})
    );
    assert_eq!(live.last().unwrap().name, "end");
    assert_eq!(client.code(), 0);
    assert_eq!(
        (client.stdout().as_str(), client.stderr().as_str()),
        ("onetwo", "pulling it\n")
    );
    let late: Vec<_> = stage.user.events(&path, None).collect();
    assert_eq!(printed(&late, "stdout"), "one");
    assert_eq!(
        first_output(&late),
        first_output(&live),
        "under the same number"
    );
    let asked = stage.node.calls();
    assert_eq!(asked.iter().filter(|call| is_reader(call)).count(), 2);
}

#[test]
fn unresponsive_node_delays_no_other_reader() {
    let hanging = Mutex::new(Vec::<Box<dyn Send>>::new());
    let stage = Stage::set(move |_, call, answer| {
        if call.is_run() {
            let mut events = answer.stream();
            events.send(&json!({"event": "started", "attempt": 1, "seq": 1}));
            hanging.lock().unwrap().push(Box::new(events));
        } else {
            hanging.lock().unwrap().push(Box::new(answer));
        }
    });
    let id = stage.create(json!({}));
    let path = format!("/v1/tasks/{id}/logs");
    let other = stage.orchestrator.login();
    let mut stream = other.events(&path, None);
    let running = stream.find(|event| event.data["status"] == "running");
    assert!(running.is_some());
    stage.node.call("tell what is printed", is_reader);
    other.act("/v1/auth/logout").expect(204);
    assert!(stream.next().is_none(), "the stream ends with its session");

    let problem = stage.user.get(&path);
    problem.problem(503, "unavailable");
    assert!(problem.header("retry-after").is_some());
    assert!(problem.text().contains("--follow"), "{}", problem.text());
    let log = stage.orchestrator.process.stderr();
    assert!(!log.contains("request failed"), "{log}");
}
