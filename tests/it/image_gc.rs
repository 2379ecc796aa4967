//! Removal of unused images that a node pulled, by age and by free space; other images stay. No registry is
//! asked: a script in podman's place imports an archive for each pull.

use crate::support::{
    Worker,
    disk::Disk,
    eventually,
    image::{self, podman},
    own_storage::OwnStorage,
    podman_host::PodmanHost,
    uuid,
};
use serde_json::{Value, json};
use std::fs;

/// A podman whose pulls come from an archive.
struct Registry {
    host: PodmanHost,
    engine: String,
    images: Vec<String>,
}

impl Registry {
    /// Puts the script before this podman.
    fn before(podman: &str) -> Self {
        let host = PodmanHost::new();
        image::archive(&host.path().join("root.tar"));
        let script = format!(
            "case \"$1\" in pull) echo \"$2\" >>HOME/pulls; exec {podman} import --quiet HOME/root.tar \"${{2#docker://}}\";; esac\nexec {podman} \"$@\""
        );
        let engine = host.engine(&script);
        Self {
            host,
            engine,
            images: Vec::new(),
        }
    }

    /// A reference that no other test uses.
    fn image(&mut self) -> String {
        let image = format!("registry.invalid/cynode/{}:latest", uuid());
        self.images.push(image.clone());
        image
    }

    fn worker(&self, flags: &[&str]) -> Worker {
        Worker::start(&[&["--engine", &self.engine], flags].concat())
    }

    fn pulls(&self, image: &str) -> usize {
        let pulls = fs::read_to_string(self.host.path().join("pulls")).unwrap_or_default();
        pulls.lines().filter(|line| line.ends_with(image)).count()
    }

    fn has(&self, image: &str) -> bool {
        let exists = std::process::Command::new(&self.engine)
            .args(["image", "exists", image])
            .status();
        exists.unwrap().success()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        for image in &self.images {
            let _ = podman(&["image", "rm", "--force", image]);
        }
    }
}

fn job(image: &str) -> Value {
    Worker::script_with("echo here", json!({"image": image}))
}

#[test]
fn unused_pulled_image_is_removed_and_repulled() {
    let mut registry = Registry::before("podman");
    let [pulled, built] = [registry.image(), registry.image()];
    let archive = registry.host.path().join("root.tar");
    podman(&["import", "--quiet", archive.to_str().unwrap(), &built]).unwrap();
    // So short that the image is removed between two jobs, and a job may arrive during the removal.
    let worker = registry.worker(&["--image-gc", "10ms"]);
    while registry.pulls(&pulled) < 3 {
        for image in [&built, &pulled] {
            let result = worker.run(&job(image));
            assert_eq!(result["stdout"], "here\n", "{result}");
        }
    }
    assert!(registry.has(&built), "an image that wasn't pulled stays");
    let log = worker.process.stderr();
    assert!(log.contains("unused image removed"), "{log}");
}

#[test]
fn image_of_running_job_stays() {
    let mut registry = Registry::before("podman");
    let [used, unused] = [registry.image(), registry.image()];
    let mut worker = registry.worker(&["--image-gc", "1s"]);
    let script = "echo on; until [ -e go ]; do sleep 0.05; done";
    let running = Worker::script_with(script, json!({"image": used}));
    let mut events = worker.follow(&running, 0);
    assert!(events.any(|event| event["data"] == "on\n"), "the job runs");
    for _ in 0..2 {
        worker.run(&job(&unused));
        eventually("the other image is removed", || {
            (!registry.has(&unused)).then_some(())
        });
        assert!(registry.has(&used));
        // Also while a job of an earlier process runs.
        worker.restart();
    }
    fs::write(worker.workspaces()[0].join("workspace/go"), "").unwrap();
    let last = worker.attach(&running, 0).last().unwrap();
    assert_eq!(last["status"], "completed", "{last}");
    eventually("the image is removed, too", || {
        (!registry.has(&used)).then_some(())
    });
}

#[test]
fn images_are_removed_early_for_space() {
    let Some(disk) = Disk::of_kib(96 * 1024) else {
        return;
    };
    let storage = OwnStorage::at(disk.path());
    let mut registry = Registry::before(storage.engine());
    let image = registry.image();
    let worker = registry.worker(&["--min-free-disk", "32MiB"]);
    assert_eq!(worker.run(&job(&image))["stdout"], "here\n");
    assert!(registry.has(&image), "the disk has room");
    disk.fill_but(24 * 1024);
    eventually("the image is removed", || {
        (!registry.has(&image)).then_some(())
    });
    disk.free();
    assert_eq!(worker.api.get("/readyz").status, 200);
    assert!(
        registry.has(image::IMAGE),
        "an image that wasn't pulled stays"
    );
}
