//! The guest of a job's [shim](crate::sandbox::shim): runs the job's command in a sandbox that is used once, and
//! writes log and result into the job's [spool](crate::spool), whether the worker lives or not.
//!
//! Command and environment come out of the request in the spool, which is deleted before they are handed over: from
//! then on the command may have run, and is never run again.

use super::artifacts::{self, CollectRequest};
use crate::{
    api::{
        events::Stream,
        jobs::{DEFAULT_GRACE_SECONDS, Effective, JobErrorKind, Outcome, SandboxSpec},
        size::ByteSize,
    },
    background,
    data_dir::make_private_subdir,
    engine::not_runnable,
    sandbox::{
        self, ContainerCleanup, Excess, Exec, ExecLimits, OutputSink, Overuse, SandboxConfig,
        SandboxExit, StdinSource, StopReason, listeners,
        shim::{self, Shim},
    },
    sandbox_init::{WORKSPACE, inference, wire::ExecSpec},
    spool::{AcceptedJob, JobEnd, JobRecorder, Spool},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{ffi::OsString, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;

/// Config of a job's shim. The command is not in it: it is in the spool.
#[derive(Serialize, Deserialize)]
pub(super) struct JobShimConfig {
    pub(super) sandbox: SandboxConfig,
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
}

/// Recorder of a running job.
struct SpoolSink<'a> {
    spool: &'a Spool,
    recorder: Mutex<JobRecorder>,
    updates: watch::Sender<()>,
}

impl OutputSink for SpoolSink<'_> {
    fn exec_starting(&self) -> io::Result<()> {
        self.spool.mark_started()
    }

    fn exec_started(&self) {
        self.recorder.lock().mark_started();
        self.updates.send_replace(());
    }

    fn output(&self, stream: Stream, bytes: &[u8]) {
        self.recorder.lock().append_output(stream, bytes);
        self.updates.send_replace(());
    }

    fn stdin_taken(&self) {
        self.updates.send_replace(());
    }
}

/// Runs as the shim of a job and never returns.
pub(crate) fn main() -> ! {
    shim::main(run_job)
}

async fn run_job(config: JobShimConfig, shim: Shim) -> io::Result<()> {
    let spool = Spool::at(config.spool.clone());
    let Some(spec) = spool.request()? else {
        return Err(io::Error::other(
            "the request is gone; its command may have run",
        ));
    };
    let sink = SpoolSink {
        spool: &spool,
        recorder: JobRecorder::open(&spool, config.accepted.clone(), config.log_bytes)?.into(),
        updates: shim.updates.clone(),
    };
    prepare_workspace(&config, &spec)?;
    let stdin = stdin(&spool, &spec, shim.stdin.subscribe())?;
    let exec = exec(&config, spec, stdin);
    if config.sandbox.inference {
        let (dir, received) = (config.spool.clone(), exec.listeners.subscribe());
        let served = listeners::hand_over(dir, received, shim.updates.clone());
        background::spawn("hand_over_listeners", async {
            if let Err(error) = served.await {
                tracing::warn!(%error, "calls of models from the sandbox can't be served");
            }
        });
    }
    let (mut end, container) = match sandbox::run(&config.sandbox, &exec, &sink, &shim.stops).await
    {
        Ok((exit, container)) => (job_end(exit), Some(container)),
        Err(error) => {
            let end = JobEnd::failed(JobErrorKind::EngineError, error.to_string());
            (end, None)
        }
    };
    if container
        .as_ref()
        .is_some_and(ContainerCleanup::is_oom_killed)
    {
        end.oom = Some(out_of_memory(config.effective.memory));
    }
    let effective = Some(config.effective.clone());
    let mut result = sink.recorder.lock().take_result(end, effective);
    let SandboxConfig { engine, init, .. } = &config.sandbox;
    artifacts::collect_into(&mut result, engine, init, &spool).await;
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
        remove_workspace(&config.sandbox).await;
    }
    if let Err(error) = written {
        // The workspace may have been what took all the room.
        tracing::error!(%error, "result can't be written; retrying");
        spool.write_result_with_retry(result).await?;
        shim.updates.send_replace(());
    }
    spool.sync()
}

/// Makes the workspace, which may have files already, and in it the directory for artifacts. What is to be collected
/// is written down before the command can begin.
fn prepare_workspace(config: &JobShimConfig, spec: &SandboxSpec) -> io::Result<()> {
    let workspace = &config.sandbox.workspace;
    make_private_subdir(workspace)?;
    artifacts::make_directory(workspace)?;
    artifacts::remove_earlier(&Spool::at(config.spool.clone()))?;
    CollectRequest::new(spec, config.artifact_limit, config.min_free).write(&config.spool)
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

/// Variables for clients of models, the job's own environment, then the variables that it can't override.
fn exec(config: &JobShimConfig, spec: SandboxSpec, stdin: Option<StdinSource>) -> Exec {
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
    let models = config.sandbox.inference.then(inference_variables);
    let models = models.into_iter().flatten();
    let requested = spec
        .env
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.into(), value.into()));
    let grace = spec.grace_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
    Exec {
        spec: ExecSpec {
            command: spec.command.into_iter().map(Into::into).collect(),
            env: models
                .chain(requested)
                .chain(devices)
                .chain(own.map(|(name, value)| (name.into(), value.into())))
                .collect(),
            has_stdin: stdin.is_some(),
            has_inference: config.sandbox.inference,
        },
        stdin,
        limits: ExecLimits {
            timeout: Duration::from_secs(config.effective.timeout_seconds),
            grace: Duration::from_secs(grace.into()),
        },
        listeners: listeners::Received::new(None),
    }
}

/// Variables by which clients of models find the listeners, and a key for those that want one.
fn inference_variables() -> [(OsString, OsString); 5] {
    let base = format!("http://localhost:{}", inference::PORT);
    let openai = format!("{base}/v1");
    let socket = inference::SOCKET.replace('/', "%2F");
    [
        ("OLLAMA_HOST", base.clone()),
        ("OLLAMA_BASE_URL", base),
        ("OPENAI_BASE_URL", openai),
        ("OPENAI_API_KEY", "cynode".to_owned()),
        ("INFERENCE_PROXY_URL", format!("http+unix://{socket}")),
    ]
    .map(|(name, value)| (name.into(), value.into()))
}

/// End of the job whose sandbox ended so.
fn job_end(exit: SandboxExit) -> JobEnd {
    match exit {
        SandboxExit::Exited(code) => JobEnd::exited(code),
        SandboxExit::Signaled(signal) => JobEnd::exited(128 + signal),
        SandboxExit::Stopped(reason) => stopped(reason),
        SandboxExit::ImageNotRunnable(message) => {
            JobEnd::failed(JobErrorKind::ImageNotRunnable, not_runnable(&message))
        }
        SandboxExit::Refused(message) | SandboxExit::EngineFailed(message) => {
            JobEnd::failed(JobErrorKind::EngineError, message)
        }
        SandboxExit::Lost(message) => JobEnd::failed(JobErrorKind::Lost, message),
    }
}

/// End of a job that was stopped for this reason.
pub(super) fn stopped(reason: StopReason) -> JobEnd {
    match reason {
        StopReason::Timeout => JobEnd::stopped(Outcome::Timeout),
        StopReason::Canceled => JobEnd::stopped(Outcome::Canceled),
        StopReason::Shutdown => JobEnd::failed(
            JobErrorKind::Lost,
            "the node's machine was shut down while the job ran",
        ),
        StopReason::OutOfDisk(excess) => {
            JobEnd::failed(JobErrorKind::OutOfDisk, out_of_disk(&excess))
        }
        StopReason::OutOfMemory(overuse) => {
            JobEnd::failed(JobErrorKind::OutOfMemory, node_out_of_memory(overuse))
        }
        StopReason::WorkspaceLimit(overuse) => {
            JobEnd::failed(JobErrorKind::WorkspaceLimit, over_workspace_limit(overuse))
        }
        StopReason::StdinUnreadable => JobEnd::failed(
            JobErrorKind::EngineError,
            "ended by its node, which can't read the rest of the job's stdin from its disk; run it again",
        ),
    }
}

/// Explanation of an end for which the kernel killed a process.
fn out_of_memory(limit: Option<ByteSize>) -> String {
    match limit {
        Some(limit) => format!(
            "the kernel killed a process of the job at the job's memory limit of {limit}; use less, or ask for more with --memory"
        ),
        None => "the kernel killed a process of the job when its node ran out of memory; use less, or run it on a node with more".to_owned(),
    }
}

fn node_out_of_memory(Overuse { used, limit }: Overuse) -> String {
    format!(
        "ended by its node, which had less than {} MiB of memory left, and this job's use grew the most (to {} MiB); use less, or run it on a node with more memory",
        limit >> 20,
        used >> 20
    )
}

fn over_workspace_limit(Overuse { used, limit }: Overuse) -> String {
    let used = match used {
        u64::MAX => "more than can be measured".to_owned(),
        used => format!("{} MiB", used >> 20),
    };
    format!(
        "ended by its node, which allows a job {} on disk, and this one had {used}; write less, or run it on a node that allows more",
        ByteSize(limit)
    )
}

fn out_of_disk(excess: &Excess) -> String {
    let reserve = excess.of.amount(excess.reserve);
    let used = match excess.used {
        u64::MAX => "more than can be measured".to_owned(),
        used => excess.of.amount(used),
    };
    format!(
        "ended by its node, which had less than {reserve} left on its disk, and this job used the most ({used}); write less, or run it on a node with more room"
    )
}
