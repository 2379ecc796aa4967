//! Memory of a node while a job prints without end.
//!
//! A worker runs a job that prints 5 GB, first without a reader, then with one. Measured are the largest resident memory
//! of the worker above that when idle, that of the job's shim, and how fast the output goes.

use crate::{
    figures::Figure,
    support::{
        podman::image,
        processes::{peak, reset_peak, resident},
        roles::{Process, address, role},
    },
};
use serde_json::{Value, json};
use std::{
    fs,
    io::Read as _,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

const BYTES: u64 = 5_000_000_000;
const TOKEN: &str = "a token of the bench";
/// Output after which a worker counts as idle.
const WARM_UP_BYTES: u64 = 1_000_000;
const LOOK: Duration = Duration::from_millis(20);

pub fn bench() -> Vec<Figure> {
    let home = tempfile::tempdir().unwrap();
    let worker = Worker::start(home.path());
    worker.run(&job(WARM_UP_BYTES), false);
    thread::sleep(Duration::from_secs(2));
    let pid = worker.process.id();
    let idle = resident(pid);
    let mut figures = Vec::new();
    for (name, reads) in [("nobody reads", false), ("somebody reads along", true)] {
        reset_peak(pid);
        let (shim, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let kib = largest_shim(home.path());
                    shim.fetch_max(kib, Ordering::Relaxed);
                    thread::sleep(LOOK);
                }
            });
            worker.run(&job(BYTES), reads);
            over.store(true, Ordering::Relaxed);
        });
        let speed = BYTES as f64 / 1e6 / began.elapsed().as_secs_f64();
        let above = peak(pid) - idle;
        let shim = shim.into_inner() as f64 / 1024.0;
        figures.extend([
            Figure::lower(format!("{name}: worker, above idle"), "MiB", above).within(2.0),
            Figure::lower(format!("{name}: shim"), "MiB", shim),
            Figure::plain(format!("{name}: output"), "MB/s", speed),
        ]);
    }
    figures
}

fn job(bytes: u64) -> Value {
    let script = format!("yes 0123456789abcdef0123456789abcdef | head -c {bytes}");
    let id = uuid::Uuid::now_v7();
    let sandbox = json!({"image": image(), "command": ["sh", "-c", script]});
    json!({"version": 1, "task_id": id, "job_id": id, "sandbox": sandbox})
}

/// The largest memory of any shim of this worker, in KiB.
fn largest_shim(data_dir: &Path) -> u64 {
    let pids = fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(data_dir.to_str().unwrap()) && line.contains("__shim")
    })
    .map(|pid| (peak(pid) * 1024.0) as u64)
    .max()
    .unwrap_or(0)
}

/// A `cynode worker` of our own.
struct Worker {
    process: Process,
    url: String,
}

impl Worker {
    fn start(home: &Path) -> Self {
        let mut command = role("worker", home);
        command
            .args(["--worker-listen=127.0.0.1:0"])
            .env("CYNODE_WORKER_TOKEN", TOKEN);
        let process = Process::spawn(&mut command);
        let url = format!("http://{}/v1/worker/jobs:run", address(home, "worker"));
        Self { process, url }
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
