//! Files of the client: uploads that are sent once, downloads that are whole or not there.

use crate::support::{
    Api, Orchestrator,
    client::{client, fails},
    process::{Done, Process, run},
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
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

    fn run(&self, arguments: &[&str]) -> Done {
        let gateway = &self.orchestrator.gateway_url;
        let mut command = client(self.home.path(), gateway, arguments);
        command
            .current_dir(self.path("."))
            .env("XDG_CACHE_HOME", self.home.path().join("cache"))
            .env("CYNODE_TOKEN", self.user.token());
        run(&mut command)
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

    // A file that is there is replaced; a link at its place is not followed.
    stage.write("target", "kept");
    fs::remove_file(stage.path("model.bin")).unwrap();
    symlink("target", stage.path("model.bin")).unwrap();
    assert_eq!(stage.output(&["artifacts", "download", &id]), "model.bin");
    assert_eq!(fs::read(stage.path("model.bin")).unwrap(), content);
    assert!(
        fs::symlink_metadata(stage.path("model.bin"))
            .unwrap()
            .is_file()
    );
    assert_eq!(fs::read_to_string(stage.path("target")).unwrap(), "kept");
    stage.output(&["artifacts", "download", &empty, "--out", "copy"]);
    assert_eq!(fs::read(stage.path("copy")).unwrap(), b"");

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
    let content: Vec<u8> = (0..40_000_000_u32).map(|n| (n % 249) as u8).collect();
    stage.write("data/large", &content);
    let gateway = stage.orchestrator.gateway_url.clone();
    let mut command = client(
        stage.home.path(),
        &gateway,
        &["artifacts", "upload", "data"],
    );
    command
        .current_dir(stage.path("."))
        .env("XDG_CACHE_HOME", stage.home.path().join("cache"))
        .env("CYNODE_TOKEN", stage.user.token());
    let mut killed = Process::start("upload", stage.home.path(), &mut command);
    let partial = stage.home.path().join("orchestrator/contents/partial");
    let partial_size = || {
        let entry = fs::read_dir(&partial).ok()?.next()?.ok()?;
        entry
            .metadata()
            .ok()
            .map(|metadata| metadata.len())
            .filter(|size| *size > 0)
    };
    crate::support::eventually("a part has arrived, or all", || {
        partial_size()
            .map(drop)
            .or_else(|| killed.ended().map(drop))
    });
    killed.kill();
    let id = stage.upload("data");
    let artifact = stage.user.get(&format!("/v1/artifacts/{id}"));
    assert!(
        artifact
            .body
            .windows(content.len())
            .any(|part| part == content)
    );
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
    let detached = ["run", "--detach", "--download", "x", "--", "true"];
    assert_eq!(stage.run(&detached).code, 2);
    assert_eq!(
        stage.user.get("/v1/tasks").json(200)["tasks"],
        Value::Array(Vec::new())
    );
}
