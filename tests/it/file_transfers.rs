//! Files and artifacts between a user, the orchestrator and a node: whole, or with the reason why not.

use crate::support::{
    Cluster, Node, Orchestrator,
    cluster::{finish, wait_ready},
    disk::Disk,
    eventually, lasting_port,
};
use cynode::digest::sha256_hex;
use serde_json::{Value, json};
use std::{fs, os::unix::fs::FileExt as _};

/// Uploads an artifact; its id.
fn upload(cluster: &Cluster, bytes: &[u8]) -> Value {
    let reply = cluster
        .user
        .call("POST", "/v1/artifacts?name=in", &[], bytes);
    assert!((200..300).contains(&reply.status), "{}", reply.text());
    serde_json::from_slice::<Value>(&reply.body).unwrap()["artifact_id"].clone()
}

/// Artifacts of a task: names and contents.
fn artifacts(cluster: &Cluster, task: &str) -> Vec<(String, Vec<u8>)> {
    let list = cluster
        .user
        .get(&format!("/v1/tasks/{task}/artifacts"))
        .json(200);
    let list = list["artifacts"].as_array().unwrap().iter();
    let mut found: Vec<_> = list
        .map(|artifact| {
            let path = format!(
                "/v1/artifacts/{}",
                artifact["artifact_id"].as_str().unwrap()
            );
            let bytes = cluster.user.get(&path).expect(200).body.clone();
            assert_eq!(artifact["sha256"], sha256_hex(&bytes));
            (artifact["name"].as_str().unwrap().to_owned(), bytes)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn files_go_in_and_artifacts_come_out() {
    let cluster = Cluster::start();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(20);
    builder
        .append_data(&mut header, "bin/go", &b"#!/bin/sh\necho went\n"[..])
        .unwrap();
    let archive = upload(&cluster, &builder.into_inner().unwrap());
    let large: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let task = json!({
        "script": "in/bin/go; cat note; cp large artifacts/copy; echo 1 > a.json; echo 2 > b.txt",
        "files": [
            {"path": "in", "artifact_id": archive, "extract": true},
            {"path": "note", "content": "inline\n", "mode": "0600"},
            {"path": "large", "artifact_id": upload(&cluster, &large)},
        ],
        "artifacts": ["*.json"],
    });
    for _ in 0..2 {
        let id = cluster.create(&task);
        let ended = cluster.finish(&id);
        assert_eq!(ended["status"], "completed", "{}", cluster.result(&id));
        let result = &cluster.result(&id)["jobs"][0]["result_object"];
        assert_eq!(result["stdout"], "went\ninline\n");
        let expected = [
            ("a.json", b"1\n".to_vec()),
            ("artifacts/copy", large.clone()),
        ];
        assert_eq!(
            artifacts(&cluster, &id),
            expected.map(|(name, bytes)| (name.to_owned(), bytes))
        );
    }
    eventually("the node has forgotten the jobs", || {
        cluster.node.spools().is_empty().then_some(())
    });
}

#[test]
fn artifacts_survive_kill_of_orchestrator() {
    let ports = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let addresses = ports.each_ref().map(String::as_str);
    let mut cluster = Cluster::start_at(addresses, &[]);
    let script = "head -c 30000000 /dev/urandom > artifacts/random; sha256sum artifacts/random; echo ready; until [ -e go ]; do usleep 10000; done";
    let id = cluster.create(&json!({"script": script, "max_attempts": 1}));
    cluster.printed(&id, "ready\n");
    let go = cluster.node.workspaces()[0].join("workspace/go");
    cluster.orchestrator.process.kill();
    fs::write(go, "").unwrap();
    eventually("the command has ended", || {
        let result = cluster.node.spools()[0].join("result.json");
        result.exists().then_some(())
    });
    for round in 0..2 {
        cluster.orchestrator = Orchestrator::start_at(cluster.home(), addresses, &[]);
        wait_ready(&cluster.orchestrator);
        cluster.user = cluster.orchestrator.login();
        if round == 0 {
            // Perhaps while they are fetched.
            cluster.orchestrator.process.kill();
        }
    }
    assert_eq!(cluster.finish(&id)["status"], "completed");
    let stdout = cluster.result(&id)["jobs"][0]["result_object"]["stdout"]
        .as_str()
        .unwrap()
        .to_owned();
    let found = artifacts(&cluster, &id);
    assert_eq!(found.len(), 1);
    assert!(stdout.starts_with(&sha256_hex(&found[0].1)), "{stdout}");
}

#[test]
fn full_orchestrator_ends_task_with_reason() {
    let cluster = Cluster::start_orchestrated(&["--artifact-quota", "1MiB"]);
    let id =
        cluster.script("head -c 3000000 /dev/zero > artifacts/large; echo x > artifacts/small");
    assert_eq!(cluster.finish(&id)["status"], "completed");
    let result = &cluster.result(&id)["jobs"][0]["result_object"];
    let skipped = &result["artifacts_skipped"];
    assert_eq!(skipped["count"], 1, "{result}");
    assert!(
        skipped["reason"].as_str().unwrap().contains("no room"),
        "{result}"
    );
    assert_eq!(
        artifacts(&cluster, &id),
        [("artifacts/small".to_owned(), b"x\n".to_vec())]
    );
}

#[test]
fn results_of_one_user_leave_room_for_others() {
    let cluster = Cluster::start_orchestrated(&["--artifact-quota", "5MiB"]);
    let other = cluster.orchestrator.add_user(&cluster.user, "ann");
    let id = cluster.script("for n in 1 2 3; do head -c 1200000 /dev/zero > artifacts/$n; done");
    assert_eq!(cluster.finish(&id)["status"], "completed");
    let result = &cluster.result(&id)["jobs"][0]["result_object"];
    let skipped = &result["artifacts_skipped"];
    assert_eq!(skipped["count"], 1, "{result}");
    assert!(
        skipped["reason"].as_str().unwrap().contains("share"),
        "{result}"
    );
    assert_eq!(artifacts(&cluster, &id).len(), 2);
    other
        .call("POST", "/v1/artifacts?name=in", &[], &[1; 1_000_000])
        .expect(201);
}

#[test]
fn ended_job_outlasts_full_store_and_silent_node() {
    let mut cluster = Cluster::start_orchestrated(&["--artifact-quota", "4MiB", "--lease", "1s"]);
    let upload = upload(&cluster, &[1; 3_000_000]);
    let script = "head -c 3000000 /dev/zero > artifacts/large";
    let id = cluster.create(&json!({"script": script, "max_attempts": 3}));
    eventually("the command has ended", || {
        let spools = cluster.node.spools();
        let result = spools.first()?.join("result.json");
        result.exists().then_some(())
    });
    cluster.node.process.kill();
    let path = format!("/v1/artifacts/{}", upload.as_str().unwrap());
    cluster.user.call("DELETE", &path, &[], b"").expect(204);
    eventually("the lease is over", || {
        let nodes = cluster.user.get("/v1/nodes").json(200);
        (nodes["nodes"][0]["status"] == "offline").then_some(())
    });
    assert_eq!(cluster.task(&id)["status"], "running");
    cluster.node = Node::start(
        cluster.home(),
        "box",
        &cluster.orchestrator.control_url,
        &[],
    );
    assert_eq!(cluster.finish(&id)["status"], "completed");
    let job = &cluster.result(&id)["jobs"][0];
    assert_eq!(job["attempt"], 1, "{job}");
    assert!(job["result_object"]["artifacts_skipped"].is_null(), "{job}");
    assert_eq!(
        artifacts(&cluster, &id),
        [("artifacts/large".to_owned(), vec![0; 3_000_000])]
    );
}

#[test]
fn artifact_damaged_at_node_is_missing_with_reason() {
    let ports = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let addresses = ports.each_ref().map(String::as_str);
    let mut cluster = Cluster::start_at(addresses, &[]);
    let id = cluster.script("echo one > artifacts/a; echo two > artifacts/b; echo ready; until [ -e go ]; do usleep 10000; done");
    cluster.printed(&id, "ready\n");
    let spool = cluster.node.workspaces()[0].clone();
    cluster.orchestrator.process.kill();
    fs::write(spool.join("workspace/go"), "").unwrap();
    eventually("the command has ended", || {
        spool.join("result.json").exists().then_some(())
    });
    let damaged = spool.join("artifacts").join(sha256_hex("artifacts/a"));
    let file = fs::File::options().write(true).open(damaged).unwrap();
    file.write_all_at(b"more than there was", 0).unwrap();
    cluster.orchestrator = Orchestrator::start_at(cluster.home(), addresses, &[]);
    wait_ready(&cluster.orchestrator);
    cluster.user = cluster.orchestrator.login();
    assert_eq!(cluster.finish(&id)["status"], "completed");
    let result = &cluster.result(&id)["jobs"][0]["result_object"];
    assert_eq!(result["artifacts_skipped"]["count"], 1, "{result}");
    assert_eq!(
        artifacts(&cluster, &id),
        [("artifacts/b".to_owned(), b"two\n".to_vec())]
    );
}

#[test]
fn files_wait_for_room_at_node() {
    let Some(disk) = Disk::of_kib(256 * 1024) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let _node = disk.start_node(home.path(), &orchestrator.control_url);
    wait_ready(&orchestrator);
    disk.fill_but(48 * 1024);
    let user = orchestrator.login();
    let create = |bytes: usize| {
        let sent = user.call("POST", "/v1/artifacts?name=in", &[], &vec![1; bytes]);
        let sent: Value = serde_json::from_slice(&sent.body).unwrap();
        let files = json!([{"path": "in", "artifact_id": sent["artifact_id"]}]);
        let task = json!({"command": ["wc", "-c", "in"], "files": files, "max_attempts": 1});
        let task = user.post("/v1/tasks", &task).json(201);
        task["id"].as_str().unwrap().to_owned()
    };
    let tasks = [(); 3].map(|()| create(40_000_000));
    for task in &tasks {
        eventually("the task waits for room", || {
            let task = user.get(&format!("/v1/tasks/{task}")).json(200);
            let reason = task["waiting_for"].as_str()?;
            reason.contains("no room for its files").then_some(())
        });
    }
    disk.free();
    for task in &tasks {
        let ended = finish(&user, task);
        assert_eq!(ended["status"], "completed", "{ended}");
    }
}

#[test]
fn forced_cancel_ends_fetch_of_artifacts() {
    let cluster = Cluster::start_orchestrated(&["--artifact-quota", "4MiB"]);
    upload(&cluster, &[1; 3_000_000]);
    let id = cluster.script("head -c 3000000 /dev/zero > artifacts/large");
    // A cancel before that is one of the command, and leaves a full store no time.
    eventually("the fetch waits for room", || {
        let log = cluster.orchestrator.process.stderr();
        log.contains("artifact not fetched").then_some(())
    });
    assert_eq!(cluster.task(&id)["status"], "running");
    let path = format!("/v1/tasks/{id}/cancel?force=true");
    let answer = cluster.user.act(&path).json(200);
    assert_eq!(answer["canceled"], false);
    assert_eq!(cluster.finish(&id)["status"], "completed");
    let result = &cluster.result(&id)["jobs"][0]["result_object"];
    let reason = result["artifacts_skipped"]["reason"].as_str().unwrap();
    assert!(reason.contains("canceled"), "{result}");
    assert!(artifacts(&cluster, &id).is_empty());
}
