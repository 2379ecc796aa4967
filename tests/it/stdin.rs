//! Stdin of a command: sent while it runs, in pieces that are received once, with flow control and without a trace.

use crate::{
    shims::last,
    support::{
        Api, Cluster, Orchestrator, Process, Reply, Worker, eventually, lasting_port, process::run,
        uuid, worker::printed,
    },
};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    process::Stdio,
    time::{Duration, Instant},
};

const MIB: usize = 1 << 20;

/// Job of a script with live stdin, once it runs.
fn start(worker: &Worker, script: &str) -> Value {
    let script = format!("echo before; {script}");
    let job = Worker::script_with(&script, json!({"interactive": true, "grace_seconds": 0}));
    let mut events = worker.follow(&job, 0);
    assert!(events.any(|event| event["data"] == "before\n"));
    job
}

fn send_to(api: &Api, path: &str, offset: usize, bytes: &[u8], is_last: bool) -> Reply {
    let path = format!("{path}/stdin?offset={offset}&eof={is_last}");
    let headers = [("Content-Type", "application/octet-stream")];
    api.call("POST", &path, &headers, bytes)
}

/// Answer of a worker to a piece: its status and the offset of the next one.
fn send(worker: &Worker, job: &Value, offset: usize, bytes: &[u8], is_last: bool) -> (String, u64) {
    let receipt = send_to(&worker.api, &Worker::path(job), offset, bytes, is_last).json(200);
    let status = receipt["status"].as_str().unwrap().to_owned();
    (status, receipt["offset"].as_u64().unwrap())
}

fn answer(status: &str, offset: usize) -> (String, u64) {
    (status.to_owned(), offset as u64)
}

/// Output of a job after `before`.
fn output(worker: &Worker, job: &Value) -> String {
    let events: Vec<Value> = worker.attach(job, 0).collect();
    printed(&events, "stdout").replacen("before\n", "", 1)
}

#[test]
fn pieces_reach_the_command_once_and_in_order() {
    let mut worker = Worker::start(&[]);
    let job = start(
        &worker,
        "while read -r line; do echo got $line; done; echo end",
    );
    assert_eq!(
        send(&worker, &job, 0, b"one\n", false),
        answer("accepted", 4)
    );
    let mut events = worker.attach(&job, 0);
    assert!(events.any(|event| event["data"] == "got one\n"));
    // Repeats, lies, and a second sender.
    assert_eq!(
        send(&worker, &job, 0, b"one\n", false),
        answer("accepted", 4)
    );
    assert_eq!(
        send(&worker, &job, 0, b"two\n", false),
        answer("misplaced", 4)
    );
    assert_eq!(
        send(&worker, &job, 9, b"two\n", false),
        answer("misplaced", 4)
    );
    worker.restart();
    assert_eq!(
        send(&worker, &job, 0, b"one\n", false),
        answer("accepted", 4)
    );
    assert_eq!(
        send(&worker, &job, 4, b"two\n", false),
        answer("accepted", 8)
    );
    assert_eq!(send(&worker, &job, 8, b"", true), answer("accepted", 8));
    assert_eq!(output(&worker, &job), "got one\ngot two\nend\n");
    assert_eq!(send(&worker, &job, 8, b"x", false).0, "ended");
    worker.assert_clean();
}

#[test]
fn command_that_never_reads_holds_its_sender_up() {
    let worker = Worker::start(&[]);
    let job = start(&worker, "until [ -e go ]; do usleep 5000; done; wc -c");
    let piece = vec![7; MIB];
    let mut sent = 0;
    let began = Instant::now();
    let full = loop {
        match send(&worker, &job, sent, &piece, false) {
            (status, _) if status == "accepted" => sent += MIB,
            other => break other,
        }
        assert!(sent < 16 * MIB, "there is no flow control");
    };
    assert_eq!(full, answer("full", sent));
    assert!(
        began.elapsed() >= Duration::from_secs(9),
        "it waits for room first"
    );
    crate::shims::release(&worker);
    for _ in 0..24 {
        assert_eq!(send(&worker, &job, sent, &piece, false).0, "accepted");
        sent += MIB;
    }
    let spool = &worker.spools()[0];
    let held = fs::metadata(spool.join("stdin")).unwrap();
    assert!(
        held.len() as usize == sent && held.blocks() * 512 < 8 * MIB as u64,
        "{held:?}"
    );
    assert_eq!(send(&worker, &job, sent, b"", true).0, "accepted");
    assert_eq!(output(&worker, &job), format!("{sent}\n"));
    assert!(!spool.join("stdin").exists(), "nothing is left of it");
}

#[test]
fn closed_stdin_is_no_error() {
    let worker = Worker::start(&[]);
    let job = start(
        &worker,
        "head -c 3; exec <&-; echo; until [ -e go ]; do usleep 5000; done",
    );
    let mut sent = 0;
    eventually("its sender learns it", || {
        let (status, _) = send(&worker, &job, sent, b"abc\n", false);
        sent += 4;
        (status == "closed").then_some(())
    });
    crate::shims::release(&worker);
    assert_eq!(output(&worker, &job), "abc\n");
    let result = last(worker.attach(&job, 0));
    assert_eq!(result["status"], "completed", "{result}");
}

#[test]
fn job_without_live_stdin_takes_none() {
    let worker = Worker::start(&[]);
    let job = Worker::script("echo before; cat; until [ -e go ]; do usleep 5000; done");
    let mut events = worker.follow(&job, 0);
    assert!(events.any(|event| event["data"] == "before\n"));
    assert_eq!(send(&worker, &job, 0, b"x", false).0, "not_live");
    let huge = vec![0; MIB + 1];
    send_to(&worker.api, &Worker::path(&job), 0, &huge, false).problem(413, "payload-too-large");
    let unknown = json!({"job_id": uuid()});
    send_to(&worker.api, &Worker::path(&unknown), 0, b"x", false).problem(404, "not-found");
    crate::shims::release(&worker);
    assert_eq!(output(&worker, &job), "");
}

#[test]
fn live_stdin_ends_with_cancel() {
    let worker = Worker::start(&[]);
    let job = start(&worker, "cat");
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(&job)))
        .json(200);
    assert_eq!(last(worker.attach(&job, 0))["status"], "canceled");
    assert_eq!(send(&worker, &job, 0, b"x", false).0, "ended");
    worker.assert_clean();
}

#[test]
fn user_sends_stdin_to_a_task() {
    let cluster = Cluster::start();
    let script = "while read -r line; do echo got $line; done";
    let id = cluster.create(&json!({"script": script, "interactive": true}));
    let path = format!("/v1/tasks/{id}");
    let user = cluster.user.clone();
    let first = eventually("the command runs", || {
        let reply = send_to(&user, &path, 0, b"one\n", false);
        (reply.status == 200).then(|| reply.json(200))
    });
    assert_eq!(
        (&first["offset"], &first["closed"]),
        (&json!(4), &json!(false))
    );
    cluster.printed(&id, "got one\n");
    send_to(&user, &path, 2, b"x", false).problem(409, "conflict");
    let other = cluster.orchestrator.add_user(&user, "other");
    send_to(&other, &path, 4, b"x", false).problem(404, "not-found");
    let second = send_to(&user, &path, 4, b"two\n", true).json(200);
    assert_eq!(second["offset"], 8);
    cluster.finish(&id);
    assert_eq!(
        user.get(&format!("{path}/logs")).json(200)["stdout"],
        "got one\ngot two\n"
    );
    send_to(&user, &path, 8, b"x", false).problem(409, "job-already-finished");

    let plain = cluster.script("cat; until [ -e go ]; do usleep 5000; done");
    let path = format!("/v1/tasks/{plain}");
    eventually("it is refused", || {
        let reply = send_to(&user, &path, 0, b"x", false);
        (reply.status != 503).then(|| reply.problem(409, "conflict"))
    });
    user.call("POST", &format!("{path}/stdin"), &[], b"x")
        .problem(400, "invalid-request");
    let twice = json!({"command": ["cat"], "interactive": true, "max_attempts": 2});
    let refused = user
        .post("/v1/tasks", &twice)
        .problem(400, "invalid-request");
    assert_eq!(refused["errors"][0]["pointer"], "#/max_attempts");
    user.act(&format!("{path}/cancel")).json(200);
}

#[test]
fn run_streams_stdin_as_it_is() {
    let cluster = Cluster::start();
    let bytes: Vec<u8> = (0..5 * MIB + 7).map(|n| ((n * n) >> 7) as u8).collect();
    let file = cluster.home().join("input");
    fs::write(&file, &bytes).unwrap();
    let expected = cynode::digest::sha256_hex(&bytes);
    let mut command = cluster.cli(&["run", "-i", "--", "sha256sum"]);
    let done = run(command.stdin(fs::File::open(&file).unwrap()));
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    assert!(done.stdout.starts_with(&expected), "{done:?}");
}

#[test]
fn run_passes_lines_on_as_they_come() {
    let cluster = Cluster::start();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let script = "while read -r line; do echo got $line; done; exit 5";
    let mut command = cluster.cli(&["run", "-i", "--", "sh", "-c", script]);
    let mut client = Process::start("client", cluster.home(), command.stdin(Stdio::from(reader)));
    drop(command);
    let mut said = String::new();
    for line in ["one", "two"] {
        writer.write_all(format!("{line}\n").as_bytes()).unwrap();
        said.push_str(&format!("got {line}\n"));
        eventually("it is answered", || (client.stdout() == said).then_some(()));
    }
    drop(writer);
    assert_eq!(client.code(), 5, "{}", client.stderr());
}

#[test]
fn run_stops_writers_that_nobody_reads() {
    let cluster = Cluster::start();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut command = cluster.cli(&["run", "-i", "--", "head", "-n", "1"]);
    let mut client = Process::start("client", cluster.home(), command.stdin(Stdio::from(reader)));
    drop(command);
    let piece = b"y\n".repeat(32 * 1024);
    while writer.write_all(&piece).is_ok() {}
    assert_eq!(client.code(), 0, "{}", client.stderr());
    assert_eq!(
        (client.stdout(), client.stderr()),
        ("y\n".to_owned(), String::new())
    );
}

#[test]
fn run_goes_on_after_restart_of_orchestrator() {
    let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let addresses = addresses.each_ref().map(String::as_str);
    let mut cluster = Cluster::start_at(addresses, &[]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let script = "while read -r line; do echo got $line; done";
    let mut command = cluster.cli(&["run", "-i", "--", "sh", "-c", script]);
    let mut client = Process::start("client", cluster.home(), command.stdin(Stdio::from(reader)));
    drop(command);
    writer.write_all(b"one\n").unwrap();
    eventually("it is answered", || {
        (client.stdout() == "got one\n").then_some(())
    });
    cluster.orchestrator.process.kill();
    writer.write_all(b"two\n").unwrap();
    drop(writer);
    let home = cluster.home().to_owned();
    cluster.orchestrator = Orchestrator::start_at(&home, addresses, &[]);
    assert_eq!(client.code(), 0, "{}", client.stderr());
    assert_eq!(client.stdout(), "got one\ngot two\n");
}

#[test]
fn stdin_of_a_new_task_is_whole() {
    let cluster = Cluster::start();
    let file = cluster.home().join("input");
    let bytes: Vec<u8> = (0..2 * MIB + 3).map(|n| ((n * n) >> 5) as u8).collect();
    fs::write(&file, &bytes).unwrap();
    let path = file.to_str().unwrap();
    for stdin in [path, "-"] {
        let mut command = cluster.cli(&["task", "create", "--stdin", stdin, "--", "sha256sum"]);
        if stdin == "-" {
            command.stdin(fs::File::open(&file).unwrap());
        }
        let created = run(&mut command);
        assert_eq!(
            (created.code, created.stderr.as_str()),
            (0, ""),
            "{created:?}"
        );
        let id = created.stdout.trim();
        cluster.finish(id);
        let logs = cluster.user.get(&format!("/v1/tasks/{id}/logs")).json(200);
        let expected = cynode::digest::sha256_hex(&bytes);
        assert!(
            logs["stdout"].as_str().unwrap().starts_with(&expected),
            "{logs}"
        );
    }
    let both = json!({"command": ["cat"], "stdin": "x", "interactive": true});
    cluster
        .user
        .post("/v1/tasks", &both)
        .problem(400, "invalid-request");
}
