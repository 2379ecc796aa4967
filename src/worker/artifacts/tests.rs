//! Collection from ordinary and hostile workspaces.

use super::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, symlink},
    },
};
use tempfile::TempDir;

fn spool(patterns: &[&str], limit: u64) -> TempDir {
    let spool = tempfile::tempdir().unwrap();
    fs::create_dir_all(spool.path().join("workspace/artifacts")).unwrap();
    let request = CollectRequest {
        patterns: patterns.iter().map(|&one| one.to_owned()).collect(),
        limit,
        min_free: 0,
    };
    request.write(spool.path()).unwrap();
    spool
}

fn write_file(spool: &TempDir, path: &str, bytes: &[u8]) -> PathBuf {
    let path = spool.path().join("workspace").join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn collect_directly(spool: &TempDir) -> io::Result<Collection> {
    collect_blocking(spool.path(), Denial::IsSkipped)
}

fn paths(collection: &Collection) -> Vec<&str> {
    collection
        .artifacts
        .iter()
        .map(|one| one.path.as_str())
        .collect()
}

fn reason(collection: &Collection) -> &str {
    &collection.skipped.as_ref().unwrap().reason
}

#[test]
fn matching_files_move_to_spool() {
    let spool = spool(&["out/*.json", "model"], u64::MAX);
    for path in [
        "out/a.json",
        "out/b.txt",
        "out/deep/c.json",
        "model/w/0.bin",
        "other",
    ] {
        write_file(&spool, path, path.as_bytes());
    }
    let odd = format!("artifacts/a\nb/{}", "x".repeat(255));
    let closed = write_file(&spool, &odd, b"");
    fs::set_permissions(closed, Permissions::from_mode(0o4000)).unwrap();
    let collected = collect_directly(&spool).unwrap();
    assert_eq!(paths(&collected), [&odd, "model/w/0.bin", "out/a.json"]);
    assert_eq!(collected.skipped, None);
    for artifact in &collected.artifacts {
        let path = path_in(spool.path(), artifact);
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), artifact.size_bytes);
        assert_eq!(meta.mode() & 0o7777, 0o600);
        if artifact.size_bytes > 0 {
            assert_eq!(fs::read(&path).unwrap(), artifact.path.as_bytes());
        }
        assert!(!spool.path().join("workspace").join(&artifact.path).exists());
    }
    assert!(spool.path().join("workspace/other").exists());
}

#[test]
fn links_and_devices_are_skipped() {
    let spool = spool(&["**"], u64::MAX);
    let secret = spool.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("key"), "secret").unwrap();
    let inside = |name: &str| spool.path().join("workspace").join(name);
    symlink(&secret, inside("directory")).unwrap();
    symlink(secret.join("key"), inside("artifacts/file")).unwrap();
    symlink("..", inside("artifacts/up")).unwrap();
    mknodat(CWD, inside("artifacts/fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    write_file(&spool, "real", b"x");
    let collected = collect_directly(&spool).unwrap();
    assert_eq!(paths(&collected), ["real"]);
    assert_eq!(collected.skipped.as_ref().unwrap().count, 4);
    assert!(reason(&collected).contains("not regular"), "{collected:?}");
    assert_eq!(fs::read(secret.join("key")).unwrap(), b"secret");
}

#[test]
fn artifacts_directory_that_is_link_is_not_entered() {
    let spool = spool(&[], u64::MAX);
    fs::remove_dir(spool.path().join("workspace/artifacts")).unwrap();
    symlink("..", spool.path().join("workspace/artifacts")).unwrap();
    let collected = collect_directly(&spool).unwrap();
    assert_eq!(collected.artifacts, []);
    assert!(spool.path().join(REQUEST_FILE).exists());
}

#[test]
fn limit_counts_apparent_size() {
    let spool = spool(&[], 1000);
    write_file(&spool, "artifacts/a", &[1; 600]);
    let huge = write_file(&spool, "artifacts/b", b"");
    File::options()
        .write(true)
        .open(huge)
        .unwrap()
        .set_len(20 << 30)
        .unwrap();
    write_file(&spool, "artifacts/c", &[1; 400]);
    write_file(&spool, "artifacts/d", &[1]);
    let collected = collect_directly(&spool).unwrap();
    assert_eq!(paths(&collected), ["artifacts/a", "artifacts/c"]);
    assert_eq!(collected.skipped.as_ref().unwrap().count, 2);
    assert!(reason(&collected).contains("1000B"), "{collected:?}");
}

#[test]
fn names_that_are_not_utf8_are_skipped() {
    let spool = spool(&[], u64::MAX);
    let name = OsStr::from_bytes(b"artifacts/\xff\xfe");
    fs::write(spool.path().join("workspace").join(name), "x").unwrap();
    write_file(&spool, "artifacts/ok", b"x");
    let collected = collect_directly(&spool).unwrap();
    assert_eq!(paths(&collected), ["artifacts/ok"]);
    assert!(reason(&collected).contains("UTF-8"), "{collected:?}");
}

#[test]
fn deep_trees_end_walk() {
    let spool = spool(&["**"], u64::MAX);
    let deep = "d/".repeat(150) + "file";
    write_file(&spool, &deep, b"x");
    write_file(&spool, "shallow", b"x");
    let collected = collect_directly(&spool).unwrap();
    assert_eq!(paths(&collected), ["shallow"]);
    assert!(reason(&collected).contains("deeper"), "{collected:?}");
}

#[test]
fn more_files_than_list_holds_are_counted() {
    let spool = spool(&[], u64::MAX);
    for n in 0..10_050 {
        fs::write(spool.path().join(format!("workspace/artifacts/{n}")), "").unwrap();
    }
    let collected = collect_directly(&spool).unwrap();
    assert_eq!(collected.artifacts.len(), 10_000);
    assert_eq!(collected.skipped.unwrap().count, 50);
}

#[test]
fn interrupted_collection_is_completed() {
    let spool = spool(&["*.txt"], u64::MAX);
    for path in ["a.txt", "b.txt", "artifacts/c"] {
        write_file(&spool, path, path.as_bytes());
    }
    let whole = Collection {
        artifacts: ["a.txt", "artifacts/c", "b.txt", "lost.txt"]
            .map(|path| JobArtifact {
                path: path.to_owned(),
                size_bytes: path.len() as u64,
                executable: false,
            })
            .into(),
        skipped: None,
    };
    write(spool.path(), LIST_FILE, &whole).unwrap();
    fs::create_dir(spool.path().join(DIRECTORY)).unwrap();
    let taken = path_in(spool.path(), &whole.artifacts[0]);
    fs::rename(spool.path().join("workspace/a.txt"), taken).unwrap();
    fs::write(spool.path().join(DIRECTORY).join("copy"), "half of").unwrap();
    for _ in 0..2 {
        let collected = collect_directly(&spool).unwrap();
        assert_eq!(paths(&collected), ["a.txt", "artifacts/c", "b.txt"]);
        assert_eq!(collected.skipped.as_ref().unwrap().count, 1);
        for artifact in &collected.artifacts {
            let found = fs::read(path_in(spool.path(), artifact)).unwrap();
            assert_eq!(found, artifact.path.as_bytes());
        }
        // The second time, the workspace is gone.
        fs::remove_dir_all(spool.path().join("workspace")).unwrap_or_default();
    }
}

#[test]
fn nothing_is_collected_without_request_or_workspace() {
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(collect_directly(&empty).unwrap(), Collection::default());
    let spool = spool(&["**"], u64::MAX);
    fs::remove_dir_all(spool.path().join("workspace")).unwrap();
    assert_eq!(collect_directly(&spool).unwrap(), Collection::default());
    assert!(!spool.path().join(DIRECTORY).exists());
}

fn ended_with(spool: &TempDir, status: &str, kind: Option<JobErrorKind>) {
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let ended = serde_json::json!({
        "seq": 1, "version": 1, "task_id": id, "job_id": id, "attempt": 1, "status": status,
        "stdout": "", "stderr": "", "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:00Z",
        "truncated": {"stdout": false, "stderr": false}, "error": kind.map(|kind| serde_json::json!({"type": kind.as_str(), "message": "m"})),
    });
    let ended = serde_json::from_value(ended).unwrap();
    Spool::at(spool.path().to_owned())
        .write_ended(&ended)
        .unwrap();
}

#[test]
fn job_that_may_fill_disk_keeps_nothing_meanwhile() {
    for (status, kind, count) in [
        ("failed", Some(JobErrorKind::OutOfDisk), 0),
        ("failed", Some(JobErrorKind::WorkspaceLimit), 0),
        ("canceled", None, 0),
        ("timeout", None, 0),
        ("failed", Some(JobErrorKind::Lost), 2),
        ("failed", None, 2),
        ("completed", None, 2),
    ] {
        let spool = spool(&[], u64::MAX);
        let request = CollectRequest {
            patterns: Vec::new(),
            limit: u64::MAX,
            min_free: 1 << 60,
        };
        request.write(spool.path()).unwrap();
        ended_with(&spool, status, kind);
        for path in ["artifacts/a", "artifacts/b"] {
            write_file(&spool, path, b"x");
        }
        let collected = collect_directly(&spool).unwrap();
        assert_eq!(collected.artifacts.len(), count, "{collected:?}");
        if count == 0 {
            let reason = reason(&collected);
            assert!(
                reason.contains("2 that") && reason.contains("disk is full"),
                "{reason}"
            );
        }
    }
}

#[test]
fn next_run_collects_anew() {
    let spool = spool(&[], u64::MAX);
    write_file(&spool, "artifacts/old", b"old");
    ended_with(&spool, "failed", Some(JobErrorKind::EngineError));
    collect_directly(&spool).unwrap();
    let at = Spool::at(spool.path().to_owned());
    for _ in 0..2 {
        remove_earlier(&at).unwrap();
    }
    assert!(at.ended().unwrap().is_none());
    write_file(&spool, "artifacts/new", b"new");
    assert_eq!(paths(&collect_directly(&spool).unwrap()), ["artifacts/new"]);
}

#[test]
fn denial_leaves_rest_to_another_try() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let spool = spool(&[], u64::MAX);
    for path in ["artifacts/a", "artifacts/closed/b", "artifacts/c"] {
        write_file(&spool, path, b"x");
    }
    let other = Some(4242);
    for path in ["", "workspace", "workspace/artifacts", "collect.json"] {
        std::os::unix::fs::chown(spool.path().join(path), other, other).unwrap();
    }
    for path in ["a", "c"] {
        let path = spool.path().join("workspace/artifacts").join(path);
        std::os::unix::fs::chown(path, other, other).unwrap();
    }
    let path = spool.path().to_owned();
    // Only this thread becomes that user.
    let denied = std::thread::spawn(move || {
        let user = rustix::process::Uid::from_raw(4242);
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        collect_blocking(&path, Denial::IsError)
    });
    let denied = denied.join().unwrap().unwrap_err();
    assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
    assert!(spool.path().join(LIST_FILE).exists(), "the move was denied");
    let collected = collect_directly(&spool).unwrap();
    let all = ["artifacts/a", "artifacts/c", "artifacts/closed/b"];
    assert_eq!(
        (paths(&collected), &collected.skipped),
        (all.to_vec(), &None)
    );
}

#[test]
fn failed_collection_keeps_what_it_moved() {
    let spool = spool(&[], u64::MAX);
    let failed = || taken_before(spool.path(), SkippedArtifacts::new(0, "failed"));
    assert_eq!((failed().artifacts, reason(&failed())), (vec![], "failed"));
    for path in ["artifacts/a", "artifacts/b", "artifacts/c"] {
        write_file(&spool, path, b"x");
    }
    let whole = collect_directly(&spool).unwrap();
    assert_eq!(failed().artifacts, whole.artifacts);
    fs::remove_file(path_in(spool.path(), &whole.artifacts[0])).unwrap();
    let foreign = path_in(spool.path(), &whole.artifacts[1]);
    fs::set_permissions(foreign, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(paths(&failed()), ["artifacts/c"]);
    assert_eq!(
        failed().skipped,
        Some(SkippedArtifacts::new(2, "failed")),
        "the rest is skipped"
    );
}

#[test]
fn second_collection_waits_for_first() {
    let spool = spool(&[], u64::MAX);
    write_file(&spool, "artifacts/a", b"x");
    let first = File::open(spool.path().join(REQUEST_FILE)).unwrap();
    first.lock().unwrap();
    let path = spool.path().to_owned();
    let (done, second) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        done.send(collect_blocking(&path, Denial::IsSkipped))
            .unwrap();
    });
    let meanwhile = second.recv_timeout(Duration::from_millis(300));
    assert!(meanwhile.is_err(), "{meanwhile:?}");
    drop(first);
    let collected = second.recv().unwrap().unwrap();
    assert_eq!(paths(&collected), ["artifacts/a"]);
    thread.join().unwrap();
}
