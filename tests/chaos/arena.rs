//! An orchestrator, its nodes in their namespaces, and everything that can be done to them.

use crate::{
    jobs::Plan,
    network::{Segment, sweep},
    support::{
        Api, Node, Orchestrator, Reply,
        cluster::wait_ready,
        eventually,
        image::podman,
        lasting_port,
        server::{kill, processes},
        uuid,
    },
    witness::Witness,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{fs, net::TcpStream, path::Path, time::Duration};
use tempfile::TempDir;

/// Where each node's Worker API listens, at an address of its own.
pub(crate) const WORKER_PORT: u16 = 12090;
/// Jobs at the same time, of each node.
const SLOTS: &str = "4";
/// What the operator of the orchestrator says.
const ORCHESTRATOR: &[&str] = &["--lease", "2s"];

/// A node and its place.
pub(crate) struct Site {
    /// The node; its process may be dead.
    pub(crate) node: Node,
    /// Its namespace.
    pub(crate) segment: Segment,
}

/// All of it.
pub(crate) struct TestBed {
    /// The nodes.
    pub(crate) sites: Vec<Site>,
    /// Who sees what they run.
    pub(crate) witness: Witness,
    /// The User API as the admin, also while the orchestrator is down.
    pub(crate) user: Api,
    orchestrator: Orchestrator,
    addresses: [String; 2],
    home: TempDir,
}

fn place(home: &Path, name: &str) -> std::path::PathBuf {
    let place = home.join(name);
    fs::create_dir_all(&place).unwrap();
    place
}

fn start_node(home: &Path, segment: &Segment, slug: &str, control: &str, own: &Witness) -> Node {
    // A home of its own: another one's start must not rewrite the files that this one reads.
    let home = place(home, slug);
    let orchestrator = format!("http://{}:{control}", segment.host);
    let listen = format!("{}:{WORKER_PORT}", segment.node);
    let [engine, runtime] = own.variables();
    let variables = [
        (engine.0, engine.1.as_str()),
        (runtime.0, runtime.1.as_str()),
        ("CYNODE_WORKER_LISTEN", listen.as_str()),
        ("CYNODE_MAX_CONCURRENCY", SLOTS),
    ];
    segment.inside(|| Node::launch_in(&home, slug, &orchestrator, &[], &variables))
}

impl TestBed {
    /// Starts it with so many nodes, called `n0`, `n1`, …, and waits until all take jobs.
    pub(crate) fn start(first: u8, nodes: u8) -> Self {
        sweep();
        let home = tempfile::tempdir().unwrap();
        let ports = [lasting_port(), lasting_port()].map(|port| port.to_string());
        let addresses = [
            format!("127.0.0.1:{}", ports[0]),
            format!("0.0.0.0:{}", ports[1]),
        ];
        let orchestrator = start_orchestrator(home.path(), &addresses);
        let witness = Witness::new(home.path());
        let site = |n| {
            let segment = Segment::new(first + n);
            let slug = format!("n{n}");
            let node = start_node(home.path(), &segment, &slug, &ports[1], &witness);
            Site { node, segment }
        };
        let sites = (0..nodes).map(site).collect();
        let user = orchestrator.login();
        let arena = Self {
            sites,
            witness,
            user,
            orchestrator,
            addresses,
            home,
        };
        arena.wait_for_nodes();
        arena
    }

    /// Waits until all nodes take jobs.
    pub(crate) fn wait_for_nodes(&self) {
        wait_ready(&self.orchestrator);
        eventually("all nodes are ready", || {
            let nodes = self.user.get("/v1/nodes").json(200);
            let nodes = nodes["nodes"].as_array().unwrap();
            let ready = nodes.iter().filter(|node| node["status"] == "ready");
            (ready.count() == self.sites.len()).then_some(())
        });
    }

    /// Waits until all nodes listen again after a start.
    pub(crate) fn wait_for_nodes_listening(&self) {
        for Site { segment, .. } in &self.sites {
            let address = format!("{}:{WORKER_PORT}", segment.node);
            eventually("the node listens", || {
                TcpStream::connect(&address).ok().map(drop)
            });
        }
    }

    /// After a failure: makes whole what is not, and throws away what nodes have.
    pub(crate) fn reset(&mut self) {
        self.witness.release();
        self.kill_orchestrator();
        for n in 0..self.sites.len() {
            let Site { node, segment } = &mut self.sites[n];
            segment.heal();
            node.process.kill();
            node.shims().into_iter().for_each(end);
            let jobs = node.data_dir.join("worker/jobs");
            eventually("containers go with their shims", || {
                node.containers().is_empty().then_some(())
            });
            let _ = fs::remove_dir_all(jobs);
            self.restart_node(n);
        }
        self.restart_orchestrator();
        self.wait_for_nodes();
        for conmon in self.conmons() {
            let children = format!("/proc/{conmon}/task/{conmon}/children");
            let children = fs::read_to_string(children).unwrap_or_default();
            // It ends with its container.
            let pids = children.split_whitespace();
            pids.filter_map(|pid| pid.parse().ok()).for_each(end);
        }
        // It would wait to be let go.
        let tasks = self.user.get("/v1/tasks?limit=1").json(200);
        let last = tasks["tasks"][0]["id"].as_str().unwrap_or_default();
        self.user.act(&format!("/v1/tasks/{last}/cancel"));
        eventually("no job is left", || {
            let mut sites = self.sites.iter();
            sites.all(|site| site.node.shims().is_empty()).then_some(())
        });
    }

    /// Kills the orchestrator.
    pub(crate) fn kill_orchestrator(&mut self) {
        self.orchestrator.process.kill();
    }

    /// Starts it again, at its addresses and with its state.
    pub(crate) fn restart_orchestrator(&mut self) {
        self.orchestrator = start_orchestrator(self.home.path(), &self.addresses);
    }

    /// Starts a node again that was killed.
    pub(crate) fn restart_node(&mut self, site: usize) {
        let control = self.addresses[1].rsplit(':').next().unwrap().to_owned();
        let (home, slug) = (self.home.path(), format!("n{site}"));
        let segment = &self.sites[site].segment;
        let node = start_node(home, segment, &slug, &control, &self.witness);
        self.sites[site].node = node;
    }

    /// One who asks for tasks, whatever is done to the arena.
    pub(crate) fn asking(&self) -> Asking {
        Asking(self.user.clone())
    }

    /// Asks for a task; its id.
    pub(crate) fn submit(&self, plan: &Plan) -> String {
        self.asking().submit(plan)
    }

    /// The answer of `/result`.
    pub(crate) fn result(&self, task: &str) -> Value {
        self.user.get(&format!("/v1/tasks/{task}/result")).json(200)
    }

    /// What the logs of all processes say of a job.
    pub(crate) fn log_lines_about(&self, job: &str) -> String {
        let homes = (0..self.sites.len()).map(|n| self.home.path().join(format!("n{n}")));
        let mut said = String::new();
        for dir in homes.chain([self.home.path().to_owned()]) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_none_or(|kind| kind != "stderr") {
                    continue;
                }
                let text = fs::read(&path).unwrap_or_default();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let text = String::from_utf8_lossy(&text).into_owned();
                for line in text.lines().filter(|line| line.contains(job)) {
                    let line: String = line.chars().take(400).collect();
                    said += &format!("  {name}: {line}\n");
                }
            }
        }
        said
    }

    /// What was left, and what the logs say of the job whose directory it is.
    pub(crate) fn describe_leftover(&self, what: &str) -> String {
        let name = what.rsplit('/').next().unwrap_or_default();
        let job = name.rsplit_once('-').map_or(name, |(job, _)| job);
        format!("left: {what}\n{}", self.log_lines_about(job))
    }

    /// What watches over containers, also of those that podman doesn't know any more.
    fn conmons(&self) -> Vec<i32> {
        let jobs = self.witness.jobs();
        let ours = |word: &&str| jobs.iter().any(|job| word.contains(job.as_str()));
        processes(|arguments| arguments[0].ends_with("conmon") && arguments.iter().any(ours))
    }

    /// What nodes still have: shims, containers, directories.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for Site { node, .. } in &self.sites {
            left.extend(node.shims().iter().map(|pid| format!("shim {pid}")));
            left.extend(node.containers().iter().map(|id| format!("container {id}")));
            left.extend(node.spools().iter().map(|path| path.display().to_string()));
        }
        // Also what only podman's storage knows of. Others' containers may go while it looks.
        let names = ["ps", "--all", "--external", "--format={{.Names}}"];
        let jobs = self.witness.jobs();
        let ours = |name: &&str| jobs.iter().any(|job| name.contains(job.as_str()));
        left.extend(self.conmons().iter().map(|pid| format!("conmon {pid}")));
        match podman(&names) {
            Ok(all) => left.extend(
                all.lines()
                    .filter(ours)
                    .map(|name| format!("stored {name}")),
            ),
            Err(error) => left.push(format!("what podman can't tell now: {error}")),
        }
        left
    }
}

/// One who asks for tasks.
pub(crate) struct Asking(Api);

impl Asking {
    /// Asks for a task as often as it takes; its id. A repeat makes no second one.
    pub(crate) fn submit(&self, plan: &Plan) -> String {
        let key = uuid();
        let headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", key.as_str()),
        ];
        let body = plan.task().to_string();
        let call = || {
            self.0
                .try_call("POST", "/v1/tasks", &headers, body.as_bytes())
        };
        let reply: Reply = eventually("the task is taken", || {
            call().ok().filter(|reply| reply.status < 500)
        });
        reply.json(201)["id"].as_str().unwrap().to_owned()
    }
}

fn start_orchestrator(home: &Path, addresses: &[String; 2]) -> Orchestrator {
    let addresses = [addresses[0].as_str(), addresses[1].as_str()];
    Orchestrator::start_at(home, addresses, ORCHESTRATOR)
}

impl Site {
    /// The clients of podman that run its containers.
    pub(crate) fn podmans(&self) -> Vec<i32> {
        let label = format!("--label=io.cynode.node={}", self.node.node_uuid());
        processes(|arguments| {
            arguments[0].ends_with("podman") && arguments.contains(&label.as_str())
        })
    }

    /// Stops its process where it is; calls are taken by the system, and nobody answers.
    pub(crate) fn stall(&self) {
        self.node.process.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn unblock(&self) {
        self.node.process.signal(Signal::CONT);
    }
}

/// Kills a process that may have ended just now.
pub(crate) fn end(pid: i32) {
    kill(pid, Signal::KILL);
}

/// In milliseconds.
pub(crate) const fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}
