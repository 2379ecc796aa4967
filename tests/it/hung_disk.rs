//! A disk that hangs: only the calls that need it wait, and they go on once it is back.

use crate::support::{Worker, eventually};
use rustix::process::geteuid;
use std::{fs::File, path::Path, process::Command, thread};
use tempfile::TempDir;

/// Enough for the log of a job, which leaves 40 MiB free.
const DISK_BYTES: u64 = 96 << 20;

/// A file system of its own whose writes can be made to hang; unmounted when dropped.
struct HangingDisk {
    mount: TempDir,
    _image: TempDir,
}

/// Lets the writes go on when dropped.
struct Frozen<'a>(&'a HangingDisk);

fn run(program: &str, arguments: &[&str], path: &Path) -> bool {
    let status = Command::new(program).args(arguments).arg(path).status();
    status.is_ok_and(|status| status.success())
}

impl HangingDisk {
    /// A disk; `None` where this user or this kernel can't mount one.
    fn new() -> Option<Self> {
        let (mount, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = image.path().join("image");
        File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
        let source = file.to_str().unwrap();
        let is_mounted = geteuid().is_root()
            && run("mkfs.ext4", &["-q", "-F"], &file)
            && run("mount", &["-o", "loop", source], mount.path());
        if !is_mounted {
            eprintln!("skipped: can't mount an ext4 image here");
            return None;
        }
        Some(Self {
            mount,
            _image: image,
        })
    }

    fn freeze(&self) -> Frozen<'_> {
        assert!(run("fsfreeze", &["--freeze"], self.mount.path()));
        Frozen(self)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze"], self.0.mount.path());
    }
}

impl Drop for HangingDisk {
    fn drop(&mut self) {
        // Lazily: files that a failed test left open must not keep it.
        run("umount", &["--lazy"], self.mount.path());
    }
}

#[test]
fn hung_disk_blocks_only_dependent_calls() {
    let Some(disk) = HangingDisk::new() else {
        return;
    };
    // More than the worker has threads that must not block.
    let hung = 2 * thread::available_parallelism().unwrap().get();
    let slots = (hung + 1).to_string();
    let jobs_dir = disk.mount.path().to_str().unwrap();
    let flags = ["--jobs-dir", jobs_dir, "--min-free-disk", "0"];
    let worker = Worker::start(&[&flags[..], &["--max-concurrency", &slots]].concat());
    let running = Worker::script("echo up; sleep 1000");
    let mut events = worker.follow(&running, 0);
    assert!(events.any(|event| event["data"] == "up\n"));

    thread::scope(|scope| {
        let frozen = disk.freeze();
        let posts: Vec<_> = (0..hung)
            .map(|_| scope.spawn(|| worker.run(&Worker::script("echo well"))))
            .collect();
        eventually("all jobs are being accepted", || {
            let list = worker.api.get("/v1/worker/jobs").json(200);
            (list["jobs"].as_array()?.len() == hung + 1).then_some(())
        });
        for path in ["/healthz", "/readyz", "/metrics"] {
            worker.api.anonymous().get(path).expect(200);
        }
        let path = Worker::path(&running);
        assert_eq!(worker.api.get(&path).json(200)["status"], "running");
        worker.api.act(&format!("{path}:cancel")).expect(200);
        assert!(posts.iter().all(|post| !post.is_finished()));
        drop(frozen);
        for post in posts {
            assert_eq!(post.join().unwrap()["stdout"], "well\n");
        }
    });
    assert_eq!(events.last().unwrap()["status"], "canceled");
}
