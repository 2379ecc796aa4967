//! Sandboxes that stay: create, exec, and files, beside what podman and the disk take.
//!
//! - create: from `POST /v1/sandboxes` to the answer that it runs, at a node with warm sandboxes;
//! - exec: from `POST /v1/sandboxes/{id}/exec` of `true` to its answer, over a kept connection, in turn with `podman exec` of
//!   the same in a container of its own;
//! - files: one file of 1 GB into a sandbox and out of it, in turn with `cp` and `fsync` on the same disk, and the memory that
//!   both roles take for it above idle.

use crate::{
    figures::Figure,
    support::{
        Times, podman,
        processes::{peak, reset_peak, resident},
        roles::System,
        time,
    },
};
use serde_json::{Value, json};
use std::{fs::File, io, path::Path, thread, time::Duration};

const ROUNDS: usize = 100;
const CREATES: usize = 20;
const SLOTS: usize = 4;
/// Pause in which what podman does behind a call ends.
const REST: Duration = Duration::from_secs(1);
const FILE_ROUNDS: usize = 3;
const FILE_BYTES: u64 = 1_000_000_000;

pub fn bench() -> Vec<Figure> {
    // Not on a file system in memory.
    let home = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or("/var/tmp".into()));
    let home = home.unwrap();
    let system = System::with_node(home.path(), SLOTS, SLOTS);
    let creates: Times = (0..CREATES).map(|_| create_and_delete(&system)).collect();
    let sandbox = create(&system);
    let mut figures =
        vec![Figure::plain("create, p50 in ms", "ms", creates.median() * 1000.0).at_most(10.0)];
    figures.extend(execs(&system, &sandbox));
    figures.extend(files(&system, &sandbox, home.path()));
    figures
}

fn create(system: &System) -> String {
    let sandbox = system.api.post("/v1/sandboxes", &json!({}));
    assert_eq!(sandbox["status"], "running", "{sandbox}");
    sandbox["id"].as_str().unwrap().to_owned()
}

fn create_and_delete(system: &System) -> Duration {
    // Neither refilling nor the removal of the last one is a part of the next way.
    system.wait_warm(SLOTS);
    thread::sleep(REST);
    let mut id = String::new();
    let taken = time(|| id = create(system));
    system.api.delete(&format!("/v1/sandboxes/{id}"));
    taken
}

fn execs(system: &System, sandbox: &str) -> Vec<Figure> {
    let container = podman::Container::start();
    let (mut by_hand, mut execs) = (Times::default(), Times::default());
    let (path, body) = (
        format!("/v1/sandboxes/{sandbox}/exec"),
        json!({"command": ["true"]}),
    );
    for round in 0..=ROUNDS {
        let hand = time(|| container.exec_true());
        // Conmon starts another podman behind it, which cleans up.
        thread::sleep(REST);
        let mut result = Value::Null;
        let exec = time(|| result = system.api.post(&path, &body));
        assert_eq!(result["exit_code"], 0, "{result}");
        // The first round warms caches.
        if round > 0 {
            by_hand.push(hand);
            execs.push(exec);
        }
    }
    let millis = |times: &Times, percent| times.percentile(percent) * 1000.0;
    vec![
        Figure::plain("`podman exec`, p50 in ms", "ms", millis(&by_hand, 50)),
        Figure::plain("exec, p50 in ms", "ms", millis(&execs, 50)),
        Figure::plain("exec, p99 in ms", "ms", millis(&execs, 99)),
        Figure::lower(
            "exec, p50",
            "× `podman exec`",
            execs.median() / by_hand.median(),
        )
        .at_most(0.03),
    ]
}

fn files(system: &System, sandbox: &str, home: &Path) -> Vec<Figure> {
    let [source, target] = ["source", "target"].map(|name| home.join(name));
    let mut random = io::Read::take(File::open("/dev/urandom").unwrap(), FILE_BYTES);
    io::copy(&mut random, &mut File::create(&source).unwrap()).unwrap();
    let url = format!("/v1/sandboxes/{sandbox}/files?path=large");
    let roles = [system.orchestrator.id(), system.node_pid()];
    let idle = roles.map(|role| {
        reset_peak(role);
        resident(role)
    });
    let (mut copies, mut into, mut out) = (Times::default(), Times::default(), Times::default());
    for _ in 0..FILE_ROUNDS {
        copies.push(time(|| copy(&source, &target)));
        into.push(time(|| system.api.put_file(&url, &source)));
        out.push(time(|| system.api.get_file(&url, &target)));
        assert_eq!(target.metadata().unwrap().len(), FILE_BYTES);
    }
    let [orchestrator, node] = [0, 1].map(|n| peak(roles[n]) - idle[n]);
    let speed = |times: &Times| copies.median() / times.median();
    vec![
        Figure::plain("`cp` and `fsync` of 1 GB", "s", copies.median()),
        Figure::higher("1 GB into a sandbox", "× speed of `cp`", speed(&into)).at_least(0.5),
        Figure::higher("1 GB out of a sandbox", "× speed of `cp`", speed(&out)).at_least(0.5),
        Figure::lower("memory of the orchestrator above idle", "MiB", orchestrator).at_most(20.0),
        Figure::lower("memory of the node above idle", "MiB", node).at_most(20.0),
    ]
}

fn copy(source: &Path, target: &Path) {
    let mut to = File::create(target).unwrap();
    io::copy(&mut File::open(source).unwrap(), &mut to).unwrap();
    to.sync_all().unwrap();
}
