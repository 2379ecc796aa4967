//! What a job waits for before its sandbox is started: permission, its image, a slot.

use super::{context::WorkerContext, ledger::Job};
use crate::{
    api::{
        image::ImageRef,
        jobs::{JobErrorKind, Outcome},
    },
    engine::{ImageError, ImageLease, PullFault, ResolvedImage, not_runnable},
    spool::{JobEnd, JobRecorder},
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{SemaphorePermit, watch},
    time::timeout,
};

/// After so long a job should have a slot; podman clears a sandbox away much faster.
const SLOT_NOTICE_DELAY: Duration = Duration::from_secs(2);

/// Why a job ended before it had a shim.
pub(super) enum PrepareError {
    Canceled,
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
            PrepareError::Failed(kind, message) => Self::failed(kind, message),
        }
    }
}

pub(super) fn engine_error(error: impl std::fmt::Display) -> PrepareError {
    PrepareError::Failed(JobErrorKind::EngineError, error.to_string())
}

fn not_allowed(image: &ImageRef, lists: &[Vec<String>]) -> String {
    let lists: Vec<_> = lists.iter().map(|patterns| patterns.join(", ")).collect();
    format!(
        "this node allows only the images {}; use one of those, or have its operator add --allowed-image '{image}'",
        lists.join(" that are also among ")
    )
}

/// Everything that may take long before a sandbox is started, and that a cancel may interrupt.
pub(super) async fn prepare<'a>(
    ctx: &'a WorkerContext,
    job: &Job,
) -> Result<(ResolvedImage, SemaphorePermit<'a>, Option<ImageLease>), PrepareError> {
    let image: ImageRef = job.accepted.image.parse().map_err(engine_error)?;
    let lists = ctx.access.borrow().policy.allowed_images.clone();
    if !lists.iter().all(|patterns| image.is_allowed_by(patterns)) {
        return Err(PrepareError::Failed(
            JobErrorKind::ImageNotAllowed,
            not_allowed(&image, &lists),
        ));
    }
    let lease = ctx.images.lease(&image).await;
    let pull = PullGuard(job, &ctx.changed);
    let found = ctx.images.resolve(&image, |progress| {
        pull.mark_pulling();
        report_progress(ctx, job, progress);
    });
    let found = found.await?;
    drop(pull);
    let fault = ctx.images.files_fault(ctx.init.path(), &found.id).await;
    if let Some(fault) = fault.map_err(engine_error)? {
        return Err(PrepareError::Failed(
            JobErrorKind::ImageNotRunnable,
            not_runnable(&fault),
        ));
    }
    let mut slot = pin!(ctx.slots.acquire());
    let slot = match timeout(SLOT_NOTICE_DELAY, &mut slot).await {
        Ok(slot) => slot,
        Err(_) => {
            report_progress(
                ctx,
                job,
                "waiting for a slot: an earlier job runs, or podman has not cleared away its sandbox yet",
            );
            slot.await
        }
    };
    Ok((found, slot.map_err(engine_error)?, lease))
}

/// A job that may have to wait for the pull of its image. While it does, it occupies no slot: a registry
/// that never answers holds up nobody else.
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

/// Tells those who wait for the job what it waits for.
fn report_progress(ctx: &WorkerContext, job: &Job, progress: &str) {
    match JobRecorder::open(&job.spool, job.accepted.clone(), ctx.log_bytes) {
        Ok(mut recorder) => recorder.append_status(progress),
        Err(error) => {
            tracing::warn!(job = %job.accepted.job_id, %error, "a job's log can't be written")
        }
    }
    job.notify();
}
