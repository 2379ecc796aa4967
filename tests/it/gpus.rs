//! Graphics processors of jobs. The devices are made for the tests: a vendor's tool that names two, and a description
//! (CDI) by which podman passes harmless device files for them.

use crate::support::{
    Worker, eventually, exposition::Exposition, podman_host::is_root, process::with_tool,
};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

/// Prints the devices and variables of a job.
const SHOW: &str =
    "ls /dev | grep nvidia | tr '\\n' ' '; env | grep -E 'GPU|VISIBLE' | sort | tr '\\n' ' '";

/// Two cards, as `nvidia-smi` prints them.
const CARDS: &str = "GPU-aaaa, 24576, 535.0, 00000000:01:00.0, 8.6, Test Card\n\
    GPU-bbbb, 24576, 535.0, 00000000:02:00.0, 8.6, Test Card\n";

/// Description of these devices.
fn cdi() -> Value {
    let device = |name: &str, host: &str, minor: u32| {
        json!({"name": name, "containerEdits": {
            "env": [format!("GPU_GIVEN_{name}=yes")],
            "deviceNodes": [
                {"path": format!("/dev/nvidia{name}"), "hostPath": host, "type": "c", "major": 1, "minor": minor},
            ],
        }})
    };
    json!({
        "cdiVersion": "0.5.0", "kind": "nvidia.com/gpu",
        "devices": [device("0", "/dev/null", 3), device("1", "/dev/zero", 5)],
    })
}

/// A worker on a machine with two cards; `has_description` where podman knows them. None for a plain user, who can't
/// have a mount namespace.
fn worker(home: &TempDir, has_description: bool) -> Option<Worker> {
    if !is_root() {
        eprintln!("not tried: only root has a mount namespace of its own");
        return None;
    }
    let cards = home.path().join("cards");
    fs::write(&cards, CARDS).unwrap();
    let path = with_tool(
        home.path(),
        "nvidia-smi",
        &format!("cat {}", cards.display()),
    );
    fs::write(home.path().join("test.json"), cdi().to_string()).unwrap();
    let place = home.path().display();
    let copied = if has_description {
        format!("cp {place}/test.json {place}/etc/cdi/")
    } else {
        "true".to_owned()
    };
    let script = format!(
        "[ -d {place}/etc ] || {{ cp -a /etc {place}/etc; rm -rf {place}/etc/cdi; mkdir {place}/etc/cdi; {copied}; }}; \
         mount --bind {place}/etc /etc; export PATH={path}"
    );
    Some(Worker::start_in_namespace(&[], &script))
}

fn with_gpus(script: &str, gpus: Value) -> Value {
    Worker::script_with(script, json!({"gpus": gpus}))
}

/// A job with these devices that runs until it is canceled.
fn holder(worker: &Worker, gpus: Value) -> (Value, impl Iterator<Item = Value> + use<>) {
    let job = with_gpus("echo on; sleep 1000", gpus);
    let mut events = worker.follow(&job, 0);
    assert!(events.any(|event| event["data"] == "on\n"), "the job runs");
    (job, events)
}

fn end(worker: &Worker, (job, events): (Value, impl Iterator<Item = Value>)) {
    worker.send_cancel(&job);
    assert_eq!(events.last().unwrap()["status"], "canceled");
}

#[test]
fn job_gets_its_devices_and_no_others() {
    let home = tempfile::tempdir().unwrap();
    let Some(worker) = worker(&home, true) else {
        return;
    };
    for (gpus, devices, ids) in [
        (
            json!(["1"]),
            "nvidia1 GPU_GIVEN_1=yes NVIDIA_VISIBLE_DEVICES=1 ",
            json!(["1"]),
        ),
        (
            json!(["GPU-aaaa"]),
            "nvidia0 GPU_GIVEN_0=yes NVIDIA_VISIBLE_DEVICES=0 ",
            json!(["0"]),
        ),
        (
            json!("all"),
            "nvidia0 nvidia1 GPU_GIVEN_0=yes GPU_GIVEN_1=yes NVIDIA_VISIBLE_DEVICES=0,1 ",
            json!(["0", "1"]),
        ),
    ] {
        let result = worker.run(&with_gpus(SHOW, gpus));
        assert_eq!(result["stdout"], devices, "{result}");
        assert_eq!(result["effective"]["gpus"], ids, "{result}");
    }
    let result = worker.run(&Worker::script(SHOW));
    assert_eq!(result["stdout"], "", "no devices unasked: {result}");
    let own = json!({"gpus": 1, "env": {"NVIDIA_VISIBLE_DEVICES": "all"}});
    let refused = worker.send(&Worker::script_with("true", own));
    let problem = refused.problem(400, "invalid-request");
    assert!(
        problem.to_string().contains("NVIDIA_VISIBLE_DEVICES"),
        "{problem}"
    );
    worker.assert_clean();
}

#[test]
fn devices_are_exclusive_until_end() {
    let home = tempfile::tempdir().unwrap();
    let Some(mut worker) = worker(&home, true) else {
        return;
    };
    let first = holder(&worker, json!(1));
    let second = holder(&worker, json!(["1"]));
    for gpus in [json!(1), json!("all"), json!(["0"])] {
        let refused = worker.send(&with_gpus("true", gpus));
        refused.problem(429, "gpus-busy");
        assert!(refused.header("retry-after").is_some());
    }
    assert_eq!(worker.run(&Worker::script("echo on"))["stdout"], "on\n");
    let metrics = Exposition::of(&worker.api);
    assert_eq!(
        (
            metrics.value("cynode_gpus"),
            metrics.value("cynode_gpus_busy")
        ),
        (2.0, 2.0)
    );
    worker.restart();
    worker
        .send(&with_gpus("true", json!(1)))
        .problem(429, "gpus-busy");
    worker.send_cancel(&second.0);
    let result = eventually("a device is free", || {
        let reply = worker.send(&with_gpus(SHOW, json!(1)));
        (reply.status == 200).then(|| reply.json(200))
    });
    assert_eq!(result["effective"]["gpus"], json!(["1"]), "{result}");
    worker.send_cancel(&first.0);
    eventually("all are free", || {
        (Exposition::of(&worker.api).value("cynode_gpus_busy") == 0.0).then_some(())
    });
    worker.assert_clean();
}

#[test]
fn replaced_attempt_yields_its_devices() {
    let home = tempfile::tempdir().unwrap();
    let Some(worker) = worker(&home, true) else {
        return;
    };
    let (job, events) = holder(&worker, json!("all"));
    let mut again = job.clone();
    again["attempt"] = json!(2);
    let mut next = worker.follow(&again, 0);
    assert!(
        next.any(|event| event["data"] == "on\n"),
        "the next attempt runs"
    );
    drop(events);
    end(&worker, (again, next));
}

#[test]
fn missing_devices_are_refused_with_reason() {
    let home = tempfile::tempdir().unwrap();
    let Some(worker) = worker(&home, true) else {
        return;
    };
    for (gpus, text) in [
        (json!(3), "has 2 for jobs: 0, 1"),
        (json!(["7"]), "the GPU 7"),
    ] {
        let result = worker.run(&with_gpus("true", gpus));
        assert_eq!(result["error"]["type"], "gpu-unavailable", "{result}");
        let message = result["error"]["message"].as_str().unwrap();
        assert!(
            message.contains(text) && message.contains("another node"),
            "{message}"
        );
    }
}

#[test]
fn undescribed_devices_are_not_offered() {
    let home = tempfile::tempdir().unwrap();
    let Some(worker) = worker(&home, false) else {
        return;
    };
    let result = worker.run(&with_gpus("true", json!(1)));
    let message = result["error"]["message"].as_str().unwrap();
    assert!(message.contains("cynode doctor"), "{result}");
    let log = worker.process.stderr();
    assert!(log.contains("GPU can't be passed to a container"), "{log}");
    assert_eq!(Exposition::of(&worker.api).value("cynode_gpus"), 0.0);
}
