//! Orchestrators, nodes and workers, alone and together, as an operator starts them.

use super::{
    Api, DEADLINE, IMAGE, Process, cynode, encryption, eventually, image,
    process::{Done, run},
    server::{Server, ends_clean, is_a_server, role},
};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};
use tempfile::TempDir;

/// The admin's password of every orchestrator that a test starts.
pub(crate) const PASSWORD: &str = "a password of the tests";
/// The pre-shared key of every orchestrator that a test starts.
pub(crate) const PSK: &str = "a pre-shared key of the tests";

/// Way of nodes that a test says nothing of; `CYNODE_TEST_CONNECT=dial` has the suite use tunnels. Nodes listen beside
/// them, for tests that call a Worker API themselves, unless a test takes away their address.
pub(crate) fn connect() -> String {
    std::env::var("CYNODE_TEST_CONNECT").unwrap_or_else(|_| "listen".to_owned())
}

/// An orchestrator.
pub(crate) struct Orchestrator {
    server: Server,
    /// The User API, without a token.
    pub(crate) gateway: Api,
    /// The Node API, without a token.
    pub(crate) control: Api,
    /// Scheme and address of the Node API.
    pub(crate) control_url: String,
    /// `http://` and the address of the User API.
    pub(crate) gateway_url: String,
}

impl Orchestrator {
    /// Starts one on free ports, with what the operator says in `more`.
    pub(crate) fn start(home: &Path, more: &[&str]) -> Self {
        Self::start_at(home, ["127.0.0.1:0", "127.0.0.1:0"], more)
    }

    /// Starts one at these addresses: gateway, control plane.
    pub(crate) fn start_at(home: &Path, addresses: [&str; 2], more: &[&str]) -> Self {
        if encryption::was_default(home, more) {
            return Self::start_default(home, addresses, more);
        }
        let mut server = Self::launch(home, addresses, more, |command| command);
        let (gateway, control) = (server.address("gateway"), server.address("control"));
        Self::of(server, &gateway, &control)
    }

    /// Starts one that may not be able to write its addresses, which are lasting ports.
    pub(crate) fn start_blind(home: &Path, [gateway, control]: [&str; 2], more: &[&str]) -> Self {
        let server = Self::launch(home, [gateway, control], more, |command| command);
        let mut orchestrator = Self::of(server, gateway, control);
        eventually("it serves", || {
            orchestrator.process.assert_runs();
            let reply = orchestrator.gateway.try_call("GET", "/healthz", &[], b"");
            reply.ok().filter(|reply| reply.status == 200)
        });
        orchestrator
    }

    pub(super) fn of(server: Server, gateway: &str, control: &str) -> Self {
        Self {
            server,
            gateway: Api::new(gateway),
            control: Api::new(control),
            control_url: format!("http://{control}"),
            gateway_url: format!("http://{gateway}"),
        }
    }

    /// Starts one on free ports that may have so many files open.
    pub(crate) fn start_with_files(home: &Path, files: u32, more: &[&str]) -> Self {
        let free = ["127.0.0.1:0", "127.0.0.1:0"];
        let mut server = Self::launch(home, free, more, |command| {
            let mut limited = Command::new("prlimit");
            limited
                .arg(format!("--nofile={files}:{files}"))
                .arg(command.get_program())
                .args(command.get_args())
                .current_dir(home)
                .stdin(Stdio::null());
            for (name, value) in command.get_envs() {
                match value {
                    Some(value) => limited.env(name, value),
                    None => limited.env_remove(name),
                };
            }
            limited
        });
        let (gateway, control) = (server.address("gateway"), server.address("control"));
        Self::of(server, &gateway, &control)
    }

    pub(super) fn launch(
        home: &Path,
        [gateway, control]: [&str; 2],
        more: &[&str],
        wrap: impl FnOnce(Command) -> Command,
    ) -> Server {
        let (psk, password) = (
            secret_file(home, "psk", PSK),
            secret_file(home, "password", PASSWORD),
        );
        let listen = ["--gateway-listen", gateway, "--control-listen", control];
        let secrets = ["--psk-file", &psk, "--admin-password-file", &password];
        let mut command = role(home, "serve-orchestrator", &home.join("orchestrator"));
        command
            .env("CYNODE_REQUIRE_INFERENCE", "false")
            .env("CYNODE_DEFAULT_IMAGE", IMAGE);
        if encryption::is_chosen(more) {
            command.env_remove("CYNODE_TLS");
        }
        command.args(listen).args(secrets).args(more);
        Server::launch(home, "orchestrator", &mut wrap(command))
    }

    /// The User API as the admin, freshly logged in.
    pub(crate) fn login(&self) -> Api {
        let login = json!({"handle": "admin", "password": PASSWORD});
        let tokens = self.gateway.post("/v1/auth/login", &login).json(200);
        self.gateway
            .with_token(tokens["access_token"].as_str().unwrap())
    }

    /// Has the admin make a user; the User API as they, freshly logged in.
    pub(crate) fn add_user(&self, admin: &Api, handle: &str) -> Api {
        let user = json!({"handle": handle, "password": PASSWORD});
        admin.post("/v1/users", &user).expect(201);
        let tokens = self.gateway.post("/v1/auth/login", &user).json(200);
        self.gateway
            .with_token(tokens["access_token"].as_str().unwrap())
    }
}

/// A node.
pub(crate) struct Node {
    server: Server,
    url: String,
}

impl Node {
    /// Starts one of this slug and waits until it serves.
    pub(crate) fn start(home: &Path, slug: &str, control_url: &str, more: &[&str]) -> Self {
        let mut node = Self::launch(home, slug, control_url, more);
        node.url = format!("http://{}", node.server.address("worker"));
        node
    }

    /// Starts one of this slug.
    pub(crate) fn launch(home: &Path, slug: &str, control_url: &str, more: &[&str]) -> Self {
        Self::launch_in(home, slug, control_url, more, &[])
    }

    /// Starts one of this slug with these variables in its environment.
    pub(crate) fn launch_in(
        home: &Path,
        slug: &str,
        control_url: &str,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let psk = secret_file(home, "psk", PSK);
        let whom = ["--orchestrator", control_url, "--psk-file", &psk];
        let pin = encryption::pin_of(control_url);
        let pin = pin.as_deref().map(|pin| ("CYNODE_PIN", pin));
        let environment: Vec<_> = environment.iter().copied().chain(pin).collect();
        Self::launch_as(home, slug, &[&whom[..], more].concat(), &environment)
    }

    /// Starts one of this slug whose flags say whom it joins.
    pub(crate) fn join(home: &Path, slug: &str, flags: &[&str]) -> Self {
        Self::launch_as(home, slug, flags, &[])
    }

    fn launch_as(home: &Path, slug: &str, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        image::ready();
        let mut command = role(home, "node", &home.join(slug));
        let listens = !environment.contains(&("CYNODE_WORKER_LISTEN", ""));
        let connect = match connect() {
            // Stand-ins of orchestrators offer no tunnel.
            connect if connect == "dial" && listens => "auto".to_owned(),
            connect => connect,
        };
        // Not as flags, which would forbid the same flags in `more`.
        command
            .env("CYNODE_INFERENCE", "off")
            .env("CYNODE_WORKER_LISTEN", "127.0.0.1:0")
            .env("CYNODE_CONNECT", connect)
            .env("CYNODE_MAX_CONCURRENCY", "4")
            .env("CYNODE_CONFIG", "/dev/null");
        for (name, value) in environment {
            // Without a value: as if it were not set.
            if value.is_empty() {
                command.env_remove(name);
            } else {
                command.env(name, value);
            }
        }
        let server = Server::launch(home, slug, command.args(["--slug", slug]).args(flags));
        Self {
            server,
            url: String::new(),
        }
    }

    /// Starts one of this slug that listens nowhere.
    pub(crate) fn dial(home: &Path, slug: &str, control_url: &str, more: &[&str]) -> Self {
        let flags = [&["--connect", "dial"][..], more].concat();
        let environment = [("CYNODE_WORKER_LISTEN", "")];
        Self::launch_in(home, slug, control_url, &flags, &environment)
    }

    /// Where its Worker API is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

is_a_server!(Orchestrator, Node);
ends_clean!(Node);

impl Drop for Orchestrator {
    fn drop(&mut self) {
        if !thread::panicking() && self.process.ended().is_none() {
            assert_eq!(self.process.terminate(), 0, "an orderly end");
        }
    }
}

/// An orchestrator, a node of the slug `box`, and an admin who is logged in.
pub(crate) struct Cluster {
    /// The User API as the admin.
    pub(crate) user: Api,
    /// The node.
    pub(crate) node: Node,
    /// The orchestrator.
    pub(crate) orchestrator: Orchestrator,
    home: TempDir,
}

impl Cluster {
    /// Starts both, and waits until the node takes jobs.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with what the node's operator says in `more`.
    pub(crate) fn start_with(more: &[&str]) -> Self {
        Self::start_at(["127.0.0.1:0", "127.0.0.1:0"], more)
    }

    /// The same with what the orchestrator's operator says in `more`.
    pub(crate) fn start_orchestrated(more: &[&str]) -> Self {
        Self::start_all(["127.0.0.1:0", "127.0.0.1:0"], more, &[])
    }

    /// The same with what the operators of the orchestrator and of the node say.
    pub(crate) fn start_operated(orchestrator: &[&str], node: &[&str]) -> Self {
        Self::start_all(["127.0.0.1:0", "127.0.0.1:0"], orchestrator, node)
    }

    /// The same with the orchestrator at these addresses.
    pub(crate) fn start_at(addresses: [&str; 2], node: &[&str]) -> Self {
        Self::start_all(addresses, &[], node)
    }

    fn start_all(addresses: [&str; 2], orchestrator: &[&str], node: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let orchestrator = if encryption::is_wanted(addresses[0], orchestrator) {
            Orchestrator::start_default(home.path(), addresses, orchestrator)
        } else {
            Orchestrator::start_at(home.path(), addresses, orchestrator)
        };
        let node = Node::start(home.path(), "box", &orchestrator.control_url, node);
        Self::of(home, orchestrator, node)
    }

    /// A node that has joined, once it takes jobs.
    pub(super) fn of(home: TempDir, orchestrator: Orchestrator, node: Node) -> Self {
        wait_ready(&orchestrator);
        Self {
            user: orchestrator.login(),
            node,
            orchestrator,
            home,
        }
    }

    /// The directory below which everything of this test lies.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Creates a task; its id.
    pub(crate) fn create(&self, task: &Value) -> String {
        let created = self.user.post("/v1/tasks", task).json(201);
        created["id"].as_str().unwrap().to_owned()
    }

    /// Creates a task that runs a script; its id.
    pub(crate) fn script(&self, script: &str) -> String {
        self.create(&json!({"script": script}))
    }

    /// The task as it is now.
    pub(crate) fn task(&self, id: &str) -> Value {
        self.user.get(&format!("/v1/tasks/{id}")).json(200)
    }

    /// The answer of `/result` as it is now.
    pub(crate) fn result(&self, id: &str) -> Value {
        self.user.get(&format!("/v1/tasks/{id}/result")).json(200)
    }

    /// Waits for a task's end; the task.
    pub(crate) fn finish(&self, id: &str) -> Value {
        finish(&self.user, id)
    }

    /// Waits until a task has printed `text` on stdout.
    pub(crate) fn printed(&self, id: &str, text: &str) {
        let mut seen = String::new();
        for event in self.user.events(&format!("/v1/tasks/{id}/logs"), None) {
            seen += event.data["data"]
                .as_str()
                .filter(|_| event.name == "stdout")
                .unwrap_or_default();
            if seen.contains(text) {
                return;
            }
        }
        panic!("the task ended without printing {text:?}: {seen:?}");
    }

    /// A client command of the logged-in admin.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = cynode(self.home());
        command
            .args(arguments)
            .env("CYNODE_GATEWAY_URL", &self.orchestrator.gateway_url)
            .env("CYNODE_TOKEN", self.user.token());
        command
    }

    /// Runs a client command of the logged-in admin to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        run(&mut self.cli(arguments))
    }

    /// Starts a client command of the logged-in admin.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Process {
        Process::start("client", self.home(), &mut self.cli(arguments))
    }
}

/// Waits for a task's end, on its event stream; the task.
pub(crate) fn finish(user: &Api, id: &str) -> Value {
    let last = user
        .events(&format!("/v1/tasks/{id}/logs?follow=true"), None)
        .last()
        .unwrap();
    assert_eq!(last.name, "end", "{last:?}");
    let task = user.get(&format!("/v1/tasks/{id}")).json(200);
    assert_eq!(
        task["status"], last.data["status"],
        "the stream and the task agree"
    );
    task
}

/// Waits until the orchestrator says that work can be done.
pub(crate) fn wait_ready(orchestrator: &Orchestrator) {
    let mut reason = String::new();
    eventually(&format!("/readyz is 200 within {DEADLINE:?}"), || {
        let reply = orchestrator.gateway.get("/readyz");
        reason = reply.text();
        (reply.status == 200).then_some(())
    });
}

/// Writes a secret into a file of the test; its path.
pub(crate) fn secret_file(home: &Path, name: &str, secret: &str) -> String {
    let path: PathBuf = home.join(format!("{name}.secret"));
    fs::write(&path, format!("{secret}\n")).unwrap();
    // Else each role warns of it.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}
