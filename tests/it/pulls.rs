//! Pulls of missing images: one pull for all jobs that wait, with its progress, and jobs that stop waiting. No registry
//! is asked: a script in podman's place plays its pulls.

use crate::support::{
    Worker, eventually,
    image::{self, OddImage},
    uuid,
};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};
use tempfile::TempDir;

/// A podman whose pulls hang until they are released, and then run a script.
struct Registry {
    home: TempDir,
    image: String,
}

impl Registry {
    fn new(end_of_a_pull: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let image = format!("registry.invalid/cynode/{}:latest", uuid());
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in pull)\n  echo \"$*\" >> {home}/pulls; echo 'Copying blob 1 of 2' >&2\n  \
             until [ -e {home}/go ]; do sleep 0.02; done\n  {end_of_a_pull};;\nesac\nexec podman \"$@\"\n",
            home = home.path().display(),
            end_of_a_pull = end_of_a_pull.replace("IMAGE", &image),
        );
        let registry = Self { home, image };
        fs::write(registry.podman(), script).unwrap();
        fs::set_permissions(registry.podman(), fs::Permissions::from_mode(0o755)).unwrap();
        registry
    }

    /// A registry that has the image. Each test tags an image of its own: of two processes that tag one image at the
    /// same time, podman can lose a name.
    fn with_image() -> (Self, OddImage) {
        let pulled = image::odd(|_| (), &[]);
        let registry = Self::new(&format!("podman tag {} IMAGE; exit", pulled.0));
        (registry, pulled)
    }

    fn podman(&self) -> PathBuf {
        self.home.path().join("podman")
    }

    fn worker(&self) -> Worker {
        Worker::start(&["--engine", self.podman().to_str().unwrap()])
    }

    /// A job that needs the image.
    fn job(&self) -> Value {
        Worker::script_with("echo here", json!({"image": self.image}))
    }

    fn let_go(&self) {
        fs::write(self.home.path().join("go"), "").unwrap();
    }

    /// Pulls so far, one per line.
    fn pulls(&self) -> String {
        fs::read_to_string(self.home.path().join("pulls")).unwrap_or_default()
    }
}

/// Sends a job and reads its events up to the pull.
fn wait_for_pull(worker: &Worker, job: &Value) -> impl Iterator<Item = Value> {
    let mut events = worker.follow(job, 0);
    let event = events.next().unwrap();
    assert_eq!(event["event"], "status");
    assert!(
        event["detail"].as_str().unwrap().starts_with("pulling "),
        "{event}"
    );
    events
}

#[test]
fn missing_image_is_pulled_once_for_all_jobs() {
    let (registry, _pulled) = Registry::with_image();
    let worker = registry.worker();
    let jobs = [registry.job(), registry.job(), registry.job()];
    let waiting: Vec<_> = jobs.iter().map(|job| wait_for_pull(&worker, job)).collect();
    registry.let_go();
    for events in waiting {
        assert_eq!(events.last().unwrap()["stdout"], "here\n");
    }
    assert_eq!(
        registry.pulls(),
        format!("pull docker://{}\n", registry.image)
    );
    // The image is present from then on.
    assert_eq!(worker.run(&registry.job())["stdout"], "here\n");
    assert_eq!(registry.pulls().lines().count(), 1);
}

#[test]
fn failed_pull_fails_all_waiting_jobs() {
    let registry = Registry::new(
        "echo 'Error: reading manifest latest: the registry is on fire' >&2; exit 125",
    );
    let worker = registry.worker();
    let jobs = [registry.job(), registry.job()];
    let waiting: Vec<_> = jobs.iter().map(|job| wait_for_pull(&worker, job)).collect();
    registry.let_go();
    for events in waiting {
        let result = events.last().unwrap();
        assert_eq!(result["error"]["type"], "image-pull-failed", "{result}");
        let words = result["error"]["message"].as_str().unwrap();
        assert!(words.contains("can't be pulled"), "{words}");
        assert!(!words.contains("the registry is on fire"), "{words}");
    }
    let log = worker.process.stderr();
    assert!(log.contains("the registry is on fire"), "{log}");
    assert_eq!(registry.pulls().lines().count(), 1);
}

#[test]
fn image_gone_after_pull_may_be_retried() {
    let registry = Registry::new("exit 0");
    let worker = registry.worker();
    let job = registry.job();
    let events = wait_for_pull(&worker, &job);
    registry.let_go();
    let result = events.last().unwrap();
    assert_eq!(result["error"]["type"], "image-pull-failed", "{result}");
    let words = result["error"]["message"].as_str().unwrap();
    assert!(words.contains("gone right after"), "{words}");
}

#[test]
fn canceled_job_leaves_pull_to_others() {
    let (registry, _pulled) = Registry::with_image();
    let worker = registry.worker();
    let (canceled, waits) = (registry.job(), registry.job());
    let events = wait_for_pull(&worker, &canceled);
    let others = wait_for_pull(&worker, &waits);
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(&canceled)))
        .json(200);
    let result = events.last().unwrap();
    assert_eq!(
        result["status"], "canceled",
        "before the pull has ended: {result}"
    );
    registry.let_go();
    assert_eq!(others.last().unwrap()["stdout"], "here\n");
    assert_eq!(registry.pulls().lines().count(), 1);
}

/// A worker's restart loses no accepted job.
#[test]
fn image_is_pulled_again_after_restart() {
    let (registry, _pulled) = Registry::with_image();
    let mut worker = registry.worker();
    let job = registry.job();
    drop(wait_for_pull(&worker, &job));
    worker.restart();
    eventually("the image is pulled again", || {
        (registry.pulls().lines().count() == 2).then_some(())
    });
    registry.let_go();
    let result = worker.attach(&job, 0).last().unwrap();
    assert_eq!(
        (&result["stdout"], &result["attempt"]),
        (&json!("here\n"), &json!(1))
    );
}

#[test]
fn pull_policy_of_job_is_followed() {
    let (registry, _pulled) = Registry::with_image();
    registry.let_go();
    let worker = registry.worker();
    let run = |pull: &str| {
        let changes = json!({"image": registry.image, "pull": pull});
        worker.run(&Worker::script_with("echo here", changes))
    };
    let refused = run("never");
    assert_eq!(refused["error"]["type"], "image-not-found", "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("pull: never"), "{message}");
    assert_eq!(registry.pulls(), "");
    for (pull, pulls) in [("always", 1), ("always", 2), ("never", 2), ("missing", 2)] {
        assert_eq!(run(pull)["stdout"], "here\n", "{pull}");
        assert_eq!(registry.pulls().lines().count(), pulls, "{pull}");
    }
    // An image of localhost/ is in no registry.
    let local = Worker::script_with("echo local", json!({"pull": "always"}));
    assert_eq!(worker.run(&local)["stdout"], "local\n");
    assert_eq!(registry.pulls().lines().count(), 2);
}
