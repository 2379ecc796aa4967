//! Input of a command in its sandbox, its end, and its output.

use crate::support::{
    IMAGE, Worker,
    image::{ENTRYPOINT_IMAGE, ENV_IMAGE, USER_IMAGE, podman},
    worker::printed,
};
use serde_json::{Value, json};

#[test]
fn every_job_end_is_reported_exactly() {
    let worker = Worker::start(&[]);
    let cases: [(&[&str], &str, i32); 10] = [
        (&["true"], "completed", 0),
        (&["sh", "-c", "exit 7"], "failed", 7),
        (&["no-such-program"], "failed", 127),
        (&["/no/such/program"], "failed", 127),
        (&["/etc/not-executable"], "failed", 126),
        (&["/etc"], "failed", 126),
        (&["sh", "-c", "kill -9 $$"], "failed", 137),
        (&["sh", "-c", "kill -TERM $$"], "failed", 143),
        // A remaining child that holds the pipes does not delay the end.
        (&["sh", "-c", "sleep 1000 & exit 3"], "failed", 3),
        // Neither does a flood of output.
        (
            &[
                "sh",
                "-c",
                "yes | head -c 5000000; yes | head -c 5000000 >&2; exit 4",
            ],
            "failed",
            4,
        ),
    ];
    for (command, status, code) in cases {
        let result = worker.run(&Worker::job(command));
        assert_eq!(
            (&result["status"], &result["exit_code"]),
            (&json!(status), &json!(code)),
            "{command:?}: {:.300}",
            result.to_string()
        );
        assert_eq!(result.get("error"), None, "{command:?}");
    }
}

#[test]
fn head_and_tail_kept_invalid_utf8_replaced() {
    let worker = Worker::start(&[]);
    let cut = worker.run(&Worker::script(
        "printf x; for i in 1 2 3 4 5 6 7 8 9 10; do yes é | head -n 20000 | tr -d '\\n'; done; echo more; echo all >&2",
    ));
    let kept = cut["stdout"].as_str().unwrap();
    let (head, rest) = kept.split_once("\n[... ").unwrap();
    let (missing, tail) = rest
        .split_once(" bytes omitted; see the log of the task ...]\n")
        .unwrap();
    assert_eq!(
        head.len(),
        65_535,
        "cut before the character that doesn't fit"
    );
    assert!((245_000..=262_144).contains(&kept.len()), "{}", kept.len());
    assert!(tail.starts_with('é') && tail.ends_with("émore\n"));
    let missing: usize = missing.parse().unwrap();
    assert_eq!(head.len() + missing + tail.len(), 400_006);
    assert_eq!(
        (&cut["truncated"], &cut["stderr"]),
        (&json!({"stdout": true, "stderr": false}), &json!("all\n"))
    );
    let fits = worker.run(&Worker::script("head -c 262144 /dev/zero | tr '\\0' y >&2"));
    assert_eq!(fits["stderr"].as_str().unwrap().len(), 262_144);
    assert_eq!(fits["truncated"], json!({"stdout": false, "stderr": false}));

    // A reader of the events gets all of it.
    let long = Worker::script("head -c 300000 /dev/zero | tr '\\0' z; echo all >&2");
    let events: Vec<Value> = worker.follow(&long, 0).collect();
    assert_eq!(printed(&events, "stdout").len(), 300_000);
    assert_eq!(printed(&events, "stderr"), "all\n");
    assert!(events.iter().all(|event| event["event"] != "gap"));
    let last = events.last().unwrap();
    assert!(last["stdout"].as_str().unwrap().len() <= 262_144);
    assert_eq!(last["truncated"], json!({"stdout": true, "stderr": false}));

    for (bytes, kept) in [
        ("a\\377b", "a\u{FFFD}b"),
        ("\\303\\251", "é"),
        ("x\\303", "x\u{FFFD}"),
        ("a\\000b", "a\0b"),
    ] {
        let result = worker.run(&Worker::script(&format!("printf '{bytes}'")));
        assert_eq!(result["stdout"], kept, "{bytes}");
    }
}

#[test]
fn timeout_ends_job_and_keeps_output() {
    let worker = Worker::start(&[]);
    let script = "trap '' TERM INT; echo before; echo trouble >&2; sleep 1000; echo after";
    let result = worker.run(&Worker::script_with(script, json!({"timeout_seconds": 1})));
    assert_eq!(result["status"], "timeout");
    assert_eq!(result.get("exit_code"), None);
    assert_eq!(
        (&result["stdout"], &result["stderr"]),
        (&json!("before\n"), &json!("trouble\n"))
    );
    for (asked, enforced) in [
        (json!(1), 1),
        (json!(10_800), 10_800),
        (json!(999_999), 10_800),
        (Value::Null, 3600),
    ] {
        let result = worker.run(&Worker::script_with(
            "true",
            json!({"timeout_seconds": asked}),
        ));
        assert_eq!(
            result["effective"]["timeout_seconds"], enforced,
            "asked for {asked}"
        );
    }
}

#[test]
fn command_gets_only_requested_environment() {
    let worker = Worker::start(&[]);
    let arguments = [
        "printf",
        "[%s]",
        "a b",
        "",
        "$HOME",
        "line\nline",
        "é\"'\\",
        "-n",
    ];
    assert_eq!(
        worker.run(&Worker::job(&arguments))["stdout"],
        "[a b][][$HOME][line\nline][é\"'\\][-n]"
    );

    let value = "line 1\nline 2 \"quoted\" 'single' $HOME \\ é =";
    let env = json!({"VALUE": value, "EMPTY": "", "_x1": "y", "CYNODE_PROMPT": "hi"});
    let result = worker.run(&Worker::script_with(
        "printf '%s|%s|%s|%s' \"$VALUE\" \"${EMPTY-unset}\" \"$_x1\" \"$CYNODE_PROMPT\"",
        json!({"env": env}),
    ));
    assert_eq!(result["stdout"], format!("{value}||y|hi"));

    let job = Worker::script(
        "echo $CYNODE_TASK_ID $CYNODE_JOB_ID $CYNODE_WORKSPACE_DIR; pwd; cat; ls -A",
    );
    let (task, id) = (
        job["task_id"].as_str().unwrap(),
        job["job_id"].as_str().unwrap(),
    );
    let printed = worker.run(&job)["stdout"].as_str().unwrap().to_owned();
    assert_eq!(
        printed,
        format!("{task} {id} /workspace\n/workspace\nartifacts\n")
    );

    let result = worker.run(&Worker::job(&["true"]));
    let image_id = podman(&["image", "inspect", "--format={{.Id}}", IMAGE]).unwrap();
    let effective = &result["effective"];
    assert_eq!(
        (&effective["image_id"], &effective["network"]),
        (&json!(image_id.trim()), &json!("none"))
    );
    assert!(
        effective["runtime"]
            .as_str()
            .is_some_and(|runtime| !runtime.is_empty()),
        "{effective}"
    );
}

#[test]
fn image_env_and_user_apply_entrypoint_does_not() {
    let worker = Worker::start(&[]);
    let run = |script: &str, changes: Value| worker.run(&Worker::script_with(script, changes));
    let result = run(
        "echo $GREETING $PATH; exec echo hidden",
        json!({"image": ENV_IMAGE}),
    );
    assert_eq!(result["stdout"], "hi /opt/tools:/bin\nhidden\n");
    let result = run(
        "echo $GREETING",
        json!({"image": ENV_IMAGE, "env": {"GREETING": "hello"}}),
    );
    assert_eq!(result["stdout"], "hello\n", "the job's own value wins");
    let result = run("echo ran", json!({"image": ENTRYPOINT_IMAGE}));
    assert_eq!(
        (&result["status"], &result["stdout"]),
        (&json!("completed"), &json!("ran\n"))
    );
    for (image, uid) in [(IMAGE, "0"), (USER_IMAGE, "1000")] {
        let script = "id -u; touch file && mkdir dir && touch dir/file && stat -c %u file && mv dir gone && rm -r gone";
        let result = run(script, json!({"image": image}));
        assert_eq!(
            (&result["stdout"], &result["exit_code"]),
            (&json!(format!("{uid}\n{uid}\n")), &json!(0)),
            "{result}"
        );
    }
    let link = "localhost/cynode-test";
    assert_eq!(
        run("true", json!({"image": link}))["status"],
        "completed",
        "without a tag it is :latest"
    );
}

#[test]
fn unavailable_image_is_reported_without_run() {
    let worker = Worker::start(&[
        "--allowed-image",
        "localhost/cynode-*",
        "--allowed-image",
        "127.0.0.1:1/*",
    ]);
    let cases = [
        ("localhost/other:latest", "image-not-allowed"),
        ("alpine", "image-not-allowed"),
        ("localhost/cynode-not-there:1", "image-not-found"),
        ("127.0.0.1:1/nobody/answers", "image-pull-failed"),
    ];
    for (image, kind) in cases {
        let result = worker.run(&Worker::script_with("true", json!({"image": image})));
        assert_eq!(
            (&result["status"], &result["error"]["type"]),
            (&json!("failed"), &json!(kind)),
            "{image}: {result}"
        );
        assert!(
            result["error"]["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
        assert_eq!(
            (result.get("exit_code"), result.get("effective")),
            (None, None),
            "{image}"
        );
    }
    assert_eq!(worker.run(&Worker::job(&["true"]))["status"], "completed");
}
