//! Memory of a node while a job prints without end.
//!
//! `make bench`. A worker runs a job that prints 5 GB, first without a reader, then with one. Prints the
//! largest resident memory of the worker and of the job's shim beside that of an idle one, all of one run;
//! asserts nothing.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use serde_json::{Value, json};
use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

const BYTES: u64 = 5_000_000_000;
const BINARY: &str = env!("CARGO_BIN_EXE_cynode");
const TOKEN: &str = "a token of the bench";
const LOOK: Duration = Duration::from_millis(20);

fn main() {
    let home = tempfile::tempdir().unwrap();
    let image = image();
    let worker = Worker::start(home.path());
    worker.run(&job(&image, 1_000_000), false);
    thread::sleep(Duration::from_secs(2));
    let pid = worker.child.id();
    let idle = resident(pid, "VmRSS").unwrap();
    println!(
        "a job prints {} GB; resident memory in MiB",
        BYTES / 1_000_000_000
    );
    println!(
        "{:<22} {:>8} {:>8} {:>10} {:>8} {:>8}",
        "", "idle", "peak", "on top", "shim", "MB/s"
    );
    for (name, reads) in [("nobody reads", false), ("somebody reads along", true)] {
        fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        let shim = AtomicU64::new(0);
        let over = AtomicBool::new(false);
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    shim.fetch_max(largest_shim(home.path()), Ordering::Relaxed);
                    thread::sleep(LOOK);
                }
            });
            worker.run(&job(&image, BYTES), reads);
            over.store(true, Ordering::Relaxed);
        });
        let seconds = began.elapsed().as_secs_f64();
        let peak = resident(pid, "VmHWM").unwrap();
        let mib = |kib: u64| kib as f64 / 1024.0;
        println!(
            "{name:<22} {:>8.1} {:>8.1} {:>+10.1} {:>8.1} {:>8.0}",
            mib(idle),
            mib(peak),
            mib(peak) - mib(idle),
            mib(shim.into_inner()),
            BYTES as f64 / 1e6 / seconds,
        );
    }
}

fn image() -> String {
    let output = Command::new("scripts/demo-image.sh")
        .stderr(Stdio::inherit())
        .output()
        .expect("run it from the repository");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn job(image: &str, bytes: u64) -> Value {
    let script = format!("yes 0123456789abcdef0123456789abcdef | head -c {bytes}");
    let id = uuid::Uuid::now_v7();
    let sandbox = json!({"image": image, "command": ["sh", "-c", script]});
    json!({"version": 1, "task_id": id, "job_id": id, "sandbox": sandbox})
}

/// A line of `/proc/<pid>/status`, in KiB.
fn resident(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().ok()
}

/// The largest memory of any shim that runs our copy of the binary.
fn largest_shim(home: &Path) -> u64 {
    let init = home.join("worker/init");
    let pids = fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(init.to_str().unwrap()) && line.contains("__shim")
    })
    .filter_map(|pid| resident(pid, "VmHWM"))
    .max()
    .unwrap_or(0)
}

/// A `cynode worker` of our own.
struct Worker {
    child: Child,
    url: String,
}

impl Worker {
    fn start(home: &Path) -> Self {
        let token = home.join("token");
        fs::write(&token, TOKEN).unwrap();
        let child = Command::new(BINARY)
            .args(["worker", "--worker-listen=127.0.0.1:0", "--log-level=warn"])
            .arg("--token-file")
            .arg(token)
            .arg("--data-dir")
            .arg(home)
            .spawn()
            .unwrap();
        let url = loop {
            let addresses = fs::read(home.join("addresses.json")).unwrap_or_default();
            let addresses: Value = serde_json::from_slice(&addresses).unwrap_or_default();
            if let Some(address) = addresses["worker"].as_str() {
                break format!("http://{address}/v1/worker/jobs:run");
            }
            thread::sleep(LOOK);
        };
        Self { child, url }
    }

    /// Runs a job to its end, and reads along where asked to.
    fn run(&self, job: &Value, reads: bool) {
        let accept = if reads {
            "application/x-ndjson"
        } else {
            "application/json"
        };
        let mut answer = ureq::post(&self.url)
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/json")
            .header("accept", accept)
            .send(job.to_string())
            .unwrap();
        let mut reader = answer.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 20];
        while reader.read(&mut buffer).unwrap() > 0 {}
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }
}
