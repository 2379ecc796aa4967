//! The life of one job: allowed? → image → slot → shim → its end → clean up.
//!
//! A job ends exactly once, when there is a result in its spool; its slot is free once container
//! and workspace are gone. While it has a shim, it is the shim that writes there, and we only
//! look; before and after, we do.
//!
//! ```text
//! begin ──▶ prepare ──▶ start a shim ──▶ look on ──▶ the shim is gone: is there a result?
//!              │                            ▲            ├─ yes ──────────────▶ done
//!              ▼ not allowed, canceled, …   │            ├─ no, and a request ▶ start another
//!           result              adopt ──────┘            └─ neither ──────────▶ lost
//! ```

use super::{
    context::WorkerContext,
    disk_guard::LiveJob,
    ledger::Job,
    prepare::{PrepareError, engine_error, prepare},
};
use crate::{
    api::jobs::{Effective, JobErrorKind, SandboxSpec},
    backoff::Backoff,
    data_dir::make_private_subdir,
    engine::{ImageLease, ResolvedImage},
    retry::retry,
    sandbox::shim::{ShimConfig, ShimHandle, StopRequest},
    sandbox_init::seccomp,
    spool::{JobEnd, JobRecorder},
    wait,
};
use futures_util::FutureExt as _;
use std::{io, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// How often a shim is started for one attempt, should somebody kill it before the command began.
const MAX_SHIM_STARTS: usize = 3;
/// Before a shim that has let go of us is spoken to again, or an end is written down again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Longest pause before the end of a job is written again.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// After so long podman should have started a sandbox.
const SLOW_START_DELAY: Duration = Duration::from_secs(10);

/// Where to begin.
pub(super) enum JobStart {
    /// Nothing was done yet.
    New(SandboxSpec),
    /// An earlier process started a shim; gone, where there is no handle.
    Adopted(Option<ShimHandle>),
}

/// Resolves once the job is to be ended.
async fn cancel_requested(cancel: &mut watch::Receiver<bool>) {
    if wait::until(cancel, |cancel| *cancel).await.is_err() {
        // Nobody can cancel any more, so nobody will.
        std::future::pending().await
    }
}

/// Resolves once a job that has a sandbox is to be ended, with the reason.
async fn stop_requested(job: &Job) -> StopRequest {
    let (mut cancel, mut excess) = (job.cancel.subscribe(), job.excess.subscribe());
    tokio::select! {
        () = cancel_requested(&mut cancel) => StopRequest::Cancel,
        Ok(Some(excess)) = wait::until(&mut excess, Option::is_some) => StopRequest::OutOfDisk(excess),
    }
}

/// Runs a job to its end.
pub(super) async fn run(ctx: Arc<WorkerContext>, job: Arc<Job>, start: JobStart) {
    let accepted = &job.accepted;
    if matches!(start, JobStart::New(_)) {
        tracing::info!(job = %accepted.job_id, task = %accepted.task_id, attempt = accepted.attempt, image = accepted.image, "job accepted");
    }
    let outcome = AssertUnwindSafe(run_attempt(&ctx, &job, start))
        .catch_unwind()
        .await;
    // A fault of ours must not leave a job that never ends.
    if outcome.is_err() && !job.has_ended() {
        let error = engine_error("the worker made a mistake; its log says which");
        end_without_shim(&ctx, &job, error.into()).await;
    }
}

async fn run_attempt(ctx: &WorkerContext, job: &Arc<Job>, start: JobStart) {
    let live = ctx.live.register(job);
    let mut spec = match start {
        JobStart::New(spec) => spec,
        JobStart::Adopted(handle) => {
            // A worker that was started anew with fewer slots has too many jobs for a while.
            let _slot = ctx.slots.try_acquire();
            let _lease = lease_image(ctx, job).await;
            if let Some(handle) = handle {
                supervise(ctx, job, handle).await;
            }
            match recover(ctx, &live).await {
                Some(spec) => spec,
                None => return,
            }
        }
    };
    // An earlier process of ours may have started some.
    let earlier = job
        .spool
        .container_name()
        .and_then(|name| start_number(&name));
    for start in (earlier.unwrap_or(0) + 1..).take(MAX_SHIM_STARTS) {
        let mut cancel = job.cancel.subscribe();
        let prepared = tokio::select! {
            prepared = prepare(ctx, job) => prepared,
            () = cancel_requested(&mut cancel) => Err(PrepareError::Canceled),
        };
        let (image, _slot, _lease) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return end_without_shim(ctx, job, error.into()).await,
        };
        // A name of its own: the podman of a shim that was killed may still be about to make its container.
        let container = format!(
            "cynode-{}-{}.{start}",
            job.accepted.job_id, job.accepted.attempt
        );
        let config = shim_config(ctx, job, &spec, image, container);
        let started = async {
            ctx.init.ensure().await?;
            ShimHandle::start(&job.spool, &config).await
        };
        match started.await {
            Ok(handle) => supervise(ctx, job, handle).await,
            Err(error) => {
                let error = engine_error(format!("no shim could be started: {error}"));
                return end_without_shim(ctx, job, error.into()).await;
            }
        }
        match recover(ctx, &live).await {
            Some(again) => spec = again,
            None => return,
        }
    }
    let error = engine_error("somebody kills the sandbox's shim before it can begin");
    end_without_shim(ctx, job, error.into()).await;
}

/// Which start a container is of, by its name.
fn start_number(container: &str) -> Option<u32> {
    container.rsplit_once('.')?.1.parse().ok()
}

/// Keeps the image of a job that was started by an earlier process.
async fn lease_image(ctx: &WorkerContext, job: &Job) -> Option<ImageLease> {
    let image = job.accepted.image.parse().ok()?;
    ctx.images.lease(&image).await
}

fn shim_config(
    ctx: &WorkerContext,
    job: &Job,
    spec: &SandboxSpec,
    image: ResolvedImage,
    container: String,
) -> ShimConfig {
    let (default, most) = {
        let access = ctx.access.borrow();
        (
            access.default_timeout_seconds,
            access.policy.max_timeout_seconds,
        )
    };
    let effective = Effective {
        image_id: image.id,
        network: "none".to_owned(),
        runtime: ctx.engine.runtime_name().to_owned(),
        timeout_seconds: spec.timeout_seconds.unwrap_or(default).min(most),
        seccomp: Some(seccomp::NAME.to_owned()),
    };
    ShimConfig {
        spool: job.spool.path().to_owned(),
        engine: ctx.engine.clone(),
        init: ctx.init.path().to_owned(),
        node_uuid: ctx.node_uuid.clone(),
        accepted: job.accepted.clone(),
        container,
        image_index: image.stamp,
        effective,
        log_bytes: ctx.log_bytes,
    }
}

/// Passes on what a shim says until it is gone, and to it that the job is to end.
async fn supervise(ctx: &WorkerContext, job: &Job, mut handle: ShimHandle) {
    let mut is_stopping = false;
    let slow_start = Instant::now() + SLOW_START_DELAY;
    let mut is_checked = false;
    loop {
        tokio::select! {
            () = sleep_until(slow_start), if !is_checked => {
                is_checked = true;
                if !job.spool.has_started() {
                    ctx.engine.report_failure();
                }
            }
            lives = handle.changed() => {
                record_end(ctx, job).await;
                if !lives {
                    // Only one that can't be found again is gone.
                    match ShimHandle::connect(&job.spool) {
                        Ok(Some(again)) => {
                            tokio::time::sleep(RETRY_INTERVAL).await;
                            (handle, is_stopping) = (again, false);
                        }
                        _ => return,
                    }
                }
                job.notify();
            }
            request = stop_requested(job), if !is_stopping => {
                is_stopping = true;
                handle.stop(request).await;
            }
        }
    }
}

/// Whether there is a result by now.
async fn record_end(ctx: &WorkerContext, job: &Job) -> bool {
    if job.has_ended() {
        return true;
    }
    let Some(result) = job.read_result().await.map(|last| last.result) else {
        return false;
    };
    ctx.metrics.job_ended(result.status);
    let kind = result.error.as_ref().map(|error| error.kind);
    tracing::info!(
        job = %result.job_id,
        attempt = result.attempt,
        status = result.status.as_str(),
        exit_code = result.exit_code,
        error_type = kind.map(JobErrorKind::as_str),
        error = result.error.as_ref().map(|error| error.message.as_str()),
        "job ended"
    );
    if kind == Some(JobErrorKind::EngineError) {
        ctx.engine.report_failure();
    }
    job.set_outcome(result.status);
    true
}

/// What a shim that is gone has left: clears it away, and has the job end, unless its command can't
/// have begun, which is then to be run.
async fn recover(ctx: &WorkerContext, live: &Arc<LiveJob>) -> Option<SandboxSpec> {
    let job = &live.job;
    let workspace = job.spool.workspace();
    let has_workspace = workspace.exists();
    if has_workspace && let Some(name) = job.spool.container_name() {
        // It had not the time to do so.
        ctx.engine.remove_container(&name).await;
    }
    let again = resolve(ctx, job).await;
    // Last: how the job ended is told first, however long this takes.
    if has_workspace && again.is_some() {
        // The next start needs an empty one.
        let removed = ctx.engine.remove_tree(ctx.init.path(), &workspace).await;
        if let Err(error) = removed {
            tracing::warn!(job = %job.accepted.job_id, error, "a workspace can't be emptied");
        }
    } else if has_workspace {
        ctx.trash.add(workspace, Some(live));
    }
    if let Some(upper) = job
        .spool
        .container_name()
        .and_then(|name| ctx.engine.detached_upper(&name))
    {
        ctx.trash.add(upper, Some(live));
    }
    again
}

/// Has a job end whose shim is gone, or answers what is to be run once more.
async fn resolve(ctx: &WorkerContext, job: &Arc<Job>) -> Option<SandboxSpec> {
    if record_end(ctx, job).await {
        return None;
    }
    if let Ok(Some(spec)) = job.spool.request()
        && !job.spool.has_started()
    {
        return Some(spec);
    }
    let shim_log = std::fs::read_to_string(job.spool.shim_log()).unwrap_or_default();
    tracing::warn!(job = %job.accepted.job_id, attempt = job.accepted.attempt, shim_log, "a job's shim is gone");
    let message =
        "its shim was killed, or its machine went down, while it ran; how it ended can't be known";
    end_without_shim(ctx, job, JobEnd::failed(JobErrorKind::Lost, message)).await;
    None
}

/// Writes down the end of a job that has no shim.
async fn end_without_shim(ctx: &WorkerContext, job: &Arc<Job>, end: JobEnd) {
    let backoff = Backoff::new(RETRY_INTERVAL, MAX_RETRY_INTERVAL);
    retry(backoff, "write the result of a job", || {
        write_end(ctx, job, end.clone())
    })
    .await;
    record_end(ctx, job).await;
}

async fn write_end(ctx: &WorkerContext, job: &Arc<Job>, end: JobEnd) -> io::Result<()> {
    let (held, log_bytes) = (Arc::clone(job), ctx.log_bytes);
    // All that it printed is read for this, off the runtime's threads.
    let result = tokio::task::spawn_blocking(move || {
        make_private_subdir(held.spool.path())?;
        let mut recorder = JobRecorder::open(&held.spool, held.accepted.clone(), log_bytes)?;
        Ok::<_, io::Error>(recorder.take_result(end, None))
    });
    let result = result.await.map_err(io::Error::from).flatten()?;
    job.spool.write_result_with_retry(&result).await?;
    job.spool.sync()
}
