//! Life of a job on this node. A job is the guest of a [sandbox](crate::sandbox) that is used once.
//!
//! ```text
//!  new ──▶ prepare ──▶ start a shim ──▶ supervise ──▶ the shim is gone: recover
//!             │                            ▲             ├─ there is a result ─────────────▶ done
//!             ▼ not allowed, canceled, …   │             ├─ the command can't have begun ──▶ prepare again
//!          result         adopted ─────────┘             └─ neither ───────────────────────▶ lost
//! ```
//!
//! A job ends exactly once, when there is a result in its spool; its [slot](super::slots) is free then, and podman
//! removes its container while others start. While the job has a shim, it is the shim that writes to the spool ([`job_shim`](super::job_shim)), and the
//! worker only reads; before and after, the worker does.
//! All that is logged here is in the job's span.

use super::{
    artifacts,
    context::WorkerContext,
    disk_guard::LiveJob,
    egress,
    job_result::write_result,
    job_start::{self, StartError, Started},
    job_stop::{cancel_requested, stop_requested},
    ledger::Job,
    prepare::{PrepareError, engine_error, prepare},
    prompt,
    reconnect::{pauses, reconnect},
    sandbox_listeners::serve_listeners,
    slots::Slot,
    warm::StartMark,
};
use crate::{
    api::{
        jobs::{JobError, JobErrorKind, Outcome, SandboxSpec},
        sandboxes::EndReason,
        secrets::SecretValues,
    },
    backoff::Backoff,
    contents::Pin,
    engine::ImageLease,
    retry::retry,
    sandbox::shim::{self, ShimHandle},
    spool::{JobEnd, Spool},
};
use futures_util::FutureExt as _;
use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;

/// Shims that are started for one attempt, should they be killed before the command begins.
const MAX_SHIM_STARTS: usize = 3;
/// Shortest and longest pause before the result of a job is written again.
const MIN_RETRY_INTERVAL: Duration = Duration::from_secs(1);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Time after which a sandbox that has not started puts podman under suspicion.
const SLOW_START_DELAY: Duration = Duration::from_secs(10);

/// State in which a job is found.
pub(super) enum JobStart {
    /// Accepted just now, with its contents and the values of its secrets.
    New(Box<SandboxSpec>, Vec<Pin>, SecretValues),
    /// Accepted by an earlier process; no handle where its shim is gone.
    Adopted(Option<ShimHandle>),
}

/// Runs a job to its end.
pub(super) async fn run(ctx: Arc<WorkerContext>, job: Arc<Job>, start: JobStart) {
    let accepted = &job.accepted;
    let span = tracing::info_span!(
        "job",
        job = %accepted.job_id,
        task = %accepted.task_id,
        attempt = accepted.attempt,
    );
    async {
        if matches!(start, JobStart::New(..)) {
            tracing::info!(image = accepted.image, "job accepted");
        }
        let attempt = AssertUnwindSafe(run_attempt(&ctx, &job, start));
        let outcome = attempt.catch_unwind().await;
        // A defect of this program must not leave a job that never ends.
        if outcome.is_err() && !job.has_ended() {
            let error = engine_error("the worker failed while it ran this job; its log says why");
            end_without_shim(&ctx, &job, error.into()).await;
        }
    }
    .instrument(span)
    .await;
}

/// Holdings of a job until its command has begun.
#[derive(Default)]
struct Held<'a> {
    /// Contents: after a shim that is killed, files are placed again.
    pins: Vec<Pin>,
    /// Values of secrets, which are nowhere else on this node: another shim may need them.
    secrets: SecretValues,
    /// Mark of a start.
    mark: Option<StartMark<'a>>,
}

async fn run_attempt(ctx: &WorkerContext, job: &Arc<Job>, start: JobStart) {
    let live = ctx.live.register(job);
    let mut held = Held::default();
    let mut pending = match start {
        JobStart::New(spec, pins, secrets) => {
            (held.pins, held.secrets) = (pins, secrets);
            Some(*spec)
        }
        JobStart::Adopted(handle) => run_adopted(ctx, &live, handle).await,
    };
    for start in 0..MAX_SHIM_STARTS {
        let Some(spec) = pending else { break };
        if let Some(prompt) = &spec.prompt {
            let end = prompt::answer(ctx, job, prompt, spec.timeout_seconds).await;
            return end_without_shim(ctx, job, end).await;
        }
        if !held.secrets.covers(&spec.secrets) {
            return end_without_shim(ctx, job, secrets_lost()).await;
        }
        if held.pins.is_empty() {
            // Of an earlier process; one that is gone since is reported when it is placed.
            held.pins = ctx.contents.pin_all(&spec).await.unwrap_or_default();
        }
        pending = run_in_sandbox(ctx, &live, spec, (start == 0, &mut held)).await;
    }
    if pending.is_some() {
        let error =
            engine_error("the sandbox's shim is killed again and again before it can begin");
        end_without_shim(ctx, job, error.into()).await;
    }
}

/// Runs a job on that an earlier process has begun. Answers its spec where its command can't have begun.
async fn run_adopted(
    ctx: &WorkerContext,
    live: &Arc<LiveJob>,
    handle: Option<ShimHandle>,
) -> Option<SandboxSpec> {
    let mut slot = ctx.slots.adopt();
    let _lease = lease_image(ctx, &live.job).await;
    if let Some(handle) = handle {
        supervise(ctx, &live.job, handle, (&mut slot, &mut Held::default())).await;
    }
    recover(ctx, live).await
}

/// Runs a job in a sandbox that was never used. Answers its spec where its command can't have begun.
async fn run_in_sandbox<'a>(
    ctx: &'a WorkerContext,
    live: &Arc<LiveJob>,
    spec: SandboxSpec,
    (may_be_warm, held): (bool, &mut Held<'a>),
) -> Option<SandboxSpec> {
    let job = &live.job;
    let mut cancel = job.cancellation();
    let prepared = tokio::select! {
        prepared = prepare(ctx, job, &spec) => prepared,
        _ = cancel_requested(&mut cancel, None) => Err(PrepareError::Canceled),
    };
    // The image is held until nothing is left of the sandbox.
    let mut prepared = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            end_without_shim(ctx, job, not_started(job, &spec, error)).await;
            return None;
        }
    };
    let started = job_start::start(ctx, live, (&spec, &held.secrets), &prepared, may_be_warm);
    match started.await {
        Ok(Started { handle, mark }) => {
            held.mark = mark;
            supervise(ctx, job, handle, (&mut prepared.slot, held)).await;
            held.mark = None;
        }
        Err(StartError::Job(error)) => {
            end_without_shim(ctx, job, not_started(job, &spec, error)).await;
        }
        Err(StartError::Warm) => {}
    }
    recover(ctx, live).await
}

/// End of a job that did not start. That of a sandbox that stays says where its node ended.
fn not_started(job: &Job, spec: &SandboxSpec, error: PrepareError) -> JobEnd {
    let mut end = JobEnd::from(error);
    if spec.session.is_some() && job.is_closing() && end.status == Outcome::Canceled {
        end.session = Some(EndReason::Shutdown);
    }
    end
}

/// End of a job whose secrets were in the memory of an earlier process. The orchestrator has them, and sends another attempt,
/// unless this was the last one, as that of a sandbox is.
fn secrets_lost() -> JobEnd {
    let message = "the node was restarted before the command began, and keeps the values of secrets in its memory only; \
                   nothing has run, so it can be started again";
    JobEnd::failed(JobErrorKind::SecretsLost, message)
}

/// Keeps the image of a job that an earlier process has begun.
async fn lease_image(ctx: &WorkerContext, job: &Job) -> Option<ImageLease> {
    let image = job.accepted.image.parse().ok()?;
    ctx.images.lease(&image).await
}

/// Passes the updates of a shim on, and requests to stop to it, until the shim is gone. Drops what is held once the
/// command has begun, and frees the slot once the job has ended.
async fn supervise(
    ctx: &WorkerContext,
    job: &Arc<Job>,
    mut handle: ShimHandle,
    (slot, held): (&mut Slot<'_>, &mut Held<'_>),
) {
    let (mut sent, mut pauses) = (None, pauses());
    let mut stdin = job.subscribe_stdin();
    // Input that came before has perhaps not been notified.
    stdin.mark_changed();
    let slow_start = Instant::now() + SLOW_START_DELAY;
    let mut is_checked = false;
    let mut listeners = pin!(serve_listeners(ctx, job));
    let mut notes = job.notes.receiver().await;
    loop {
        tokio::select! {
            () = sleep_until(slow_start), if !is_checked => {
                is_checked = true;
                if !job.with_spool(Spool::has_started).await.unwrap_or(true) {
                    ctx.engine.report_failure();
                }
            }
            is_alive = handle.changed() => {
                record_end(ctx, job).await;
                let has_files = !held.pins.is_empty() || !held.secrets.is_empty();
                let is_held = has_files || held.mark.is_some();
                if is_held && !job.with_spool(Spool::has_request).await.unwrap_or(true) {
                    *held = Held::default();
                }
                if !is_alive {
                    match reconnect(job, &mut pauses).await {
                        Some(again) => (handle, sent) = (again, None),
                        None => return,
                    }
                }
                job.notify();
            }
            () = slot.leave(), if slot.is_held() && job.has_ended() => {}
            never = &mut listeners => match never {},
            // The sender lives in `job`.
            Ok(()) = stdin.changed() => handle.notify_stdin(),
            Some(note) = notes.recv(), if handle.takes_notes() => handle.note(note.content()),
            request = stop_requested(job, sent) => {
                sent = Some(request);
                handle.stop(request);
            }
        }
    }
}

/// Makes a result that is in the spool the job's outcome; false where there is none yet.
async fn record_end(ctx: &WorkerContext, job: &Arc<Job>) -> bool {
    if job.has_ended() {
        return true;
    }
    let Some(result) = job.read_result().await.map(|last| last.result) else {
        return false;
    };
    // Before others can read the result.
    egress::finish(job).await;
    ctx.metrics.job_ended(result.status);
    let kind = result.error.as_ref().map(|error| error.kind);
    tracing::info!(
        status = result.status.as_str(),
        exit_code = result.exit_code,
        error_type = kind.map(JobErrorKind::as_str),
        error = result.error.as_ref().and_then(JobError::loggable_message),
        "job ended"
    );
    if kind == Some(JobErrorKind::EngineError) {
        ctx.engine.report_failure();
    }
    job.set_outcome(result.status);
    if !job.accepted.gpus.is_empty() {
        // Its devices are free.
        ctx.changed.send_replace(());
    }
    true
}

/// Removes what a shim has left that is gone, and ends the job. Answers the spec of a job whose command can't have
/// begun, and which is to be started again.
async fn recover(ctx: &WorkerContext, live: &Arc<LiveJob>) -> Option<SandboxSpec> {
    let job = &live.job;
    let workspace = job.spool.workspace();
    let left = job.with_spool(|spool| (spool.workspace().exists(), spool.container_name()));
    // A spool that can't be read is left to the next start.
    let (has_workspace, container) = left.await.unwrap_or_default();
    if has_workspace && let Some(name) = &container {
        // The shim was killed before it could.
        ctx.engine.remove_container(name).await;
    }
    let again = resolve(ctx, job).await;
    // After the end of the job is known to all, however long this takes.
    if has_workspace && again.is_some() {
        // The next start needs an empty one.
        let removed = ctx.engine.remove_tree(ctx.init.path(), &workspace).await;
        if let Err(error) = removed {
            tracing::warn!(error, "workspace can't be emptied");
        }
    } else if has_workspace {
        ctx.trash.add(workspace, Some(live));
    }
    let engine = ctx.engine.clone();
    let upper = job.with_spool(move |_| container.and_then(|name| engine.detached_upper(&name)));
    if let Ok(Some(upper)) = upper.await {
        ctx.trash.add(upper, Some(live));
    }
    again
}

/// Ends a job whose shim is gone, or answers the spec of one whose command can't have begun.
async fn resolve(ctx: &WorkerContext, job: &Arc<Job>) -> Option<SandboxSpec> {
    if record_end(ctx, job).await {
        return None;
    }
    // Before all else: a job with an end must not begin again.
    if artifacts::finish_recorded(ctx, job).await {
        record_end(ctx, job).await;
        return None;
    }
    let unstarted = job.with_spool(|spool| match spool.request() {
        Ok(Some(spec)) if !spool.has_started() => Some(spec),
        _ => None,
    });
    if let Ok(Some(spec)) = unstarted.await {
        return Some(spec);
    }
    let shim_log = job.with_spool(|spool| shim::log_in(spool.path())).await;
    tracing::warn!(shim_log = shim_log.unwrap_or_default(), "shim is gone");
    let message = "the job's shim was killed, or its machine went down, while the command ran; how it ended is unknown";
    end_without_shim(ctx, job, JobEnd::failed(JobErrorKind::Lost, message)).await;
    None
}

/// Writes the result of a job that has no shim.
async fn end_without_shim(ctx: &WorkerContext, job: &Arc<Job>, end: JobEnd) {
    let backoff = Backoff::new(MIN_RETRY_INTERVAL, MAX_RETRY_INTERVAL);
    retry(backoff, "write the result of a job", || {
        write_result(ctx, job, end.clone())
    })
    .await;
    record_end(ctx, job).await;
}
