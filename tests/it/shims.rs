//! Survival of a job: it goes on when its worker dies, and ends as lost when its shim does.
//! Its output and its result are kept until they are fetched.

use crate::support::{
    Worker, eventually, eventually_eq,
    image::podman,
    server::{kill, processes},
    uuid,
    worker::printed,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, io::Read as _, os::unix::net::UnixStream};

/// Script that prints, waits for [`release`], and prints again.
pub(crate) const WAITING: &str =
    "echo before; until [ -e go ]; do usleep 5000; done; echo after; exit 3";

/// Sends a job and waits until it has printed.
pub(crate) fn start_job(worker: &Worker, script: &str) -> Value {
    let job = Worker::script(script);
    assert!(
        worker
            .follow(&job, 0)
            .any(|event| event["data"] == "before\n")
    );
    job
}

pub(crate) fn release(worker: &Worker) {
    fs::write(worker.workspaces()[0].join("workspace/go"), "").unwrap();
}

pub(crate) fn last(events: impl Iterator<Item = Value>) -> Value {
    events.last().unwrap()
}

/// Processes of podman that run a worker's containers.
fn podman_clients(worker: &Worker) -> Vec<i32> {
    let label = format!("--label=io.cynode.node={}", worker.node_uuid());
    processes(|arguments| arguments[0].ends_with("podman") && arguments.contains(&label.as_str()))
}

#[test]
fn job_outlives_its_worker() {
    let mut worker = Worker::start(&[]);
    let job = start_job(&worker, WAITING);
    let container = worker.containers();
    assert_eq!(container.len(), 1);

    worker.restart();
    let state = worker.api.get(&Worker::path(&job)).json(200);
    assert_eq!(state["status"], "running");
    assert_eq!(worker.containers(), container, "the same command continues");
    release(&worker);
    let events: Vec<Value> = worker.follow(&job, 0).collect();
    assert_eq!(printed(&events, "stdout"), "before\nafter\n");
    let result = events.last().unwrap();
    assert_eq!(
        (&result["status"], &result["exit_code"], &result["attempt"]),
        (&json!("failed"), &json!(3), &json!(1))
    );
    worker.assert_clean();

    // The result is known from then on, after restarts, and by its request.
    worker.restart();
    assert_eq!(&last(worker.attach(&job, 0)), result);
    assert_eq!(&last(worker.follow(&job, 0)), result);
    let mut other = job.clone();
    other["sandbox"]["command"] = json!(["true"]);
    worker.send(&other).problem(409, "conflict");
    worker.forget(&job);
    assert!(worker.spools().is_empty());
    worker.restart();
    worker.send(&job).problem(409, "job-already-finished");
    worker.forget(&job);
    worker
        .api
        .get(&Worker::path(&job))
        .problem(404, "not-found");
}

#[test]
fn job_can_end_while_worker_is_down() {
    let mut worker = Worker::start(&[]);
    let job = start_job(&worker, WAITING);
    worker.process.kill();
    release(&worker);
    eventually("the shim has removed its container", || {
        (worker.shims().is_empty() && worker.workspaces().is_empty()).then_some(())
    });
    assert!(worker.containers().is_empty());
    worker.start_again();
    let events: Vec<Value> = worker.attach(&job, 0).collect();
    assert_eq!(printed(&events, "stdout"), "before\nafter\n");
    assert_eq!(events.last().unwrap()["exit_code"], 3);
}

#[test]
fn job_of_earlier_process_can_be_canceled() {
    let mut worker = Worker::start(&[]);
    let job = start_job(&worker, "trap '' TERM; echo before; sleep 1000");
    worker.restart();
    let cancel = format!("{}:cancel", Worker::path(&job));
    worker.api.act(&cancel).json(200);
    let result = last(worker.attach(&job, 0));
    assert_eq!(result["status"], "canceled");
    assert_eq!(result["stdout"], "before\n");
}

#[test]
fn higher_attempt_replaces_one_from_before_restart() {
    let mut worker = Worker::start(&[]);
    let mut job = start_job(&worker, "echo before; sleep 1000");
    worker.restart();
    job["attempt"] = json!(2);
    let mut second = worker.follow(&job, 0);
    assert!(second.any(|event| event["data"] == "before\n"));
    eventually_eq("the first attempt is gone", 1, || worker.containers().len());
    eventually_eq("and all its processes are gone", 1, || {
        worker.spools().len()
    });
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(&job)))
        .json(200);
    assert_eq!(second.last().unwrap()["status"], "canceled");
}

#[test]
fn job_without_shim_is_lost_output_kept() {
    let worker = Worker::start(&[]);
    let job = start_job(&worker, "echo before; sleep 1000");
    let shims = worker.shims();
    assert_eq!(shims.len(), 1);
    kill(shims[0], Signal::KILL);
    let result = last(worker.attach(&job, 0));
    assert_eq!(
        (
            &result["status"],
            &result["error"]["type"],
            &result["stdout"]
        ),
        (&json!("failed"), &json!("lost"), &json!("before\n")),
        "{result}"
    );
    assert_eq!(result.get("exit_code"), None);
    assert!(result["started_at"].as_str() < result["ended_at"].as_str());
    worker.assert_clean();
    assert_eq!(
        last(worker.follow(&job, 0)),
        result,
        "the job is not run again"
    );
}

#[test]
fn shim_and_worker_killed_together_leave_nothing() {
    let mut worker = Worker::start(&[]);
    let job = start_job(&worker, "echo before; sleep 1000");
    worker.process.kill();
    kill(worker.shims()[0], Signal::KILL);
    worker.start_again();
    let result = last(worker.attach(&job, 0));
    assert_eq!(result["error"]["type"], "lost");
    assert_eq!(result["stdout"], "before\n");
    worker.assert_clean();
}

#[test]
fn no_podman_waits_for_a_job() {
    let worker = Worker::start(&[]);
    let job = start_job(&worker, WAITING);
    eventually("podman has ended", || {
        podman_clients(&worker).is_empty().then_some(())
    });
    release(&worker);
    let result = last(worker.attach(&job, 0));
    assert_eq!(
        (&result["exit_code"], &result["stdout"]),
        (&json!(3), &json!("before\nafter\n"))
    );
    worker.assert_clean();
}

#[test]
fn accepted_job_runs_after_restart() {
    let mut worker = Worker::start(&["--max-concurrency", "1"]);
    worker.run(&Worker::script("true"));
    worker.process.kill();
    // The state between accepting a job and starting its shim.
    let template = worker.spools().pop().unwrap();
    let (job, task) = (uuid(), uuid());
    let spool = template.with_file_name(format!("{job}-1"));
    fs::create_dir(&spool).unwrap();
    let mut accepted: Value =
        serde_json::from_str(&fs::read_to_string(template.join("job.json")).unwrap()).unwrap();
    (accepted["job_id"], accepted["task_id"]) = (json!(job), json!(task));
    fs::write(spool.join("job.json"), accepted.to_string()).unwrap();
    let mut request = Worker::script("echo late")["sandbox"].clone();
    fs::write(spool.join("request.json"), request.to_string()).unwrap();
    // A job that was written in part, and so never accepted.
    let half = template.with_file_name(format!("{}-1", uuid()));
    fs::create_dir(&half).unwrap();
    request["image"] = json!("x");
    fs::write(half.join("request.json"), request.to_string()).unwrap();

    worker.start_again();
    assert!(!half.exists());
    let result = last(worker.attach(&json!({"job_id": job}), 0));
    assert_eq!(
        (&result["status"], &result["stdout"]),
        (&json!("completed"), &json!("late\n"))
    );
    assert_eq!(result["task_id"], json!(task));
}

#[test]
fn full_disk_refuses_jobs() {
    let worker = Worker::start(&["--min-free-disk", "100000TiB"]);
    let reply = worker.send(&Worker::script("true"));
    let detail = reply.problem(507, "insufficient-storage");
    assert!(
        detail["detail"]
            .as_str()
            .unwrap()
            .contains("--min-free-disk"),
        "{detail}"
    );
    assert!(worker.spools().is_empty());
    assert_eq!(worker.api.get("/readyz").status, 503);
}

/// Files as a power cut or a full disk leaves them.
#[test]
fn unreadable_files_do_not_stop_worker() {
    let mut worker = Worker::start(&["--max-concurrency", "1"]);
    let jobs = [(); 3].map(|()| Worker::script("echo out"));
    let [result, log, other] = jobs.each_ref().map(|job| {
        worker.run(job);
        let name = format!("{}-1", job["job_id"].as_str().unwrap());
        worker.data_dir.join("worker/jobs").join(name)
    });
    worker.process.kill();
    fs::write(result.join("result.json"), "").unwrap();
    fs::remove_file(log.join("result.json")).unwrap();
    fs::write(log.join("log.0"), "").unwrap();
    fs::write(other.join("job.json"), "{\"of\": \"a later release\"}").unwrap();
    worker.start_again();
    for job in &jobs[..2] {
        let result = last(worker.attach(job, 0));
        assert_eq!(result["error"]["type"], "lost", "{result}");
    }
    assert_eq!(last(worker.attach(&jobs[0], 0))["stdout"], "out\n");
    assert!(
        other.join("result.json").exists(),
        "a job of a later release is kept"
    );
    assert_eq!(worker.run(&Worker::script("echo well"))["stdout"], "well\n");
}

#[test]
fn started_job_never_starts_again() {
    let mut worker = Worker::start(&[]);
    let job = start_job(&worker, "echo before; sleep 1000");
    worker.process.kill();
    kill(worker.shims()[0], Signal::KILL);
    let request = job["sandbox"].to_string();
    fs::write(worker.workspaces()[0].join("request.json"), request).unwrap();
    worker.start_again();
    let result = last(worker.attach(&job, 0));
    assert_eq!(
        (&result["error"]["type"], &result["stdout"]),
        (&json!("lost"), &json!("before\n"))
    );
    worker.assert_clean();
}

#[test]
fn second_shim_connection_does_not_end_job() {
    let worker = Worker::start(&[]);
    let job = start_job(&worker, WAITING);
    let socket = worker.workspaces()[0].join("shim.sock");
    let caller = UnixStream::connect(socket).unwrap();
    eventually("the worker has come back", || {
        // The shim has dropped this connection.
        (&caller)
            .read(&mut [0; 64])
            .is_ok_and(|n| n == 0)
            .then_some(())
    });
    release(&worker);
    assert_eq!(last(worker.attach(&job, 0))["exit_code"], 3);
}

#[test]
fn jobs_directory_is_shared_with_other_files() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("precious"), "x").unwrap();
    fs::create_dir(place.path().join("other")).unwrap();
    let mut worker = Worker::start(&["--jobs-dir", place.path().to_str().unwrap()]);
    let job = Worker::script("echo kept");
    let result = worker.run(&job);
    let own = place.path().join(format!("cynode-{}", worker.node_uuid()));
    assert_eq!(fs::read_dir(own).unwrap().count(), 1);
    worker.restart();
    assert_eq!(worker.run(&job), result);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 3);
}

#[test]
fn request_is_deleted_once_job_runs() {
    let worker = Worker::start(&[]);
    let secret = uuid();
    let script = "echo before; until [ -e go ]; do usleep 5000; done";
    let job = Worker::script_with(script, json!({"env": {"SECRET": secret}}));
    assert!(
        worker
            .follow(&job, 0)
            .any(|event| event["data"] == "before\n")
    );
    for entry in fs::read_dir(&worker.spools()[0]).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let content = fs::read(&path).unwrap();
            let held = content
                .windows(secret.len())
                .any(|w| w == secret.as_bytes());
            assert!(!held, "{}", path.display());
        }
    }
    let arguments = processes(|arguments| arguments.iter().any(|word| word.contains(&secret)));
    assert!(arguments.is_empty());
    release(&worker);
    last(worker.attach(&job, 0));
    assert!(podman(&["ps", "--quiet"]).is_ok());
}
