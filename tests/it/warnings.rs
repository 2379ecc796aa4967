//! Warnings about ignored, shortened or replaced input: each once, on stderr.

use crate::support::{
    Cluster, Node, Process, eventually,
    process::{Done, run},
};
use serde_json::{Value, json};
use std::{fs, io::Write as _, process::Stdio};

/// Runs a client command with `input` on its stdin.
fn with_input(cluster: &Cluster, arguments: &[&str], input: Stdio) -> Done {
    run(cluster.cli(arguments).stdin(input))
}

#[test]
fn unused_stdin_is_reported_without_hanging() {
    const WARNING: &str = "warning: input on stdin is not passed to the sandbox";
    let cluster = Cluster::start();
    let file = cluster.home().join("input");
    fs::write(&file, "data\n").unwrap();
    let command = ["run", "--", "cat"];
    let said = |done: &Done| {
        assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
        done.stderr.matches(WARNING).count()
    };
    let with_file = || Stdio::from(fs::File::open(&file).unwrap());
    assert_eq!(said(&with_input(&cluster, &command, with_file())), 1);
    assert_eq!(said(&with_input(&cluster, &command, Stdio::null())), 0);

    let pipe = || {
        let (reader, writer) = std::io::pipe().unwrap();
        (Stdio::from(reader), writer)
    };
    let (full, mut writer) = pipe();
    writer.write_all(b"data").unwrap();
    assert_eq!(said(&with_input(&cluster, &command, full)), 1);
    // A pipe whose writer stays silent, as in a CI job, and one whose writer has closed it.
    let (silent, writer) = pipe();
    assert_eq!(said(&with_input(&cluster, &command, silent)), 0);
    drop(writer);
    assert_eq!(said(&with_input(&cluster, &command, pipe().0)), 0);

    // Input that arrives while the command runs is reported at its end.
    let (late, mut writer) = pipe();
    let script = "echo up; while ! [ -e /workspace/go ]; do sleep 0.1; done";
    let mut waiting = cluster.cli(&["run", "--", "sh", "-c", script]);
    let mut client = Process::start("late", cluster.home(), waiting.stdin(late));
    // The command holds the reading end as well.
    drop(waiting);
    eventually("its output is here", || {
        (client.stdout() == "up\n").then_some(())
    });
    writer.write_all(b"data").unwrap();
    let workspace = cluster.node.workspaces().remove(0);
    fs::write(workspace.join("workspace/go"), "").unwrap();
    assert_eq!(client.code(), 0);
    assert_eq!(
        client.stderr().matches(WARNING).count(),
        1,
        "{}",
        client.stderr()
    );

    // A loop over a file keeps its lines.
    let reader = fs::File::open(&file).unwrap();
    let create = ["task", "create", "--", "true"];
    let done = with_input(&cluster, &create, reader.try_clone().unwrap().into());
    assert!(done.stderr.contains(WARNING), "{done:?}");
    assert_eq!(std::io::read_to_string(reader).unwrap(), "data\n");
    // Input that the command reads is not unused.
    let create = ["task", "create", "--script", "-"];
    let done = with_input(&cluster, &create, with_file());
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
}

#[test]
fn replaced_bytes_are_reported_once() {
    const WARNING: &str = "not UTF-8 are replaced";
    let cluster = Cluster::start();
    let done = cluster.run(&["run", "--", "printf", "a\\377b\\n\\377\\n"]);
    assert_eq!(done.code, 0, "{done:?}");
    let tasks = cluster.user.get("/v1/tasks?limit=1").json(200);
    let id = tasks["tasks"][0]["id"].as_str().unwrap();
    // Logs carry the bytes as they are; the text of a result can't.
    for command in [&["task", "logs", id][..], &["task", "logs", "-f", id]] {
        let output = cluster.cli(command).output().unwrap();
        assert_eq!(output.stdout, b"a\xffb\n\xff\n", "{command:?}");
        assert!(output.stderr.is_empty(), "{command:?}: {output:?}");
    }
    assert_eq!(done.stderr.matches(WARNING).count(), 0, "{done:?}");
    let result = cluster.run(&["task", "result", id]);
    assert_eq!(result.stderr.matches(WARNING).count(), 1, "{result:?}");
    let plain = cluster.run(&["run", "--", "printf", "é\\n"]);
    assert_eq!((plain.stdout.as_str(), plain.stderr.as_str()), ("é\n", ""));
}

#[test]
fn lowered_limit_is_reported() {
    let cluster = Cluster::start_with(&["--max-timeout", "1s"]);
    let done = cluster.run(&["run", "--timeout", "24h", "--", "sleep", "1000"]);
    assert_eq!(done.code, 124, "{done:?}");
    // At once, and not again at the end.
    let said = "warning: --timeout: reduced from 86400 to 1,";
    assert_eq!(done.stderr.matches(said).count(), 1, "{done:?}");
    let tasks = cluster.user.get("/v1/tasks?limit=1").json(200);
    let result = cluster.result(tasks["tasks"][0]["id"].as_str().unwrap());
    assert_eq!(
        result["jobs"][0]["result_object"]["effective"]["timeout_seconds"],
        1
    );
    assert_eq!(result["warnings"][0]["field"], "timeout_seconds");
    let within = json!({"command": ["true"], "timeout_seconds": 1});
    let created = cluster.user.post("/v1/tasks", &within).json(201);
    assert_eq!(created["warnings"], Value::Null);
}

#[test]
fn unknown_variables_are_named_without_values() {
    let home = tempfile::tempdir().unwrap();
    let environment = [
        ("CYNODE_PKS", "a misspelled secret"),
        ("CYNODE_LABELS", "gpu"),
        ("CYNODE_GATEWAY_URL", "http://127.0.0.1:1"),
        ("CYNODE_TOKEN", "a token of the client"),
        ("CYNODE_RETAIN", "1d"),
    ];
    // No server listens there; the warnings come before the first request.
    let mut node = Node::launch_in(home.path(), "box", "http://127.0.0.1:1", &[], &environment);
    let log = eventually("the warning appears", || {
        let log = node.process.stderr();
        log.contains("unknown environment variables").then_some(log)
    });
    assert!(
        log.contains("variables=\"CYNODE_LABELS, CYNODE_PKS\""),
        "{log}"
    );
    assert!(
        !log.contains("misspelled") && !log.contains("token of"),
        "{log}"
    );
    assert_eq!(node.process.terminate(), 0);
}
