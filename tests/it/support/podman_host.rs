//! A host whose podman has settings of its own, or is another program.

use super::{Process, cluster::secret_file, eventually, process::with_tool, server::role};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// A host with settings of its own.
pub(crate) struct PodmanHost(TempDir);

impl PodmanHost {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("leak")).unwrap();
        Self(home)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn text(&self, text: &str) -> String {
        text.replace("HOME", self.path().to_str().unwrap())
    }

    /// Writes settings to a file below it; the file.
    pub(crate) fn settings(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, self.text(text)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A program that stands in for podman; what it does with its arguments.
    pub(crate) fn engine(&self, script: &str) -> String {
        with_tool(self.path(), "engine", &self.text(script));
        let path = self.path().join("bin/engine");
        path.to_str().unwrap().to_owned()
    }

    /// The arguments of a worker with this engine.
    pub(crate) fn worker(&self, engine: &str) -> Vec<String> {
        let token = secret_file(self.path(), "token", "a token of this test");
        let words = ["--worker-listen", "127.0.0.1:0", "--token-file", &token];
        let words = words.into_iter().chain(["--engine", engine]);
        words.map(str::to_owned).collect()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path().join("state")
    }

    /// Waits until a worker has looked at a sandbox and found it closed.
    pub(crate) fn wait_until_it_serves(&self, worker: &mut Process) {
        let addresses = self.data_dir().join("addresses.json");
        eventually("it serves", || {
            worker.assert_runs();
            addresses.exists().then_some(())
        });
    }

    /// Error of a worker that refuses to start with this engine.
    pub(crate) fn refusal(&self, engine: &str, wrap: impl FnOnce(Command) -> Command) -> String {
        let mut command = role(self.path(), "worker", &self.data_dir());
        command.args(self.worker(engine));
        let mut worker = Process::start("worker", self.path(), &mut wrap(command));
        assert_ne!(worker.code(), 0);
        worker.stderr()
    }
}

/// Whether the tests are run by root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command as the last arguments of another one, in its own environment.
pub(crate) fn within(
    words: &[&str],
    first: impl AsRef<std::ffi::OsStr>,
    command: &Command,
) -> Command {
    let mut outer = Command::new(words[0]);
    outer
        .args(&words[1..])
        .arg(first)
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}
