//! Registries that a user names: one in the node's own network needs the operator's permission, none can delay other
//! jobs, and podman's messages about them stay in the node's log.

use crate::support::{
    Cluster, ModelPort, Node, Orchestrator, Worker, eventually,
    image::{self, podman},
    uuid,
};
use serde_json::{Value, json};
use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    thread,
};
use tempfile::TempDir;

/// A podman that fails every pull with a message, and records the pulls.
struct Engine(TempDir);

impl Engine {
    fn failing(words: &str) -> Self {
        let engine = Self(tempfile::tempdir().unwrap());
        let home = engine.0.path().display();
        fs::write(engine.0.path().join("words"), words).unwrap();
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in pull) echo \"$*\" >> {home}/pulls; echo \"$REGISTRY_AUTH_FILE\" > {home}/auth; cat {home}/words >&2; exit 125;; esac\n\
             exec podman \"$@\"\n"
        );
        fs::write(engine.path(), script).unwrap();
        fs::set_permissions(engine.path(), fs::Permissions::from_mode(0o755)).unwrap();
        engine
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("podman")
    }

    fn worker(&self, more: &[&str]) -> Worker {
        let path = self.path();
        let engine = ["--engine", path.to_str().unwrap()];
        Worker::start(&[&engine, more].concat())
    }

    fn pulls(&self) -> String {
        fs::read_to_string(self.0.path().join("pulls")).unwrap_or_default()
    }
}

/// A registry that accepts connections and never answers.
struct SilentRegistry(SocketAddr);

impl SilentRegistry {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut stream = stream;
                    // Until the other end closes.
                    while matches!(stream.read(&mut [0; 1024]), Ok(1..)) {}
                });
            }
        });
        Self(address)
    }

    fn image(&self) -> String {
        format!("{}/team/{}:1", self.0, uuid())
    }

    fn flags(&self) -> [String; 4] {
        let pattern = format!("{}/*", self.0);
        ["--allowed-image", "*", "--allowed-image", &pattern].map(str::to_owned)
    }
}

fn words(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

fn error_of(worker: &Worker, image: &str) -> (String, String) {
    let result = worker.run(&Worker::job_in(image, &["true"]));
    let text = |field: &str| result["error"][field].as_str().unwrap().to_owned();
    (text("type"), text("message"))
}

#[test]
fn registry_of_own_network_needs_permission() {
    let engine = Engine::failing("Error: no");
    let all = ["--allowed-image", "*", "--allowed-image", "10.*"];
    for flags in [&[][..], &all] {
        let worker = engine.worker(flags);
        for registry in [
            "10.0.0.5",
            "127.1",
            "10.0.0.0x5",
            "registry.invalid:5000",
            "registry:5000",
            "localhost:5000",
            "metadata.internal",
            "REGISTRY",
        ] {
            let (kind, message) = error_of(&worker, &format!("{registry}/team/tool:1"));
            assert_eq!(kind, "image-not-allowed", "{registry}: {message}");
            let pattern = format!("--allowed-image '{registry}/*'");
            assert!(message.contains(&pattern), "{message}");
        }
        let job = Worker::job_in("[::1]:5000/tool", &["true"]);
        worker.send(&job).expect(400);
    }
    assert_eq!(engine.pulls(), "");
}

#[test]
fn pattern_with_registry_permits_pull() {
    let engine = Engine::failing("Error: no");
    let worker = engine.worker(&["--allowed-image", "registry.invalid:5000/team/*"]);
    let (kind, _) = error_of(&worker, "registry.invalid:5000/team/tool:1");
    assert_eq!(kind, "image-pull-failed");
    let pulled = "pull docker://registry.invalid:5000/team/tool:1\n";
    assert_eq!(engine.pulls(), pulled);
    let (kind, _) = error_of(&worker, "registry.invalid:5000/other/tool:1");
    assert_eq!(kind, "image-not-allowed");
    assert_eq!(engine.pulls(), pulled);
}

#[test]
fn default_image_may_be_pulled() {
    let engine = Engine::failing("Error: no");
    let image = "registry.invalid:5000/team/tool:1";
    let worker = engine.worker(&["--prefetch-image", image]);
    eventually("the image is pulled", || {
        let pulled = format!("pull docker://{image}\n");
        engine.pulls().contains(&pulled).then_some(())
    });
    let (kind, _) = error_of(&worker, "registry.invalid:5000/team/other:1");
    assert_eq!(kind, "image-not-allowed");
}

#[test]
fn present_image_of_any_registry_runs() {
    let worker = Worker::start(&[]);
    let image = format!("localhost:5000/cynode/{}:1", uuid());
    let own = image::odd(|_| (), &[]);
    podman(&["tag", &own.0, &image]).unwrap();
    let result = worker.run(&Worker::job_in(&image, &["echo", "here"]));
    assert_eq!(result["stdout"], "here\n", "{result}");
}

#[test]
fn pull_error_shows_only_its_class() {
    let engine = Engine::failing(
        "Error: initializing source: pinging container registry: Get \"https://10.1.2.3/v2/\": \
         dial tcp 10.1.2.3:443: connect: connection refused \u{1b}[31m\nsecret banner",
    );
    let named = [
        "--allowed-image",
        "*",
        "--allowed-image",
        "registry.invalid/*",
    ];
    for (flags, class) in [
        // A user could choose a registry that redirects, and learn who answers there.
        (&[][..], "can't be pulled: the node's log says why"),
        (&named, "could not be reached"),
    ] {
        let worker = engine.worker(flags);
        let (kind, message) = error_of(&worker, "registry.invalid/team/tool:1");
        assert_eq!(kind, "image-pull-failed");
        assert!(message.contains(class), "{message}");
        for words in ["10.1.2.3", "dial tcp", "refused", "banner", "podman pull"] {
            assert!(!message.contains(words), "{words}: {message}");
        }
        let log = worker.process.stderr();
        assert!(log.contains("dial tcp 10.1.2.3:443"), "{log}");
        assert!(!log.contains("\u{1b}[31m") && !log.contains("\nsecret banner"));
    }
}

#[test]
fn jobs_continue_despite_hanging_registry() {
    let registry = SilentRegistry::open();
    let flags = registry.flags();
    let flags = [&words(&flags)[..], &["--max-concurrency", "1"]].concat();
    let worker = Worker::start(&flags);
    let waiting = Worker::job_in(&registry.image(), &["true"]);
    let mut events = worker.follow(&waiting, 0);
    assert_eq!(events.next().unwrap()["event"], "status");

    assert_eq!(
        worker.run(&Worker::script("echo here"))["stdout"],
        "here\n",
        "beside the waiting job"
    );
    // The number of waiting jobs is limited to that of slots, so that no user fills the node with them.
    worker
        .send(&Worker::job_in(&registry.image(), &["true"]))
        .problem(429, "pulls-full");
    assert_eq!(worker.run(&Worker::script("echo more"))["stdout"], "more\n");
    let held = worker.follow(&Worker::script("echo began; sleep 1000"), 0);
    let held_began = held.take(2).last().unwrap();
    assert_eq!(held_began["event"], "stdout", "{held_began}");
    worker.send(&Worker::script("true")).expect(429);

    for job in worker.api.get("/v1/worker/jobs").json(200)["jobs"]
        .as_array()
        .unwrap()
    {
        if job["status"] == "running" {
            worker
                .api
                .act(&format!("{}:cancel", Worker::path(job)))
                .json(200);
        }
    }
    assert_eq!(events.last().unwrap()["status"], "canceled");
    let pattern = format!("docker://{}", registry.0);
    eventually("a pull without waiting jobs is ended", || {
        let left = crate::support::server::processes(|arguments| {
            arguments.iter().any(|word| word.starts_with(&pattern))
        });
        left.is_empty().then_some(())
    });
}

#[test]
fn tasks_continue_despite_hanging_registry() {
    let registry = SilentRegistry::open();
    let flags = registry.flags();
    let flags = [&words(&flags)[..], &["--max-concurrency", "1"]].concat();
    let cluster = Cluster::start_with(&flags);
    let waits = cluster.create(&json!({"script": "true", "image": registry.image()}));
    eventually("the task waits for its image", || {
        let listed = podman_pulls(&registry);
        (!listed.is_empty()).then_some(())
    });
    let id = cluster.script("echo here");
    assert_eq!(cluster.finish(&id)["status"], "completed");
    assert_eq!(cluster.task(&waits)["status"], "running");
    let canceled = cluster
        .user
        .act(&format!("/v1/tasks/{waits}/cancel"))
        .json(200);
    assert_eq!(canceled["canceled"], true);
}

fn podman_pulls(registry: &SilentRegistry) -> Vec<i32> {
    let pattern = format!("docker://{}", registry.0);
    crate::support::server::processes(|arguments| {
        arguments.iter().any(|word| word.starts_with(&pattern))
    })
}

#[test]
fn model_server_image_needs_permission() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let image = "localhost/nobody-allowed-it:latest";
    let orchestrator = Orchestrator::start(home.path(), &["--inference-image", image]);
    let port = at.port.to_string();
    let flags = [
        "--inference",
        "on",
        "--inference-port",
        &port,
        "--allowed-image",
        "localhost/cynode-test:*",
    ];
    let mut node = Node::launch(home.path(), "box", &orchestrator.control_url, &flags);
    assert_eq!(node.process.code(), 8);
    let stderr = node.process.stderr();
    assert!(stderr.contains("--allowed-image"), "{stderr}");
    let shown: Value = orchestrator.login().get("/v1/nodes/box").json(200);
    let reason = shown["reason"].as_str().unwrap();
    for words in ["image-not-allowed", image, "--allowed-image"] {
        assert!(reason.contains(words), "{words}: {shown}");
    }
    assert_eq!(at.inspect(), None);
}

#[test]
fn model_server_image_of_own_network_needs_permission() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let registry = SilentRegistry::open();
    let image = registry.image();
    let orchestrator = Orchestrator::start(home.path(), &["--inference-image", &image]);
    let port = at.port.to_string();
    let flags = ["--inference", "on", "--inference-port", &port];
    let mut node = Node::launch(home.path(), "box", &orchestrator.control_url, &flags);
    assert_eq!(node.process.code(), 8);
    let stderr = node.process.stderr();
    assert!(stderr.contains("--allowed-image"), "{stderr}");
}

#[test]
fn operators_login_reaches_podman_and_no_job() {
    let engine = Engine::failing("Error: no");
    let path = engine.path();
    let flags = ["--engine", path.to_str().unwrap()];
    let login = engine.0.path().join("auth.json");
    fs::write(&login, "{}").unwrap();
    let login = login.to_str().unwrap();
    let worker = Worker::start_with(&flags, &[("REGISTRY_AUTH_FILE", login)]);
    let (kind, _) = error_of(&worker, "registry.invalid/team/tool:1");
    assert_eq!(kind, "image-pull-failed");
    let auth = fs::read_to_string(engine.0.path().join("auth")).unwrap();
    assert_eq!(auth, format!("{login}\n"));
    let environment = worker.run(&Worker::script("env"));
    let environment = environment["stdout"].as_str().unwrap();
    assert!(!environment.contains("auth.json"), "{environment}");
}
