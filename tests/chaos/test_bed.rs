//! Test bed: an orchestrator, its nodes in network namespaces, and all faults that can be injected.

use crate::{
    jobs::Plan,
    network::{Segment, sweep},
    support::{
        Api, Node, Orchestrator, Reply,
        cluster::{connect, wait_ready},
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

/// Port of each node's Worker API, where it listens; every node has an address of its own.
pub(crate) const WORKER_PORT: u16 = 12090;
/// Slots of each node.
const SLOTS: &str = "4";
/// Flags of the orchestrator.
const ORCHESTRATOR: &[&str] = &["--lease", "2s"];

/// Node and its namespace.
pub(crate) struct Site {
    /// Node; its process may be dead.
    pub(crate) node: Node,
    /// Network namespace of the node.
    pub(crate) segment: Segment,
}

/// Orchestrator, nodes and witness.
pub(crate) struct TestBed {
    /// Nodes, called `n0`, `n1`, ….
    pub(crate) sites: Vec<Site>,
    /// Record of all sandboxes.
    pub(crate) witness: Witness,
    /// User API as the admin; usable while the orchestrator is down.
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
    // A home for each node: the start of another one must not rewrite the files that this one reads.
    let home = place(home, slug);
    let orchestrator = format!("http://{}:{control}", segment.host);
    // A node with a tunnel listens nowhere, so that no call takes another way when the tunnel is cut.
    let listen = match connect().as_str() {
        "dial" => String::new(),
        _ => format!("{}:{WORKER_PORT}", segment.node),
    };
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
    /// Starts it with this number of nodes, and waits until all are ready.
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
        let bed = Self {
            sites,
            witness,
            user,
            orchestrator,
            addresses,
            home,
        };
        bed.wait_for_nodes();
        bed
    }

    /// Waits until all nodes are ready.
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

    /// After a failed test: repairs the network, restarts all processes, and removes all jobs of the nodes.
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
            // A conmon ends with its container.
            let pids = children.split_whitespace();
            pids.filter_map(|pid| pid.parse().ok()).for_each(end);
        }
        // The command would wait for its release.
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

    /// Restarts the orchestrator, with its addresses and state.
    pub(crate) fn restart_orchestrator(&mut self) {
        self.orchestrator = start_orchestrator(self.home.path(), &self.addresses);
    }

    /// Restarts a node that was killed.
    pub(crate) fn restart_node(&mut self, site: usize) {
        let control = self.addresses[1].rsplit(':').next().unwrap().to_owned();
        let (home, slug) = (self.home.path(), format!("n{site}"));
        let segment = &self.sites[site].segment;
        let node = start_node(home, segment, &slug, &control, &self.witness);
        self.sites[site].node = node;
    }

    /// Client that creates tasks whatever fails meanwhile.
    pub(crate) fn task_client(&self) -> TaskClient {
        TaskClient(self.user.clone())
    }

    /// Creates a task; returns its id.
    pub(crate) fn submit(&self, plan: &Plan) -> String {
        self.task_client().submit(plan)
    }

    /// Answer of `/result`.
    pub(crate) fn result(&self, task: &str) -> Value {
        self.user.get(&format!("/v1/tasks/{task}/result")).json(200)
    }

    /// Log lines of all processes about a job.
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

    /// Description of something that was left, with the log lines about its job.
    pub(crate) fn describe_leftover(&self, what: &str) -> String {
        let (kind, id) = what.rsplit_once(' ').unwrap_or_default();
        let (state, job) = if kind == "container" {
            inspect_container(id)
        } else {
            let name = what.rsplit('/').next().unwrap_or_default();
            let job = name.rsplit_once('-').map_or(name, |(job, _)| job);
            (String::new(), job.to_owned())
        };
        let starts = self.witness.starts(&job);
        let starts: String = starts.iter().map(|start| format!("  {start}\n")).collect();
        format!(
            "left: {what} {state}\n{starts}{}",
            self.log_lines_about(&job)
        )
    }

    /// Container monitors, also of containers that podman doesn't list any more.
    fn conmons(&self) -> Vec<i32> {
        let jobs = self.witness.jobs();
        let ours = |word: &&str| jobs.iter().any(|job| word.contains(job.as_str()));
        processes(|arguments| arguments[0].ends_with("conmon") && arguments.iter().any(ours))
    }

    /// Shims, containers and directories that are left at the nodes, but of warm sandboxes.
    pub(crate) fn left(&self) -> Vec<String> {
        let (mut left, mut warm) = (Vec::new(), Vec::new());
        for Site { node, .. } in &self.sites {
            let (shims, containers, kept) = (node.shims(), node.containers(), node.warm());
            if shims.len() > kept.len() {
                left.extend(shims.iter().map(|pid| format!("shim {pid}")));
            }
            if containers.len() > kept.len() {
                left.extend(containers.iter().map(|id| format!("container {id}")));
            }
            warm.extend(kept);
            left.extend(node.spools().iter().map(|path| path.display().to_string()));
        }
        // Also containers that are only in podman's storage. Other tests may remove theirs meanwhile.
        let names = ["ps", "--all", "--external", "--format={{.Names}}"];
        let jobs = self.witness.jobs();
        let ours = |name: &&str| jobs.iter().any(|job| name.contains(job.as_str()));
        let is_left = |pid: &&i32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            !warm.iter().any(|name| line.contains(name))
        };
        let conmons = self.conmons();
        let conmons = conmons.iter().filter(is_left);
        left.extend(conmons.map(|pid| format!("conmon {pid}")));
        match podman(&names) {
            Ok(all) => left.extend(
                all.lines()
                    .filter(ours)
                    .map(|name| format!("stored {name}")),
            ),
            Err(error) => left.push(format!("podman can't list its containers: {error}")),
        }
        left
    }
}

/// Client that creates tasks.
pub(crate) struct TaskClient(Api);

impl TaskClient {
    /// Creates a task, with retries under one idempotency key; returns its id.
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
        let reply: Reply = eventually("the task is created", || {
            call().ok().filter(|reply| reply.status < 500)
        });
        reply.json(201)["id"].as_str().unwrap().to_owned()
    }
}

/// State of a container, and the job of which it was.
fn inspect_container(id: &str) -> (String, String) {
    let inspect = [
        "container",
        "inspect",
        "--format={{json .State}} {{.Name}} {{json .Config.Labels}}",
        id,
    ];
    let state = podman(&inspect).unwrap_or_else(|error| error);
    let job = state.split_once("job-id\":\"").map_or("", |(_, rest)| rest);
    let job = job.split('"').next().unwrap_or_default().to_owned();
    (state, job)
}

fn start_orchestrator(home: &Path, addresses: &[String; 2]) -> Orchestrator {
    let addresses = [addresses[0].as_str(), addresses[1].as_str()];
    Orchestrator::start_at(home, addresses, ORCHESTRATOR)
}

impl Site {
    /// Podman clients that run the node's containers.
    pub(crate) fn podmans(&self) -> Vec<i32> {
        let label = format!("--label=io.cynode.node={}", self.node.node_uuid());
        processes(|arguments| {
            arguments[0].ends_with("podman") && arguments.contains(&label.as_str())
        })
    }

    /// Stops the node's process: the system accepts connections, and no answer comes.
    pub(crate) fn stall(&self) {
        self.node.process.signal(Signal::STOP);
    }

    /// Continues the node's process.
    pub(crate) fn unblock(&self) {
        self.node.process.signal(Signal::CONT);
    }
}

/// Kills a process, which may have ended already.
pub(crate) fn end(pid: i32) {
    kill(pid, Signal::KILL);
}

/// Duration of this many milliseconds.
pub(crate) const fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}
