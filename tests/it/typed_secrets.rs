//! Secrets that people type, paste or pipe: passwords and pre-shared keys.

use crate::support::{
    Orchestrator, PASSWORD, Process,
    cluster::PSK,
    cynode, eventually,
    process::{Done, run},
    server::role,
    terminal::{at_terminal, echoes, terminal},
};
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

#[test]
fn echo_is_off_before_password_prompt() {
    const STOP: &[u8] = b"\x13";
    const START: &[u8] = b"\x11";
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (mut person, program) = terminal();
    assert!(echoes(&person));
    // Writers block from here on: the prompt can't appear.
    person.write_all(STOP).unwrap();
    let mut login = {
        let gateway = ["--gateway-url", &orchestrator.gateway_url];
        let mut login = cynode(home.path());
        login.args(["login", "--handle", "admin"]).args(gateway);
        Process::start("login", home.path(), &mut at_terminal(&login, &program))
    };
    eventually("echo is off", || (!echoes(&person)).then_some(()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reading = {
        let (mut person, seen) = (person.try_clone().unwrap(), Arc::clone(&seen));
        thread::spawn(move || {
            let mut some = [0; 256];
            // An error is the end of the output: no process has the other end open.
            while let Ok(n @ 1..) = person.read(&mut some) {
                seen.lock().unwrap().extend(&some[..n]);
            }
        })
    };
    person.write_all(START).unwrap();
    let shown = || String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    eventually("the prompt", || {
        shown().contains("Password of admin").then_some(())
    });
    person
        .write_all(format!("{PASSWORD}\n").as_bytes())
        .unwrap();
    assert_eq!(login.code(), 0, "{}", login.stderr());
    assert!(
        login.stderr().contains("Logged in as admin"),
        "{}",
        login.stderr()
    );
    assert!(echoes(&person), "echo is restored");
    drop(program);
    reading.join().unwrap();
    assert!(!shown().contains(PASSWORD), "{}", shown());
}

/// Runs a role that gets this on stdin and can't start.
fn piped(command: &mut Command, input: &str) -> Done {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done {
        code: output.status.code().unwrap(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

#[test]
fn short_psk_is_refused_by_both_roles() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("key");
    let node_file = home.path().join("node.yaml");
    fs::write(
        &node_file,
        "orchestrator: {url: 'http://127.0.0.1:1', psk_file: key}\n",
    )
    .unwrap();
    let data_dir = home.path().join("data");
    let roles: [&[&str]; 2] = [
        &[
            "serve-orchestrator",
            "--gateway-listen=127.0.0.1:0",
            "--control-listen=127.0.0.1:0",
        ],
        &["node", "--orchestrator", "http://127.0.0.1:1"],
    ];
    for key in [
        "",
        " ",
        "\n",
        "fifteen letters",
        "fifteen letters\n",
        "                \n",
    ] {
        fs::write(&file, key).unwrap();
        for arguments in roles {
            let command = || {
                let mut command = role(home.path(), arguments[0], &data_dir);
                command
                    .args(&arguments[1..])
                    .env("CYNODE_CONFIG", "/dev/null");
                command
            };
            let path = file.to_str().unwrap();
            for done in [
                run(command().args(["--psk", key])),
                run(command().args(["--psk-file", path])),
                run(command().env("CYNODE_PSK_FILE", path)),
                run(command().env("CYNODE_PSK", key)),
                piped(command().args(["--psk-file", "-"]), key),
            ] {
                assert_eq!(done.code, 2, "{arguments:?} {key:?}: {done:?}");
                let says = done.stderr.contains("at least 16 characters")
                    || done.stderr.contains("is empty");
                assert!(says, "{arguments:?} {key:?}: {done:?}");
            }
        }
        let mut command = role(home.path(), "node", &data_dir);
        let done = run(command.arg("--config").arg(&node_file));
        assert_eq!(done.code, 2, "{key:?}: {done:?}");
    }
    // A file of the operator's at the path of a generated key.
    let keys = home.path().join("orchestrator/keys");
    fs::create_dir_all(&keys).unwrap();
    fs::write(keys.join("psk"), "fifteen letters\n").unwrap();
    let mut command = role(home.path(), roles[0][0], &home.path().join("orchestrator"));
    let done = run(command.args(&roles[0][1..]));
    assert_eq!(done.code, 8, "{done:?}");
    assert!(
        done.stderr.contains("keys/psk must have at least 16"),
        "{done:?}"
    );
}

#[test]
fn psk_as_argument_gives_warning() {
    let home = tempfile::tempdir().unwrap();
    for (name, more) in [
        ("serve-orchestrator", ["--control-listen", "192.0.2.1:1"]),
        ("node", ["--orchestrator", "no URL"]),
    ] {
        for (how, warned) in [("--psk", true), ("--psk-file", false)] {
            let key = if warned {
                PSK.to_owned()
            } else {
                crate::support::cluster::secret_file(home.path(), "psk", PSK)
            };
            let mut command = role(home.path(), name, &home.path().join(name));
            command
                .env("CYNODE_GATEWAY_LISTEN", "127.0.0.1:0")
                .env("CYNODE_CONFIG", "/dev/null")
                .args(more);
            let done = run(command.args([how, &key]));
            assert_ne!(done.code, 0, "{done:?}");
            let lines = done.stderr.lines();
            let said: Vec<_> = lines
                .filter(|line| line.contains("process's arguments"))
                .collect();
            assert_eq!(said.len(), usize::from(warned), "{done:?}");
            assert!(said.iter().all(|line| line.contains("WARN")), "{said:?}");
        }
    }
}

#[test]
fn readable_secret_file_gives_warning() {
    let home = tempfile::tempdir().unwrap();
    let file = crate::support::cluster::secret_file(home.path(), "psk", PSK);
    for (mode, warnings) in [(0o644, 1), (0o640, 1), (0o600, 0)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        for name in ["--psk-file", "CYNODE_PSK_FILE"] {
            let mut command = role(home.path(), "node", &home.path().join("node"));
            command
                .env("CYNODE_CONFIG", "/dev/null")
                .args(["--orchestrator", "no URL"]);
            let command = if name.starts_with("--") {
                command.args([name, &file])
            } else {
                command.env(name, &file)
            };
            let done = run(command);
            assert_ne!(done.code, 0, "{done:?}");
            let advice = format!("chmod 600 {file}");
            let lines = done.stderr.lines();
            let said: Vec<_> = lines.filter(|line| line.contains(&advice)).collect();
            assert_eq!(said.len(), warnings, "{name} {mode:o}: {done:?}");
            assert!(said.iter().all(|line| line.contains("WARN")), "{said:?}");
        }
    }
}

#[test]
fn printed_join_line_gives_no_warning() {
    let home = tempfile::tempdir().unwrap();
    let mut command = role(
        home.path(),
        "serve-orchestrator",
        &home.path().join("orchestrator"),
    );
    let listen = [
        "--gateway-listen",
        "127.0.0.1:0",
        "--control-listen",
        "127.0.0.1:0",
    ];
    command
        .args(listen)
        .env("CYNODE_REQUIRE_INFERENCE", "false");
    let mut orchestrator = Process::start("orchestrator", home.path(), &mut command);
    let line = eventually("the join line", || {
        orchestrator.assert_runs();
        let shown = orchestrator.stdout();
        let line = shown.lines().find(|line| line.contains("cynode node"))?;
        Some(line.trim().to_owned())
    });
    let plain = cynode(home.path());
    let mut node = Command::new("sh");
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => node.env(name, value),
            None => node.env_remove(name),
        };
    }
    // Runs in a shell with `cynode` in its path; `exec` keeps the pid.
    let (key, command) = line.split_once(" | ").unwrap();
    let input = home.path().join("input");
    let echo = Command::new("sh").args(["-c", key]).output().unwrap();
    fs::write(&input, echo.stdout).unwrap();
    let bin = home.path().join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(plain.get_program(), bin.join("cynode")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    node.args(["-c", &format!("exec {command}")])
        .stdin(File::open(input).unwrap())
        .current_dir(home.path())
        .env("PATH", path)
        .env("CYNODE_DATA_DIR", home.path().join("box"))
        .env("CYNODE_WORKER_LISTEN", "127.0.0.1:0")
        .env("CYNODE_INFERENCE", "off")
        .env("CYNODE_CONFIG", "/dev/null");
    let mut node = Process::start("node", home.path(), &mut node);
    eventually("the node takes jobs", || {
        node.assert_runs();
        node.stderr().contains("takes jobs").then_some(())
    });
    assert!(!node.stderr().contains("arguments"), "{}", node.stderr());
    assert_eq!(node.terminate(), 0);
    assert_eq!(orchestrator.terminate(), 0);
}
