//! Images that attack podman or the host: none succeeds, each fails its job with the reason, and the node accepts the
//! next one.

use crate::support::{
    Worker,
    image::{OddImage, built, odd, podman},
    uuid,
};
use cynode::digest::sha256_hex;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};
use tempfile::TempDir;

fn plain(_: &Path) {}

fn fifo(name: &'static str) -> impl Fn(&Path) {
    move |root| {
        let _ = fs::remove_file(root.join(name));
        mknodat(CWD, root.join(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
    }
}

fn link(name: &'static str, target: &'static str) -> impl Fn(&Path) {
    move |root| {
        let _ = fs::remove_file(root.join(name));
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        symlink(target, root.join(name)).unwrap();
    }
}

fn run(worker: &Worker, image: &OddImage, script: &str) -> Value {
    worker.run(&Worker::script_with(script, json!({"image": image.0})))
}

fn assert_refused(worker: &Worker, image: &OddImage, reason: &str) {
    let result = run(worker, image, "echo ran");
    assert_eq!(result["error"]["type"], "image-not-runnable", "{result}");
    let message = result["error"]["message"].as_str().unwrap();
    assert!(message.contains(reason), "{reason} in {message}");
}

/// The node is ready, runs a job, and has nothing left of earlier ones.
fn assert_serves(worker: &Worker) {
    worker.api.get("/readyz").expect(200);
    assert_eq!(worker.run(&Worker::script("echo next"))["stdout"], "next\n");
    worker.assert_clean();
}

#[test]
fn image_volumes_are_not_created() {
    let worker = Worker::start(&[]);
    let many: Vec<_> = (0..50).map(|n| format!("VOLUME /volume-{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let image = odd(plain, &many);
    let script = "grep -c volume- /proc/mounts; echo up; sleep 1000";
    let job = Worker::script_with(script, json!({"image": image.0}));
    let mut events = worker.follow(&job, 0);
    let seen = events.find(|event| event["event"] == "stdout").unwrap();
    assert!(seen["data"].as_str().unwrap().starts_with("0\n"), "{seen}");
    let [id] = &worker.containers()[..] else {
        panic!("one container")
    };
    let types = "--format={{range .Mounts}}{{.Type}} {{end}}";
    let types = podman(&["container", "inspect", types, id]).unwrap();
    assert_eq!(types.trim(), "bind bind", "init and workspace");
    let cancel = format!("{}:cancel", Worker::path(&job));
    worker.api.act(&cancel).json(200);
    assert_eq!(events.last().unwrap()["status"], "canceled");
    assert_serves(&worker);
}

#[test]
fn image_volume_hides_no_device() {
    let worker = Worker::start(&[]);
    // With `USER 1000`, a runtime that mistakes the image's file for the device would give the host's device to that
    // user. As root the same shows without harm.
    let fake = |root: &Path| {
        fs::create_dir(root.join("dev")).unwrap();
        symlink("/proc/keys", root.join("dev/null")).unwrap();
    };
    let image = odd(fake, &["VOLUME /dev", "VOLUME /proc", "VOLUME /etc"]);
    let script = "test -c /dev/null && ! test -L /dev/null && echo device; \
                  cat /proc/keys /proc/timer_list 2>/dev/null | wc -c";
    let result = run(&worker, &image, script);
    assert_eq!(result["stdout"], "device\n0\n", "{result}");
    assert_serves(&worker);
}

#[test]
fn unusual_account_files_fail_job_immediately() {
    let worker = Worker::start(&[]);
    let huge = |root: &Path| {
        let file = fs::File::create(root.join("etc/passwd")).unwrap();
        file.set_len(5 << 20).unwrap();
    };
    let directory = |root: &Path| fs::create_dir(root.join("etc/group")).unwrap();
    let cases = [
        (odd(fifo("etc/passwd"), &[]), "/etc/passwd"),
        (odd(fifo("etc/group"), &["USER 1000"]), "/etc/group"),
        (odd(directory, &[]), "/etc/group"),
        (odd(huge, &[]), "larger"),
        (
            odd(
                |root| {
                    fifo("pipe")(root);
                    link("etc/passwd", "/pipe")(root);
                },
                &[],
            ),
            "/etc/passwd",
        ),
        (odd(link("dev", "/etc"), &[]), "/dev"),
        (odd(link("proc", "/etc"), &[]), "/proc"),
        (odd(fifo("sys"), &[]), "/sys"),
    ];
    for (image, reason) in &cases {
        assert_refused(&worker, image, reason);
    }
    assert_serves(&worker);
}

fn from_ours(more: &[&str]) -> OddImage {
    built(&format!("FROM {}", crate::support::IMAGE), more)
}

#[test]
fn runtime_annotations_are_refused() {
    let worker = Worker::start(&[]);
    let orders = [
        "run.oci.handler=wasm",
        "org.systemd.property.DevicePolicy='auto'",
        "io.podman.annotations.privileged=TRUE",
    ];
    for order in orders {
        let image = from_ours(&["--annotation", order]);
        assert_refused(&worker, &image, order.split_once('=').unwrap().0);
    }
    for annotation in [
        "org.opencontainers.image.vendor=x",
        "com.example.team=x",
        "maintainer=x",
    ] {
        let image = from_ours(&["--annotation", annotation]);
        assert_eq!(run(&worker, &image, "echo ran")["stdout"], "ran\n");
    }
    assert_serves(&worker);
}

const ORDER: &str = "run.oci.cynode-test";

/// A copy of an image to pull, with the same id and another manifest that has an annotation for a runtime.
struct Twin(TempDir);

impl Twin {
    fn of(image: &OddImage) -> Self {
        // Podman derives a name from the path, and names have no capital letters.
        let name = format!("cynode-{}", uuid());
        let mut home = tempfile::Builder::new();
        let twin = Self(home.prefix(&name).rand_bytes(0).tempdir_in("/tmp").unwrap());
        podman(&["push", "--quiet", &image.0, &twin.place()]).unwrap();
        let blobs = twin.0.path().join("oci/blobs/sha256");
        let read = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
        let index_path = twin.0.path().join("oci/index.json");
        let mut index = read(&index_path);
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        let mut manifest = read(&blobs.join(digest.strip_prefix("sha256:").unwrap()));
        manifest["annotations"][ORDER] = "x".into();
        let manifest = manifest.to_string();
        let digest = sha256_hex(&manifest);
        fs::write(blobs.join(&digest), &manifest).unwrap();
        index["manifests"][0]["digest"] = format!("sha256:{digest}").into();
        index["manifests"][0]["size"] = manifest.len().into();
        fs::write(index_path, index.to_string()).unwrap();
        twin
    }

    fn place(&self) -> String {
        format!("oci:{}/oci", self.0.path().display())
    }
}

#[test]
fn later_manifest_of_same_image_is_refused() {
    let worker = Worker::start(&[]);
    let image = from_ours(&["--label", &format!("test={}", uuid())]);
    assert_eq!(run(&worker, &image, "echo ran")["stdout"], "ran\n");
    let twin = Twin::of(&image);
    let id = podman(&["pull", "--quiet", &twin.place()]).unwrap();
    let pulled = OddImage(id.trim().to_owned());
    let format = "--format={{.Id}}";
    let before = podman(&["image", "inspect", format, &image.0]).unwrap();
    assert_eq!(before.trim(), pulled.0, "they have the same id");
    assert_refused(&worker, &image, ORDER);
    assert_serves(&worker);
}

#[test]
fn manifest_swapped_after_check_runs_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (engine, armed) = (home.path().join("podman"), home.path().join("armed"));
    let image = from_ours(&["--label", &format!("test={}", uuid())]);
    let twin = Twin::of(&image);
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' run '*) if [ -e {armed} ]; then podman pull --quiet {place} >/dev/null; fi;; esac\n\
         exec podman \"$@\"\n",
        armed = armed.display(),
        place = twin.place(),
    );
    fs::write(&engine, script).unwrap();
    fs::set_permissions(&engine, fs::Permissions::from_mode(0o755)).unwrap();
    let worker = Worker::start(&["--engine", engine.to_str().unwrap()]);
    assert_eq!(run(&worker, &image, "echo ran")["stdout"], "ran\n");
    fs::write(&armed, "").unwrap();
    let result = run(&worker, &image, "echo ran");
    fs::remove_file(&armed).unwrap();
    let id = podman(&["image", "inspect", "--format={{.Id}}", &image.0]).unwrap();
    let _pulled = OddImage(id.trim().to_owned());
    assert_eq!(result["error"]["type"], "image-not-runnable", "{result}");
    let message = result["error"]["message"].as_str().unwrap();
    assert!(message.contains(ORDER), "{message}");
    assert_eq!(result["stdout"], "");
    assert_serves(&worker);
}

#[test]
fn reserved_labels_are_refused() {
    let worker = Worker::start(&[]);
    for label in ["io.cynode.service=model-server", "io.cynode.node=x"] {
        let image = odd(plain, &[&format!("LABEL {label}")]);
        assert_refused(&worker, &image, "io.cynode.");
    }
    assert_serves(&worker);
}

#[test]
fn links_at_podman_files_reach_nothing_outside() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().to_str().unwrap().to_owned();
    let worker = Worker::start(&[]);
    let places = [
        "etc/resolv.conf",
        "etc/hosts",
        "etc/hostname",
        "etc/localtime",
        "etc/mtab",
        "etc/group",
        "run/.containerenv",
        "run/cynode",
        "run/secrets",
    ];
    let to = |name: &str| format!("{target}/{}", name.replace('/', "-"));
    let linked = |root: &Path| {
        fs::create_dir(root.join("run")).unwrap();
        for name in places {
            symlink(to(name), root.join(name)).unwrap();
        }
    };
    let fifos = |root: &Path| {
        fs::create_dir(root.join("run")).unwrap();
        for name in [
            "etc/resolv.conf",
            "etc/hosts",
            "etc/hostname",
            "run/.containerenv",
            "run/cynode",
        ] {
            mknodat(CWD, root.join(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
    };
    let directories = |root: &Path| {
        for name in ["etc/hosts", "etc/resolv.conf", "run/.containerenv"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
    };
    let cases = [
        odd(linked, &[]),
        odd(fifos, &[]),
        odd(directories, &[]),
        odd(
            |root| {
                fs::remove_dir_all(root.join("etc")).unwrap();
                symlink(&target, root.join("etc")).unwrap();
            },
            &[],
        ),
        odd(|root| symlink(&target, root.join("run")).unwrap(), &[]),
    ];
    for image in &cases {
        let result = run(&worker, image, "echo ran");
        // Runtimes differ in which of them they can mount over; the fault is always the image's.
        let kind = &result["error"]["type"];
        let is_expected = result["stdout"] == "ran\n" || kind == "image-not-runnable";
        assert!(is_expected, "{result}");
        let left: Vec<_> = fs::read_dir(home.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert_serves(&worker);
}

#[test]
fn invalid_image_settings_fail_job() {
    let worker = Worker::start(&[]);
    let long = format!("ENV LONG={}", "x".repeat(100_000));
    let cases = [
        odd(plain, &[&long]),
        odd(plain, &["USER ../../etc"]),
        odd(plain, &["WORKDIR /dev/null/x"]),
        odd(plain, &["ONBUILD RUN false", "ENTRYPOINT [\"/nowhere\"]"]),
    ];
    for image in &cases {
        let result = run(&worker, image, "echo ran");
        let kind = &result["error"]["type"];
        let is_expected = result["stdout"] == "ran\n" || kind == "image-not-runnable";
        assert!(is_expected, "{result}");
    }
    assert_serves(&worker);
}
