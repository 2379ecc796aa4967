//! The client's commands for sandboxes through a real gateway and node, and real programs at its terminal.

use crate::support::{
    Cluster, IMAGE,
    client::fails,
    eventually,
    process::{piped, run},
    terminal::Session,
};
use serde_json::Value;
use std::fs;

const DETACH: &str = "\x10\x11";
const CTRL_Z: &str = "\x1a";

/// Creates the sandbox `box`.
fn create(cluster: &Cluster) {
    let done = cluster.run(&["sandbox", "create", "--name", "box", "--image", IMAGE]);
    assert_eq!(done.code, 0, "{done:?}");
}

/// Removes the sandbox, so that the node is clean.
fn remove(cluster: &Cluster) {
    let done = cluster.run(&["sandbox", "rm", "box"]);
    assert_eq!(done.code, 0, "{done:?}");
}

/// Output of a command in the sandbox, which succeeds.
fn says(cluster: &Cluster, command: &[&str]) -> String {
    let done = cluster.run(&[&["sandbox", "exec", "box", "--"], command].concat());
    assert_eq!(done.code, 0, "{command:?}: {done:?}");
    done.stdout
}

fn shell(cluster: &Cluster, arguments: &[&str]) -> Session {
    Session::start(&cluster.cli(&[&["sandbox", "shell", "box"], arguments].concat()))
}

#[test]
fn conversation_keeps_files_and_exit_codes() {
    let cluster = Cluster::start();
    create(&cluster);
    let at = |path: &str| cluster.home().join(path);
    fs::create_dir_all(at("src/deep")).unwrap();
    fs::write(at("src/deep/run.sh"), "echo run $1; exit $1\n").unwrap();
    let cp = |from: &str, to: &str| {
        let done = run(cluster
            .cli(&["sandbox", "cp", from, to])
            .current_dir(cluster.home()));
        assert_eq!(done.code, 0, "{from} {to}: {done:?}");
    };
    cp("src", "box:");
    cp("src/deep/run.sh", "box:single");
    let done = cluster.run(&[
        "sandbox", "exec", "--cwd", "src/deep", "box", "sh", "run.sh", "7",
    ]);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (7, "run 7\n"),
        "{done:?}"
    );
    let input: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut command = cluster.cli(&[
        "sandbox",
        "exec",
        "box",
        "sh",
        "-c",
        "cat > data; wc -c < data",
    ]);
    let done = piped(&mut command, &input);
    assert_eq!(done.stdout.trim(), "1200000", "{done:?}");
    cp("box:data", "data");
    assert!(fs::read(at("data")).unwrap() == input);
    says(
        &cluster,
        &["sh", "-c", "ln -s deep src/link; chmod 640 src/deep/run.sh"],
    );
    cp("box:src", "back");
    assert_eq!(
        fs::read_link(at("back/link")).unwrap().to_str(),
        Some("deep")
    );
    assert!(at("back/deep/run.sh").is_file());
    let done = cluster.run(&["sandbox", "ls", "box:src", "--depth", "2"]);
    assert_eq!(done.stdout, "deep/\ndeep/run.sh\nlink\n");
    remove(&cluster);
}

#[test]
fn execs_end_with_their_exit_codes() {
    let cluster = Cluster::start();
    create(&cluster);
    let done = cluster.run(&[
        "sandbox",
        "exec",
        "-d",
        "box",
        "sh",
        "-c",
        "echo later; exit 4",
    ]);
    assert_eq!(done.code, 0, "{done:?}");
    let logs = ["sandbox", "logs", "box", done.stdout.trim(), "-f"];
    let done = cluster.run(&logs);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (4, "later\n"),
        "{done:?}"
    );
    let done = cluster.run(&["sandbox", "exec", "-o", "json", "box", "echo", "x"]);
    let result: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        (&result["stdout"], &result["exit_code"]),
        (&"x\n".into(), &0.into())
    );
    let done = cluster.run(&["sandbox", "exec", "--timeout", "1s", "box", "sleep", "60"]);
    assert_eq!(done.code, 124, "{done:?}");
    assert!(done.stderr.contains("time limit"), "{done:?}");

    let done = cluster.run(&["sandbox", "list"]);
    assert!(
        done.stdout.contains("box") && done.stdout.contains("running"),
        "{done:?}"
    );
    remove(&cluster);
    let done = cluster.run(&["sandbox", "exec", "box", "true"]);
    fails(&done, 5, "deleted");
}

#[test]
fn interrupt_reaches_command_in_sandbox() {
    let cluster = Cluster::start();
    create(&cluster);
    let script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done";
    let mut client = cluster.spawn(&["sandbox", "exec", "box", "sh", "-c", script]);
    eventually("it is ready", || {
        client.stdout().contains("ready").then_some(())
    });
    client.signal(rustix::process::Signal::INT);
    assert_eq!(client.code(), 9, "{}", client.stderr());
    assert!(client.stdout().contains("caught"));
    remove(&cluster);
}

#[test]
fn real_programs_have_real_terminal() {
    let cluster = Cluster::start();
    create(&cluster);
    let mut editor = shell(&cluster, &["vi", "note"]);
    // The last line of an empty file.
    editor.shows("~");
    editor.types("ihéllo");
    editor.shows("héllo");
    // Together with the next key an escape would be another key.
    editor.types("\x1b");
    editor.shows("- note [Modified]");
    editor.types(":wq\r");
    assert_eq!(editor.ends().code, 0);
    assert!(editor.echoes());
    assert_eq!(says(&cluster, &["cat", "note"]), "héllo\n");

    let mut top = shell(&cluster, &["top", "-d", "1"]);
    top.shows("COMMAND");
    top.resize(60, 10);
    top.types("q");
    assert_eq!(top.ends().code, 0);
    assert!(top.echoes());
    remove(&cluster);
}

#[test]
fn shell_controls_its_jobs_and_size() {
    let cluster = Cluster::start();
    create(&cluster);
    let mut shell = shell(&cluster, &[]);
    shell.types("stty size\r");
    shell.shows("24 80");
    shell.resize(100, 30);
    shell.types("stty size\r");
    shell.shows("30 100");
    // Before it prints, the shell may still edit the line, where Ctrl-Z means something else.
    shell.types("sh -c 'echo begun-$((20+22)); exec sleep 1000'\r");
    shell.shows("begun-42");
    shell.types(CTRL_Z);
    shell.shows("Stopped");
    shell.types("bg; kill %1; wait; echo at$((20+22))\r");
    shell.shows("at42");
    shell.types("exit 3\r");
    let done = shell.ends();
    assert_eq!(done.code, 3, "{done:?}");
    assert!(shell.echoes());
    remove(&cluster);
}

#[test]
fn detached_shell_goes_on() {
    let cluster = Cluster::start();
    create(&cluster);
    let mut first = shell(&cluster, &[]);
    first.types("word=kept; echo be\"\"gun\r");
    first.shows("begun");
    first.types(DETACH);
    let done = first.ends();
    assert_eq!(done.code, 0, "{done:?}");
    let (_, exec) = done.stdout.rsplit_once("--attach ").unwrap();
    let mut second = shell(&cluster, &["--attach", exec.trim()]);
    second.shows("begun");
    second.types("echo $word-$word; exit 6\r");
    second.shows("kept-kept");
    assert_eq!(second.ends().code, 6);
    remove(&cluster);
}

#[test]
fn run_at_terminal_leaves_nothing() {
    let cluster = Cluster::start();
    fs::write(cluster.home().join("in.txt"), "sent\n").unwrap();
    let arguments = [
        "run", "-it", "--image", IMAGE, "--upload", "in.txt", "--", "sh",
    ];
    let mut command = cluster.cli(&arguments);
    command.current_dir(cluster.home());
    let mut shell = Session::start(&command);
    shell.types("cat in.txt; exit 8\r");
    shell.shows("sent");
    let done = shell.ends();
    assert_eq!(done.code, 8, "{done:?}");
    let done = cluster.run(&["sandbox", "list", "-o", "json"]);
    let list: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(list["sandboxes"], serde_json::json!([]), "{done:?}");
}

#[test]
fn running_task_can_be_entered() {
    let cluster = Cluster::start();
    let task = cluster.script("echo inside > mark; echo ready; sleep 1000");
    cluster.printed(&task, "ready");
    let done = cluster.run(&["exec", &task, "--", "cat", "mark"]);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "inside\n"),
        "{done:?}"
    );
    let mut shell = Session::start(&cluster.cli(&["shell", &task]));
    shell.types("cat mark; exit 5\r");
    shell.shows("inside");
    assert_eq!(shell.ends().code, 5);
    assert_eq!(cluster.run(&["task", "cancel", "--force", &task]).code, 0);
    let done = cluster.run(&["exec", &task, "--", "true"]);
    assert_ne!(done.code, 0, "{done:?}");
}
