//! Capability reports of a node, and their view for users.

use crate::support::{
    Node, Orchestrator, OrchestratorStandIn, Step, cynode,
    process::{run, with_tool},
};
use serde_json::{Value, json};
use std::{fs, process::Command};

#[test]
fn report_describes_machine() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let flags = [
        "--label",
        "zone=attic",
        "--label",
        "gpu",
        "--name",
        "The box",
    ];
    let node = Node::start(home.path(), "box", &orchestrator.url, &flags);
    for report in [
        orchestrator.call(Step::Register, 1).body["capability"].clone(),
        orchestrator.call(Step::Report, 1).body,
    ] {
        let os_release = fs::read_to_string("/etc/os-release").unwrap();
        let distro = report["platform"]["distro"].as_str().unwrap();
        assert!(
            os_release.contains(&format!("PRETTY_NAME=\"{distro}\"")),
            "{distro}"
        );
        let uname = run(Command::new("uname").args(["-rm"])).stdout;
        let go = [("x86_64", "amd64"), ("aarch64", "arm64")];
        let uname = go
            .iter()
            .fold(uname, |uname, (kernel, go)| uname.replace(kernel, go));
        let platform =
            ["kernel_version", "arch"].map(|field| report["platform"][field].as_str().unwrap());
        assert_eq!(platform.join(" "), uname.trim());
        let version = run(Command::new("podman").arg("--version")).stdout;
        let reported = report["container_runtime"]["version"].as_str().unwrap();
        assert_eq!(version.trim().rsplit(' ').next(), Some(reported));
        let root = run(Command::new("id").arg("-u")).stdout.trim() == "0";
        assert_eq!(report["container_runtime"]["rootless_enabled"], !root);
        let memory = report["compute"]["ram_mb"].as_u64().unwrap();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
        let kib: u64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert_eq!(memory, kib / 1024);
        for field in ["cpu_cores", "storage_free_mb"] {
            assert!(report["compute"][field].as_u64().unwrap() > 0, "{field}");
        }
        let mut said = report["node"].clone();
        let instance = said.as_object_mut().unwrap().remove("instance_id");
        assert!(instance.is_some_and(|id| id.is_string()));
        assert_eq!(
            said,
            json!({"node_slug": "box", "name": "The box", "labels": ["zone=attic", "gpu"]})
        );
        assert_eq!(report["sandbox"]["max_concurrency"], 4);
        assert_eq!(report["worker_api"]["base_url"], node.url());
        assert_eq!(report["inference"]["mode"], "off");
        assert!(report["gpu"]["present"].is_boolean());
        assert!(report["reported_at"].as_str().unwrap().ends_with('Z'));
    }
}

#[test]
fn gpus_are_found_by_vendor_tools() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/gpu/nvidia-3090-3070.csv"
    );
    let script = format!("env >{}/seen; cat {fixture}", home.path().display());
    let path = with_tool(home.path(), "nvidia-smi", &script);
    let environment = [
        ("PATH", path.as_str()),
        ("CYNODE_PSK", "a pre-shared key of the tests"),
    ];
    let mut node = Node::launch_in(
        home.path(),
        "box",
        &orchestrator.control_url,
        &[],
        &environment,
    );
    crate::support::cluster::wait_ready(&orchestrator);
    node.process.assert_runs();
    let user = orchestrator.login();
    let gpu = user.get("/v1/nodes/box").json(200)["gpu"].clone();
    assert_eq!(gpu["present"], true);
    let models: Vec<&Value> = gpu["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|device| &device["model"])
        .collect();
    assert_eq!(
        json!(models),
        json!(["NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 3070"])
    );
    let seen = fs::read_to_string(home.path().join("seen")).unwrap();
    assert!(!seen.contains("CYNODE_"), "tools get no secrets: {seen}");
    let shown = run(cynode(home.path())
        .args(["nodes", "show", "box"])
        .env("CYNODE_GATEWAY_URL", &orchestrator.gateway_url)
        .env("CYNODE_TOKEN", user.token()));
    let line = "1 × NVIDIA GeForce RTX 3090 (24.0 GiB), 1 × NVIDIA GeForce RTX 3070 (8.0 GiB)";
    assert!(shown.stdout.contains(line), "{shown:?}");
}
