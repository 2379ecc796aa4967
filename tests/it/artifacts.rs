//! Artifacts at the orchestrator: uploads in one go and in parts, downloads of ranges, quota, owners, clean-up.

use crate::support::{Api, Orchestrator, Reply, eventually, raw::connect_to};
use cynode::digest::sha256_hex;
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    thread,
};

/// Bytes of which no two stretches are equal.
fn bytes(length: usize) -> Vec<u8> {
    let block = |n: usize| sha256_hex(n.to_le_bytes()).into_bytes();
    (0..=length / 64).flat_map(block).take(length).collect()
}

fn upload(user: &Api, query: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    user.call("POST", &format!("/v1/artifacts?{query}"), headers, body)
}

/// Uploads in one go; the artifact.
pub(crate) fn put(user: &Api, name: &str, body: &[u8]) -> Value {
    upload(user, &format!("name={name}"), &[], body).json(201)
}

pub(crate) fn path(artifact: &Value) -> String {
    format!(
        "/v1/artifacts/{}",
        artifact["artifact_id"].as_str().unwrap()
    )
}

/// Asks how much of an upload has arrived.
fn ask(user: &Api, hash: &str, total: usize) -> Reply {
    let range = format!("bytes */{total}");
    upload(
        user,
        &format!("sha256={hash}"),
        &[("Content-Range", &range)],
        b"",
    )
}

pub(crate) fn contents(home: &Path, part: &str) -> Vec<PathBuf> {
    let directory = home.join("orchestrator/contents").join(part);
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

pub(crate) fn wait_empty(home: &Path) {
    for part in ["objects", "temporary"] {
        eventually("contents are removed", || {
            contents(home, part).is_empty().then_some(())
        });
    }
}

/// Sends the beginning of an upload and hangs up.
fn cut(user: &Api, query: &str, range: &str, body: &[u8], sent: usize) {
    let mut stream = connect_to(user);
    let head = format!(
        "POST /v1/artifacts?{query} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-length: {}\r\n{range}\r\n",
        user.token(),
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body[..sent]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // The answer comes once all was stored.
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn uploaded_bytes_are_downloaded_whole_and_in_ranges() {
    let home = tempfile::tempdir().unwrap();
    let user = Orchestrator::start(home.path(), &[]).login_held();
    let all = bytes(3_000_001);
    let artifact = put(&user.api, "out%2Fa%20b.bin", &all);
    assert_eq!(artifact["name"], "out/a b.bin");
    assert_eq!(artifact["size_bytes"], 3_000_001);
    assert_eq!(artifact["sha256"], sha256_hex(&all));
    let path = path(&artifact);
    let get = |headers: &[(&str, &str)]| user.api.call("GET", &path, headers, b"");
    let whole = get(&[]);
    whole.expect(200);
    assert!(whole.body == all);
    assert_eq!(whole.header("content-length"), Some("3000001"));
    let disposition = whole.header("content-disposition").unwrap();
    assert!(disposition.starts_with("attachment; filename=\"a b.bin\";"));
    let etag = format!("\"{}\"", sha256_hex(&all));
    assert_eq!(whole.header("etag"), Some(&*etag));
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=1000000-", 1_000_000..3_000_001),
        ("bytes=-7", 2_999_994..3_000_001),
    ] {
        let part = get(&[("Range", range)]);
        part.expect(206);
        assert!(part.body == all[expected.clone()], "{range}");
        let content_range = format!("bytes {}-{}/3000001", expected.start, expected.end - 1);
        assert_eq!(part.header("content-range"), Some(&*content_range));
    }
    let beyond = get(&[("Range", "bytes=3000001-")]);
    beyond.problem(416, "range-not-satisfiable");
    assert_eq!(beyond.header("content-range"), Some("bytes */3000001"));
    get(&[("Range", "bytes=0-0"), ("If-Range", "\"x\"")]).expect(200);
    let known = get(&[("Accept", "application/json")]).json(200);
    assert_eq!(known, artifact);
    let list = user.api.get("/v1/artifacts?name=out/a%20b.bin").json(200);
    assert_eq!(list["artifacts"], json!([artifact]));
    user.api.call("DELETE", &path, &[], b"").expect(204);
    get(&[]).problem(404, "not-found");
    user.api
        .call("DELETE", &path, &[], b"")
        .problem(404, "not-found");
    wait_empty(home.path());
}

#[test]
fn cut_upload_goes_on_after_kill() {
    let home = tempfile::tempdir().unwrap();
    let mut orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let all = bytes(5_000_000);
    let hash = sha256_hex(&all);
    let query = format!("name=a&sha256={hash}");
    let none = ask(&user, &hash, all.len());
    assert_eq!((none.status, none.header("range")), (308, None));
    cut(
        &user,
        &query,
        "content-range: bytes 0-4999999/5000000\r\n",
        &all,
        2_500_000,
    );
    cut(&user, "name=whole", "", &all, 2_500_000);
    let here = |user: &Api| {
        let asked = ask(user, &hash, all.len());
        asked.expect(308);
        let range = asked.header("range").unwrap();
        range
            .strip_prefix("bytes=0-")
            .unwrap()
            .parse::<usize>()
            .unwrap()
            + 1
    };
    assert_eq!(here(&user), 2_500_000);
    orchestrator.process.kill();
    drop(orchestrator);
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    assert!(contents(home.path(), "temporary").is_empty());
    let from = here(&user);
    let part = |range: &str, body: &[u8]| upload(&user, &query, &[("Content-Range", range)], body);
    let wrong = part("bytes 0-9/5000000", &all[..10]);
    wrong.problem(416, "range-not-satisfiable");
    assert_eq!(wrong.header("range"), Some("bytes=0-2499999"));
    let next = part(&format!("bytes {from}-{from}/5000000"), &all[from..=from]);
    next.expect(308);
    let range = format!("bytes {}-4999999/5000000", from + 1);
    let artifact = part(&range, &all[from + 1..]).json(201);
    assert_eq!(artifact["sha256"], hash);
    assert!(user.get(&path(&artifact)).body == all);
    assert!(contents(home.path(), "partial").is_empty());
}

#[test]
fn upload_with_wrong_hash_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let user = Orchestrator::start(home.path(), &[]).login_held();
    let hash = sha256_hex("right");
    let query = format!("sha256={hash}");
    upload(&user.api, &query, &[], b"wrong").problem(400, "invalid-request");
    let range = [("Content-Range", "bytes 0-4/5")];
    upload(&user.api, &query, &range, b"wrong").problem(400, "invalid-request");
    assert_eq!(ask(&user.api, &hash, 5).header("range"), None);
    upload(&user.api, &query, &range, b"right").expect(201);
    for (range, body) in [
        ("bytes 0-4/5", &b"abc"[..]),
        ("bytes 0-5/5", b"abcdef"),
        ("x", b""),
    ] {
        let headers = [("Content-Range", range)];
        upload(&user.api, &query, &headers, body).problem(400, "invalid-request");
    }
    let headers = [("Content-Range", "bytes 0-4/5")];
    upload(&user.api, "", &headers, b"right").problem(400, "invalid-request");
    for query in ["sha256=x", "key=a/b", "key=..", "name=", "name=%00"] {
        upload(&user.api, query, &[], b"").problem(400, "invalid-request");
    }
    let long = format!("name={}", "x".repeat(4097));
    upload(&user.api, &long, &[], b"").problem(400, "invalid-request");
}

#[test]
fn known_content_is_own_content_only() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let [ann, bob] = ["ann", "bob"].map(|handle| orchestrator.add_user(&admin, handle));
    let all = bytes(100_000);
    let hash = sha256_hex(&all);
    let artifact = put(&ann, "a", &all);
    let known = ask(&ann, &hash, all.len()).json(201);
    assert_eq!(known["sha256"], artifact["sha256"]);
    assert_eq!(ask(&ann, &hash, 7).status, 308, "another size");
    let foreign = ask(&bob, &hash, all.len());
    assert_eq!((foreign.status, foreign.header("range")), (308, None));
    let path = path(&artifact);
    bob.get(&path).problem(404, "not-found");
    bob.call("DELETE", &path, &[], b"")
        .problem(404, "not-found");
    assert_eq!(bob.get("/v1/artifacts").json(200)["artifacts"], json!([]));
    admin.get(&path).expect(200);
    let task = |id: &Value| json!({"script": "true", "files": [{"path": "a", "artifact_id": id}]});
    let id = &artifact["artifact_id"];
    let foreign = bob
        .post("/v1/tasks", &task(id))
        .problem(400, "invalid-request");
    let missing = task(&json!(crate::support::uuid()));
    let missing = bob
        .post("/v1/tasks", &missing)
        .problem(400, "invalid-request");
    assert_eq!(foreign["errors"], missing["errors"]);
    assert_eq!(foreign["errors"][0]["pointer"], "#/files/0/artifact_id");
    ann.post("/v1/tasks", &task(id)).expect(201);
}

#[test]
fn full_quota_refuses_until_artifact_is_deleted() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--artifact-quota=1MiB"];
    let user = Orchestrator::start(home.path(), &flags).login_held();
    let first = put(&user.api, "a", &bytes(700_000));
    let second: Vec<u8> = bytes(800_000).split_off(100_000);
    let refused = upload(&user.api, "name=b", &[], &second).problem(507, "insufficient-storage");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("--artifact-quota"), "{detail}");
    let task = json!({"script": "true", "stdin": "x".repeat(500_000)});
    user.api
        .post("/v1/tasks", &task)
        .problem(507, "insufficient-storage");
    user.api.call("DELETE", &path(&first), &[], b"").expect(204);
    eventually("space is free again", || {
        let reply = upload(&user.api, "name=b", &[], &second);
        (reply.status == 201).then_some(())
    });
}

#[test]
fn unfinished_upload_makes_room() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--artifact-quota=1MiB"];
    let user = Orchestrator::start(home.path(), &flags).login_held();
    let range = [("Content-Range", "bytes 0-699999/800000")];
    upload(&user.api, "key=a", &range, &bytes(700_000)).expect(308);
    put(&user.api, "b", &bytes(600_000));
    assert!(contents(home.path(), "partial").is_empty());
}

#[test]
fn same_content_at_once_is_one_file() {
    let home = tempfile::tempdir().unwrap();
    let user = Orchestrator::start(home.path(), &[]).login_held();
    let all = bytes(4_000_000);
    thread::scope(|scope| {
        for n in 0..6 {
            let (user, all) = (&user.api, &all);
            scope.spawn(move || put(user, &format!("copy-{n}"), all));
        }
    });
    let list = user.api.get("/v1/artifacts?limit=4").json(200);
    assert_eq!(list["artifacts"].as_array().unwrap().len(), 4);
    let next = list["next_cursor"].as_str().unwrap();
    let list = user
        .api
        .get(&format!("/v1/artifacts?limit=4&cursor={next}"))
        .json(200);
    assert_eq!(list["artifacts"].as_array().unwrap().len(), 2);
    assert_eq!(list["next_cursor"], "");
    assert_eq!(contents(home.path(), "objects").len(), 1);
    let empty = put(&user.api, "empty", b"");
    assert_eq!(empty["size_bytes"], 0);
    let got = user.api.get(&path(&empty));
    got.expect(200);
    assert!(got.body.is_empty());
}

#[test]
fn old_uploads_expire_as_tasks_do() {
    let home = tempfile::tempdir().unwrap();
    let user = Orchestrator::start(home.path(), &["--retain=1s"]).login_held();
    let artifact = put(&user.api, "a", b"x");
    eventually("the artifact is gone", || {
        (user.api.get(&path(&artifact)).status == 404).then_some(())
    });
    wait_empty(home.path());
}

/// Peak growth of a process in MiB while `work` runs.
fn growth(pid: u32, work: impl FnOnce()) -> usize {
    let memory = |field: &str| {
        let status = crate::support::read(format!("/proc/{pid}/status"));
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024
    };
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    let before = memory("VmRSS");
    work();
    memory("VmHWM").saturating_sub(before)
}

#[test]
fn large_artifact_passes_in_little_memory() {
    const BLOCKS: usize = 300;
    let home = tempfile::tempdir().unwrap();
    let user = Orchestrator::start(home.path(), &[]).login_held();
    let block = bytes(1 << 20);
    let grown = growth(user.orchestrator.process.pid(), || {
        let mut stream = connect_to(&user.api);
        let head = format!(
            "POST /v1/artifacts?name=large HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            user.api.token(),
            BLOCKS << 20
        );
        stream.write_all(head.as_bytes()).unwrap();
        for _ in 0..BLOCKS {
            stream.write_all(&block).unwrap();
        }
        let answer = crate::support::raw::rest(stream);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        let list = user.api.get("/v1/artifacts").json(200);
        let got = user.api.get(&path(&list["artifacts"][0]));
        assert_eq!(got.body.len(), BLOCKS << 20);
    });
    assert!(grown <= 40, "{grown} MiB");
}

/// An orchestrator and its admin.
pub(crate) struct Held {
    pub(crate) orchestrator: Orchestrator,
    pub(crate) api: Api,
}

impl Orchestrator {
    pub(crate) fn login_held(self) -> Held {
        let api = self.login();
        Held {
            orchestrator: self,
            api,
        }
    }
}

#[test]
fn upload_that_arrived_whole_is_finished() {
    let home = tempfile::tempdir().unwrap();
    let user = Orchestrator::start(home.path(), &[]).login_held();
    let all = bytes(2_500_000);
    let hash = sha256_hex(&all);
    let range = "content-range: bytes 0-2499999/2500000\r\n";
    cut(
        &user.api,
        &format!("sha256={hash}&name=x"),
        range,
        &all,
        2_400_000,
    );
    // As a process leaves it that is killed between the last block and the name of the content.
    let partial = contents(home.path(), "partial").remove(0);
    fs::write(&partial, &all).unwrap();
    let artifact = ask(&user.api, &hash, all.len()).json(201);
    assert_eq!(artifact["sha256"], hash);
    assert_eq!(user.api.get(&path(&artifact)).body, all);

    // Other bytes than were announced are sent again.
    let wrong = bytes(1000);
    let other = sha256_hex("other");
    let range = "content-range: bytes 0-999/1001\r\n";
    cut(&user.api, &format!("sha256={other}"), range, &wrong, 1000);
    let asked = ask(&user.api, &other, 1000);
    assert_eq!((asked.status, asked.header("range")), (308, None));
    // The answer does not wait for it.
    eventually("the wrong bytes are removed", || {
        contents(home.path(), "partial").is_empty().then_some(())
    });
}
