//! Finding out what this host's podman can do, by doing it.
//!
//! Where cgroups or resource limits are out of the ordinary (LXC, small VMs, CI), the default
//! runtime fails or podman's default ulimits can't be set. Nobody should have to write a
//! `containers.conf` for that: we run a container whose root is an empty directory and whose
//! only program is our own init, with each runtime and each set of ulimits, and keep the
//! first that works. No image is needed for it.
//!
//! What a container works in is looked at from inside, and it has to be as closed as it was asked for
//! ([`isolation`]).

use super::{
    Container, ContainerSpec, Engine, EngineError, PodmanInfo, Program, Root, RuntimeConfig, call,
    info::podman_info, isolation, labels,
};
use crate::{
    errors,
    sandbox_init::{
        self,
        view::{self, View},
        wire::{ExecEnd, ExecId, ExecSpec, Hello, InitRefusal, InitRequest, Report, take_report},
    },
};
use rustix::process::{Resource, getrlimit};
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// How the names of containers begin that are run to find something out.
pub const PROBE_NAME_PREFIX: &str = "cynode-probe-";

/// What the operator fixed; everything else is found out.
pub struct ProbeRequest {
    /// The podman.
    pub program: Program,
    /// The OCI runtime, when the operator insists on one.
    pub runtime: Option<String>,
}

/// Where a container is tried.
#[derive(Clone, Copy)]
pub struct ProbeEnv<'a> {
    /// Our static binary.
    pub init: &'a Path,
    /// A directory to play in.
    pub scratch: &'a Path,
    /// Whose containers they are, so that a sweep finds one that was left; nobody's for a doctor.
    pub node_uuid: Option<&'a str>,
}

/// Asks podman what it is, and finds a way to run containers.
pub async fn probe(request: ProbeRequest, probe_env: ProbeEnv<'_>) -> Result<Engine, EngineError> {
    let info = podman_info(&request.program).await?;
    find_runtime_config(request, info, probe_env).await
}

/// Finds a way to run containers with a podman that said what it is.
pub async fn find_runtime_config(
    request: ProbeRequest,
    info: PodmanInfo,
    probe_env: ProbeEnv<'_>,
) -> Result<Engine, EngineError> {
    let began = Instant::now();
    let mut engine = Engine {
        program: request.program,
        call_permits: super::call_permits(),
        health: super::health::Health::default(),
        runtime_config: RuntimeConfig {
            runtime: None,
            ulimits: Vec::new(),
        },
        info,
        upper_owner: None,
    };
    let (mut tried, mut hung, mut not_closed) = (Vec::new(), Vec::new(), None);
    for config in candidate_configs(request.runtime) {
        if hung.contains(&config.runtime) {
            // Other limits of resources don't wake it up.
            continue;
        }
        engine.runtime_config = config;
        match run_probe(&engine, probe_env, None).await {
            Ok(()) => {
                tracing::info!(
                    version = engine.info.version,
                    rootless = engine.info.rootless,
                    runtime = engine.runtime_name(),
                    ulimits = engine.runtime_config.ulimits.join(" "),
                    millis = began.elapsed().as_millis() as u64,
                    "podman works"
                );
                return Ok(engine);
            }
            Err(error) => {
                tracing::debug!(
                    runtime = engine.runtime_name(),
                    ulimits = engine.runtime_config.ulimits.join(" "),
                    error = errors::chain(&error),
                    "podman can't run containers this way"
                );
                if matches!(error, EngineError::TimedOut { .. }) {
                    hung.push(engine.runtime_config.runtime.clone());
                }
                tried.push(format!(
                    "  runtime {}, ulimits {}: {error}",
                    engine
                        .runtime_config
                        .runtime
                        .as_deref()
                        .unwrap_or("(podman's own)"),
                    if engine.runtime_config.ulimits.is_empty() {
                        "(podman's own)".to_owned()
                    } else {
                        engine.runtime_config.ulimits.join(" ")
                    },
                ));
                if matches!(error, EngineError::NotIsolated { .. }) {
                    // Containers run, so this tells an operator more than why another way does not.
                    not_closed.get_or_insert(error);
                }
            }
        }
    }
    Err(not_closed.unwrap_or_else(|| EngineError::NoRuntimeWorks(tried.join("\n"))))
}

/// The plain way first; an operator's runtime is the only one that is tried.
fn candidate_configs(runtime: Option<String>) -> Vec<RuntimeConfig> {
    let runtimes = match runtime {
        Some(runtime) => vec![Some(runtime)],
        None => vec![None, Some("crun".to_owned()), Some("runc".to_owned())],
    };
    let within_our_own = own_ulimits();
    runtimes
        .into_iter()
        .flat_map(|runtime| {
            [Vec::new(), within_our_own.clone()].map(|ulimits| RuntimeConfig {
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

/// Whether podman still does what jobs need: finds images and runs containers.
pub(super) async fn health_check(
    engine: &Engine,
    probe_env: ProbeEnv<'_>,
) -> Result<(), EngineError> {
    // Not as one of the short calls, which may all hang.
    let asked = ["image", "exists", "localhost/cynode-probe"];
    match call(&engine.program, &asked, PROBE_TIMEOUT, |_| ()).await {
        // There is none, says a podman that works.
        Ok(_) | Err(EngineError::Failed { .. }) => run_probe(engine, probe_env, None).await,
        Err(error) => Err(error),
    }
}

/// Runs init with a command that can't be found: all of podman, runtime, mounts and descriptors
/// has worked when init says so.
pub(super) async fn run_probe(
    engine: &Engine,
    probe_env: ProbeEnv<'_>,
    workspace: Option<&Path>,
) -> Result<(), EngineError> {
    // Podman fills the root with mount points, so each try gets a fresh one.
    let root = probe_env.scratch.join("probe");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    // One by one: where the scratch directory is gone, nothing is made in its place.
    fs::create_dir(&root)?;
    fs::create_dir(root.join(sandbox_init::WORKSPACE.trim_start_matches('/')))?;
    let outcome = try_container(engine, probe_env, &root, workspace).await;
    // Left behind, it is removed before the next try.
    let _ = fs::remove_dir_all(&root);
    outcome
}

async fn try_container(
    engine: &Engine,
    probe_env: ProbeEnv<'_>,
    root: &Path,
    workspace: Option<&Path>,
) -> Result<(), EngineError> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let null = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
    };
    let theirs = theirs.into_std()?;
    theirs.set_nonblocking(false)?;
    ours.write_all(&Hello::of_this_process()?.encode()).await?;
    let whose = probe_env.node_uuid.map(|uuid| {
        [
            (labels::NODE, uuid.to_owned()),
            (labels::JOB, "probe".to_owned()),
        ]
    });
    let name = format!("{PROBE_NAME_PREFIX}{}", uuid::Uuid::new_v4());
    let mut container = engine.spawn(&ContainerSpec {
        name: &name,
        root: Root::Directory(root),
        init: probe_env.init,
        workspace,
        labels: whose.as_ref().map_or(&[], |labels| labels.as_slice()),
        descriptors: [theirs.into(), null()?, null()?],
    })?;
    let conversation = async {
        let answer = tokio::select! {
            answer = talk_to_init(ours) => answer,
            gone = container.wait_exit() => {
                return Err(run_failed(gone.err().unwrap_or_else(|| "init said nothing".to_owned())));
            }
        };
        evaluate(engine, &mut container, answer).await
    };
    let outcome = match tokio::time::timeout(PROBE_TIMEOUT, conversation).await {
        Ok(outcome) => outcome,
        Err(_) => {
            container.terminate().await;
            Err(EngineError::TimedOut {
                call: "run".to_owned(),
                limit: PROBE_TIMEOUT,
            })
        }
    };
    if outcome.is_err() {
        // Where podman hangs, the next sweep finds the label.
        let _ = tokio::time::timeout(PROBE_TIMEOUT, engine.remove_container(&name)).await;
    }
    outcome
}

fn run_failed(message: String) -> EngineError {
    EngineError::Failed {
        call: "run".to_owned(),
        message,
    }
}

/// Answer of init to a probe.
#[derive(Debug)]
enum InitAnswer {
    Refused(InitRefusal),
    Ended(View, ExecEnd),
}

async fn talk_to_init(mut socket: UnixStream) -> io::Result<InitAnswer> {
    let mut read = Vec::new();
    if let Report::Refused(refusal) = next_report(&mut socket, &mut read).await? {
        return Ok(InitAnswer::Refused(refusal));
    }
    let inspect = InitRequest::Inspect.encode(ExecId::SANDBOX);
    socket.write_all(&inspect).await?;
    let Report::View(view) = next_report(&mut socket, &mut read).await? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let view = View::decode(&String::from_utf8_lossy(&view));
    let exec = ExecSpec {
        command: vec!["/nothing/here".into()],
        env: Vec::new(),
    };
    socket.write_all(&exec.encode(ExecId::FIRST)).await?;
    loop {
        if let Report::Ended(end) = next_report(&mut socket, &mut read).await? {
            return Ok(InitAnswer::Ended(view, end));
        }
    }
}

async fn next_report(socket: &mut UnixStream, read: &mut Vec<u8>) -> io::Result<Report> {
    loop {
        if let Some((_, report)) = take_report(read)? {
            return Ok(report);
        }
        if socket.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn evaluate(
    engine: &Engine,
    container: &mut Container,
    answer: io::Result<InitAnswer>,
) -> Result<(), EngineError> {
    let gone = container.wait_exit().await;
    let findings = match (answer, gone) {
        (Ok(InitAnswer::Refused(InitRefusal::SharedNamespace)), _) => {
            vec![isolation::shared_pid_namespace()]
        }
        (Ok(InitAnswer::Ended(view, ExecEnd::Exited(127))), Ok(())) => {
            isolation::findings(&view, &view::namespaces(), engine.info.rootless)
        }
        (_, Err(message)) => return Err(run_failed(message)),
        (answer, Ok(())) => return Err(run_failed(format!("init answered {answer:?}"))),
    };
    if findings.is_empty() {
        Ok(())
    } else {
        Err(EngineError::NotIsolated { findings })
    }
}
