//! Log of a job at its node: how much is kept, and how it is read.

use crate::{
    shims::{WAITING, last, release, start_job},
    support::{Worker, eventually, worker::printed},
};
use serde_json::{Value, json};
use std::fs;

#[test]
fn log_keeps_newest_part_and_reports_gap() {
    let worker = Worker::start(&["--job-log-size", "1MiB"]);
    let script = "echo before; until [ -e go ]; do usleep 5000; done; yes 0123456789abcde | head -c 3145728; echo end >&2";
    let job = start_job(&worker, script);
    let along = worker.attach(&job, 0);
    release(&worker);
    let result = last(worker.attach(&job, 0));
    assert_eq!(
        result["truncated"],
        json!({"stdout": true, "stderr": false})
    );
    let kept = result["stdout"].as_str().unwrap();
    assert!((245_000..=262_144).contains(&kept.len()), "{}", kept.len());
    assert!(kept.starts_with("before\n") && kept.ends_with("0123456789abcde\n"));

    // The beginning and the newest part are kept; the gap lies between.
    let late: Vec<Value> = worker.attach(&job, 0).collect();
    let gap = late.iter().find(|event| event["event"] == "gap").unwrap();
    assert_eq!(gap["stream"], "stdout");
    assert!(printed(&late, "stdout").starts_with("before\n"));
    let kept = printed(&late, "stdout").len() as u64;
    assert!((500_000..=1_048_576).contains(&kept), "{kept}");
    let whole = 3_145_728 + "before\n".len() as u64;
    assert_eq!(gap["bytes"].as_u64().unwrap() + kept, whole);
    assert_eq!(printed(&late, "stderr"), "end\n");
    let size: u64 = fs::read_dir(&worker.spools()[0])
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_str().unwrap().starts_with("log."))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert!(size <= 1_048_576, "{size}");

    // A reader from the start may have missed something in the middle, and got its size.
    let along: Vec<Value> = along.collect();
    let missed: u64 = along
        .iter()
        .filter_map(|event| event.get("bytes")?.as_u64())
        .sum();
    assert_eq!(printed(&along, "stdout").len() as u64 + missed, whole);
    assert!(printed(&along, "stdout").starts_with("before\n"));
    let numbers: Vec<u64> = along
        .iter()
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b));
}

#[test]
fn reader_continues_after_job_is_deleted() {
    let worker = Worker::start(&[]);
    let job = Worker::script("yes 0123456789abcde | head -c 20971520");
    let result = worker.run(&job);
    assert_eq!(result["status"], "completed");
    let mut reader = worker.attach(&job, 0);
    assert!(reader.next().is_some());
    worker.forget(&job);
    worker
        .api
        .get(&Worker::path(&job))
        .problem(404, "not-found");
    let rest: Vec<Value> = reader.collect();
    assert_eq!(printed(&rest, "stdout").len(), 20_971_520);
    assert_eq!(rest.last().unwrap()["event"], "result");
    eventually("no file of the job is left", || {
        worker.spools().is_empty().then_some(())
    });
}

#[test]
fn reader_may_skip_output_and_future_events() {
    let worker = Worker::start(&[]);
    let job = start_job(&worker, WAITING);
    let path = Worker::path(&job);
    let events = |query: &str| -> Vec<String> {
        let path = format!("{path}?{query}");
        let lines = worker
            .api
            .lines("GET", &path, &[("Accept", "application/x-ndjson")], b"");
        lines
            .map(|line| serde_json::from_str::<Value>(&line).unwrap()["event"].to_string())
            .collect()
    };
    assert_eq!(events("follow=false"), ["\"started\"", "\"stdout\""]);
    assert_eq!(events("follow=false&output=false"), ["\"started\""]);
    release(&worker);
    assert_eq!(events("output=false"), ["\"started\"", "\"result\""]);
    for query in ["follow=maybe", "output=1", "after=-1"] {
        worker
            .api
            .get(&format!("{path}?{query}"))
            .problem(400, "invalid-request");
    }
}

#[test]
fn snapshot_ends_despite_fast_output() {
    let worker = Worker::start(&["--job-log-size", "2MiB"]);
    let job = start_job(
        &worker,
        "echo before; until [ -e go ]; do usleep 5000; done; yes",
    );
    release(&worker);
    let path = format!("{}?follow=false", Worker::path(&job));
    let lines = worker
        .api
        .lines("GET", &path, &[("Accept", "application/x-ndjson")], b"");
    assert!(lines.count() > 1);
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(&job)))
        .json(200);
    assert_eq!(last(worker.attach(&job, 0))["status"], "canceled");
}
