//! systemd services: notifications of the roles, and settings of the units.

use crate::support::{
    Api, OrchestratorStandIn, Reaction, Step,
    cluster::{PASSWORD, PSK, secret_file},
    cynode, eventually, image,
    process::run,
    server::{Server, role},
};
use std::{
    fs,
    io::ErrorKind,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
};

/// Socket of a service manager, which receives notifications.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(home: &Path) -> Self {
        let path = home.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, path }
    }

    /// The next notification, if any.
    fn receive(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(n) => Some(String::from_utf8(buffer[..n].to_vec()).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn wait(&self, what: &str) {
        let received = eventually(&format!("notification {what}"), || self.receive());
        assert_eq!(received.trim(), what);
    }

    fn start(&self, home: &Path, name: &str, command: &mut Command) -> Server {
        Server::launch(home, name, command.env("NOTIFY_SOCKET", &self.path))
    }
}

#[test]
fn orchestrator_notifies_ready_once_listening() {
    let home = tempfile::tempdir().unwrap();
    let manager = Manager::new(home.path());
    let mut command = role(home.path(), "serve-orchestrator", &home.path().join("o"));
    command
        .args([
            "--gateway-listen",
            "127.0.0.1:0",
            "--control-listen",
            "127.0.0.1:0",
        ])
        .env("CYNODE_PSK", PSK)
        .env("CYNODE_ADMIN_PASSWORD", PASSWORD);
    let mut orchestrator = manager.start(home.path(), "o", &mut command);
    manager.wait("READY=1\nSTATUS=takes tasks");
    let gateway = Api::new(&orchestrator.address("gateway"));
    assert_eq!(gateway.get("/healthz").status, 200);
    assert_eq!(orchestrator.process.terminate(), 0);
    manager.wait("STOPPING=1");
    assert_eq!(manager.receive(), None);
}

#[test]
fn node_unit_does_not_delay_boot() {
    image::ready();
    let home = tempfile::tempdir().unwrap();
    let manager = Manager::new(home.path());
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.fail(Step::Ack, Reaction::Problem(503, "unavailable"));
    let psk = secret_file(home.path(), "psk", PSK);
    let mut command = role(home.path(), "node", &home.path().join("box"));
    command
        .args(["--orchestrator", &orchestrator.url, "--psk-file", &psk])
        .args(["--worker-listen", "127.0.0.1:0", "--inference", "off"])
        .env("CYNODE_CONFIG", "/dev/null");
    let mut node = manager.start(home.path(), "box", &mut command);
    manager.wait("READY=1\nSTATUS=joining the orchestrator");
    orchestrator.call(Step::Ack, 2);
    assert_eq!(
        manager.receive(),
        None,
        "the configuration is not acknowledged yet"
    );
    orchestrator.well_again();
    manager.wait("STATUS=takes jobs");
    assert_eq!(node.process.terminate(), 0);
    manager.wait("STOPPING=1");
    assert_eq!(
        manager.receive(),
        None,
        "podman and sandboxes send no notification"
    );
}

#[test]
fn worker_notifies_ready_once_listening() {
    let home = tempfile::tempdir().unwrap();
    let manager = Manager::new(home.path());
    let mut command = role(home.path(), "worker", &home.path().join("w"));
    command
        .args(["--worker-listen", "127.0.0.1:0"])
        .env("CYNODE_WORKER_TOKEN", "a token of the tests");
    let mut worker = manager.start(home.path(), "w", &mut command);
    manager.wait("READY=1\nSTATUS=takes jobs");
    let api = Api::new(&worker.address("worker"));
    assert_eq!(api.get("/readyz").status, 200);
    assert_eq!(worker.process.terminate(), 0);
    manager.wait("STOPPING=1");
}

/// The settings of a unit's `[Service]`, in their order.
fn unit(name: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name);
    let text = fs::read_to_string(&path).unwrap();
    text.lines()
        .filter(|line| !line.starts_with(['#', '[']))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn setting<'a>(unit: &'a [(String, String)], key: &str) -> Option<&'a str> {
    let found = unit.iter().find(|(known, _)| known == key);
    found.map(|(_, value)| value.as_str())
}

#[test]
fn units_use_existing_flags() {
    let home = tempfile::tempdir().unwrap();
    for name in ["cynode-orchestrator.service", "cynode-node.service"] {
        let unit = unit(name);
        assert_eq!(setting(&unit, "OOMScoreAdjust"), Some("-500"));
        assert_eq!(setting(&unit, "Type"), Some("notify"));
        let command = setting(&unit, "ExecStart").unwrap();
        let mut words = command.split(' ');
        assert_eq!(words.next(), Some("/usr/local/bin/cynode"));
        let role = words.next().unwrap();
        let help = run(cynode(home.path()).args([role, "--help"])).stdout;
        for flag in words.filter(|word| word.starts_with("--")) {
            assert!(help.contains(&format!("{flag} <")), "{flag} of {name}");
        }
        // No secret is in `ps` or in the journal.
        assert!(!command.contains("--psk "), "{command}");
    }
}

#[test]
fn node_unit_keeps_containers_alive() {
    let unit = unit("cynode-node.service");
    for (key, value) in [("KillMode", "process"), ("Delegate", "yes")] {
        assert_eq!(setting(&unit, key), Some(value), "{key}");
    }
    for key in [
        "NoNewPrivileges",
        "PrivateUsers",
        "RestrictNamespaces",
        "RestrictSUIDSGID",
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "SystemCallFilter",
        "CapabilityBoundingSet",
        "DynamicUser",
        "LockPersonality",
        "ProtectClock",
        "ProtectHostname",
    ] {
        assert_eq!(setting(&unit, key), None, "{key} breaks podman");
    }
}

#[test]
fn node_unit_outlives_settings_of_orchestrator() {
    let unit = unit("cynode-node.service");
    let prevented = setting(&unit, "RestartPreventExitStatus").unwrap();
    // Not 6, with which a node ends whose orchestrator speaks TLS for now: all nodes would stay away once it goes back.
    assert_eq!(prevented, "2 3 5");
}

#[test]
fn orchestrator_unit_is_restricted() {
    let unit = unit("cynode-orchestrator.service");
    for (key, value) in [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("CapabilityBoundingSet", ""),
        ("RestrictNamespaces", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("StateDirectoryMode", "0700"),
    ] {
        assert_eq!(setting(&unit, key), Some(value), "{key}");
    }
}
