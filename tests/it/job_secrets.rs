//! Secrets for jobs: given to the job that names them, masked in its output, and in no file, log or process of the host.

use crate::{
    sandbox::on_host,
    shims::last,
    support::{
        Api, Cluster, Orchestrator, Reply, Sandbox, Worker, eventually,
        process::{piped, run},
        stage::{Stage, well},
        uuid,
    },
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Value with characters that each encoding changes.
const VALUE: &str = "Swordfish/4711+ \"é\"~";

fn set(api: &Api, path: &str, value: &str) -> Reply {
    let path = format!("/v1/secrets/{path}");
    api.call("PUT", &path, &[], value.as_bytes())
}

fn remove(api: &Api, path: &str) -> Reply {
    api.call("DELETE", &format!("/v1/secrets/{path}"), &[], b"")
}

/// Forms in which the value could be somewhere.
fn forms() -> Vec<String> {
    let percent = |is_upper: bool| -> String {
        let encode = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'~' => char::from(byte).to_string(),
            byte if is_upper => format!("%{byte:02X}"),
            byte => format!("%{byte:02x}"),
        };
        VALUE.bytes().map(encode).collect()
    };
    let mut forms = vec![
        VALUE.to_owned(),
        VALUE.replace('"', "\\\""),
        percent(true),
        percent(false),
        "Swordfish".to_owned(),
    ];
    for before in 0..3 {
        let bytes = [&vec![b'x'; before][..], VALUE.as_bytes()].concat();
        for text in [STANDARD.encode(&bytes), URL_SAFE.encode(&bytes)] {
            // Without the characters that depend on the neighbours.
            forms.push(text[4..text.len() - 4].to_owned());
        }
    }
    forms
}

/// All files below a directory; some may go away meanwhile.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.flat_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        Ok(kind) if kind.is_file() => vec![entry.path()],
        _ => Vec::new(),
    });
    files.collect()
}

/// Fails where a file of the test holds the value in any form: data directories and logs of both roles.
#[track_caller]
fn assert_on_no_disk(cluster: &Cluster) {
    let forms = forms();
    let mut count = 0;
    for path in files(cluster.home()) {
        let content = fs::read(&path).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        let found = forms.iter().find(|form| content.contains(form.as_str()));
        assert_eq!(found, None, "{}", path.display());
        count += usize::from(!content.is_empty());
    }
    assert!(count > 5, "the files were found");
}

#[test]
fn secret_is_masked_and_on_no_disk() {
    let cluster = Cluster::start();
    let stored = set(&cluster.user, "TOKEN", VALUE).json(200);
    assert_eq!(
        (&stored["name"], &stored["shared"], &stored["set_by"]),
        (&json!("TOKEN"), &json!(false), &json!("admin"))
    );
    let script = "echo up; echo \"[$TOKEN]\"; printf %.5s \"$TOKEN\"; usleep 200000
        printf '%s\\n' \"${TOKEN#?????}\"; echo \"$API ${#API}\" >&2
        until [ -e go ]; do usleep 5000; done";
    let secrets = json!(["TOKEN", {"name": "TOKEN", "env": "API"}]);
    let task = cluster.create(&json!({"script": script, "secrets": secrets}));
    cluster.printed(&task, "[***]\n***\n");
    assert_eq!(on_host(VALUE), Vec::<PathBuf>::new());
    assert_on_no_disk(&cluster);
    fs::write(cluster.node.workspaces()[0].join("workspace/go"), "").unwrap();
    assert_eq!(cluster.finish(&task)["status"], "completed");
    let result = &cluster.result(&task)["jobs"][0]["result"];
    assert_eq!(result["stdout"], "up\n[***]\n***\n", "{result}");
    // The length of the variable in bytes or characters, as the shell counts.
    let stderr = result["stderr"].as_str().unwrap();
    assert!(["*** 20\n", "*** 21\n"].contains(&stderr), "{stderr}");
    assert_on_no_disk(&cluster);
}

#[test]
fn masking_can_be_turned_off() {
    let cluster = Cluster::start();
    set(&cluster.user, "TOKEN", "swordfish").expect(200);
    let script = "echo \"$TOKEN $(printf %s \"$TOKEN\" | wc -c)\"";
    for (mask, expected) in [(json!(true), "*** 9\n"), (json!(false), "swordfish 9\n")] {
        let task = json!({"script": script, "secrets": ["TOKEN"], "mask": mask});
        let task = cluster.create(&task);
        cluster.finish(&task);
        let result = &cluster.result(&task)["jobs"][0]["result"];
        assert_eq!(result["stdout"], expected);
    }
}

#[test]
fn unknown_secret_is_refused_with_next_step() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    set(&admin, "A", "swordfish").expect(200);
    for path in ["/v1/tasks", "/v1/sandboxes"] {
        let mut wanted = json!({"secrets": ["A", "MISSING"]});
        if path == "/v1/tasks" {
            wanted["script"] = json!("true");
        }
        let problem = admin.post(path, &wanted).problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], "#/secrets/1", "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("cynode secrets set MISSING"), "{detail}");
    }
    let prompt = json!({"prompt": "x", "secrets": ["A"]});
    admin.post("/v1/tasks", &prompt).expect(400);
    let twice = json!({"script": "x", "secrets": ["A"], "env": {"A": "b"}});
    admin.post("/v1/tasks", &twice).expect(400);
}

#[test]
fn secret_removed_meanwhile_ends_task() {
    let cluster = Cluster::start();
    set(&cluster.user, "TOKEN", "swordfish").expect(200);
    cluster.user.act("/v1/nodes/box/drain").expect(200);
    let task = cluster.create(&json!({"script": "echo $TOKEN", "secrets": ["TOKEN"]}));
    remove(&cluster.user, "TOKEN").expect(204);
    remove(&cluster.user, "TOKEN").problem(404, "not-found");
    cluster.user.act("/v1/nodes/box/resume").expect(200);
    assert_eq!(cluster.finish(&task)["status"], "failed");
    let jobs = cluster.result(&task)["jobs"].clone();
    assert!(
        jobs.to_string().contains("cynode secrets set TOKEN"),
        "{jobs}"
    );
    assert_eq!(jobs.as_array().unwrap().len(), 1, "{jobs}");
}

#[test]
fn new_value_counts_for_later_tasks() {
    let cluster = Cluster::start();
    for value in ["first value", "other value"] {
        set(&cluster.user, "TOKEN", value).expect(200);
        let task = json!({"script": "echo $TOKEN", "secrets": ["TOKEN"], "mask": false});
        let task = cluster.create(&task);
        cluster.finish(&task);
        let result = &cluster.result(&task)["jobs"][0]["result"];
        assert_eq!(result["stdout"], format!("{value}\n"));
    }
}

#[test]
fn only_admins_share_secrets() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let bob = orchestrator.add_user(&admin, "bob");
    set(&bob, "A?for=everyone", "x").problem(403, "forbidden");
    remove(&bob, "A?for=everyone").problem(403, "forbidden");
    set(&admin, "A?for=everyone", "swordfish").expect(200);
    set(&admin, "B", "swordfish").expect(200);
    set(&bob, "A?for=me", "swordfish").expect(200);
    set(&bob, "A?for=all", "x").problem(400, "invalid-request");
    let list = bob.get("/v1/secrets").json(200);
    let list: Vec<_> = list["secrets"].as_array().unwrap().iter().collect();
    let names = |secret: &&Value| (secret["name"].clone(), secret["shared"].clone());
    let names: Vec<_> = list.iter().map(names).collect();
    assert_eq!(
        names,
        [(json!("A"), json!(false)), (json!("A"), json!(true))]
    );
    assert!(!json!(list).to_string().contains("swordfish"));
    let task = json!({"script": "true", "secrets": ["B"]});
    bob.post("/v1/tasks", &task).expect(400);
    let log = admin.get("/v1/audit?action=secret.set").json(200);
    let log = log["events"].to_string();
    assert!(
        log.contains("for everyone") && !log.contains("swordfish"),
        "{log}"
    );
}

#[test]
fn names_and_values_are_checked() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    for name in ["a", "1A", "A-B", "%C3%84", &"A".repeat(65)] {
        let problem = set(&admin, name, "x").problem(400, "invalid-request");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("such as API_TOKEN"), "{detail}");
    }
    for value in ["", "a\0b"] {
        set(&admin, "A", value).problem(400, "invalid-request");
    }
    let longest = "x".repeat(64 * 1024);
    set(&admin, "A", &longest).expect(200);
    set(&admin, "A", &format!("{longest}x")).problem(413, "payload-too-large");
    set(&admin, "B", &longest).expect(200);
    set(&admin, "C", "x").expect(200);
    let task = json!({"script": "true", "secrets": ["A", "B", "C"]});
    let problem = admin
        .post("/v1/tasks", &task)
        .problem(400, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "#/secrets", "{problem}");
}

#[test]
fn scoped_keys_use_but_do_not_change_secrets() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    set(&admin, "A", "swordfish").expect(200);
    let key = json!({"name": "ci", "scopes": ["tasks"]});
    let key = admin.post("/v1/keys", &key).json(201);
    let program = orchestrator
        .gateway
        .with_token(key["key"].as_str().unwrap());
    let task = json!({"script": "true", "secrets": ["A"]});
    let task = program.post("/v1/tasks", &task).json(201);
    set(&program, "A", "x").problem(403, "forbidden");
    remove(&program, "A").problem(403, "forbidden");
    let log = admin.get("/v1/audit?action=secret.use").json(200);
    let event = &log["events"][0];
    assert_eq!(
        (&event["target"], &event["reason"]),
        (&task["id"], &json!("A")),
        "{log}"
    );
}

#[test]
fn key_is_rotated_and_values_stay() {
    let cluster = Cluster::start();
    let bob = cluster.orchestrator.add_user(&cluster.user, "bob");
    let file = cluster.orchestrator.data_dir.join("keys/secrets.key");
    assert!(!file.exists(), "the first secret makes it");
    set(&cluster.user, "A", "first value").expect(200);
    set(&cluster.user, "B?for=everyone", "other value").expect(200);
    let before = fs::read_to_string(&file).unwrap();
    bob.act("/v1/secrets:rotate-key").problem(403, "forbidden");
    let rotated = cluster.user.act("/v1/secrets:rotate-key").json(200);
    assert_eq!(
        (&rotated["secrets"], &rotated["unreadable"]),
        (&json!(2), &json!(0))
    );
    let after = fs::read_to_string(&file).unwrap();
    assert_eq!(after.lines().count(), 1);
    assert_ne!(before, after);
    let task = json!({"script": "echo $A $B", "secrets": ["A", "B"], "mask": false});
    let task = cluster.create(&task);
    cluster.finish(&task);
    let result = &cluster.result(&task)["jobs"][0]["result"];
    assert_eq!(result["stdout"], "first value other value\n");
}

#[test]
fn lost_key_is_said_with_next_step() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    set(&orchestrator.login(), "A", "swordfish").expect(200);
    let file = orchestrator.data_dir.join("keys/secrets.key");
    drop(orchestrator);
    fs::remove_file(&file).unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let task = json!({"script": "true", "secrets": ["A"]});
    let problem = admin.post("/v1/tasks", &task).problem(409, "conflict");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("cynode secrets set A"), "{detail}");
    let list = admin.get("/v1/secrets").json(200);
    assert_eq!(list["secrets"][0]["name"], "A");
    let rotated = admin.act("/v1/secrets:rotate-key").json(200);
    assert_eq!(rotated["unreadable"], 1);
    set(&admin, "A", "swordfish").expect(200);
    admin.post("/v1/tasks", &task).expect(201);
}

#[test]
fn execs_of_sandbox_get_secrets_masked() {
    let cluster = Cluster::start();
    set(&cluster.user, "TOKEN", VALUE).expect(200);
    let wanted = json!({"secrets": [{"name": "TOKEN", "env": "API"}]});
    let sandbox = Sandbox::create(&cluster.user, &wanted);
    let script = "echo \"$API\"; printf %.3s \"$API\"; usleep 100000; echo \"${API#???}\"";
    assert_eq!(sandbox.output(script), "***\n***\n");
    assert_eq!(sandbox.output("printf %.3s \"$API\""), "Swo");
    assert_on_no_disk(&cluster);
    // Held in the memory of the shim, whatever happens to the secret.
    remove(&cluster.user, "TOKEN").expect(204);
    assert_eq!(sandbox.output("echo \"$API\""), "***\n");
    sandbox.delete();
}

#[test]
fn node_without_feature_gets_no_secret() {
    let stage = Stage::set(|_, call, answer| well(call, answer));
    set(&stage.user, "A", "swordfish").expect(200);
    let id = stage.create(json!({"secrets": ["A"]}));
    let task = eventually("the task waits", || {
        let task = stage.user.get(&format!("/v1/tasks/{id}")).json(200);
        task["waiting_for"].is_string().then_some(task)
    });
    let reason = task["waiting_for"].as_str().unwrap();
    assert!(reason.contains("supports secrets"), "{reason}");
}

#[test]
fn secrets_lost_with_worker_are_asked_for_again() {
    let mut worker = Worker::start(&["--max-concurrency", "1"]);
    worker.run(&Worker::script("true"));
    worker.process.kill();
    // The state between accepting a job and starting its shim.
    let template = worker.spools().pop().unwrap();
    let (job, task) = (uuid(), uuid());
    let spool = template.with_file_name(format!("{job}-1"));
    fs::create_dir(&spool).unwrap();
    let accepted = fs::read_to_string(template.join("job.json")).unwrap();
    let mut accepted: Value = serde_json::from_str(&accepted).unwrap();
    (accepted["job_id"], accepted["task_id"]) = (json!(job), json!(task));
    fs::write(spool.join("job.json"), accepted.to_string()).unwrap();
    let secrets = json!([{"name": "A", "env": "A"}]);
    let request = Worker::script_with("echo $A", json!({"secrets": secrets}));
    fs::write(spool.join("request.json"), request["sandbox"].to_string()).unwrap();
    worker.start_again();
    let result = last(worker.attach(&json!({"job_id": job}), 0));
    assert_eq!(result["error"]["type"], "secrets-lost", "{result}");
}

#[test]
fn worker_takes_exactly_the_named_secrets() {
    let worker = Worker::start(&[]);
    let secrets = json!([{"name": "A", "env": "B"}]);
    let mut job = Worker::script_with("echo $B", json!({"secrets": secrets}));
    worker.send(&job).problem(400, "invalid-request");
    job["secrets"] = json!({"B": "swordfish", "C": "x"});
    let problem = worker.send(&job).problem(400, "invalid-request");
    assert!(!problem.to_string().contains("swordfish"), "{problem}");
    job["secrets"] = json!({"B": "swordfish"});
    assert_eq!(worker.run(&job)["stdout"], "***\n");
}

#[test]
fn command_line_stores_and_uses_secrets() {
    let cluster = Cluster::start();
    let stored = piped(
        &mut cluster.cli(&["secrets", "set", "TOKEN", "--from-file", "-"]),
        b"swordfish\n",
    );
    assert_eq!(stored.code, 0, "{stored:?}");
    assert!(stored.stderr.contains("--secret TOKEN"), "{stored:?}");
    let list = cluster.run(&["secrets", "list"]);
    assert!(
        list.stdout.contains("TOKEN") && list.stdout.contains("admin"),
        "{list:?}"
    );
    let script = "echo \"$API\" \"$(printf %s \"$API\" | wc -c)\"";
    let flags = ["run", "--secret", "TOKEN:API"];
    let command = ["--", "sh", "-c", script];
    let masked = cluster.run(&[&flags[..], &command].concat());
    assert_eq!(
        (masked.code, masked.stdout.as_str()),
        (0, "*** 9\n"),
        "{masked:?}"
    );
    let shown = cluster.run(&[&flags[..], &["--no-mask"], &command].concat());
    assert_eq!(shown.stdout, "swordfish 9\n", "{shown:?}");
    let unknown = cluster.run(&["run", "--secret", "NONE", "--", "true"]);
    assert!(
        unknown.stderr.contains("cynode secrets set NONE"),
        "{unknown:?}"
    );
    let argument = run(&mut cluster.cli(&["secrets", "set", "TOKEN", "swordfish"]));
    assert_ne!(argument.code, 0, "a value is never an argument");
    let rotated = cluster.run(&["secrets", "rotate-key"]);
    assert_eq!(rotated.code, 0, "{rotated:?}");
    let removed = cluster.run(&["secrets", "rm", "TOKEN"]);
    assert_eq!(
        (removed.code, removed.stdout.as_str()),
        (0, "TOKEN removed\n")
    );
    assert!(!cluster.run(&["secrets", "list"]).stdout.contains("TOKEN"));
}
