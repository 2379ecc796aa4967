//! Files of jobs at a worker: contents are sent once, placed before the command, and artifacts are collected after any
//! end. Nothing hostile gets in or out.

use crate::support::{
    IMAGE, Reply, Worker, disk::Disk, eventually, image::USER_IMAGE, server::kill,
};
use cynode::digest::sha256_hex;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
};

/// Sends a content; what a job says of it.
fn put(worker: &Worker, bytes: &[u8]) -> Value {
    let sha256 = sha256_hex(bytes);
    let path = format!("/v1/worker/contents/{sha256}");
    worker.api.call("PUT", &path, &[], bytes).expect(204);
    json!({"sha256": sha256, "size_bytes": bytes.len()})
}

/// File of a job, whose content is sent.
fn file(worker: &Worker, path: &str, bytes: &[u8], changes: Value) -> Value {
    let mut file = json!({"path": path, "content": put(worker, bytes)});
    for (name, value) in changes.as_object().unwrap() {
        file[name] = value.clone();
    }
    file
}

/// Tar of a directory, as `tar` with these flags makes it.
fn tar(directory: &Path, flags: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    let command = command.args(["--create", "--directory"]).arg(directory);
    let output = command.args(flags).arg(".").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Header of an archive with one entry of this name and type, and an end mark.
fn hostile(name: &str, kind: u8, target: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(0);
    header.set_cksum();
    [header.as_bytes().as_slice(), &[0; 1024]].concat()
}

fn artifact(worker: &Worker, job: &Value, n: usize, headers: &[(&str, &str)]) -> Reply {
    let path = format!("{}/artifacts/{n}", Worker::path(job));
    worker.api.call("GET", &path, headers, b"")
}

fn paths(result: &Value) -> Vec<&str> {
    let artifacts = result["artifacts"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    artifacts
        .iter()
        .map(|one| one["path"].as_str().unwrap())
        .collect()
}

#[test]
fn job_without_its_contents_is_refused_until_sent() {
    let worker = Worker::start(&[]);
    let bytes = b"the content".as_slice();
    let sha256 = sha256_hex(bytes);
    let content = json!({"sha256": sha256, "size_bytes": bytes.len()});
    let files = json!([{"path": "in/a", "content": content}, {"path": "b", "content": content}]);
    let job = Worker::script_with("cat in/a b", json!({"files": files}));
    let problem = worker.send(&job).problem(409, "content-missing");
    assert_eq!(problem["missing"], json!([sha256]));
    let path = format!("/v1/worker/contents/{sha256}");
    worker.api.get(&path).problem(404, "not-found");
    worker
        .api
        .call("PUT", &path, &[], b"other bytes")
        .problem(400, "invalid-request");
    worker
        .api
        .anonymous()
        .call("PUT", &path, &[], bytes)
        .problem(401, "unauthorized");
    for _ in 0..2 {
        worker.api.call("PUT", &path, &[], bytes).expect(204);
    }
    assert_eq!(worker.api.get(&path).json(200), content);
    let result = worker.run(&job);
    assert_eq!(result["stdout"], "the contentthe content", "{result}");
}

#[test]
fn files_have_modes_and_owner_of_image() {
    let worker = Worker::start(&[]);
    for (image, user) in [(IMAGE, "0"), (USER_IMAGE, "1000")] {
        let script = "stat -c '%a %u %n' bin/run data /workspace/artifacts; bin/run; echo more >> data; cat \"$(printf 'new\\nline')\"; echo x > $CYNODE_ARTIFACTS_DIR/out";
        let mut job = Worker::script(script);
        job["sandbox"]["image"] = image.into();
        job["sandbox"]["files"] = json!([
            file(
                &worker,
                "bin/run",
                b"#!/bin/sh\necho ran\n",
                json!({"mode": "0755"})
            ),
            file(&worker, "/workspace/data", b"", json!({})),
            file(&worker, "new\nline", b"odd", json!({})),
        ]);
        let result = worker.run(&job);
        let expected = format!(
            "755 {user} bin/run\n644 {user} data\n755 {user} /workspace/artifacts\nran\nodd"
        );
        assert_eq!(result["stdout"], expected, "{result}");
        assert_eq!(paths(&result), ["artifacts/out"]);
        assert_eq!(artifact(&worker, &job, 0, &[]).expect(200).body, b"x\n");
        worker.forget(&job);
    }
}

#[test]
fn archives_of_three_formats_are_extracted() {
    let worker = Worker::start(&[]);
    let tree = tempfile::tempdir().unwrap();
    for n in 0..2000 {
        let directory = tree.path().join(format!("d{}", n % 40));
        fs::create_dir_all(&directory).unwrap();
        fs::write(
            directory.join(format!("{n}-{}", "x".repeat(200))),
            format!("{n}"),
        )
        .unwrap();
    }
    std::os::unix::fs::symlink("/etc/passwd", tree.path().join("link")).unwrap();
    let plain = tar(tree.path(), &[]);
    let script = "cd in; find . -type f | wc -l; cat d7/1967-*; readlink link";
    for bytes in [
        plain.clone(),
        tar(tree.path(), &["--gzip"]),
        zstd::encode_all(&plain[..], 1).unwrap(),
    ] {
        let files = json!([file(&worker, "in", &bytes, json!({"extract": true}))]);
        let result = worker.run(&Worker::script_with(script, json!({"files": files})));
        assert_eq!(result["stdout"], "2000\n1967/etc/passwd\n", "{result}");
    }
}

#[test]
fn hostile_archives_fail_job_and_leave_nothing() {
    let worker = Worker::start(&[]);
    let cut = {
        let whole = hostile("a", b'0', "");
        whole[..600].to_vec()
    };
    for (name, bytes) in [
        ("../up", hostile("../up", b'0', "")),
        ("/etc/x", hostile("/etc/x", b'0', "")),
        ("dev", hostile("dev", b'3', "")),
        ("fifo", hostile("fifo", b'6', "")),
        ("hard", hostile("hard", b'1', "../../job.json")),
        ("ends early", cut),
        ("not a tar archive", b"something else".to_vec()),
    ] {
        let files = json!([file(&worker, ".", &bytes, json!({"extract": true}))]);
        let job = Worker::script_with("true", json!({"files": files}));
        let result = worker.run(&job);
        assert_eq!(result["status"], "failed");
        assert_eq!(result["error"]["type"], "files-invalid", "{result}");
        let message = result["error"]["message"].as_str().unwrap();
        assert!(message.contains(name), "{name}: {message}");
        worker.assert_clean();
        worker.forget(&job);
    }
    assert_eq!(worker.spools().len(), 0);
}

#[test]
fn artifacts_are_collected_after_every_end() {
    let worker = Worker::start(&[]);
    let prepare = "mkdir -p out/deep; echo one > out/one.txt; echo two > out/deep/two.txt; echo log > artifacts/log; ";
    for (end, status) in [
        ("", "completed"),
        ("exit 3", "failed"),
        ("sleep 1000", "timeout"),
        ("sleep 1000", "canceled"),
    ] {
        let limit = if status == "canceled" { 600 } else { 2 };
        let changes =
            json!({"artifacts": ["out/**/*.txt"], "timeout_seconds": limit, "grace_seconds": 0});
        let job = Worker::script_with(&format!("{prepare}echo ready; {end}"), changes);
        let events = worker.follow(&job, 0);
        for event in events {
            if event["data"] == "ready\n" && status == "canceled" {
                worker
                    .api
                    .act(&format!("{}:cancel", Worker::path(&job)))
                    .expect(200);
            }
        }
        let result = worker.api.get(&Worker::path(&job)).json(200);
        assert_eq!(result["status"], status);
        assert_eq!(
            paths(&result),
            ["artifacts/log", "out/deep/two.txt", "out/one.txt"]
        );
        assert_eq!(result.get("artifacts_skipped"), None, "{result}");
        assert_eq!(artifact(&worker, &job, 1, &[]).expect(200).body, b"two\n");
        let part = artifact(&worker, &job, 1, &[("Range", "bytes=2-")]);
        assert_eq!(part.expect(206).body, b"o\n");
        artifact(&worker, &job, 3, &[]).problem(404, "not-found");
        worker.forget(&job);
    }
    eventually("nothing of the jobs is left", || {
        worker.spools().is_empty().then_some(())
    });
}

#[test]
fn hostile_workspaces_give_only_their_own_files() {
    let worker = Worker::start(&["--artifact-limit", "1MiB"]);
    let script = "cd artifacts; ln -s /etc/passwd link; ln -s / root; mkfifo fifo; truncate -s 20G huge; \
                  echo x > good; mkdir deep; ln -s .. deep/up; printf y > \"$(printf 'a\\nb')\"";
    let job = Worker::script_with(script, json!({"artifacts": ["**"]}));
    let result = worker.run(&job);
    assert_eq!(
        paths(&result),
        ["artifacts/a\nb", "artifacts/good"],
        "{result}"
    );
    let skipped = &result["artifacts_skipped"];
    assert_eq!(skipped["count"], 5, "{result}");
    let reason = skipped["reason"].as_str().unwrap();
    assert!(
        reason.contains("limit of 1MiB") && reason.contains("not regular"),
        "{reason}"
    );
    let small = Worker::script_with(
        "head -c 100 /dev/zero > artifacts/a",
        json!({"artifact_limit": 99}),
    );
    assert_eq!(worker.run(&small)["artifacts_skipped"]["count"], 1);
}

#[test]
fn artifacts_survive_worker_restart_and_killed_shim() {
    let mut worker = Worker::start(&[]);
    let script = "echo kept > artifacts/kept; echo ready; until [ -e go ]; do usleep 10000; done";
    let job = Worker::script(script);
    assert!(
        worker
            .follow(&job, 0)
            .any(|event| event["data"] == "ready\n")
    );
    worker.restart();
    fs::write(worker.workspaces()[0].join("workspace/go"), "").unwrap();
    let result = worker.run(&job);
    assert_eq!(
        (&result["status"], &paths(&result)[..]),
        (&json!("completed"), &["artifacts/kept"][..])
    );
    let lost = Worker::script(script);
    assert!(
        worker
            .follow(&lost, 0)
            .any(|event| event["data"] == "ready\n")
    );
    for pid in worker.shims() {
        kill(pid, Signal::KILL);
    }
    let result = worker.run(&lost);
    assert_eq!(result["error"]["type"], "lost", "{result}");
    assert_eq!(paths(&result), ["artifacts/kept"]);
    worker.restart();
    for job in [&job, &lost] {
        assert_eq!(artifact(&worker, job, 0, &[]).expect(200).body, b"kept\n");
    }
}

#[test]
fn placement_cut_by_kill_starts_over() {
    let mut worker = Worker::start(&[]);
    let tree = tempfile::tempdir().unwrap();
    for n in 0..5000 {
        fs::write(tree.path().join(n.to_string()), "x").unwrap();
    }
    let files = json!([file(
        &worker,
        "in",
        &tar(tree.path(), &[]),
        json!({"extract": true})
    )]);
    let job = Worker::script_with("ls in | wc -l", json!({"files": files}));
    let _events = worker.follow(&job, 0);
    eventually("placement has begun", || {
        let spools = worker.spools();
        let inside = spools.first()?.join("workspace/in");
        inside.exists().then_some(())
    });
    worker.restart();
    let result = worker.run(&job);
    assert_eq!(result["stdout"], "5000\n", "{result}");
}

#[test]
fn content_cut_in_the_middle_is_not_kept() {
    let worker = Worker::start(&[]);
    let bytes = vec![7; 3 << 20];
    let sha256 = sha256_hex(&bytes);
    let path = format!("/v1/worker/contents/{sha256}");
    let mut stream = TcpStream::connect(worker.api.address()).unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        worker.api.address(),
        worker.api.token(),
        bytes.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&bytes[..2 << 20]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    worker.api.get(&path).problem(404, "not-found");
    let temporary = worker.data_dir.join("worker/contents/temporary");
    eventually("nothing of it is left", || {
        fs::read_dir(&temporary)
            .unwrap()
            .next()
            .is_none()
            .then_some(())
    });
    put(&worker, &bytes);
}

#[test]
fn full_disk_ends_placement_with_reason() {
    let Some(disk) = Disk::of_kib(40 << 10) else {
        return;
    };
    let jobs = disk.path().to_str().unwrap();
    let flags = ["--jobs-dir", jobs, "--min-free-disk", "4MiB", "--warm", "0"];
    let worker = Worker::start(&flags);
    let zeros = zstd::encode_all(&tar_of_zeros(200 << 20)[..], 1).unwrap();
    let files = json!([file(&worker, "in", &zeros, json!({"extract": true}))]);
    let job = Worker::script_with("true", json!({"files": files}));
    let result = worker.run(&job);
    assert_eq!(result["error"]["type"], "out-of-disk", "{result}");
    eventually("the room is free again", || {
        let space = rustix::fs::statvfs(disk.path()).unwrap();
        (space.f_bavail * space.f_frsize > 36 << 20).then_some(())
    });
    assert_eq!(worker.run(&Worker::script("echo on"))["stdout"], "on\n");
}

fn tar_of_zeros(size: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    let zeros = std::io::repeat(0).take(size);
    builder.append_data(&mut header, "zeros", zeros).unwrap();
    builder.into_inner().unwrap()
}
