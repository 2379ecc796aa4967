//! Many jobs in sequence: small leaks of each would add up.

use crate::support::{Worker, eventually, eventually_eq};
use std::{fs, thread};

/// Number of jobs. `make test-soak` runs this alone on the machine, since other tests create mounts, too.
const JOBS: usize = 1000;
/// Concurrent jobs.
const LANES: usize = 4;

fn count(path: &str) -> usize {
    fs::read_dir(path).unwrap().count()
}

/// Children that have exited and are not reaped.
fn zombies(pid: u32) -> usize {
    let children = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .flat_map(|thread| children(thread.unwrap()))
        .filter(|child| {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('Z'))
        })
        .count()
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count()
}

#[test]
#[ignore = "takes minutes, and the machine for itself: make test-soak"]
fn thousand_jobs_leave_nothing_behind() {
    let worker = Worker::start(&[]);
    let pid = worker.process.pid();
    let descriptors = || count(&format!("/proc/{pid}/fd"));
    // The first jobs open descriptors that stay open.
    for _ in 0..LANES {
        let job = Worker::job(&["true"]);
        worker.run(&job);
        worker.forget(&job);
    }
    worker.assert_clean();
    let (open, mounted) = (descriptors(), mounts());
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                for _ in 0..JOBS / LANES {
                    let job = Worker::script("echo out; echo err >&2; mkdir -p a/b; exit 3");
                    assert_eq!(worker.run(&job)["exit_code"], 3);
                    worker.forget(&job);
                }
            });
        }
    });
    worker.assert_clean();
    eventually("each job's directory is gone", || {
        worker.spools().is_empty().then_some(())
    });
    eventually("descriptors are closed", || {
        (descriptors() <= open).then_some(())
    });
    eventually("mounts are gone", || (mounts() <= mounted).then_some(()));
    eventually_eq("children are reaped", 0, || zombies(pid));
}
