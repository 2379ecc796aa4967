//! One small process per job, between worker and podman, which outlives the worker.
//!
//! ```text
//! worker ──spawns──▶ shim ──spawns──▶ podman run ──▶ conmon ──▶ init ──▶ command
//!    ▲  shim.sock     │ ◀──── socket (3), stdout (4), stderr (5) ────┘
//!    └────────────────┤
//!                     └──▶ log.n, result.json
//! ```
//!
//! A worker may be killed, upgraded or restarted while its jobs run: each has a shim that holds
//! init's socket and pipes, writes down what comes out of them, keeps the time limit, and clears
//! container and workspace away in the end. The truth is in the [`Spool`]; over the socket only
//! two things are said. The shim says "look again" (a byte) when it has written something, and
//! its end is the end of the connection. The worker says "end the job" (a byte, and [why](stop)).
//! So any release of a worker understands the shim of any other.
//!
//! When a shim is killed, init's socket closes and init ends the sandbox: no job goes on that
//! nobody watches. How it would have ended nobody can know, and the worker says so.
//!
//! The job's command and environment come out of the request in the spool, which goes as soon as
//! init has asked for them: from then on the command may have begun, and is never begun again.

mod config;
mod exit;
mod handle;
mod pipes;
mod sink;
mod start;
mod stop;
mod supervisor;

pub use config::ShimConfig;
pub use handle::ShimHandle;
pub use stop::{Excess, StopRequest};

use crate::{
    api::jobs::{JobErrorKind, Outcome},
    background,
    engine::{labels, not_runnable},
    sandbox_init::{WORKSPACE, wire::ExecSpec},
    spool::{JobEnd, JobRecorder, Spool},
};
use bytes::BytesMut;
use exit::{SandboxExit, StopReason};
use sink::OutputSink;
use std::{
    io::{self, Read as _},
    os::{fd::FromRawFd as _, unix::net::UnixListener as StdListener},
    process,
    time::Duration,
};
use supervisor::Sandbox;
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// The argument by which the binary knows that it is a shim.
pub const ARGUMENT: &str = "__shim";
/// The listening socket that the worker hands over.
const LISTENER: i32 = 3;

/// Runs as a shim and never returns. The config comes on stdin.
pub fn main() -> ! {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    match run() {
        Ok(()) => process::exit(0),
        Err(error) => {
            tracing::error!(%error, "the shim gives up");
            process::exit(1)
        }
    }
}

fn run() -> io::Result<()> {
    let mut config = Vec::new();
    io::stdin().read_to_end(&mut config)?;
    // A worker that died while it wrote has started nothing.
    let config: ShimConfig = serde_json::from_slice(&config)?;
    // No terminal's and no service's signals are for us.
    rustix::process::setsid()?;
    let listener = listener()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run_sandbox(config, listener))
}

#[allow(
    unsafe_code,
    reason = "a descriptor that was handed over has only a number"
)]
fn listener() -> io::Result<StdListener> {
    // SAFETY: the worker hands the socket over as this number, and nobody else here knows it.
    let listener = unsafe { StdListener::from_raw_fd(LISTENER) };
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn run_sandbox(config: ShimConfig, listener: StdListener) -> io::Result<()> {
    let spool = Spool::at(config.spool.clone());
    let Some(spec) = spool.request()? else {
        return Err(io::Error::other(
            "the request is gone, it may have been run",
        ));
    };
    let recorder = JobRecorder::open(&spool, config.accepted.clone(), config.log_bytes)?;
    let sink = OutputSink::new(recorder);
    let reason = watch::Sender::new(None);
    let listener = UnixListener::from_std(listener)?;
    background::spawn(
        "serve_worker",
        serve_worker(listener, sink.subscribe(), reason.clone()),
    );
    background::spawn("stop_on_sigterm", stop_on_sigterm(reason.clone()));

    crate::data_dir::make_private_subdir(&spool.workspace())?;
    let sandbox = Sandbox {
        engine: &config.engine,
        init: &config.init,
        spool: &spool,
        image_id: &config.effective.image_id,
        image_index: config.image_index,
        labels: vec![
            (labels::JOB, config.accepted.job_id.to_string()),
            (labels::TASK, config.accepted.task_id.to_string()),
            (labels::NODE, config.node_uuid.clone()),
        ],
        request: &request(&config, spec),
        node_uuid: &config.node_uuid,
        timeout: Duration::from_secs(config.effective.timeout_seconds),
        name: config.container.clone(),
    };
    let (ending, cleanup) = match start::run(&sandbox, &sink, &reason).await {
        Ok((end, cleanup)) => (job_end(end), Some(cleanup)),
        Err(error) => {
            let ending = JobEnd::failed(JobErrorKind::EngineError, error.to_string());
            (ending, None)
        }
    };
    let result = sink.take_result(ending, Some(config.effective.clone()));
    let told = spool.write_result(&result);
    sink.notify();
    let is_cleared = match cleanup {
        Some(mut cleanup) => cleanup.wait_until_removed().await,
        None => true,
    };
    // By a workspace that is there the worker knows that a container may be left, and removes both.
    if is_cleared {
        let workspace = spool.workspace();
        if let Err(error) = config.engine.remove_tree(&config.init, &workspace).await {
            // The worker sees that it is still there, tries again and says so.
            tracing::warn!(error, "the workspace can't be removed yet");
        }
    }
    if let Err(error) = told {
        // The workspace may have been what took all the room.
        tracing::error!(%error, "the result can't be written yet");
        spool.write_result_with_retry(&result).await?;
        sink.notify();
    }
    spool.sync()
}

/// What init is told: the job's own environment, then what it can't override.
fn request(config: &ShimConfig, spec: crate::api::jobs::SandboxSpec) -> ExecSpec {
    let own = [
        ("CYNODE_TASK_ID", config.accepted.task_id.to_string()),
        ("CYNODE_JOB_ID", config.accepted.job_id.to_string()),
        ("CYNODE_WORKSPACE_DIR", WORKSPACE.to_owned()),
    ];
    let asked = spec
        .env
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.into(), value.into()));
    ExecSpec {
        command: spec.command.into_iter().map(Into::into).collect(),
        env: asked
            .chain(own.map(|(name, value)| (name.into(), value.into())))
            .collect(),
    }
}

fn job_end(end: SandboxExit) -> JobEnd {
    match end {
        SandboxExit::Exited(code) => JobEnd::exited(code),
        SandboxExit::Signaled(signal) => JobEnd::exited(128 + signal),
        SandboxExit::Stopped(StopReason::Timeout) => JobEnd::stopped(Outcome::Timeout),
        SandboxExit::Stopped(StopReason::Canceled) => JobEnd::stopped(Outcome::Canceled),
        SandboxExit::Stopped(StopReason::Shutdown) => JobEnd::failed(
            JobErrorKind::Lost,
            "the node's machine was shut down while the job ran",
        ),
        SandboxExit::Stopped(StopReason::OutOfDisk(excess)) => {
            JobEnd::failed(JobErrorKind::OutOfDisk, excess.reason())
        }
        SandboxExit::ImageNotRunnable(message) => {
            JobEnd::failed(JobErrorKind::ImageNotRunnable, not_runnable(&message))
        }
        SandboxExit::Refused(message) | SandboxExit::EngineFailed(message) => {
            JobEnd::failed(JobErrorKind::EngineError, message)
        }
        SandboxExit::Lost(message) => JobEnd::failed(JobErrorKind::Lost, message),
    }
}

/// Talks with the worker, one at a time: a new one takes the place of one that was killed.
async fn serve_worker(
    listener: UnixListener,
    mut changes: watch::Receiver<()>,
    reason: watch::Sender<Option<StopReason>>,
) {
    let mut worker: Option<(UnixStream, BytesMut)> = None;
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => worker = Some((stream, BytesMut::new())),
            told = changes.changed() => if told.is_err() { return },
            config = next_request(&mut worker), if worker.is_some() => match config {
                Ok(StopRequest::Cancel) => exit::request_stop(&reason, StopReason::Canceled),
                Ok(StopRequest::OutOfDisk(excess)) => exit::request_stop(&reason, StopReason::OutOfDisk(excess)),
                Err(_) => worker = None,
            },
        }
        if let Some((worker, _)) = &worker {
            // Full only when there are bytes that the worker hasn't read: it will look again anyway.
            let _ = worker.try_write(b"!");
        }
    }
}

/// Reads the next config. Can be interrupted, and called again.
async fn next_request(worker: &mut Option<(UnixStream, BytesMut)>) -> io::Result<StopRequest> {
    let Some((worker, read)) = worker else {
        return std::future::pending().await;
    };
    loop {
        if let Some(stop) = StopRequest::decode(read) {
            return Ok(stop);
        }
        if worker.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A machine that goes down says so with TERM.
async fn stop_on_sigterm(reason: watch::Sender<Option<StopReason>>) {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
            exit::request_stop(&reason, StopReason::Shutdown);
        }
        Err(error) => tracing::warn!(%error, "TERM can't be caught"),
    }
}
