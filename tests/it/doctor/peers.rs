//! Checks of other programs: on the ports of roles, the orchestrator, the model server.

use super::Corner;
use crate::support::{
    IMAGE, Orchestrator,
    image::podman,
    lasting_port,
    listener::{Calls, Listener},
    tls_front::{Identity, TlsFront},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use std::{fs, net::TcpListener};

#[test]
fn occupied_port_is_named_with_its_flag() {
    let corner = Corner::new();
    let servers = [(); 2].map(|()| {
        Listener::open("127.0.0.1:0", &Calls::default(), |_, answer| {
            answer.status(200, &json!("hello"))
        })
    });
    let [worker, gateway] = servers.each_ref().map(|server| server.address.to_string());
    let report = corner.report(&["--worker-listen", &worker, "--gateway-listen", &gateway]);
    let (detail, fix) = report.check("worker-port", "fail");
    assert!(detail.contains(&worker), "{detail}");
    assert!(fix.contains("--worker-listen"), "{fix}");
    // A node doesn't need the ports of an orchestrator.
    let (_, fix) = report.check("gateway-port", "warn");
    assert!(fix.contains("--gateway-listen"), "{fix}");
}

#[test]
fn doctor_does_not_wait_for_silent_peers() {
    let corner = Corner::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let report = corner.report(&["--inference-port", &port]);
    let (_, fix) = report.check("inference-port", "fail");
    assert!(fix.contains("--inference-port"), "{fix}");
}

#[test]
fn ollama_is_recognised_at_configured_port() {
    let corner = Corner::new();
    let ollama = Listener::open("127.0.0.1:0", &Calls::default(), |call, answer| {
        if call.path == "/api/version" {
            answer.status(200, &json!({"version": "0.5.1"}));
        } else {
            // As Ollama does; a problem of cynode would be cynode's.
            answer.text(404, "404 page not found");
        }
    });
    let (address, port) = (
        ollama.address.to_string(),
        ollama.address.port().to_string(),
    );
    let report = corner.report(&["--inference-port", &port, "--worker-listen", &address]);
    let (detail, _) = report.check("inference-port", "ok");
    assert!(detail.contains("Ollama 0.5.1"), "{detail}");
    let (detail, _) = report.check("worker-port", "fail");
    assert!(detail.contains("Ollama 0.5.1"), "{detail}");
}

#[test]
fn running_orchestrator_is_reached() {
    let corner = Corner::new();
    let orchestrator = Orchestrator::start(corner.home.path(), &[]);
    let report = corner.report(&[
        "--orchestrator",
        &orchestrator.control_url,
        "--gateway-listen",
        orchestrator.gateway.address(),
        "--control-listen",
        orchestrator.control.address(),
    ]);
    let (detail, _) = report.check("orchestrator", "ok");
    assert!(detail.contains("answered within"), "{detail}");
    let (detail, _) = report.check("clock", "ok");
    assert!(detail.contains("orchestrator's"), "{detail}");
    for name in ["gateway-port", "control-port"] {
        let (detail, _) = report.check(name, "ok");
        assert!(detail.contains("cynode answers"), "{detail}");
    }
}

#[test]
fn certificate_of_orchestrator_is_checked() {
    let corner = Corner::new();
    let orchestrator = Orchestrator::start(corner.home.path(), &[]);
    let (identity, other) = (Identity::new(), Identity::new());
    let front = TlsFront::start(&identity, &orchestrator.control_url);
    let check = |pin: &str, status: &str| {
        let report = corner.report(&["--orchestrator", &front.url, "--pin", pin]);
        report.check("orchestrator", status)
    };
    let (detail, _) = check(&identity.pin, "ok");
    assert!(detail.contains(&identity.pin), "{detail}");
    assert!(detail.contains("ends in"), "{detail}");
    let (detail, fix) = check(&other.pin, "fail");
    assert!(detail.contains(&identity.pin), "{detail}");
    assert!(detail.contains(&other.pin), "{detail}");
    assert!(fix.contains("--pin"), "{fix}");
    let report = corner.report(&["--orchestrator", &front.url]);
    let (detail, _) = report.check("orchestrator", "fail");
    assert!(detail.contains("no authority"), "{detail}");
}

#[test]
fn plain_url_of_encrypted_port_is_named() {
    let corner = Corner::new();
    let orchestrator = Orchestrator::start(corner.home.path(), &["--tls", "on"]);
    let plain = format!("http://{}", orchestrator.control.address());
    let report = corner.report(&["--orchestrator", &plain]);
    let (detail, fix) = report.check("orchestrator", "fail");
    assert!(detail.contains("speaks TLS only"), "{detail}");
    for word in ["https://", "--pin"] {
        assert!(fix.contains(word), "{fix}");
    }
    report.check("clock", "warn");
}

#[test]
fn doctor_uses_pin_of_its_node() {
    let corner = Corner::new();
    let orchestrator = Orchestrator::start(corner.home.path(), &[]);
    let identity = Identity::new();
    let front = TlsFront::start(&identity, &orchestrator.control_url);
    let shows_pin = |flags: &[&str]| {
        let report = corner.report(flags);
        let (detail, _) = report.check("orchestrator", "ok");
        assert!(detail.contains(&identity.pin), "{detail}");
    };
    let content = json!({"v": 1, "u": front.url, "p": identity.pin, "s": "s".repeat(43)});
    let token = format!("cyj_{}", URL_SAFE_NO_PAD.encode(content.to_string()));
    fs::write(corner.home.path().join("token"), token).unwrap();
    let file = corner.home.path().join("node.yaml");
    fs::write(&file, "orchestrator: {join_file: token}\n").unwrap();
    shows_pin(&["--config", file.to_str().unwrap()]);
    // The variables of the node's unit do the same.
    let path = corner.home.path().join("token");
    let token = fs::read_to_string(&path).unwrap();
    for (name, value) in [
        ("CYNODE_JOIN", token.as_str()),
        ("CYNODE_JOIN_FILE", path.to_str().unwrap()),
    ] {
        let report = corner.report_with(&[(name, value)]);
        let (detail, _) = report.check("orchestrator", "ok");
        assert!(detail.contains(&identity.pin), "{detail}");
    }
    let report = corner.report_with(&[("CYNODE_JOIN", "cyj_nonsense")]);
    let (detail, _) = report.check("config", "fail");
    assert!(detail.contains("join token"), "{detail}");

    let node = corner.data_dir().join("node");
    fs::create_dir_all(&node).unwrap();
    let known = json!({"url": front.url, "pin": identity.pin});
    fs::write(node.join("orchestrator.json"), known.to_string()).unwrap();
    shows_pin(&["--orchestrator", &front.url]);
}

#[test]
fn unreachable_orchestrator_fails() {
    let corner = Corner::new();
    let url = format!("http://127.0.0.1:{}", lasting_port());
    let report = corner.report(&["--orchestrator", &url]);
    let (detail, fix) = report.check("orchestrator", "fail");
    assert!(detail.contains(&url), "{detail}");
    assert!(fix.contains("--control-listen"), "{fix}");
    report.check("clock", "warn");
    // The gateway answers, too, but no node can register there.
    let orchestrator = Orchestrator::start(corner.home.path(), &[]);
    let report = corner.report(&["--orchestrator", &orchestrator.gateway_url]);
    let (_, fix) = report.check("orchestrator", "fail");
    assert!(fix.contains("12082"), "{fix}");
    let report = corner.report(&["--orchestrator", orchestrator.control.address()]);
    let (_, fix) = report.check("orchestrator", "fail");
    assert!(fix.contains("https://"), "{fix}");
}

#[test]
fn model_server_of_another_node_is_named() {
    let corner = Corner::new();
    let name = format!("cynode-ollama-{}", corner.inference_port);
    let labels = [
        "--label=io.cynode.node=another",
        "--label=io.cynode.slug=attic",
    ];
    crate::support::image::ready();
    podman(&[&["create", "--name", &name][..], &labels, &[IMAGE, "true"]].concat()).unwrap();
    let report = corner.report(&[]);
    podman(&["rm", &name]).unwrap();
    let (detail, fix) = report.check("inference-port", "fail");
    assert!(detail.contains("the node attic"), "{detail}");
    assert!(fix.contains("--inference-port"), "{fix}");
    let report = corner.report(&["--inference", "off"]);
    report.check("inference-port", "ok");
}
