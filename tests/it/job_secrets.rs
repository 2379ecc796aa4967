//! Secrets in jobs: given to the job that names them, masked in its output, and in no file, log or process of the host.

use crate::{
    sandbox::on_host,
    shims::last,
    stored_secrets::{remove, set},
    support::{
        Cluster, Sandbox, Worker, eventually,
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
pub(crate) const VALUE: &str = "Swordfish/4711+ \"é\"~";

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
pub(crate) fn assert_on_no_disk(cluster: &Cluster) {
    let forms = forms();
    let mut count = 0;
    for path in files(cluster.home()) {
        // The largest is the program itself.
        if fs::metadata(&path).is_ok_and(|file| file.len() > 16 << 20) {
            continue;
        }
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
    let result = &cluster.result(&task)["jobs"][0]["result_object"];
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
        let result = &cluster.result(&task)["jobs"][0]["result_object"];
        assert_eq!(result["stdout"], expected);
    }
}

#[test]
fn secret_removed_meanwhile_ends_task() {
    let cluster = Cluster::start();
    set(&cluster.user, "TOKEN", "swordfish").expect(200);
    cluster.user.act("/v1/nodes/box/drain").expect(204);
    let task = cluster.create(&json!({"script": "echo $TOKEN", "secrets": ["TOKEN"]}));
    remove(&cluster.user, "TOKEN").expect(204);
    remove(&cluster.user, "TOKEN").problem(404, "not-found");
    cluster.user.act("/v1/nodes/box/resume").expect(204);
    let ended = cluster.finish(&task);
    assert_eq!(ended["status"], "failed", "{ended}");
    let summary = ended["summary"].as_str().unwrap();
    assert!(summary.contains("cynode secrets set TOKEN"), "{summary}");
    let jobs = cluster.result(&task)["jobs"].clone();
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
        let result = &cluster.result(&task)["jobs"][0]["result_object"];
        assert_eq!(result["stdout"], format!("{value}\n"));
    }
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
