//! Files of the client: uploads that are sent once, downloads that are whole or not there.

use crate::support::{
    Api, Orchestrator,
    client::{client, fails},
    link::Link,
    process::{Done, Process, run},
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::{FileExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// Orchestrator, a user, and a directory for the user's files.
struct Stage {
    user: Api,
    orchestrator: Orchestrator,
    home: TempDir,
}

impl Stage {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let orchestrator = Orchestrator::start(home.path(), &[]);
        let user = orchestrator.login();
        fs::create_dir(home.path().join("laptop")).unwrap();
        Self {
            user,
            orchestrator,
            home,
        }
    }

    /// Path of a file of the user.
    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("laptop").join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn command(&self, gateway: &str, arguments: &[&str]) -> Command {
        let mut command = client(self.home.path(), gateway, arguments);
        command
            .current_dir(self.path("."))
            .env("XDG_CACHE_HOME", self.home.path().join("cache"))
            .env("CYNODE_TOKEN", self.user.token());
        command
    }

    fn run(&self, arguments: &[&str]) -> Done {
        run(&mut self.command(&self.orchestrator.gateway_url, arguments))
    }

    /// Starts a command that reaches the orchestrator by a link.
    fn spawn(&self, link: &Link, arguments: &[&str]) -> Process {
        let mut command = self.command(&link.url, arguments);
        Process::start("client", self.home.path(), &mut command)
    }

    /// File of the only upload that has not arrived whole, and its size.
    fn partial(&self) -> Option<(PathBuf, u64)> {
        let partial = self.home.path().join("orchestrator/contents/partial");
        let entry = fs::read_dir(partial).ok()?.next()?.ok()?;
        let size = entry.metadata().ok()?.len();
        (size > 0).then(|| (entry.path(), size))
    }

    /// Starts an upload of `data` that is held once a part of it has arrived; its key is there, too.
    fn held_upload(&self) -> (Process, Link) {
        let link = Link::to(&self.orchestrator.gateway_url, HELD_AT);
        let sender = self.spawn(&link, &["artifacts", "upload", "data"]);
        crate::support::eventually("a part has arrived", || self.partial());
        (sender, link)
    }

    /// Asserts that an artifact has these bytes in it.
    #[track_caller]
    fn assert_contains(&self, id: &str, content: &[u8]) {
        let artifact = self.user.get(&format!("/v1/artifacts/{id}"));
        let mut parts = artifact.body.windows(content.len());
        assert!(parts.any(|part| part == content));
    }

    /// Output of a command that succeeds.
    #[track_caller]
    fn output(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout.trim().to_owned()
    }

    /// Uploads a path; the artifact's id.
    #[track_caller]
    fn upload(&self, path: &str) -> String {
        self.output(&["artifacts", "upload", path])
    }

    /// Answers to uploads so far: 308 to a question, 201 with an artifact.
    fn upload_answers(&self) -> Vec<String> {
        let log = self.orchestrator.process.stderr();
        let lines = log.lines().filter(|line| {
            line.contains("request answered") && line.contains("path=\"/v1/artifacts\"")
        });
        let status = |line: &str| {
            let (_, status) = line.split_once("status=").unwrap();
            status[..3].to_owned()
        };
        lines.map(status).collect()
    }

    /// Names of the entries of an archive that was uploaded.
    fn entries(&self, id: &str) -> Vec<String> {
        let bytes = self
            .user
            .get(&format!("/v1/artifacts/{id}"))
            .expect(200)
            .body
            .clone();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap();
        let name = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            entry.unwrap().path().unwrap().to_str().unwrap().to_owned()
        };
        entries.map(name).collect()
    }
}

/// Bytes of a request that a link passes on before it holds the rest.
const HELD_AT: usize = 4_000_000;

fn numbers(length: u32) -> Vec<u8> {
    (0..length).map(|n| (n % 249) as u8).collect()
}

/// Makes the times of a file old enough that any change shows in them.
fn settle(path: &Path) {
    let changed = || fs::metadata(path).unwrap();
    let start = changed();
    crate::support::eventually("its last change is 2 s ago", || {
        use std::os::unix::fs::MetadataExt as _;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        (now.as_secs().cast_signed() > start.ctime() + 3).then_some(())
    });
}

#[test]
fn unchanged_directory_is_not_sent_again() {
    let stage = Stage::start();
    stage.write("project/a.txt", "hello");
    stage.write("project/big", vec![7; 3_000_000]);
    stage.write("project/.gitignore", "*.log\n");
    stage.write("project/x.log", "left out");
    symlink("/etc/passwd", stage.path("project/link")).unwrap();
    let first = stage.upload("project");
    assert_eq!(stage.upload_answers(), ["308", "201"]);
    assert_eq!(
        stage.entries(&first),
        [".gitignore", "a.txt", "big", "link"]
    );

    // So soon that the files are read again, but not sent.
    stage.upload("project");
    assert_eq!(stage.upload_answers(), ["308", "201", "201"]);
    settle(&stage.path("project/link"));
    stage.upload("project");
    // Now the files are not even read.
    stage.upload("project");
    assert_eq!(stage.upload_answers(), ["308", "201", "201", "201", "201"]);

    // Same size and time, but other bytes.
    let times = fs::metadata(stage.path("project/a.txt"))
        .unwrap()
        .modified()
        .unwrap();
    stage.write("project/a.txt", "HELLO");
    let file = fs::File::options()
        .write(true)
        .open(stage.path("project/a.txt"))
        .unwrap();
    file.set_modified(times).unwrap();
    let changed = stage.upload("project");
    assert_eq!(stage.upload_answers()[5..], ["308", "308", "201"]);
    let bytes = stage
        .user
        .get(&format!("/v1/artifacts/{changed}"))
        .body
        .clone();
    assert!(bytes.windows(5).any(|part| part == b"HELLO"));
}

#[test]
fn artifacts_are_listed_downloaded_and_deleted() {
    let stage = Stage::start();
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    stage.write("model.bin", &content);
    stage.write("empty", "");
    let id = stage.upload("model.bin");
    let empty = stage.output(&["artifacts", "upload", "empty", "--name", "nothing"]);
    let list = stage.output(&["artifacts", "list"]);
    assert!(
        list.contains("model.bin") && list.contains("976.6 KiB"),
        "{list}"
    );
    let list: Value =
        serde_json::from_str(&stage.output(&["artifacts", "list", "-o", "json"])).unwrap();
    assert_eq!(list["artifacts"].as_array().unwrap().len(), 2);

    // A file that is there is replaced only by its name; a link at its place is not followed.
    stage.write("target", "kept");
    fs::remove_file(stage.path("model.bin")).unwrap();
    symlink("target", stage.path("model.bin")).unwrap();
    let done = stage.run(&["artifacts", "download", &id]);
    fails(&done, 5, "model.bin exists; to replace it, use --out FILE");
    stage.output(&["artifacts", "download", &id, "--out", "model.bin"]);
    assert_eq!(fs::read(stage.path("model.bin")).unwrap(), content);
    assert!(
        fs::symlink_metadata(stage.path("model.bin"))
            .unwrap()
            .is_file()
    );
    assert_eq!(fs::read_to_string(stage.path("target")).unwrap(), "kept");
    stage.output(&["artifacts", "download", &empty, "--out", "copy"]);
    assert_eq!(fs::read(stage.path("copy")).unwrap(), b"");

    // A reader that has left, such as `head`, is no error worth a message.
    let gateway = &stage.orchestrator.gateway_url;
    let mut command = stage.command(gateway, &["artifacts", "download", &id, "--out", "-"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let gone = command.stdout(writer).stderr(Stdio::piped()).spawn();
    let gone = gone.unwrap().wait_with_output().unwrap();
    assert_eq!(
        (gone.status.code(), &gone.stderr[..]),
        (Some(141), &b""[..])
    );
    // Remains of a killed download are no file of the user's.
    stage.write("left/.cynode-new-abc123", "a part");
    let left = stage.upload("left");
    assert!(stage.entries(&left).is_empty());
    fs::remove_dir_all(stage.path("left")).unwrap();

    let unknown = crate::support::uuid();
    let done = stage.run(&["artifacts", "rm", &id, &unknown, &empty]);
    assert_eq!(
        (done.code, done.stdout),
        (4, format!("{id} deleted\n{empty} deleted\n"))
    );
    fails(&stage.run(&["artifacts", "download", &id]), 4, "artifact");
    let names = fs::read_dir(stage.path(".")).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        ["copy", "empty", "model.bin", "target"],
        "nothing is left behind"
    );
}

#[test]
fn interrupted_upload_goes_on() {
    let stage = Stage::start();
    let content = numbers(20_000_000);
    stage.write("data/large", &content);
    let (mut killed, link) = stage.held_upload();
    killed.kill();
    drop(link);
    let again = Link::to(&stage.orchestrator.gateway_url, usize::MAX);
    let mut again_client = stage.spawn(&again, &["artifacts", "upload", "data"]);
    assert_eq!(again_client.code(), 0, "{}", again_client.stderr());
    let starts = again.starts();
    assert!(starts.iter().all(|start| *start > 1_000_000), "{starts:?}");
    stage.assert_contains(again_client.stdout().trim(), &content);
}

#[test]
fn same_files_are_sent_once() {
    let stage = Stage::start();
    let content = numbers(20_000_000);
    stage.write("data/large", &content);
    let (mut first, held) = stage.held_upload();
    let link = Link::to(&stage.orchestrator.gateway_url, usize::MAX);
    let mut second = stage.spawn(&link, &["artifacts", "upload", "data"]);
    let waits = "upload of data.tar waits for another one of the same files";
    crate::support::eventually("the second waits", || {
        second.stderr().contains(waits).then_some(())
    });
    held.go_on.send(()).unwrap();
    assert_eq!(first.code(), 0, "{}", first.stderr());
    assert_eq!(second.code(), 0, "{}", second.stderr());
    assert_eq!(second.stderr().lines().count(), 1, "{}", second.stderr());
    stage.assert_contains(second.stdout().trim(), &content);
    let answers = stage.upload_answers();
    let stored = answers.iter().filter(|status| *status == "201");
    assert_eq!(stored.count(), 2, "{answers:?}");
}

#[test]
fn upload_with_hole_is_sent_again() {
    let mut stage = Stage::start();
    let content = numbers(20_000_000);
    stage.write("data/large", &content);
    let (mut killed, link) = stage.held_upload();
    killed.kill();
    drop(link);
    // As a loss of power leaves it.
    stage.orchestrator.process.kill();
    let (path, _) = stage.partial().unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[0; 4096], 65_536).unwrap();
    stage.orchestrator = Orchestrator::start(stage.home.path(), &[]);
    stage.user = stage.orchestrator.login();
    let id = stage.upload("data");
    stage.assert_contains(&id, &content);
    let list = stage.user.get("/v1/artifacts").json(200);
    assert_eq!(list["artifacts"].as_array().unwrap().len(), 1, "{list}");
}

#[test]
fn bad_uploads_are_refused_before_task_exists() {
    let stage = Stage::start();
    stage.write("data/file", "x");
    for (flag, code, hint) in [
        ("nowhere", 2, "nowhere does not exist"),
        ("data:../out", 6, "--upload data:../out"),
        ("data/file:/etc/passwd", 6, "/etc/passwd"),
    ] {
        let done = stage.run(&["run", "--upload", flag, "--", "true"]);
        fails(&done, code, hint);
    }
    let done = stage.run(&["run", "--download", "../x", "--", "true"]);
    fails(&done, 2, "--download ../x");
    let done = stage.run(&["run", "--upload", "data", "--label", "a b", "--", "true"]);
    fails(&done, 6, "--label");
    assert!(stage.upload_answers().is_empty(), "nothing is sent");
    let detached = ["run", "--detach", "--download", "x", "--", "true"];
    assert_eq!(stage.run(&detached).code, 2);
    assert_eq!(
        stage.user.get("/v1/tasks").json(200)["tasks"],
        Value::Array(Vec::new())
    );
}
