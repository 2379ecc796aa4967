//! What a job waits for before its sandbox is started: permission, its image, a slot.

use super::{job::Workshop, ledger::Job};
use crate::{
    api::{
        image::ImageRef,
        jobs::{JobErrorKind, Outcome},
    },
    engine::{FoundImage, ImageError, ImageLease, PullFault, not_runnable},
    spool::{Ending, Recorder},
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{SemaphorePermit, watch},
    time::timeout,
};

/// After so long a job should have a slot; podman clears a sandbox away much faster.
const SOON: Duration = Duration::from_secs(2);

/// Why a job ended before it had a shim.
pub(super) enum Halt {
    Canceled,
    Trouble(JobErrorKind, String),
}

impl From<Arc<ImageError>> for Halt {
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
            ImageError::Engine(_) | ImageError::Broken(_) => JobErrorKind::EngineError,
        };
        Self::Trouble(kind, error.to_string())
    }
}

impl From<Halt> for Ending {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Canceled => Self::stopped(Outcome::Canceled),
            Halt::Trouble(kind, message) => Self::trouble(kind, message),
        }
    }
}

pub(super) fn engine_error(error: impl std::fmt::Display) -> Halt {
    Halt::Trouble(JobErrorKind::EngineError, error.to_string())
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
    shop: &'a Workshop,
    job: &Job,
) -> Result<(FoundImage, SemaphorePermit<'a>, Option<ImageLease>), Halt> {
    let image: ImageRef = job.accepted.image.parse().map_err(engine_error)?;
    let lists = shop.terms.borrow().policy.allowed_images.clone();
    if !lists.iter().all(|patterns| image.allowed_by(patterns)) {
        return Err(Halt::Trouble(
            JobErrorKind::ImageNotAllowed,
            not_allowed(&image, &lists),
        ));
    }
    let lease = shop.images.lease(&image).await;
    let pull = Pull(job, &shop.changed);
    let found = shop.images.resolve(&image, |progress| {
        pull.begin();
        tell(shop, job, progress);
    });
    let found = found.await?;
    drop(pull);
    let fault = shop.images.files_fault(shop.init.path(), &found.id).await;
    if let Some(fault) = fault.map_err(engine_error)? {
        return Err(Halt::Trouble(
            JobErrorKind::ImageNotRunnable,
            not_runnable(&fault),
        ));
    }
    let mut slot = pin!(shop.slots.acquire());
    let slot = match timeout(SOON, &mut slot).await {
        Ok(slot) => slot,
        Err(_) => {
            tell(
                shop,
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
struct Pull<'a>(&'a Job, &'a watch::Sender<()>);

impl Pull<'_> {
    fn begin(&self) {
        if !self.0.set_pulling(true) {
            self.1.send_replace(());
        }
    }
}

impl Drop for Pull<'_> {
    fn drop(&mut self) {
        if self.0.set_pulling(false) {
            self.1.send_replace(());
        }
    }
}

/// Tells those who wait for the job what it waits for.
fn tell(shop: &Workshop, job: &Job, progress: &str) {
    match Recorder::open(&job.spool, job.accepted.clone(), shop.log_bytes) {
        Ok(mut recorder) => recorder.status(progress),
        Err(error) => {
            tracing::warn!(job = %job.accepted.job_id, %error, "a job's log can't be written")
        }
    }
    job.tell();
}
