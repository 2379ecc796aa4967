//! Client commands: output on the right stream, exit codes that scripts can rely on, and errors
//! with advice.

use crate::support::{
    Cluster, Orchestrator, PASSWORD, Process,
    client::{client, fails},
    cluster::secret_file,
    cynode, eventually,
    process::run,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

/// Arguments, exit code and stdout.
const RUNS: [(&[&str], i32, &str); 8] = [
    (&["run", "--", "true"], 0, ""),
    (&["run", "echo", "--", "-n", "$HOME"], 0, "-- -n $HOME\n"),
    (
        &["run", "--env", "A=b=c d", "--", "sh", "-c", "echo \"$A\""],
        0,
        "b=c d\n",
    ),
    (
        &[
            "run",
            "--image",
            "localhost/cynode-test-env",
            "--",
            "sh",
            "-c",
            "echo $GREETING",
        ],
        0,
        "hi\n",
    ),
    (&["run", "--", "no-such-program"], 127, ""),
    (&["run", "--", "/etc/not-executable"], 126, ""),
    (&["run", "--", "sh", "-c", "kill -9 $$"], 137, ""),
    (
        &[
            "run",
            "--timeout",
            "1s",
            "--",
            "sh",
            "-c",
            "echo before; sleep 1000",
        ],
        124,
        "before\n",
    ),
];

#[test]
fn run_is_as_if_the_command_ran_here() {
    let cluster = Cluster::start();
    let done = cluster.run(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!(
        (done.code, done.stdout.as_str(), done.stderr.as_str()),
        (5, "out\n", "err\n")
    );
    for (arguments, code, stdout) in RUNS {
        let done = cluster.run(arguments);
        assert_eq!(
            (done.code, done.stdout.as_str()),
            (code, stdout),
            "{arguments:?}: {}",
            done.stderr
        );
    }
    let missing = cluster.run(&["run", "--image", "localhost/cynode-not-there", "--", "true"]);
    assert_eq!((missing.code, missing.stdout.as_str()), (125, ""));
    assert!(missing.stderr.contains("image-not-found"), "{missing:?}");

    let done = cluster.run(&[
        "run",
        "--output",
        "json",
        "--",
        "sh",
        "-c",
        "echo out; exit 3",
    ]);
    assert_eq!(done.code, 3);
    let result: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(result["jobs"][0]["result_object"]["stdout"], "out\n");
}

#[test]
fn run_streams_output_and_ctrl_c_cancels() {
    let cluster = Cluster::start();
    for signal in [Signal::INT, Signal::TERM] {
        let mut client = cluster.spawn(&["run", "--", "sh", "-c", "echo up; sleep 1000"]);
        eventually("its output is here", || {
            (client.stdout() == "up\n").then_some(())
        });
        client.signal(signal);
        assert_eq!(client.code(), 130);
        cluster.node.assert_clean();
        let tasks = cluster.user.get("/v1/tasks?limit=1").json(200);
        assert_eq!(tasks["tasks"][0]["status"], "canceled");
    }
}

/// Standard output of a command that succeeds without a word on stderr.
#[track_caller]
fn line(cluster: &Cluster, arguments: &[&str]) -> String {
    let done = cluster.run(arguments);
    assert_eq!(
        (done.code, done.stderr.as_str()),
        (0, ""),
        "{arguments:?}: {done:?}"
    );
    done.stdout.trim().to_owned()
}

#[track_caller]
fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    let all = [arguments, &["--output", "json"]].concat();
    serde_json::from_str(&line(cluster, &all)).unwrap()
}

/// Fails unless the log of the task, followed as JSON, has its output and its end.
#[track_caller]
fn assert_followed(cluster: &Cluster, id: &str) {
    let followed = cluster.run(&["task", "logs", "--follow", id, "--output", "json"]);
    let events = followed.stdout.lines();
    let events: Vec<Value> = events
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |name: &str| events.iter().find(|event| event["event"] == name).unwrap();
    assert_eq!(
        (&of("stdout")["data"], &of("stderr")["data"]),
        (&json!("out\n"), &json!("err\n"))
    );
    assert_eq!(events.last().unwrap()["exit_code"], 6, "{followed:?}");
    assert_eq!((followed.code, followed.stderr.as_str()), (0, ""));
}

#[test]
fn tasks_are_created_listed_read_and_canceled() {
    let cluster = Cluster::start();
    let line = |arguments: &[&str]| line(&cluster, arguments);
    let json = |arguments: &[&str]| json(&cluster, arguments);
    let detached = line(&[
        "run",
        "--detach",
        "--name",
        "mine",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 6",
    ]);
    let waited = cluster.run(&["task", "wait", &detached]);
    assert_eq!((waited.code, waited.stdout.as_str()), (6, ""));
    for command in [&["task", "logs"][..], &["task", "logs", "--follow"]] {
        let logs = cluster.run(&[command, &[&detached]].concat());
        assert_eq!(
            (logs.code, logs.stdout.as_str(), logs.stderr.as_str()),
            (0, "out\n", "err\n")
        );
    }
    assert_eq!(json(&["task", "get", &detached])["exit_code"], 6);
    assert_eq!(json(&["task", "show", &detached])["exit_code"], 6);
    assert_eq!(
        json(&["task", "result", &detached])["jobs"][0]["result_object"]["stdout"],
        "out\n"
    );
    assert_eq!(
        json(&["task", "list", "--name", "mine"])["tasks"][0]["id"],
        json!(detached)
    );
    assert_eq!(
        json(&["task", "list", "--status", "queued"])["tasks"],
        json!([])
    );
    assert_eq!(json(&["task", "logs", &detached])["stderr"], "err\n");
    assert_followed(&cluster, &detached);
    for shown in [
        line(&["task", "list"]),
        line(&["task", "get", &detached]),
        line(&["task", "result", &detached]),
    ] {
        assert!(
            shown.contains("failed") && !shown.contains('\u{1b}'),
            "{shown}"
        );
    }

    let waiting = line(&[
        "task",
        "create",
        "--label",
        "nowhere",
        "--script",
        "echo never",
    ]);
    assert_eq!(line(&["task", "cancel", &waiting]), "canceled");
    assert_eq!(cluster.run(&["task", "wait", &waiting]).code, 130);
    assert_eq!(json(&["task", "cancel", &detached])["canceled"], false);

    assert!(line(&["status"]).contains("box"));
    assert!(line(&["nodes", "list"]).contains("ready"));
    line(&["nodes", "drain", "box"]);
    assert_eq!(json(&["nodes", "show", "box"])["status"], "draining");
    line(&["nodes", "resume", "box"]);
    assert_eq!(json(&["nodes", "list"])["nodes"][0]["status"], "ready");
}

#[test]
fn login_lasts_until_logout() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let url = orchestrator.gateway_url.as_str();
    let run_here = |arguments: &[&str]| run(&mut client(home.path(), url, arguments));
    fails(&run_here(&["whoami"]), 3, "cynode login");
    let wrong = run(client(home.path(), url, &["login"]).env("CYNODE_PASSWORD", "wrong"));
    fails(&wrong, 3, "password");
    fails(&run_here(&["login"]), 2, "--password-file");

    let file = secret_file(home.path(), "password", PASSWORD);
    let done = run_here(&["login", "--handle", "admin", "--password-file", &file]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    let credentials = home.path().join("config/cynode/credentials.json");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&credentials), mode(credentials.parent().unwrap())),
        (0o600, 0o700)
    );
    assert!(run_here(&["whoami"]).stdout.contains("admin"));
    // The default is the gateway of the last login.
    let done = run(cynode(home.path()).args(["whoami", "--output", "json"]));
    assert_eq!(
        serde_json::from_str::<Value>(&done.stdout).unwrap()["handle"],
        "admin"
    );

    // An expired access token is refreshed once, by one of several processes.
    let mut stored: Value = serde_json::from_slice(&fs::read(&credentials).unwrap()).unwrap();
    let token = stored["logins"][url]["access_token"]
        .as_str()
        .unwrap()
        .to_owned();
    stored["logins"][url]["access_token"] = json!(format!("{token}x"));
    fs::write(&credentials, stored.to_string()).unwrap();
    let mut several: Vec<Process> = (0..5)
        .map(|_| {
            Process::start(
                "whoami",
                home.path(),
                &mut client(home.path(), url, &["whoami"]),
            )
        })
        .collect();
    let codes: Vec<i32> = several.iter_mut().map(Process::code).collect();
    assert_eq!(codes, [0; 5], "{}", several[0].stderr());
    assert_eq!(mode(&credentials), 0o600);

    assert_eq!(run_here(&["logout"]).code, 0);
    fails(&run_here(&["whoami"]), 3, "cynode login");
    assert_eq!(
        orchestrator
            .gateway
            .with_token(&token)
            .get("/v1/users/me")
            .status,
        401
    );
    let with_token = run(
        client(home.path(), url, &["whoami"]).env("CYNODE_TOKEN", orchestrator.login().token())
    );
    assert!(with_token.stdout.contains("admin"), "{with_token:?}");
    let older = run(cynode(home.path())
        .arg("whoami")
        .env("CYNORK_GATEWAY_URL", url)
        .env("CYNORK_TOKEN", orchestrator.login().token()));
    assert!(older.stdout.contains("admin"), "{older:?}");
}

#[test]
fn token_variable_leaves_stored_login_alone() {
    let cluster = Cluster::start();
    let password = secret_file(cluster.home(), "password", PASSWORD);
    let gateway = ["--gateway-url", &cluster.orchestrator.gateway_url];
    let plain = |arguments: &[&str]| run(cynode(cluster.home()).args(arguments).args(gateway));
    assert_eq!(plain(&["login", "--password-file", &password]).code, 0);
    assert_eq!(cluster.run(&["logout"]).code, 0);
    cluster
        .user
        .get("/v1/users/me")
        .problem(401, "unauthorized");
    assert_eq!(plain(&["whoami"]).code, 0, "the other session continues");
    let dead = cluster.run(&["whoami"]);
    assert_eq!(dead.code, 3);
    assert!(dead.stderr.contains("CYNODE_TOKEN"), "{dead:?}");
}
