//! What a task prints, as people and programs follow it: live, late, and again after a cut.

use crate::support::{Cluster, SseEvent, eventually};
use serde_json::json;

/// Reads the events of a task to their end.
fn events(cluster: &Cluster, id: &str, last: Option<&str>) -> Vec<SseEvent> {
    cluster
        .user
        .events(&format!("/v1/tasks/{id}/logs"), last)
        .collect()
}

/// Everything but where the task stands, which a late reader is not told.
fn output(events: &[SseEvent]) -> Vec<SseEvent> {
    events
        .iter()
        .filter(|event| event.name != "status")
        .cloned()
        .collect()
}

/// All that was printed on a stream.
fn printed(events: &[SseEvent], stream: &str) -> String {
    let of_it = events.iter().filter(|event| event.name == stream);
    of_it
        .map(|event| event.data["data"].as_str().unwrap())
        .collect()
}

#[test]
fn a_task_is_followed_live_and_read_again_from_any_event() {
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
        // The command goes on only once its output is here: nothing is held back.
        for n in 1..=3 {
            let both = [
                ("stdout", format!("out {n}\n")),
                ("stderr", format!("err {n}\n")),
            ];
            if both
                .iter()
                .all(|(stream, line)| printed(&live, stream).contains(line.as_str()))
            {
                let workspace = cluster.node.workspaces().pop();
                let _ = workspace
                    .map(|place| std::fs::write(place.join(format!("workspace/go{n}")), ""));
            }
        }
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
fn a_reader_that_was_cut_off_goes_on_where_it_was() {
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
fn one_stream_can_be_had_alone() {
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
fn what_was_dropped_is_told() {
    let cluster = Cluster::start();
    let id = cluster.script("head -c 300000 /dev/zero | tr '\\0' x; echo err >&2");
    let live = events(&cluster, &id, None);
    let task = cluster.task(&id);
    assert!(
        task["summary"]
            .as_str()
            .unwrap()
            .contains("stdout truncated"),
        "{task}"
    );
    assert_eq!(printed(&live, "stdout").len(), 262_144);
    let gap = live.iter().find(|event| event.name == "gap").unwrap();
    assert_eq!(gap.data, json!({"stream": "stdout", "bytes": 37_856}));
    let late = events(&cluster, &id, None);
    assert_eq!(output(&late), output(&live));
    let logs = cluster.user.get(&format!("/v1/tasks/{id}/logs")).json(200);
    assert_eq!(logs["stdout"].as_str().unwrap().len(), 262_144);
}

#[test]
fn a_task_that_waits_can_be_followed_too() {
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
