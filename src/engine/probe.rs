//! Finding out what this host's podman can do, by doing it.
//!
//! Where cgroups or resource limits are out of the ordinary (LXC, small VMs, CI), the default
//! runtime fails or podman's default ulimits can't be set. Nobody should have to write a
//! `containers.conf` for that: we run a container whose root is an empty directory and whose
//! only program is our own init, with each runtime and each set of ulimits, and keep the
//! first that works. No image is needed for it.

use super::{Container, ContainerSpec, Engine, EngineError, Facts, Root, Way, call, labels};
use crate::{
    errors,
    sandbox_init::{
        self,
        wire::{REPORT_BYTES, Report, Request},
    },
};
use rustix::process::{Resource, getrlimit};
use serde::Deserialize;
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

const INFO_LIMIT: Duration = Duration::from_secs(30);
const TRY_LIMIT: Duration = Duration::from_secs(20);

/// How the names of containers begin that are run to find something out.
pub const PROBE: &str = "cynode-probe-";

/// What the operator fixed; everything else is found out.
pub struct Wanted {
    /// Name or path of podman.
    pub program: PathBuf,
    /// The OCI runtime, when the operator insists on one.
    pub runtime: Option<String>,
}

/// Where a container is tried.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// Our static binary.
    pub init: &'a Path,
    /// A directory to play in.
    pub scratch: &'a Path,
    /// Whose containers they are, so that a sweep finds one that was left; nobody's for a doctor.
    pub node_uuid: Option<&'a str>,
}

/// Asks podman what it is, and finds a way to run containers.
pub async fn probe(wanted: Wanted, ground: Ground<'_>) -> Result<Engine, EngineError> {
    let facts = facts(&wanted.program).await?;
    find_way(wanted, facts, ground).await
}

/// Finds a way to run containers with a podman that said what it is.
pub async fn find_way(
    wanted: Wanted,
    facts: Facts,
    ground: Ground<'_>,
) -> Result<Engine, EngineError> {
    let began = Instant::now();
    let mut engine = Engine {
        program: wanted.program,
        gate: super::gate(),
        watch: super::watch::Watch::default(),
        way: Way {
            runtime: None,
            ulimits: Vec::new(),
        },
        facts,
    };
    let mut tried = Vec::new();
    let mut hung = Vec::new();
    for way in ways(wanted.runtime) {
        if hung.contains(&way.runtime) {
            // Other limits of resources don't wake it up.
            continue;
        }
        engine.way = way;
        match run(&engine, ground).await {
            Ok(()) => {
                tracing::info!(
                    version = engine.facts.version,
                    rootless = engine.facts.rootless,
                    runtime = engine.runtime_name(),
                    ulimits = engine.way.ulimits.join(" "),
                    millis = began.elapsed().as_millis() as u64,
                    "podman works"
                );
                return Ok(engine);
            }
            Err(error) => {
                tracing::debug!(
                    runtime = engine.runtime_name(),
                    ulimits = engine.way.ulimits.join(" "),
                    error = errors::chain(&error),
                    "podman can't run containers this way"
                );
                if matches!(error, EngineError::TimedOut { .. }) {
                    hung.push(engine.way.runtime.clone());
                }
                tried.push(format!(
                    "  runtime {}, ulimits {}: {error}",
                    engine.way.runtime.as_deref().unwrap_or("(podman's own)"),
                    if engine.way.ulimits.is_empty() {
                        "(podman's own)".to_owned()
                    } else {
                        engine.way.ulimits.join(" ")
                    },
                ));
            }
        }
    }
    Err(EngineError::NoWay(tried.join("\n")))
}

/// The plain way first; an operator's runtime is the only one that is tried.
fn ways(runtime: Option<String>) -> Vec<Way> {
    let runtimes = match runtime {
        Some(runtime) => vec![Some(runtime)],
        None => vec![None, Some("crun".to_owned()), Some("runc".to_owned())],
    };
    let within_our_own = own_ulimits();
    runtimes
        .into_iter()
        .flat_map(|runtime| {
            [Vec::new(), within_our_own.clone()].map(|ulimits| Way {
                runtime: runtime.clone(),
                ulimits,
            })
        })
        .collect()
}

/// Our own hard limits, which podman may always give to a container. It asks for more by itself,
/// and without `CAP_SYS_RESOURCE` that fails.
fn own_ulimits() -> Vec<String> {
    let hard =
        |resource, ceiling: u64| getrlimit(resource).maximum.unwrap_or(u64::MAX).min(ceiling);
    // Podman lowers its own limit of processes to this before it starts a container.
    let pid_max = fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(32_768);
    let files = hard(Resource::Nofile, 1_048_576);
    let processes = hard(Resource::Nproc, pid_max);
    vec![
        format!("nofile={files}:{files}"),
        format!("nproc={processes}:{processes}"),
    ]
}

/// What podman calls its version. Needs nothing of the host, so it also works where nothing else does.
pub async fn version(program: &Path) -> Result<String, EngineError> {
    let answer = call(program, &["--version"], INFO_LIMIT, |_| ()).await?;
    Ok(answer
        .split_whitespace()
        .last()
        .unwrap_or_default()
        .to_owned())
}

/// What podman says of itself.
pub async fn facts(program: &Path) -> Result<Facts, EngineError> {
    #[derive(Deserialize)]
    struct Info {
        host: Host,
        store: Storage,
        version: Version,
    }
    #[derive(Deserialize)]
    struct Host {
        security: Security,
        #[serde(rename = "ociRuntime")]
        oci_runtime: Runtime,
        #[serde(rename = "cgroupVersion", default)]
        cgroup_version: String,
        #[serde(rename = "cgroupManager", default)]
        cgroup_manager: String,
    }
    #[derive(Deserialize)]
    struct Security {
        rootless: bool,
    }
    #[derive(Deserialize)]
    struct Runtime {
        name: String,
    }
    #[derive(Deserialize)]
    struct Storage {
        #[serde(rename = "graphRoot")]
        graph_root: PathBuf,
        #[serde(rename = "graphDriverName")]
        graph_driver: String,
    }
    #[derive(Deserialize)]
    struct Version {
        #[serde(rename = "Version")]
        version: String,
    }
    let ask = || call(program, &["info", "--format=json"], INFO_LIMIT, |_| ());
    let answer = match ask().await {
        // Podman waits for its own locks now and then; the second time it mostly has them.
        Err(EngineError::TimedOut { .. }) => ask().await?,
        answered => answered?,
    };
    let info: Info = serde_json::from_str(&answer).map_err(|error| EngineError::Malformed {
        call: "info".to_owned(),
        reason: error.to_string(),
    })?;
    Ok(Facts {
        version: info.version.version,
        rootless: info.host.security.rootless,
        graph_root: info.store.graph_root,
        graph_driver: info.store.graph_driver,
        default_runtime: info.host.oci_runtime.name,
        cgroup_version: info.host.cgroup_version,
        cgroup_manager: info.host.cgroup_manager,
    })
}

/// Whether podman still does what jobs need: finds images and runs containers.
pub(super) async fn works(engine: &Engine, ground: Ground<'_>) -> Result<(), EngineError> {
    // Not as one of the short calls, which may all hang.
    let asked = ["image", "exists", "localhost/cynode-probe"];
    match call(&engine.program, &asked, TRY_LIMIT, |_| ()).await {
        // There is none, says a podman that works.
        Ok(_) | Err(EngineError::Failed { .. }) => run(engine, ground).await,
        Err(error) => Err(error),
    }
}

/// Runs init with a command that can't be found: all of podman, runtime, mounts and descriptors
/// has worked when init says so.
async fn run(engine: &Engine, ground: Ground<'_>) -> Result<(), EngineError> {
    // Podman fills the root with mount points, so each try gets a fresh one.
    let root = ground.scratch.join("probe");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(root.join(sandbox_init::WORKSPACE.trim_start_matches('/')))?;
    let outcome = attempt(engine, ground, &root).await;
    // Left behind, it is removed before the next try.
    let _ = fs::remove_dir_all(&root);
    outcome
}

async fn attempt(engine: &Engine, ground: Ground<'_>, root: &Path) -> Result<(), EngineError> {
    let (ours, theirs) = UnixStream::pair()?;
    let null = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
    };
    let theirs = theirs.into_std()?;
    theirs.set_nonblocking(false)?;
    let whose = ground.node_uuid.map(|uuid| {
        [
            (labels::NODE, uuid.to_owned()),
            (labels::JOB, "probe".to_owned()),
        ]
    });
    let mut container = engine.spawn(&ContainerSpec {
        name: &format!("{PROBE}{}", uuid::Uuid::new_v4()),
        root: Root::Directory(root),
        init: ground.init,
        workspace: None,
        labels: whose.as_ref().map_or(&[], |labels| labels.as_slice()),
        descriptors: [theirs.into(), null()?, null()?],
    })?;
    let conversation = async {
        let report = tokio::select! {
            report = converse(ours) => report,
            gone = container.gone() => {
                return Err(failed(gone.err().unwrap_or_else(|| "init said nothing".to_owned())));
            }
        };
        finish(&mut container, report).await
    };
    match tokio::time::timeout(TRY_LIMIT, conversation).await {
        Ok(outcome) => outcome,
        Err(_) => {
            container.end().await;
            Err(EngineError::TimedOut {
                call: "run".to_owned(),
                limit: TRY_LIMIT,
            })
        }
    }
}

fn failed(message: String) -> EngineError {
    EngineError::Failed {
        call: "run".to_owned(),
        message,
    }
}

async fn converse(mut socket: UnixStream) -> io::Result<Option<Report>> {
    let request = Request {
        command: vec!["/nothing/here".into()],
        env: Vec::new(),
    };
    let mut ready = [0; REPORT_BYTES];
    socket.read_exact(&mut ready).await?;
    socket.write_all(&request.encode()).await?;
    let mut started = [0; REPORT_BYTES];
    socket.read_exact(&mut started).await?;
    let mut ended = [0; REPORT_BYTES];
    socket.read_exact(&mut ended).await?;
    Ok(Report::decode(ended))
}

async fn finish(
    container: &mut Container,
    report: io::Result<Option<Report>>,
) -> Result<(), EngineError> {
    match (report, container.gone().await) {
        (Ok(Some(Report::Exited(127))), Ok(())) => Ok(()),
        (_, Err(message)) => Err(failed(message)),
        (report, Ok(())) => Err(failed(format!("init answered {report:?}"))),
    }
}
