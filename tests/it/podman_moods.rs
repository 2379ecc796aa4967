//! A podman that hangs or fails at any step: the worker keeps answering, jobs end in time with the right result, and
//! nothing is left. A script in podman's place plays its moods.

use crate::support::{
    Process, Worker,
    cluster::secret_file,
    eventually, eventually_eq,
    image::{self, IMAGE, USER_IMAGE, podman},
    process::with_tool,
    server::{kill, role},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, path::Path};
use tempfile::TempDir;

/// Moods: scripts that run in podman's place. `wait_for_it` hangs until the mood is over.
const DEAF: &str = "trap '' TERM; wait_for_it";
const STOPPED: &str = "kill -STOP $$";
const AFTERWARDS: &str = "podman \"$@\"; code=$?; trap '' TERM; wait_for_it; exit $code";
const HELD_OPEN: &str = "sleep 1000 & echo $! >>HOME/pids; podman \"$@\"; exit";
const KILLED_ONCE: &str = "rm $mood; kill -KILL $$";
const FAILING: &str = "echo 'Error: out of sorts' >&2; exit 125";
/// Leaves a container with the requested name and labels, as a podman that is ended midway.
const LEAVING: &str = "kept=; for word; do case $word in --name=*|--label=*) kept=\"$kept $word\";; esac; done; \
    podman create --quiet $kept IMAGE true >/dev/null";

/// Exits with the container's code although `--rm` has failed, as podman does.
const NOT_REMOVING: &str = "for word; do shift; [ $word = --rm ] || set -- \"$@\" \"$word\"; done; podman \"$@\"; code=$?; \
    echo 'time=\"2026-01-01T00:00:00Z\" level=error msg=\"Removing container: a lock\"' >&2; exit $code";

/// A podman with moods, by subcommand.
struct Moody(TempDir);

impl Moody {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let script = "for word; do case $word in -*) ;; *) break;; esac; done\n\
             mood=HOME/mood-$word; echo $word >>HOME/calls\n\
             wait_for_it() { while [ -e $mood ]; do sleep 0.05; done; }\n\
             if [ -e $mood ]; then echo $$ >>HOME/pids; . $mood; fi\n\
             exec podman \"$@\"";
        let script = script.replace("HOME", home.path().to_str().unwrap());
        with_tool(home.path(), "moody-podman", &script);
        Self(home)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn engine(&self) -> String {
        let program = self.path().join("bin/moody-podman");
        program.to_str().unwrap().to_owned()
    }

    fn worker(&self, more: &[&str]) -> Worker {
        Worker::start(&[&["--engine", &self.engine()], more].concat())
    }

    /// Puts `podman COMMAND` into a mood.
    fn get(&self, command: &str, mood: &str) {
        let mood = mood.replace("HOME", self.path().to_str().unwrap());
        let draft = self.path().join("draft");
        fs::write(&draft, mood).unwrap();
        fs::rename(draft, self.path().join(format!("mood-{command}"))).unwrap();
    }

    fn is_over(&self, command: &str) {
        fs::remove_file(self.path().join(format!("mood-{command}"))).unwrap();
    }

    /// Subcommands that were called.
    fn calls(&self) -> String {
        fs::read_to_string(self.path().join("calls")).unwrap()
    }

    /// PIDs of processes that a mood holds.
    fn caught(&self) -> Vec<i32> {
        let pids = fs::read_to_string(self.path().join("pids")).unwrap_or_default();
        pids.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    fn wait_until_caught(&self, n: usize) {
        eventually("a process is held by the mood", || {
            (self.caught().len() >= n).then_some(())
        });
    }

    fn assert_none_lives(&self) {
        for pid in self.caught() {
            eventually("no podman is left", || {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                (stat.is_empty() || stat.contains(") Z ")).then_some(())
            });
        }
    }
}

impl Drop for Moody {
    /// Ends processes that a failed test or an orphaned child left.
    fn drop(&mut self) {
        for pid in self.caught() {
            // The number may have been reused.
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.contains("moody-podman") || line.contains("sleep\x001000") {
                kill(pid, Signal::KILL);
            }
        }
    }
}

fn cancel(worker: &Worker, job: &Value) {
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(job)))
        .json(200);
}

fn last(events: impl Iterator<Item = Value>) -> Value {
    events.last().unwrap()
}

#[test]
fn job_with_hanging_podman_can_be_canceled() {
    let moody = Moody::new();
    let worker = moody.worker(&[]);
    for (n, mood) in [DEAF, STOPPED].into_iter().enumerate() {
        moody.get("run", mood);
        let job = Worker::script("echo here");
        let events = worker.follow(&job, 0);
        moody.wait_until_caught(n + 1);
        worker.api.get("/readyz").expect(200);
        let state = worker.api.get(&Worker::path(&job)).json(200);
        assert_eq!(state["status"], "running");
        cancel(&worker, &job);
        let result = last(events);
        assert_eq!(result["status"], "canceled", "{result}");
        moody.assert_none_lives();
        let calls = moody.calls();
        assert!(!calls.contains("kill"), "nothing runs: {calls}");
        moody.is_over("run");
        assert_eq!(worker.run(&Worker::script("echo here"))["stdout"], "here\n");
    }
}

#[test]
fn hanging_removal_delays_only_jobs_beyond_bound() {
    let moody = Moody::new();
    let worker = moody.worker(&["--max-concurrency", "1", "--warm", "0"]);
    moody.get("run", AFTERWARDS);
    for _ in 0..2 {
        assert_eq!(worker.run(&Worker::script("echo here"))["stdout"], "here\n");
    }
    // Of one slot, one sandbox may wait for its removal.
    let next = Worker::script("echo next");
    let mut events = worker.follow(&next, 0);
    let event = events.next().unwrap();
    assert_eq!(event["event"], "status", "{event}");
    assert!(
        event["detail"].as_str().unwrap().contains("not removed"),
        "{event}"
    );
    moody.is_over("run");
    assert_eq!(last(events)["stdout"], "next\n");
    eventually("the containers are removed", || {
        worker.containers().is_empty().then_some(())
    });
}

#[test]
fn hanging_calls_delay_no_job_and_are_killed() {
    let moody = Moody::new();
    let mut worker = moody.worker(&["--max-concurrency", "9"]);
    worker.run(&Worker::script("true"));
    moody.get("image", DEAF);
    // More calls than may run at the same time.
    let nowhere = |n| json!({"image": format!("localhost/cynode-nowhere-{n}")});
    let jobs: Vec<Value> = (0..6)
        .map(|n| Worker::script_with("true", nowhere(n)))
        .collect();
    let waiting: Vec<_> = jobs.iter().map(|job| worker.follow(job, 0)).collect();
    moody.wait_until_caught(4);
    // The image of this job is cached.
    assert_eq!(worker.run(&Worker::script("echo here"))["stdout"], "here\n");
    worker.api.get("/readyz").expect(200);
    for (job, events) in jobs.iter().zip(waiting) {
        cancel(&worker, job);
        assert_eq!(last(events)["status"], "canceled");
    }
    assert_eq!(worker.process.terminate(), 0);
    moody.assert_none_lives();
}

#[test]
fn inherited_podman_pipes_delay_no_job() {
    let moody = Moody::new();
    let worker = moody.worker(&[]);
    moody.get("image", HELD_OPEN);
    let job = Worker::script_with("echo here", json!({"image": USER_IMAGE}));
    assert_eq!(worker.run(&job)["stdout"], "here\n");
    moody.get("run", HELD_OPEN);
    assert_eq!(worker.run(&Worker::script("echo here"))["stdout"], "here\n");
}

/// Else a node would start with settings that no container runs with, or not at all.
#[test]
fn killed_probe_is_repeated() {
    let moody = Moody::new();
    moody.get("run", KILLED_ONCE);
    let worker = moody.worker(&[]);
    assert_eq!(worker.run(&Worker::script("echo here"))["stdout"], "here\n");
}

#[test]
fn broken_podman_refuses_jobs_with_reason() {
    let moody = Moody::new();
    let worker = moody.worker(&[]);
    moody.get("run", FAILING);
    let result = worker.run(&Worker::script("true"));
    assert_eq!(result["error"]["type"], "engine-error", "{result}");
    let reason = eventually("the worker is not ready", || {
        let reply = worker.api.get("/readyz");
        (reply.status == 503).then(|| String::from_utf8_lossy(&reply.body).into_owned())
    });
    assert!(
        reason.contains("podman") && reason.contains("out of sorts"),
        "{reason}"
    );
    let refusal = worker
        .send(&Worker::script("true"))
        .problem(503, "unavailable");
    assert!(
        refusal["detail"].as_str().unwrap().contains("out of sorts"),
        "{refusal}"
    );
    // A container that it left is removed once it works again.
    let name = format!("cynode-left-{}", crate::support::uuid());
    leave(&worker, &name);
    moody.is_over("run");
    eventually_eq("the worker is ready again", 200, || {
        worker.api.get("/readyz").status
    });
    eventually("the container is removed", || {
        worker.containers().is_empty().then_some(())
    });
    assert_eq!(worker.run(&Worker::script("echo here"))["stdout"], "here\n");
}

fn leaving(then: &str) -> String {
    format!("{}; {then}", LEAVING.replace("IMAGE", IMAGE))
}

#[test]
fn abandoned_start_leaves_no_container() {
    let moody = Moody::new();
    let worker = moody.worker(&[]);
    // A client that reports success after TERM.
    let given_up = leaving("trap 'exit 0' TERM; while :; do sleep 0.05; done");
    moody.get("run", &given_up);
    moody.get("rm", FAILING);
    let job = Worker::script("true");
    let events = worker.follow(&job, 0);
    eventually("a container exists", || {
        (worker.containers().len() == 1).then_some(())
    });
    cancel(&worker, &job);
    assert_eq!(last(events)["status"], "canceled");
    moody.is_over("run");
    // The removal fails in the shim, in the worker and in the collection of orphans.
    eventually("its removal was attempted", || {
        (moody.calls().matches("rm\n").count() > 6).then_some(())
    });
    assert_eq!(worker.containers().len(), 1);
    moody.is_over("rm");
    worker.assert_clean();
    assert_eq!(worker.run(&Worker::script("echo next"))["stdout"], "next\n");
}

#[test]
fn removal_that_podman_only_logs_as_failed_is_repeated() {
    let moody = Moody::new();
    let worker = moody.worker(&[]);
    moody.get("run", NOT_REMOVING);
    assert_eq!(worker.run(&Worker::script("echo here"))["stdout"], "here\n");
    worker.assert_clean();
}

#[test]
fn podman_of_killed_shim_makes_no_container_later() {
    let moody = Moody::new();
    let worker = moody.worker(&[]);
    let once = leaving("exit 125");
    moody.get(
        "run",
        &format!("if mkdir HOME/late; then {DEAF}; {once}; fi"),
    );
    let events = worker.follow(&Worker::script("echo here"), 0);
    moody.wait_until_caught(1);
    for shim in worker.shims() {
        kill(shim, Signal::KILL);
    }
    assert_eq!(
        last(events)["stdout"],
        "here\n",
        "the second podman is on time"
    );
    moody.is_over("run");
    moody.assert_none_lives();
    worker.assert_clean();
}

#[test]
fn failed_probe_leaves_no_container() {
    image::ready();
    let moody = Moody::new();
    moody.get("run", &leaving("exit 125"));
    let token = secret_file(moody.path(), "token", "a token of this test");
    let mut command = role(moody.path(), "worker", &moody.path().join("state"));
    command.args(["--engine", &moody.engine(), "--token-file", &token]);
    command.args(["--worker-listen", "127.0.0.1:0"]);
    let mut worker = Process::start("worker", moody.path(), &mut command);
    assert_ne!(worker.code(), 0);
    let uuid = crate::support::read(moody.path().join("state/worker/node-uuid"));
    assert!(crate::support::server::containers_of(uuid.trim()).is_empty());
}

/// Creates a sandbox of the worker without a job.
fn leave(worker: &Worker, name: &str) {
    let labels = [
        format!("--label=io.cynode.node={}", worker.node_uuid()),
        "--label=io.cynode.job-id=gone".to_owned(),
    ];
    let named = format!("--name={name}");
    podman(&["create", &named, &labels[0], &labels[1], IMAGE, "true"]).unwrap();
    assert_eq!(worker.containers().len(), 1);
}

#[test]
fn start_can_be_stopped_while_podman_hangs() {
    image::ready();
    let moody = Moody::new();
    for command in ["info", "run", "ps"] {
        let before = moody.caught().len();
        moody.get(command, DEAF);
        let token = secret_file(moody.path(), "token", "a token of this test");
        let mut command_line = role(moody.path(), "worker", &moody.path().join("state"));
        command_line.args(["--engine", &moody.engine(), "--token-file", &token]);
        command_line.args(["--worker-listen", "127.0.0.1:0"]);
        let mut worker = Process::start("worker", moody.path(), &mut command_line);
        moody.wait_until_caught(before + 1);
        assert_eq!(worker.terminate(), 0, "{command}");
        moody.assert_none_lives();
        moody.is_over(command);
    }
}
