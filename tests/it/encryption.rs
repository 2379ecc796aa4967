//! Encryption that an operator gets who says nothing of it, and the way of a plain cluster to it.

use crate::support::{
    Node, Orchestrator,
    cluster::{finish, wait_ready},
    eventually, lasting_port,
    process::{Done, run},
    server::{Server, role},
    tls::{get, pin_at},
};
use serde_json::json;
use std::path::Path;

/// Free ports on loopback.
const LOCAL: [&str; 2] = ["127.0.0.1:0", "127.0.0.1:0"];
/// Log message about plain HTTP on a network.
const PLAIN_WARNING: &str = "plain HTTP: passwords";

/// The address with which a program on this machine reaches a listener at all addresses.
fn on_loopback(address: &str) -> String {
    let (_, port) = address.rsplit_once(':').unwrap();
    format!("127.0.0.1:{port}")
}

#[test]
fn control_plane_is_encrypted_by_default() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start_default(home.path(), LOCAL, &[]);
    let control = orchestrator.control.address();
    get(control, "/healthz").expect(200);
    let refused = orchestrator.control.get("/healthz");
    let problem = refused.problem(400, "invalid-request");
    let detail = problem["detail"].as_str().unwrap();
    for word in ["https://", "--pin"] {
        assert!(detail.contains(word), "{detail}");
    }
    // Programs of users on this machine know no pin.
    orchestrator.gateway.get("/healthz").expect(200);
    let pin = pin_at(control);
    let join = format!("cynode node --orchestrator https://{control} --pin {pin} --psk-file FILE");
    eventually("it tells how to join", || {
        orchestrator.process.stdout().contains(&join).then_some(())
    });
    let log = orchestrator.process.stderr();
    assert!(!log.contains(PLAIN_WARNING), "{log}");
    assert!(log.contains(&pin), "{log}");

    let node = Node::start(home.path(), "box", &orchestrator.control_url, &[]);
    wait_ready(&orchestrator);
    let user = orchestrator.login();
    let task = user.post("/v1/tasks", &json!({"script": "echo hello"}));
    let id = task.json(201)["id"].as_str().unwrap().to_owned();
    assert_eq!(finish(&user, &id)["status"], "completed");
    drop(node);
}

#[test]
fn gateway_beyond_loopback_is_encrypted() {
    let home = tempfile::tempdir().unwrap();
    let addresses = ["0.0.0.0:0", "127.0.0.1:0"];
    let orchestrator = Orchestrator::start_default(home.path(), addresses, &[]);
    let gateway = on_loopback(orchestrator.gateway.address());
    get(&gateway, "/healthz").expect(200);
    assert_eq!(pin_at(&gateway), pin_at(orchestrator.control.address()));
    let log = orchestrator.process.stderr();
    assert!(!log.contains(PLAIN_WARNING), "{log}");
}

#[test]
fn tls_off_is_plain_everywhere() {
    let home = tempfile::tempdir().unwrap();
    let addresses = ["0.0.0.0:0", "127.0.0.1:0"];
    let orchestrator = Orchestrator::start_at(home.path(), addresses, &["--tls", "off"]);
    let api = crate::support::Api::new(&on_loopback(orchestrator.gateway.address()));
    api.get("/healthz").expect(200);
    orchestrator.control.get("/healthz").expect(200);
    let log = orchestrator.process.stderr();
    assert!(log.contains(PLAIN_WARNING), "{log}");
    assert!(!orchestrator.data_dir.join("keys/tls.key").exists());
}

#[test]
fn banner_names_pins_of_encrypted_listeners() {
    let home = tempfile::tempdir().unwrap();
    let mut command = role(home.path(), "serve-orchestrator", &home.path().join("made"));
    command.env_remove("CYNODE_TLS").args([
        "--gateway-listen",
        "127.0.0.1:0",
        "--control-listen",
        "127.0.0.1:0",
    ]);
    let mut server = Server::launch(home.path(), "made", &mut command);
    let (gateway, control) = (server.address("gateway"), server.address("control"));
    let pin = pin_at(&control);
    let login = format!("cynode login --handle admin --gateway-url http://{gateway}\n");
    let join = format!("cynode node --orchestrator https://{control} --pin {pin} --psk-file -\n");
    eventually("it shows both commands", || {
        let shown = server.process.stdout();
        (shown.contains(&login) && shown.contains(&join)).then_some(())
    });
    assert_eq!(server.process.terminate(), 0);
}

#[test]
fn plain_node_is_told_to_use_tls() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start_default(home.path(), LOCAL, &[]);
    let plain = format!("http://{}", orchestrator.control.address());
    let mut node = Node::launch(home.path(), "box", &plain, &[]);
    // Another code than that of a wrong setting: the operator may choose plain HTTP, and a service is started again.
    assert_eq!(node.process.code(), 6);
    let log = node.process.stderr();
    for word in ["speaks TLS only", "https://", "--pin", "nodes token create"] {
        assert!(log.contains(word), "{word} in {log}");
    }
}

#[test]
fn join_token_of_default_has_pin() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start_default(home.path(), LOCAL, &[]);
    let user = orchestrator.login();
    let url = orchestrator.control_url.as_str();
    let created = user.post("/v1/join-tokens", &json!({"url": url}));
    let token = created.json(201)["token"].as_str().unwrap().to_owned();
    let file = home.path().join("token");
    std::fs::write(&file, token).unwrap();
    let flags = ["--join-file", file.to_str().unwrap()];
    let _node = Node::join(home.path(), "box", &flags);
    wait_ready(&orchestrator);
    let plain = format!("http://{}", orchestrator.control.address());
    let refused = user.post("/v1/join-tokens", &json!({"url": plain}));
    refused.problem(400, "invalid-request");
}

/// Runs a client command of the admin at a plain gateway.
fn client(home: &Path, orchestrator: &Orchestrator, token: &str, arguments: &[&str]) -> Done {
    let mut command = crate::support::cynode(home);
    command
        .args(arguments)
        .env("CYNODE_GATEWAY_URL", &orchestrator.gateway_url)
        .env("CYNODE_TOKEN", token);
    run(&mut command)
}

#[test]
fn running_job_survives_switch_to_tls() {
    let home = tempfile::tempdir().unwrap();
    let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let at = [addresses[0].as_str(), addresses[1].as_str()];
    let mut orchestrator = Orchestrator::start_at(home.path(), at, &["--tls", "off"]);
    let url = orchestrator.control_url.clone();
    let mut node = Node::start(home.path(), "box", &url, &[]);
    wait_ready(&orchestrator);
    let user = orchestrator.login();
    let waiting = "echo before; until [ -e go ]; do usleep 5000; done; echo after";
    let created = user.post("/v1/tasks", &json!({"script": waiting, "max_attempts": 1}));
    let id = created.json(201)["id"].as_str().unwrap().to_owned();
    eventually("the command runs", || {
        let logs = client(
            home.path(),
            &orchestrator,
            user.token(),
            &["task", "logs", &id],
        );
        (logs.stdout == "before\n").then_some(())
    });

    // First the orchestrator: its nodes go on with their jobs, and say what is missing.
    assert_eq!(orchestrator.process.terminate(), 0);
    orchestrator = Orchestrator::start_default(home.path(), at, &[]);
    eventually("the node says to use https://", || {
        node.process.assert_runs();
        let log = node.process.stderr();
        let is_said = log.contains("heartbeat failed") && log.contains("use https://");
        is_said.then_some(())
    });
    // Then each node.
    assert_eq!(node.process.terminate(), 0);
    node = Node::start(home.path(), "box", &orchestrator.control_url, &[]);
    wait_ready(&orchestrator);
    for place in node.workspaces() {
        std::fs::write(place.join("workspace/go"), "").unwrap();
    }
    assert_eq!(finish(&user, &id)["status"], "completed");
    let result = user.get(&format!("/v1/tasks/{id}/result")).json(200);
    let job = &result["jobs"][0];
    assert_eq!(job["attempt"], 1, "{job}");
    assert_eq!(job["result_object"]["stdout"], "before\nafter\n");
}
