//! The guest of a job's [shim](crate::sandbox::shim): runs the job's command in a sandbox that is used once, and
//! writes log and result into the job's [spool](crate::spool), whether the worker lives or not.
//!
//! The sandbox is started for the job, or was started before there was one and waits for it
//! ([`warm`](super::warm)). From the assignment of the job on there is no difference.
//!
//! Command and environment come out of the request in the spool, which is deleted before they are handed over: from
//! then on the command may have run, and is never run again.

use super::{
    artifacts::{self, CollectRequest},
    edge::{self, EdgeAccess},
    egress,
    job_end::{job_end, out_of_memory},
    masking::{Masking, Recording},
    sandbox_inference,
    session::{Session, session_end},
    spool_sink::SpoolSink,
};
use crate::{
    api::{
        jobs::{DEFAULT_GRACE_SECONDS, Effective, JobErrorKind, SandboxSpec},
        sandboxes::SessionSpec,
        secrets::SecretValues,
    },
    background,
    data_dir::make_private_subdir,
    engine::EngineError,
    sandbox::{
        self, ContainerCleanup, Exec, ExecLimits, Sandbox, SandboxConfig, Start, StdinSource,
        StopReason, StopRequest, listeners,
        shim::{self, GuestConfig, Shim},
    },
    sandbox_init::{WORKSPACE, wire::ExecSpec},
    spool::{AcceptedJob, JobEnd, JobRecorder, Spool},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;

/// Time limit of a sandbox that has none, far beyond the life of any machine.
const NO_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Config of a shim.
#[derive(Serialize, Deserialize)]
pub(super) struct ShimConfig {
    pub(super) sandbox: SandboxConfig,
    /// Job of the sandbox; `None` where it is assigned later.
    pub(super) job: Option<JobConfig>,
}

impl GuestConfig for ShimConfig {
    fn is_warm(&self) -> bool {
        self.job.is_none()
    }
}

/// Job of a sandbox. The command is not in it: it is in the spool.
#[derive(Serialize, Deserialize)]
pub(super) struct JobConfig {
    /// Directory of the attempt.
    pub(super) spool: PathBuf,
    pub(super) accepted: AcceptedJob,
    /// Settings to enforce and to name in the result.
    pub(super) effective: Effective,
    /// Bytes of the log that are kept.
    pub(super) log_bytes: u64,
    /// Variables that describe the job's devices.
    #[serde(default)]
    pub(super) device_env: Vec<(String, String)>,
    /// Most bytes of artifacts.
    #[serde(default)]
    pub(super) artifact_limit: u64,
    /// Bytes that stay free on the disk where artifacts have to be copied.
    #[serde(default)]
    pub(super) min_free: u64,
    /// Values of secrets, by their variables. They come over a pipe or the shim's socket, and stay in its memory.
    #[serde(default, skip_serializing_if = "SecretValues::is_empty")]
    pub(super) secrets: SecretValues,
    /// What is for the proxy alone, and comes the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) edge: Option<EdgeAccess>,
    /// Whether they are masked in output.
    #[serde(default)]
    pub(super) mask: bool,
}

/// Runs as a shim and never returns.
pub(crate) fn main() -> ! {
    shim::main(run)
}

async fn run(config: ShimConfig, shim: Shim) -> io::Result<()> {
    let ShimConfig { sandbox, job } = config;
    match job {
        Some(job) => run_job(sandbox, job, None, shim).await,
        None => run_warm(sandbox, shim).await,
    }
}

/// Starts a sandbox that waits for a job, and runs that.
async fn run_warm(mut config: SandboxConfig, mut shim: Shim) -> io::Result<()> {
    let Some(assignment) = shim.assignment.take() else {
        return Err(io::Error::other("the sandbox is assigned already"));
    };
    make_private_subdir(&config.workspace)?;
    artifacts::make_directory(&config.workspace)?;
    let (exit, mut cleanup) = match sandbox::start(&config, &shim.stops).await {
        Ok(Start::Ended(exit, cleanup)) => (exit, cleanup),
        Ok(Start::Ready(mut sandbox)) => {
            shim.ready.send_replace(true);
            match sandbox.wait_for(&shim.stops, assignment).await {
                Ok(job) => {
                    let job = job.map_err(io::Error::other)?;
                    let job: JobConfig = serde_json::from_slice(&job)?;
                    // The worker has moved it there.
                    config.workspace = Spool::at(job.spool.clone()).workspace();
                    return run_job(config, job, Some(sandbox), shim).await;
                }
                Err(exit) => (exit, sandbox.into_cleanup().into()),
            }
        }
        Err(error) => return Err(io::Error::other(error)),
    };
    let reason = exit.reason_without_command();
    tracing::warn!(reason, "sandbox ended before it had a job");
    if !cleanup.wait_until_removed().await {
        // The worker finds what is left.
        return Ok(());
    }
    remove_workspace(&config).await;
    if !*shim.ready.borrow() {
        // The worker reads in the log why it did not start.
        return Ok(());
    }
    let (engine, name) = (&config.engine, config.id.container_name());
    if let Some(upper) = engine.detached_upper(&name)
        && let Err(error) = engine.remove_tree(&config.init, &upper).await
    {
        tracing::warn!(error, "upper directory can't be removed");
    }
    // The log with it: it says only that the sandbox was not used.
    fs::remove_dir_all(&config.scratch)
}

async fn run_job(
    sandbox: SandboxConfig,
    config: JobConfig,
    warm: Option<Box<Sandbox>>,
    mut shim: Shim,
) -> io::Result<()> {
    let spool = Spool::at(config.spool.clone());
    let Some(spec) = spool.request()? else {
        return Err(io::Error::other(
            "the request is gone; its command may have run",
        ));
    };
    let masked = edge::masked(&config.secrets, config.edge.as_ref());
    let masking = Masking::new(&masked, config.mask);
    let recorder = JobRecorder::open(&spool, config.accepted.clone(), config.log_bytes)?;
    let recording = Recording::new(recorder, &masking);
    let sink = SpoolSink::new(&spool, recording, shim.updates.clone());
    if warm.is_none() {
        make_private_subdir(&sandbox.workspace)?;
        artifacts::make_directory(&sandbox.workspace)?;
    }
    let session = spec.session;
    artifacts::remove_earlier(&spool)?;
    if session.is_none() {
        // The patterns to collect are on record before the command can begin.
        CollectRequest::new(&spec, config.artifact_limit, config.min_free).write(&config.spool)?;
    }
    let stdin = stdin(&spool, &spec, shim.stdin.subscribe())?;
    let exec = exec(&config, (sandbox.inference, sandbox.egress), spec, stdin);
    let start = match warm {
        Some(sandbox) => Ok(Start::Ready(sandbox)),
        None => sandbox::start(&sandbox, &shim.stops).await,
    };
    let stays = (session.as_ref(), masking);
    let notes = shim.notes.take();
    let ended = end_of(start, &exec, stays, (&config, &sink), &shim);
    let (end, container) = sink.record_notes(notes, ended).await;
    let effective = Some(config.effective.clone());
    let mut result = sink.take_result(end, effective);
    let SandboxConfig { engine, init, .. } = &sandbox;
    if session.is_none() {
        artifacts::collect_into(&mut result, engine, init, &spool).await;
    }
    let written = spool.write_result(&result);
    if let Err(error) = spool.remove_stdin() {
        tracing::warn!(%error, "stdin can't be removed; it goes with the job");
    }
    shim.updates.send_replace(());
    let is_removed = match container {
        Some(mut container) => container.wait_until_removed().await,
        None => true,
    };
    // A workspace that is left tells the worker that a container may be, and it removes both.
    if is_removed {
        remove_workspace(&sandbox).await;
    }
    if let Err(error) = written {
        // The workspace may have been what took all the room.
        tracing::error!(%error, "result can't be written; retrying");
        spool.write_result_with_retry(result).await?;
        shim.updates.send_replace(());
    }
    spool.sync()
}

/// Runs the command where there is a sandbox for it. The end of the job, and the container that is left.
async fn end_of(
    start: Result<Start, EngineError>,
    exec: &Exec,
    (stays, masking): (Option<&SessionSpec>, Masking),
    (config, sink): (&JobConfig, &SpoolSink<'_>),
    shim: &Shim,
) -> (JobEnd, Option<Box<ContainerCleanup>>) {
    let (exit, container) = match start {
        Ok(Start::Ready(sandbox)) => {
            if exec.spec.has_inference || exec.spec.has_egress {
                hand_over_listeners(config, &sandbox, shim);
            }
            let session = serve_execs(config, exec, (stays, masking), &sandbox, shim);
            if session.is_none() && stays.is_some() {
                // It could not be reached, and nothing would end it.
                let stop = StopRequest::within(StopReason::Canceled, Duration::ZERO);
                shim.stops.request(stop);
            }
            let (exit, container) = sandbox.run(exec, sink, &shim.stops).await;
            match session {
                Some(session) => session.finish().await,
                None if stays.is_some() => {
                    let message = "calls about the sandbox can't be served; see its node's log";
                    let end = JobEnd::failed(JobErrorKind::EngineError, message);
                    return (end, Some(container.into()));
                }
                None => {}
            }
            (exit, container.into())
        }
        Ok(Start::Ended(exit, container)) => (exit, container),
        Err(error) => {
            let end = JobEnd::failed(JobErrorKind::EngineError, error.to_string());
            return (end, None);
        }
    };
    if stays.is_some() {
        let end = session_end(exit, container.is_oom_killed());
        return (end, Some(container));
    }
    let mut end = job_end(exit);
    if container.is_oom_killed() {
        end.oom = Some(out_of_memory(config.effective.memory));
    }
    (end, Some(container))
}

/// Serves execs in the sandbox, in the background. A sandbox that runs a command does without where that fails.
fn serve_execs(
    config: &JobConfig,
    exec: &Exec,
    (stays, masking): (Option<&SessionSpec>, Masking),
    sandbox: &Sandbox,
    shim: &Shim,
) -> Option<Arc<Session>> {
    let session = Session::new(
        (config.accepted.job_id, config.spool.clone()),
        sandbox.exec_port(),
        (exec.spec.env.clone(), masking),
        config.log_bytes,
        stays,
        shim.updates.clone(),
    );
    match session.serve(shim.stops.clone()) {
        Ok(()) => Some(session),
        Err(error) => {
            tracing::error!(%error, "execs in the sandbox can't be served");
            None
        }
    }
}

/// Serves the listeners for models and for the proxy to the worker, in the background, with what is at the edge.
fn hand_over_listeners(config: &JobConfig, sandbox: &Sandbox, shim: &Shim) {
    let received = sandbox.listeners().subscribe();
    let access = config.edge.as_ref().map(EdgeAccess::encode).transpose();
    let access = access.unwrap_or_else(|error| {
        tracing::error!(%error, "secrets at the edge can't be handed over");
        None
    });
    let served = listeners::hand_over(config.spool.clone(), received, access, shim.updates.clone());
    background::spawn("hand_over_listeners", async {
        if let Err(error) = served.await {
            tracing::warn!(%error, "models and the proxy can't be served in the sandbox");
        }
    });
}

async fn remove_workspace(sandbox: &SandboxConfig) {
    let SandboxConfig {
        engine,
        init,
        workspace,
        ..
    } = sandbox;
    if let Err(error) = engine.remove_tree(init, workspace).await {
        // The worker finds it, tries again and reports it.
        tracing::warn!(error, "workspace can't be removed");
    }
}

/// Source of the job's stdin, where it asked for one.
fn stdin(
    spool: &Spool,
    spec: &SandboxSpec,
    updates: watch::Receiver<()>,
) -> io::Result<Option<StdinSource>> {
    if !spec.interactive && spec.stdin.is_none() {
        return Ok(None);
    }
    let reader = spool.stdin_reader()?.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "the job's stdin is not in its directory",
        )
    })?;
    Ok(Some(StdinSource {
        reader: Arc::new(Mutex::new(reader)),
        updates,
    }))
}

/// Variables for clients of models and of the proxy, the job's own environment, its secrets and the placeholders of others,
/// then the variables that it can't override.
fn exec(
    config: &JobConfig,
    (inference, egress): (bool, bool),
    spec: SandboxSpec,
    stdin: Option<StdinSource>,
) -> Exec {
    let own = [
        ("CYNODE_TASK_ID", config.accepted.task_id.to_string()),
        ("CYNODE_JOB_ID", config.accepted.job_id.to_string()),
        ("CYNODE_WORKSPACE_DIR", WORKSPACE.to_owned()),
        (
            "CYNODE_ARTIFACTS_DIR",
            format!("{WORKSPACE}/{}", artifacts::DIRECTORY),
        ),
    ];
    let devices = config.device_env.iter();
    let devices = devices.map(|(name, value)| (name.into(), value.into()));
    let models = inference.then(sandbox_inference::variables);
    let models = models.into_iter().flatten();
    let proxy = egress.then(egress::variables).into_iter().flatten();
    let requested = spec
        .env
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.into(), value.into()));
    let secrets = config.secrets.iter();
    let secrets = secrets.map(|(name, value)| (name.into(), value.into()));
    let at_edge = config.edge.as_ref();
    let trust = at_edge.into_iter().flat_map(EdgeAccess::variables);
    let placeholders = at_edge.into_iter().flat_map(EdgeAccess::placeholders);
    let authority = at_edge.map(EdgeAccess::authority).unwrap_or_default();
    let grace = spec.grace_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
    Exec {
        spec: ExecSpec {
            command: spec.command.into_iter().map(Into::into).collect(),
            env: models
                .chain(proxy)
                .chain(trust)
                .chain(requested)
                .chain(secrets)
                .chain(placeholders)
                .chain(devices)
                .chain(own.map(|(name, value)| (name.into(), value.into())))
                .collect(),
            has_stdin: stdin.is_some(),
            has_inference: inference,
            has_egress: egress,
            authority: authority.to_vec(),
            ..ExecSpec::default()
        },
        stdin,
        limits: ExecLimits {
            timeout: match spec.session {
                // Its session keeps its times.
                Some(_) => NO_TIMEOUT,
                None => Duration::from_secs(config.effective.timeout_seconds),
            },
            grace: Duration::from_secs(grace.into()),
        },
    }
}
