//! Orchestrators and nodes of a bench, each a process of its own with a data directory that goes with the bench.

use super::{BINARY, api::Api, podman::image, run, wait_for};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

pub const PASSWORD: &str = "the password of a bench";
pub const PSK: &str = "the pre-shared key of a bench, 32 characters";
/// Slug of the node of a [`System`].
pub const SLUG: &str = "bench";

/// Time in which a change of a node is reported.
const REPORT_DELAY: Duration = Duration::from_millis(50);

/// A process that is asked to end, at the end.
pub struct Process(pub Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

/// Whether this binary keeps sandboxes warm.
pub fn has_warm() -> bool {
    static HAS_WARM: OnceLock<bool> = OnceLock::new();
    *HAS_WARM
        .get_or_init(|| run(Command::new(&*BINARY).args(["node", "--help"])).contains("--warm "))
}

/// A role that logs only errors, with nothing on its stdin and stdout.
pub fn role(name: &str, data_dir: &Path) -> Command {
    let mut command = Command::new(&*BINARY);
    command
        .args([name, "--log-level=error", "--data-dir"])
        .arg(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// An orchestrator at free ports, with [`PASSWORD`] and [`PSK`].
pub fn orchestrator(data_dir: &Path) -> Command {
    let mut command = role("serve-orchestrator", data_dir);
    command
        .args([
            "--gateway-listen=127.0.0.1:0",
            "--control-listen=127.0.0.1:0",
        ])
        .args([
            "--require-inference=false",
            "--user-rate=0",
            "--trusted-proxy=127.0.0.1",
        ])
        .args(["--default-image", image()])
        .env("CYNODE_ADMIN_PASSWORD", PASSWORD)
        .env("CYNODE_PSK", PSK)
        // The calls of the benches are plain. Binaries that know no TLS ignore the variable.
        .env("CYNODE_TLS", "off");
    command
}

/// Address of a listener, once it is there.
pub fn address(data_dir: &Path, listener: &str) -> SocketAddr {
    wait_for("a listener", || {
        let text = fs::read(data_dir.join("addresses.json")).ok()?;
        let addresses: Value = serde_json::from_slice(&text).ok()?;
        addresses[listener].as_str()?.parse().ok()
    })
}

/// An orchestrator, and mostly a node.
pub struct System {
    // The node ends first.
    pub node: Option<Process>,
    pub orchestrator: Process,
    pub api: Api,
    home: PathBuf,
}

impl System {
    /// Starts an orchestrator alone.
    pub fn orchestrator(home: &Path) -> Self {
        Self::orchestrator_with(home, &[])
    }

    /// The same with flags of its own.
    pub fn orchestrator_with(home: &Path, flags: &[&str]) -> Self {
        let data_dir = home.join("orchestrator");
        let orchestrator = Process::spawn(orchestrator(&data_dir).args(flags));
        let gateway = address(&data_dir, "gateway");
        Self {
            node: None,
            orchestrator,
            api: Api::log_in(gateway, PASSWORD),
            home: home.to_owned(),
        }
    }

    /// Starts an orchestrator, and a node that keeps so many sandboxes warm.
    pub fn with_node(home: &Path, slots: usize, warm: usize) -> Self {
        let mut system = Self::orchestrator(home);
        system.start_node(slots, warm);
        system
    }

    /// Starts the node, and waits until it takes tasks and has its warm sandboxes.
    pub fn start_node(&mut self, slots: usize, warm: usize) {
        self.start_node_at(slots, warm, &["--worker-listen=127.0.0.1:0"]);
    }

    /// The same with the flags that say how the node is called.
    pub fn start_node_at(&mut self, slots: usize, warm: usize, way: &[&str]) {
        let control = address(&self.home.join("orchestrator"), "control");
        let mut command = role("node", &self.node_dir());
        command
            .args(way)
            .args(["--inference=off", "--slug", SLUG])
            .args(["--prefetch-image", image(), "--shutdown-grace=0s"])
            .args(["--max-concurrency", &slots.to_string()])
            .args(["--orchestrator", &format!("http://{control}")])
            .env("CYNODE_PSK", PSK);
        if has_warm() {
            command.args(["--warm", &warm.to_string()]);
        }
        self.node = Some(Process::spawn(&mut command));
        wait_for("a node that is ready", || {
            let list: Value = serde_json::from_str(&self.api.get("/v1/nodes")).ok()?;
            (list["nodes"][0]["status"] == "ready").then_some(())
        });
        if warm > 0 && has_warm() {
            // How many are kept follows from demand: a burst, of which as many come at a time as there are slots. Twice as
            // many as are wanted, since some are replaced while others still come.
            self.api.run_many(2 * warm);
            self.wait_warm(warm.min(slots));
        }
    }

    /// Waits until the node has so many warm sandboxes.
    pub fn wait_warm(&self, count: usize) {
        // One that was taken just now may still be reported as ready.
        thread::sleep(REPORT_DELAY);
        wait_for("warm sandboxes", || {
            (self.warm_count() >= count as u64).then_some(())
        });
    }

    /// Number of sandboxes that wait for tasks at the node.
    pub fn warm_count(&self) -> u64 {
        self.api.node(SLUG)["warm"]["ready"].as_u64().unwrap_or(0)
    }

    pub fn node_dir(&self) -> PathBuf {
        self.home.join("node")
    }

    pub fn node_pid(&self) -> u32 {
        self.node.as_ref().map_or(0, Process::id)
    }

    /// The command line client, logged in.
    pub fn client(&self) -> Command {
        let mut command = Command::new(&*BINARY);
        command
            .env("XDG_CONFIG_HOME", &self.home)
            .env("XDG_CACHE_HOME", self.home.join("cache"))
            .env("CYNODE_GATEWAY_URL", format!("http://{}", self.api.gateway))
            .env("CYNODE_TOKEN", &self.api.token);
        command
    }
}
