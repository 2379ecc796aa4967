//! Preparation of a job before its sandbox is started: permission, its image, a slot.

use super::{context::WorkerContext, job_end, ledger::Job, slots::Slot, warm::Kind};
use crate::{
    api::{
        image::ImageRef,
        jobs::{JobErrorKind, Outcome, PullPolicy, SandboxSpec},
    },
    engine::{
        ImageError, ImageLease, PullFault, ResolvedImage, gpus::PassedGpu, limits::Limits,
        not_runnable,
    },
    sandbox::StopReason,
    spool::{JobEnd, JobRecorder},
};
use std::{io, pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc::unbounded_channel, watch},
    time::timeout,
};

/// Time after which a job that waits for a slot says so; podman usually removes a sandbox much faster.
const SLOT_NOTICE_DELAY: Duration = Duration::from_secs(2);

/// Image and slot of a job, held for as long as this lives.
pub(super) struct Prepared<'a> {
    pub(super) image: ResolvedImage,
    /// Kind of its sandbox.
    pub(super) kind: Kind,
    pub(super) gpus: Vec<PassedGpu>,
    pub(super) slot: Slot<'a>,
    _lease: Option<ImageLease>,
}

impl Prepared<'_> {
    /// Id of the image, where it is a snapshot of a sandbox.
    pub(super) fn snapshot(&self) -> Option<&str> {
        let id = self.image.id.as_str();
        self.kind.image.is_snapshot().then_some(id)
    }
}

/// Reason for which a job ended before it had a shim.
pub(super) enum PrepareError {
    Canceled,
    /// Stopped by the node, as a running sandbox is.
    Stopped(StopReason),
    Failed(JobErrorKind, String),
}

impl From<Arc<ImageError>> for PrepareError {
    fn from(error: Arc<ImageError>) -> Self {
        let kind = match &*error {
            ImageError::NotPermitted(_) => JobErrorKind::ImageNotAllowed,
            ImageError::NotFound(_)
            | ImageError::Pull {
                fault: PullFault::NotFound,
                ..
            } => JobErrorKind::ImageNotFound,
            ImageError::NotRunnable(_) => JobErrorKind::ImageNotRunnable,
            ImageError::Pull { .. } | ImageError::Abandoned => JobErrorKind::ImagePullFailed,
            ImageError::Engine(_) | ImageError::TaskFailed(_) => JobErrorKind::EngineError,
        };
        Self::Failed(kind, error.to_string())
    }
}

impl From<PrepareError> for JobEnd {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Canceled => Self::stopped(Outcome::Canceled),
            PrepareError::Stopped(reason) => job_end::stopped(reason),
            PrepareError::Failed(kind, message) => Self::failed(kind, message),
        }
    }
}

pub(super) fn engine_error(error: impl std::fmt::Display) -> PrepareError {
    PrepareError::Failed(JobErrorKind::EngineError, error.to_string())
}

/// Reason of a refusal of an image.
pub(super) fn not_allowed(image: &ImageRef, lists: &[Vec<String>]) -> String {
    let lists: Vec<_> = lists.iter().map(|patterns| patterns.join(", ")).collect();
    format!(
        "this node allows only the images {}; use one of those, or have its operator add --allowed-image '{image}'",
        lists.join(" that are also among ")
    )
}

/// Limits that a job asks for.
fn limits_of(spec: &SandboxSpec) -> Limits {
    Limits {
        cpus: spec.cpus,
        memory: spec.memory,
        pids: spec.pids,
        shm_size: spec.shm_size,
    }
}

/// Prepares a job. May take long, and can be interrupted at any point.
pub(super) async fn prepare<'a>(
    ctx: &'a WorkerContext,
    job: &Arc<Job>,
    spec: &SandboxSpec,
) -> Result<Prepared<'a>, PrepareError> {
    let kind = Kind {
        image: job.accepted.image.parse().map_err(engine_error)?,
        limits: limits_of(spec),
        inference: spec.use_inference == Some(true),
        egress: spec.egress.is_some(),
    };
    check_allowed(ctx, &kind.image)?;
    if let Some(message) = ctx.limits.refusal(&kind.limits) {
        return Err(PrepareError::Failed(
            JobErrorKind::LimitUnsupported,
            message,
        ));
    }
    let gpus = ctx
        .gpus
        .lock()
        .of_job(&job.accepted.gpus, spec.gpus.as_ref());
    let gpus = gpus.map_err(|reason| PrepareError::Failed(JobErrorKind::GpuUnavailable, reason))?;
    wait_for_gpus(ctx, job).await;
    let lease = ctx.images.lease(&kind.image).await;
    let image = resolve_image(ctx, job, &kind.image, spec.pull.unwrap_or_default()).await?;
    let slot = acquire_slot(ctx, job).await?;
    Ok(Prepared {
        image,
        kind,
        gpus,
        slot,
        _lease: lease,
    })
}

fn check_allowed(ctx: &WorkerContext, image: &ImageRef) -> Result<(), PrepareError> {
    if image.is_snapshot() {
        // Its sandbox began from an image that was allowed.
        return Ok(());
    }
    let lists = ctx.access.borrow().policy.allowed_images.clone();
    if lists.iter().all(|patterns| image.is_allowed_by(patterns)) {
        return Ok(());
    }
    let message = not_allowed(image, &lists);
    Err(PrepareError::Failed(JobErrorKind::ImageNotAllowed, message))
}

/// Waits until no superseded attempt is left that has a device of this job: of the same job, or of another, whose
/// later attempt had the device and has ended. Those are canceled; a job that isn't has its devices alone.
async fn wait_for_gpus(ctx: &WorkerContext, job: &Arc<Job>) {
    let shares = |other: &&Arc<Job>| {
        let gpus = &job.accepted.gpus;
        let is_superseded = other.is_canceled() && !other.has_ended();
        is_superseded
            && !Arc::ptr_eq(other, job)
            && other.accepted.gpus.iter().any(|gpu| gpus.contains(gpu))
    };
    if job.accepted.gpus.is_empty() {
        return;
    }
    for other in ctx.live.jobs().iter().filter(shares) {
        other.wait_result().await;
    }
}

/// Finds the image, pulls it where it is missing, and checks its files.
async fn resolve_image(
    ctx: &WorkerContext,
    job: &Arc<Job>,
    image: &ImageRef,
    policy: PullPolicy,
) -> Result<ResolvedImage, PrepareError> {
    let (progress, mut reports) = unbounded_channel();
    let resolved = async move {
        let pull = PullGuard(job, &ctx.changed);
        let on_progress = |text: &str| {
            pull.mark_pulling();
            // Fails when the job is canceled.
            let _ = progress.send(text.to_owned());
        };
        ctx.images.resolve(image, policy, on_progress).await
    };
    // Ends with the sender: all is written before a shim writes.
    let reported = async {
        while let Some(text) = reports.recv().await {
            report_progress(ctx, job, text).await;
        }
    };
    let (resolved, ()) = tokio::join!(resolved, reported);
    let resolved = resolved?;
    let fault = ctx.images.files_fault(ctx.init.path(), &resolved.id).await;
    match fault.map_err(engine_error)? {
        None => Ok(resolved),
        Some(fault) => Err(PrepareError::Failed(
            JobErrorKind::ImageNotRunnable,
            not_runnable(&fault),
        )),
    }
}

pub(super) async fn acquire_slot<'a>(
    ctx: &'a WorkerContext,
    job: &Arc<Job>,
) -> Result<Slot<'a>, PrepareError> {
    let mut slot = pin!(ctx.slots.acquire());
    let slot = match timeout(SLOT_NOTICE_DELAY, &mut slot).await {
        Ok(slot) => slot,
        Err(_) => {
            let text = "waiting for a slot: an earlier job runs, or podman has not removed its sandbox yet";
            report_progress(ctx, job, text.to_owned()).await;
            slot.await
        }
    };
    slot.map_err(engine_error)
}

/// Mark of a job that may wait for the pull of its image. While it does, it occupies no slot: a registry that never
/// answers delays no other job.
struct PullGuard<'a>(&'a Job, &'a watch::Sender<()>);

impl PullGuard<'_> {
    fn mark_pulling(&self) {
        if !self.0.set_pulling(true) {
            self.1.send_replace(());
        }
    }
}

impl Drop for PullGuard<'_> {
    fn drop(&mut self) {
        if self.0.set_pulling(false) {
            self.1.send_replace(());
        }
    }
}

/// Writes to the job's log what the job waits for.
pub(super) async fn report_progress(ctx: &WorkerContext, job: &Arc<Job>, progress: String) {
    let (accepted, log_bytes) = (job.accepted.clone(), ctx.log_bytes);
    let written = job.with_log(move |spool| {
        JobRecorder::open(spool, accepted, log_bytes)?.append_status(&progress);
        Ok::<_, io::Error>(())
    });
    if let Err(error) = written.await.flatten() {
        tracing::warn!(%error, "job's log can't be written");
    }
    job.notify();
}
