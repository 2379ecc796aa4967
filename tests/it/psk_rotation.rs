//! Rotation of the pre-shared key: the new key and the one before it are valid at the same time.

use crate::support::{
    Api, Node, Orchestrator,
    cluster::PSK,
    eventually,
    process::run,
    server::{Server, role},
    stand_in::capability,
};
use serde_json::json;
use std::{fs, path::Path, process::Command};

const OLD: &str = "the old key of this cluster";
const NEW: &str = "the new key of this cluster";

fn command(home: &Path, psk_file: &Path) -> Command {
    let mut command = role(home, "serve-orchestrator", &home.join("orchestrator"));
    let listen = [
        "--gateway-listen",
        "127.0.0.1:0",
        "--control-listen",
        "127.0.0.1:0",
    ];
    command.args(listen).arg("--psk-file").arg(psk_file);
    command
}

/// Status of a registration of the node `slug` with this key.
fn register(control: &Api, psk: &str, slug: &str) -> u16 {
    let body = json!({"psk": psk, "capability": capability(slug, "http://127.0.0.1:1")});
    control.post("/v1/nodes/register", &body).status
}

#[test]
fn old_and_new_key_are_valid() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("psk");
    for (keys, expected) in [
        (format!("{OLD}\n"), [201, 401]),
        (
            format!("# since today\n{NEW}\n\n# before\n{OLD}\n"),
            [200, 201],
        ),
        (format!("{NEW}\n"), [401, 200]),
    ] {
        fs::write(&file, &keys).unwrap();
        let mut server = Server::launch(
            home.path(),
            "orchestrator",
            &mut command(home.path(), &file),
        );
        let control = Api::new(&server.address("control"));
        let statuses = [
            register(&control, OLD, "old"),
            register(&control, NEW, "new"),
        ];
        assert_eq!(statuses, expected, "{keys}");
        for key in [OLD, NEW] {
            assert!(!server.process.stderr().contains(key));
        }
        assert_eq!(server.process.terminate(), 0);
    }
}

#[test]
fn unusable_key_is_named_by_line() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("psk");
    for (keys, words) in [
        (format!("{NEW}\nshort\n"), "(line 2) must have at least 16"),
        (format!("{NEW}\n{OLD}\n{OLD}\n"), "is given as 3 lines"),
    ] {
        fs::write(&file, &keys).unwrap();
        let done = run(&mut command(home.path(), &file));
        assert_eq!(done.code, 2, "{done:?}");
        assert!(done.stderr.contains(words), "{done:?}");
    }
    let keys = home.path().join("orchestrator/keys");
    fs::create_dir_all(&keys).unwrap();
    fs::write(keys.join("psk"), format!("{NEW}\nshort\n")).unwrap();
    let mut command = role(
        home.path(),
        "serve-orchestrator",
        &home.path().join("orchestrator"),
    );
    let listen = [
        "--gateway-listen",
        "127.0.0.1:0",
        "--control-listen",
        "127.0.0.1:0",
    ];
    let done = run(command.args(listen));
    assert_eq!(done.code, 8, "{done:?}");
    assert!(
        done.stderr.contains("keys/psk (line 2) must have"),
        "{done:?}"
    );
}

#[test]
fn node_shows_first_key_of_file() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let file = home.path().join("keys");
    fs::write(&file, format!("# the new one first\n{PSK}\n{OLD}\n{OLD}\n")).unwrap();
    let url = orchestrator.control_url.as_str();
    let flags = ["--orchestrator", url, "--psk-file", file.to_str().unwrap()];
    let mut node = Node::join(home.path(), "box", &flags);
    eventually("the node takes jobs", || {
        node.process.assert_runs();
        node.process.stderr().contains("takes jobs").then_some(())
    });
    assert_eq!(node.process.terminate(), 0);
}
