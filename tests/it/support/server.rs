//! A server role under test: its process, its data directory, and its clean end.

use super::{Process, cynode, eventually, image::podman, read};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// One server role and where it keeps its state.
pub(crate) struct Server {
    /// Its process.
    pub(crate) process: Process,
    /// Its data directory.
    pub(crate) data_dir: PathBuf,
}

/// The command of a role with its data directory, logging all it can. An orchestrator speaks plain HTTP, which tests read
/// and write themselves.
pub(crate) fn role(home: &Path, role: &str, data_dir: &Path) -> Command {
    let mut command = cynode(home);
    if role == "serve-orchestrator" {
        // Not as a flag, which would forbid the same flag in a test.
        command.env("CYNODE_TLS", "off");
    }
    command
        .arg(role)
        .arg("--data-dir")
        .arg(data_dir)
        .args(["--log-level", "debug"]);
    command
}

impl Server {
    /// Starts a command made by [`role`], whose data directory is `name` below `home`.
    pub(crate) fn launch(home: &Path, name: &str, command: &mut Command) -> Self {
        let data_dir = home.join(name);
        // An address of an earlier process must not be taken for one of this.
        let _ = fs::remove_file(data_dir.join("addresses.json"));
        Self {
            process: Process::start(name, home, command),
            data_dir,
        }
    }

    /// The address that it has bound for `listener`, once it has.
    pub(crate) fn address(&mut self, listener: &str) -> String {
        eventually(&format!("the address of {listener}"), || {
            self.process.assert_runs();
            let text = fs::read_to_string(self.data_dir.join("addresses.json")).ok()?;
            let addresses: Value = serde_json::from_str(&text).unwrap();
            addresses[listener].as_str().map(str::to_owned)
        })
    }

    /// The label by which its containers are known.
    pub(crate) fn node_uuid(&self) -> String {
        read(self.data_dir.join("worker/node-uuid"))
            .trim()
            .to_owned()
    }

    /// The ids of the containers that it has left.
    pub(crate) fn containers(&self) -> Vec<String> {
        containers_of(&self.node_uuid())
    }

    /// The directories of its jobs, ended or not.
    pub(crate) fn spools(&self) -> Vec<PathBuf> {
        // Not there where the operator put them elsewhere.
        let entries = fs::read_dir(self.data_dir.join("worker/jobs"));
        let entries = entries.into_iter().flatten();
        let mut entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        entries.retain(|path| !is_warm_dir(path));
        entries
    }

    /// The names of the containers of its warm sandboxes, ready or not.
    pub(crate) fn warm(&self) -> Vec<String> {
        let entries = fs::read_dir(self.data_dir.join("worker/jobs"));
        let entries = entries.into_iter().flatten();
        let warm = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| is_warm_dir(path));
        let name = |path: PathBuf| fs::read_to_string(path.join("container")).ok();
        let name = |path| Some(name(path)?.trim_matches('"').to_owned());
        warm.filter_map(name).collect()
    }

    /// Those of them in which there is a workspace.
    pub(crate) fn workspaces(&self) -> Vec<PathBuf> {
        let mut spools = self.spools();
        spools.retain(|spool| spool.join("workspace").exists());
        spools
    }

    /// The upper directories of its sandboxes that are not removed yet, outside of podman's storage.
    pub(crate) fn uppers(&self) -> Vec<PathBuf> {
        let uppers = graph_root().join("cynode");
        let prefix = format!("{}.", self.node_uuid());
        // Not there where podman has another storage driver.
        let entries = fs::read_dir(uppers).into_iter().flatten();
        let mut uppers: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        uppers.retain(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(&prefix)
        });
        uppers
    }

    /// The shims that it has started and that live.
    pub(crate) fn shims(&self) -> Vec<i32> {
        let init = self.data_dir.join("worker/init");
        let init = init.to_str().unwrap();
        processes(|arguments| arguments[0].starts_with(init) && arguments[1] == "__shim")
    }

    /// Ends them as a machine that goes down does.
    pub(crate) fn end_shims(&self) {
        for pid in self.shims() {
            kill(pid, Signal::TERM);
        }
    }

    /// Waits until no container, no workspace, no upper directory and no shim is left, but of warm sandboxes.
    pub(crate) fn assert_clean(&self) {
        eventually("no shim is left", || {
            (self.shims().len() <= self.warm().len()).then_some(())
        });
        eventually("no workspace is left", || {
            self.workspaces().is_empty().then_some(())
        });
        eventually("no container is left", || {
            (self.containers().len() <= self.warm().len()).then_some(())
        });
        eventually("no upper directory is left", || {
            let warm = self.warm();
            let is_left = |upper: &PathBuf| {
                let upper = upper.to_str().unwrap();
                !warm.iter().any(|name| upper.ends_with(name))
            };
            (!self.uppers().iter().any(is_left)).then_some(())
        });
    }
}

/// Whether this is the directory of a warm sandbox.
fn is_warm_dir(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.starts_with("warm-")
}

/// Where podman keeps images and containers.
pub(crate) fn graph_root() -> &'static Path {
    static GRAPH_ROOT: OnceLock<PathBuf> = OnceLock::new();
    GRAPH_ROOT.get_or_init(|| {
        let asked = podman(&["info", "--format={{.Store.GraphRoot}}"]);
        asked.unwrap().trim().into()
    })
}

/// Sends a signal to a process that may have ended just now.
pub(crate) fn kill(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// The processes whose arguments, of which there are two or more, are as wanted.
pub(crate) fn processes(wanted: impl Fn(&[&str]) -> bool) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        // One that has ended meanwhile has no arguments.
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<_> = line.split('\0').collect();
        arguments.len() > 2 && wanted(&arguments)
    })
    .collect()
}

/// The ids of the sandboxes that bear a node's label, running or not.
pub(crate) fn containers_of(node_uuid: &str) -> Vec<String> {
    let node = format!("--filter=label=io.cynode.node={node_uuid}");
    let job = "--filter=label=io.cynode.job-id";
    let list = podman(&["ps", "--all", "--quiet", "--no-trunc", &node, job]).unwrap();
    list.split_whitespace().map(str::to_owned).collect()
}

/// Lets a role be used as the [`Server`] that it is.
macro_rules! is_a_server {
    ($($name:ty),*) => {$(
        impl std::ops::Deref for $name {
            type Target = $crate::support::server::Server;
            fn deref(&self) -> &$crate::support::server::Server {
                &self.server
            }
        }
        impl std::ops::DerefMut for $name {
            fn deref_mut(&mut self) -> &mut $crate::support::server::Server {
                &mut self.server
            }
        }
    )*};
}

/// Has a role leave nothing behind, at the end of every test that doesn't fail.
macro_rules! ends_clean {
    ($($name:ty),*) => {$(
        impl Drop for $name {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    // Its jobs would outlive it.
                    self.server.process.kill();
                    self.server.end_shims();
                } else if self.server.process.ended().is_none() {
                    self.server.assert_clean();
                    assert_eq!(self.server.process.terminate(), 0, "an orderly end");
                }
            }
        }
    )*};
}
pub(crate) use {ends_clean, is_a_server};
