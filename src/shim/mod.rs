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

mod end;
mod link;
mod order;
mod pipes;
mod sandbox;
mod start;
mod stop;
mod tape;

pub use link::Link;
pub use order::Order;
pub use stop::{Excess, Stop};

use crate::{
    api::jobs::{JobErrorKind, Outcome},
    engine::{labels, not_runnable},
    sandbox_init::{WORKSPACE, wire::Request},
    spool::{Ending, Recorder, Spool},
};
use bytes::BytesMut;
use end::{End, Halt};
use sandbox::Sandbox;
use std::{
    io::{self, Read as _},
    os::{fd::FromRawFd as _, unix::net::UnixListener as StdListener},
    process::exit,
    time::Duration,
};
use tape::Tape;
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

/// Runs as a shim and never returns. The order comes on stdin.
pub fn main() -> ! {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    match run() {
        Ok(()) => exit(0),
        Err(error) => {
            tracing::error!(%error, "the shim gives up");
            exit(1)
        }
    }
}

fn run() -> io::Result<()> {
    let mut order = Vec::new();
    io::stdin().read_to_end(&mut order)?;
    // A worker that died while it wrote has started nothing.
    let order: Order = serde_json::from_slice(&order)?;
    // No terminal's and no service's signals are for us.
    rustix::process::setsid()?;
    let listener = listener()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(watch_over(order, listener))
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

async fn watch_over(order: Order, listener: StdListener) -> io::Result<()> {
    let spool = Spool::at(order.spool.clone());
    let Some(spec) = spool.request()? else {
        return Err(io::Error::other(
            "the request is gone, it may have been run",
        ));
    };
    let recorder = Recorder::open(&spool, order.accepted.clone(), order.log_bytes)?;
    let tape = Tape::new(recorder);
    let halt = watch::Sender::new(None);
    let listener = UnixListener::from_std(listener)?;
    tokio::spawn(answer(listener, tape.news(), halt.clone()));
    tokio::spawn(heed_signals(halt.clone()));

    crate::data_dir::make_private_subdir(&spool.workspace())?;
    let sandbox = Sandbox {
        engine: &order.engine,
        init: &order.init,
        spool: &spool,
        image_id: &order.effective.image_id,
        image_index: order.image_index,
        labels: vec![
            (labels::JOB, order.accepted.job_id.to_string()),
            (labels::TASK, order.accepted.task_id.to_string()),
            (labels::NODE, order.node_uuid.clone()),
        ],
        request: &request(&order, spec),
        node_uuid: &order.node_uuid,
        timeout: Duration::from_secs(order.effective.timeout_seconds),
        name: order.container.clone(),
    };
    let (ending, remains) = match start::run(&sandbox, &tape, &halt).await {
        Ok((end, remains)) => (ending(end), Some(remains)),
        Err(error) => {
            let ending = Ending::trouble(JobErrorKind::EngineError, error.to_string());
            (ending, None)
        }
    };
    let result = tape.finish(ending, Some(order.effective.clone()));
    let told = spool.finish(&result);
    tape.tell();
    let is_cleared = match remains {
        Some(mut remains) => remains.clear().await,
        None => true,
    };
    // By a workspace that is there the worker knows that a container may be left, and removes both.
    if is_cleared {
        let workspace = spool.workspace();
        if let Err(error) = order.engine.remove_tree(&order.init, &workspace).await {
            // The worker sees that it is still there, tries again and says so.
            tracing::warn!(error, "the workspace can't be removed yet");
        }
    }
    if let Err(error) = told {
        // The workspace may have been what took all the room.
        tracing::error!(%error, "the result can't be written yet");
        spool.finish_at_last(&result).await?;
        tape.tell();
    }
    spool.sync()
}

/// What init is told: the job's own environment, then what it can't override.
fn request(order: &Order, spec: crate::api::jobs::SandboxSpec) -> Request {
    let own = [
        ("CYNODE_TASK_ID", order.accepted.task_id.to_string()),
        ("CYNODE_JOB_ID", order.accepted.job_id.to_string()),
        ("CYNODE_WORKSPACE_DIR", WORKSPACE.to_owned()),
    ];
    let asked = spec
        .env
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.into(), value.into()));
    Request {
        command: spec.command.into_iter().map(Into::into).collect(),
        env: asked
            .chain(own.map(|(name, value)| (name.into(), value.into())))
            .collect(),
    }
}

fn ending(end: End) -> Ending {
    match end {
        End::Exited(code) => Ending::exited(code),
        End::Killed(signal) => Ending::exited(128 + signal),
        End::Halted(Halt::Timeout) => Ending::stopped(Outcome::Timeout),
        End::Halted(Halt::Canceled) => Ending::stopped(Outcome::Canceled),
        End::Halted(Halt::Shutdown) => Ending::trouble(
            JobErrorKind::Lost,
            "the node's machine was shut down while the job ran",
        ),
        End::Halted(Halt::NoRoom(excess)) => {
            Ending::trouble(JobErrorKind::OutOfDisk, excess.reason())
        }
        End::Image(message) => {
            Ending::trouble(JobErrorKind::ImageNotRunnable, not_runnable(&message))
        }
        End::Refused(message) | End::Engine(message) => {
            Ending::trouble(JobErrorKind::EngineError, message)
        }
        End::Lost(message) => Ending::trouble(JobErrorKind::Lost, message),
    }
}

/// Talks with the worker, one at a time: a new one takes the place of one that was killed.
async fn answer(
    listener: UnixListener,
    mut news: watch::Receiver<()>,
    halt: watch::Sender<Option<Halt>>,
) {
    let mut worker: Option<(UnixStream, BytesMut)> = None;
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => worker = Some((stream, BytesMut::new())),
            told = news.changed() => if told.is_err() { return },
            order = ordered(&mut worker), if worker.is_some() => match order {
                Ok(Stop::Cancel) => end::halt(&halt, Halt::Canceled),
                Ok(Stop::NoRoom(excess)) => end::halt(&halt, Halt::NoRoom(excess)),
                Err(_) => worker = None,
            },
        }
        if let Some((worker, _)) = &worker {
            // Full only when there are bytes that the worker hasn't read: it will look again anyway.
            let _ = worker.try_write(b"!");
        }
    }
}

/// Reads the next order. Can be interrupted, and called again.
async fn ordered(worker: &mut Option<(UnixStream, BytesMut)>) -> io::Result<Stop> {
    let Some((worker, read)) = worker else {
        return std::future::pending().await;
    };
    loop {
        if let Some(stop) = Stop::decode(read) {
            return Ok(stop);
        }
        if worker.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A machine that goes down says so with TERM.
async fn heed_signals(halt: watch::Sender<Option<Halt>>) {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
            end::halt(&halt, Halt::Shutdown);
        }
        Err(error) => tracing::warn!(%error, "TERM can't be caught"),
    }
}
