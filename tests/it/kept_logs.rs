//! Logs of ended tasks at the orchestrator: whole, in parts, within their quota, and through crashes.

use crate::support::{Cluster, Node, Orchestrator, SseEvent, cluster::wait_ready, eventually};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn kept_files(home: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(home.join("orchestrator/logs")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn document(cluster: &Cluster, id: &str, query: &str) -> Value {
    cluster
        .user
        .get(&format!("/v1/tasks/{id}/logs{query}"))
        .json(200)
}

fn stdout_of(events: &[SseEvent]) -> String {
    let of_it = events.iter().filter(|event| event.name == "stdout");
    of_it
        .map(|event| event.data["data"].as_str().unwrap())
        .collect()
}

/// Half a megabyte of numbered lines.
const LONG: &str = r#"awk 'BEGIN { for (n = 0; n < 50000; n++) printf "%09d\n", n }'"#;

fn long_text() -> String {
    (0..50_000).map(|n| format!("{n:09}\n")).collect()
}

#[test]
fn whole_log_outlives_its_node() {
    let mut cluster = Cluster::start();
    let id = cluster.script(LONG);
    cluster.finish(&id);
    // The node is gone: only the orchestrator can have the log.
    cluster.node.process.kill();
    let log = document(&cluster, &id, "");
    assert!(log["stdout"] == long_text(), "{:.200}", log["stdout"]);
    assert_eq!((log.get("truncated"), log.get("warnings")), (None, None));
    let path = format!("/v1/tasks/{id}/logs");
    let events: Vec<_> = cluster.user.events(&path, None).collect();
    assert!(stdout_of(&events) == long_text());
    let middle = &events[events.len() / 2];
    let rest: Vec<_> = cluster.user.events(&path, Some(&middle.id)).collect();
    assert_eq!(rest, events[events.len() / 2 + 1..]);
    let file = &kept_files(cluster.home())[0];
    assert!(fs::metadata(file).unwrap().len() < 200_000, "compressed");
}

#[test]
fn deleted_task_takes_its_log_along() {
    let cluster = Cluster::start();
    let id = cluster.script("echo secret");
    let other = cluster.script("echo other");
    let quiet = cluster.script("true");
    for id in [&id, &other, &quiet] {
        cluster.finish(id);
    }
    assert_eq!(
        kept_files(cluster.home()).len(),
        2,
        "none for a job without output"
    );
    cluster
        .user
        .call("DELETE", &format!("/v1/tasks/{id}"), &[], b"")
        .expect(204);
    assert_eq!(kept_files(cluster.home()).len(), 1);
    assert_eq!(document(&cluster, &other, "")["stdout"], "other\n");
}

#[test]
fn part_of_log_can_be_selected() {
    let cluster = Cluster::start();
    let id = cluster.script("for n in 1 2 3; do echo out $n; usleep 20000; echo err $n >&2; usleep 20000; done; until [ -e go ]; do usleep 5000; done; printf end");
    let path = format!("/v1/tasks/{id}/logs");
    for event in cluster.user.events(&path, None) {
        if event.data["data"] == "err 3\n" {
            break;
        }
    }
    let texts = |query: &str| {
        let log = document(&cluster, &id, query);
        [&log["stdout"], &log["stderr"]].map(|text| text.as_str().unwrap().to_owned())
    };
    assert_eq!(texts("?tail=3"), ["out 3\n", "err 2\nerr 3\n"]);
    let cli = cluster.run(&["task", "logs", &id, "--tail", "2"]);
    assert_eq!(
        (cli.stdout.as_str(), cli.stderr.as_str()),
        ("out 3\n", "err 3\n")
    );
    fs::write(cluster.node.workspaces()[0].join("workspace/go"), "").unwrap();
    cluster.finish(&id);

    assert_eq!(texts("?tail=3"), ["out 3\nend", "err 3\n"]);
    assert_eq!(texts("?tail=2&stream=stderr"), ["", "err 2\nerr 3\n"]);
    assert_eq!(texts("?tail=0"), ["", ""]);
    assert_eq!(texts("?since=1h")[0], "out 1\nout 2\nout 3\nend");
    assert_eq!(texts("?since=2100-01-01T00:00:00Z"), ["", ""]);
    let events: Vec<_> = cluster.user.events(&path, None).collect();
    let third = events
        .iter()
        .find(|event| event.data["data"] == "out 3\n")
        .unwrap();
    let since = third.data["time"].as_str().unwrap();
    assert_eq!(texts(&format!("?since={since}"))[0], "out 3\nend");
    let dated = &texts("?timestamps=true&stream=stdout")[0];
    assert!(dated.contains(&format!("{since} out 3\n")), "{dated}");
    assert_eq!(dated.lines().count(), 4, "{dated}");
    let cli = cluster.run(&[
        "task",
        "logs",
        &id,
        "--timestamps",
        "--since",
        since,
        "--stream",
        "stdout",
    ]);
    assert!(
        cli.stdout.starts_with(&format!("{since} out 3\n")),
        "{cli:?}"
    );
    for query in [
        "tail=-1",
        "tail=x",
        "tail=100001",
        "since=soon",
        "timestamps=1",
    ] {
        cluster
            .user
            .get(&format!("{path}?{query}"))
            .problem(400, "invalid-request");
    }
}

#[test]
fn quota_keeps_newest_logs() {
    let cluster = Cluster::start_orchestrated(&["--log-quota", "300KiB"]);
    let ids: Vec<String> = (0..3)
        .map(|_| {
            let id = cluster.script("head -c 200000 /dev/urandom | base64 | head -c 150000");
            cluster.finish(&id);
            id
        })
        .collect();
    let left = kept_files(cluster.home());
    assert!((1..3).contains(&left.len()), "{left:?}");
    let last = document(&cluster, &ids[2], "");
    assert_eq!(last["stdout"].as_str().unwrap().len(), 150_000);
    // It fits into a result, which still has it.
    let first = document(&cluster, &ids[0], "");
    assert_eq!(first["stdout"].as_str().unwrap().len(), 150_000);
}

#[test]
fn old_logs_leave_results_part() {
    let cluster = Cluster::start_orchestrated(&["--log-retention", "1s"]);
    let id = cluster.script(LONG);
    cluster.finish(&id);
    eventually("the log has expired", || {
        kept_files(cluster.home()).is_empty().then_some(())
    });
    let log = document(&cluster, &id, "");
    let text = log["stdout"].as_str().unwrap();
    assert!(text.starts_with("000000000\n") && text.ends_with("000049999\n"));
    assert!(text.contains(" bytes omitted; see the log of the task ...]\n"));
    assert_eq!(log["truncated"], json!({"stdout": true, "stderr": false}));
    let detail = log["warnings"][0]["detail"].as_str().unwrap();
    assert!(
        detail.contains("the part of the output that the result keeps"),
        "{log}"
    );
    let cli = cluster.run(&["task", "logs", &id]);
    assert!(cli.stdout.starts_with("000000000\n") && cli.stdout.ends_with("000049999\n"));
    assert!(
        cli.stderr.contains("that the result keeps"),
        "{}",
        cli.stderr
    );
}

#[test]
fn damaged_log_is_said_and_replaced() {
    let cluster = Cluster::start();
    let id = cluster.script(LONG);
    cluster.finish(&id);
    let file = &kept_files(cluster.home())[0];
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xFF;
    fs::write(file, bytes).unwrap();
    let log = document(&cluster, &id, "");
    assert!(log["stdout"].as_str().unwrap().ends_with("000049999\n"));
    let detail = log["warnings"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("can't be read"), "{log}");
    let said = cluster.orchestrator.process.stderr();
    assert!(said.contains("kept log can't be read"), "{said}");
    let end = cluster
        .user
        .events(&format!("/v1/tasks/{id}/logs"), None)
        .last()
        .unwrap();
    assert_eq!(
        (end.name.as_str(), &end.data["exit_code"]),
        ("end", &json!(0))
    );
}

#[test]
fn archive_survives_kill_of_orchestrator() {
    let home = tempfile::tempdir().unwrap();
    let start = |addresses: [&str; 2]| Orchestrator::start_at(home.path(), addresses, &[]);
    let mut orchestrator = start(["127.0.0.1:0", "127.0.0.1:0"]);
    let addresses = [&orchestrator.gateway_url, &orchestrator.control_url];
    let addresses = addresses.map(|url| url.trim_start_matches("http://").to_owned());
    let node = Node::start(home.path(), "box", &orchestrator.control_url, &[]);
    wait_ready(&orchestrator);
    let user = orchestrator.login();
    let script = format!("until [ -e go ]; do usleep 5000; done; {LONG}");
    let created = user.post("/v1/tasks", &json!({"script": script})).json(201);
    let id = created["id"].as_str().unwrap().to_owned();
    let workspace = eventually("it runs", || node.workspaces().pop());
    // Remains of a kill in the middle, and the log of a job that no database knows.
    let logs = home.path().join("orchestrator/logs");
    orchestrator.process.kill();
    fs::write(workspace.join("workspace/go"), "").unwrap();
    fs::write(logs.join(".new-half"), "half").unwrap();
    fs::write(
        logs.join("0198c0de-0000-7000-8000-000000000001.zst"),
        "stray",
    )
    .unwrap();
    drop(orchestrator);
    orchestrator = start(addresses.each_ref().map(String::as_str));
    let user = orchestrator.login();
    crate::support::cluster::finish(&user, &id);
    let log = user.get(&format!("/v1/tasks/{id}/logs")).json(200);
    assert!(log["stdout"] == long_text(), "{:.200}", log["stdout"]);
    eventually("leftovers are gone", || {
        (kept_files(home.path()).len() == 1).then_some(())
    });
}
