//! The life of one job: allowed? → image → slot → workspace → sandbox → result → clean up.
//!
//! A job ends exactly once, in [`run`], whatever happens on the way. Its result is there as
//! soon as its command has ended; its slot is free once container and workspace are gone.

use super::{
    access::Terms,
    ledger::Job,
    metrics::Metrics,
    sandbox::{End, Remains, Sandbox},
};
use crate::{
    api::{
        PAYLOAD_VERSION,
        events::Stream,
        jobs::{DEFAULT_TIMEOUT_SECONDS, Effective, JobError, JobErrorKind, JobResult, Outcome},
        time::Time,
    },
    data_dir::make_private_dir,
    engine::{Engine, ImageError, Images, labels},
    sandbox_init::{WORKSPACE, wire::Request},
};
use futures_util::FutureExt as _;
use std::{
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Semaphore, watch};

/// How long the removal of a workspace may take.
const REMOVE_LIMIT: Duration = Duration::from_mins(5);

/// All that jobs share.
pub(super) struct Workshop {
    pub(super) engine: Engine,
    pub(super) init: PathBuf,
    pub(super) images: Arc<Images>,
    pub(super) node_uuid: String,
    pub(super) jobs_dir: PathBuf,
    pub(super) terms: watch::Receiver<Terms>,
    /// Sandboxes at the same time, counted until they are cleared away.
    pub(super) slots: Semaphore,
    pub(super) metrics: Metrics,
}

/// Why a job ended, when its command did not end by itself.
enum Halt {
    Canceled,
    Error(JobError),
}

impl From<ImageError> for Halt {
    fn from(error: ImageError) -> Self {
        let kind = match error {
            ImageError::NotFound(_) => JobErrorKind::ImageNotFound,
            ImageError::PullFailed(_) => JobErrorKind::ImagePullFailed,
            ImageError::Engine(_) | ImageError::Broken(_) => JobErrorKind::EngineError,
        };
        let message = error.to_string();
        Self::Error(JobError { kind, message })
    }
}

impl From<JobError> for Halt {
    fn from(error: JobError) -> Self {
        Self::Error(error)
    }
}

fn engine_error(error: impl std::fmt::Display) -> Halt {
    Halt::Error(JobError {
        kind: JobErrorKind::EngineError,
        message: error.to_string(),
    })
}

/// Resolves once the job is to be ended.
pub(super) async fn canceled(cancel: &mut watch::Receiver<bool>) {
    if cancel.wait_for(|cancel| *cancel).await.is_err() {
        // Nobody can cancel any more, so nobody will.
        std::future::pending().await
    }
}

/// Runs a job to its end.
pub(super) async fn run(shop: Arc<Workshop>, job: Arc<Job>) {
    tracing::info!(job = %job.job_id, task = %job.task_id, attempt = job.attempt, image = %job.image, "job accepted");
    let walked = AssertUnwindSafe(walk(&shop, &job)).catch_unwind().await;
    // A fault of ours must not leave a job that never ends.
    if walked.is_err() && job.log.result().is_none() {
        finish(
            &shop,
            &job,
            Err(engine_error(
                "the worker made a mistake; its log says which",
            )),
            None,
        );
    }
}

async fn walk(shop: &Workshop, job: &Job) {
    let mut cancel = job.cancel.subscribe();
    let prepared = tokio::select! {
        prepared = prepare(shop, job) => prepared,
        () = canceled(&mut cancel) => Err(Halt::Canceled),
    };
    match prepared {
        Ok((image_id, _slot)) => {
            if let Some(mut remains) = in_sandbox(shop, job, image_id).await {
                remains.clear().await;
                discard(shop, remains.workspace).await;
            }
        }
        Err(halt) => finish(shop, job, Err(halt), None),
    }
}

/// Everything that may take long before podman is started, and that a cancel may interrupt.
async fn prepare<'a>(
    shop: &'a Workshop,
    job: &Job,
) -> Result<(String, tokio::sync::SemaphorePermit<'a>), Halt> {
    let lists = shop.terms.borrow().policy.allowed_images.clone();
    if !lists.iter().all(|patterns| job.image.allowed_by(patterns)) {
        let message = format!(
            "this node doesn't allow the image {}; allowed are {lists:?}",
            job.image
        );
        return Err(JobError {
            kind: JobErrorKind::ImageNotAllowed,
            message,
        }
        .into());
    }
    let image_id = shop.images.resolve(&job.image).await?;
    let slot = shop.slots.acquire().await.map_err(engine_error)?;
    Ok((image_id, slot))
}

async fn in_sandbox(shop: &Workshop, job: &Job, image_id: String) -> Option<Remains> {
    let seconds = job
        .spec
        .timeout_seconds
        .unwrap_or(DEFAULT_TIMEOUT_SECONDS)
        .min(shop.terms.borrow().policy.max_timeout_seconds);
    let effective = Effective {
        image_id: image_id.clone(),
        network: "none".to_owned(),
        runtime: shop.engine.runtime_name().to_owned(),
        timeout_seconds: seconds,
    };
    let place = shop
        .jobs_dir
        .join(format!("{}-{}", job.job_id, job.attempt));
    let workspace = place.join("workspace");
    if let Err(error) = make_private_dir(&place).and_then(|()| make_private_dir(&workspace)) {
        finish(
            shop,
            job,
            Err(engine_error(format!(
                "no workspace could be made in {}: {error}",
                place.display()
            ))),
            None,
        );
        return None;
    }
    let sandbox = Sandbox {
        engine: &shop.engine,
        init: &shop.init,
        name: format!("cynode-{}-{}", job.job_id, job.attempt),
        image_id: &image_id,
        workspace: workspace.clone(),
        labels: vec![
            (labels::JOB, job.job_id.to_string()),
            (labels::TASK, job.task_id.to_string()),
            (labels::NODE, shop.node_uuid.clone()),
        ],
        request: request(job),
        timeout: Duration::from_secs(seconds),
    };
    match sandbox.run(&job.log, job.cancel.subscribe()).await {
        Ok((end, remains)) => {
            finish(shop, job, Ok(end), Some(effective));
            Some(remains)
        }
        Err(error) => {
            finish(shop, job, Err(engine_error(error)), None);
            discard(shop, workspace).await;
            None
        }
    }
}

/// What init is told: the job's own environment, then what it can't override.
fn request(job: &Job) -> Request {
    let own = [
        ("CYNODE_TASK_ID", job.task_id.to_string()),
        ("CYNODE_JOB_ID", job.job_id.to_string()),
        ("CYNODE_WORKSPACE_DIR", WORKSPACE.to_owned()),
    ];
    let asked = job
        .spec
        .env
        .iter()
        .flatten()
        .map(|(name, value)| (name.into(), value.into()));
    Request {
        command: job.spec.command.iter().map(Into::into).collect(),
        env: asked
            .chain(own.map(|(name, value)| (name.into(), value.into())))
            .collect(),
    }
}

fn finish(shop: &Workshop, job: &Job, end: Result<End, Halt>, effective: Option<Effective>) {
    let (status, exit_code, error) = match end {
        Ok(End::Exited(0)) => (Outcome::Completed, Some(0), None),
        Ok(End::Exited(code)) => (Outcome::Failed, Some(code), None),
        Ok(End::Killed(signal)) => (Outcome::Failed, Some(128 + signal), None),
        Ok(End::Timeout) => (Outcome::Timeout, None, None),
        Ok(End::Canceled) | Err(Halt::Canceled) => (Outcome::Canceled, None, None),
        Ok(End::Engine(message)) => (
            Outcome::Failed,
            None,
            Some(JobError {
                kind: JobErrorKind::EngineError,
                message,
            }),
        ),
        Err(Halt::Error(error)) => (Outcome::Failed, None, Some(error)),
    };
    let ended_at = Time::now();
    shop.metrics.job_ended(status);
    tracing::info!(job = %job.job_id, attempt = job.attempt, ?status, exit_code, error = ?error, "job ended");
    job.log.finish(|log, started_at| JobResult {
        version: PAYLOAD_VERSION,
        task_id: job.task_id,
        job_id: job.job_id,
        attempt: job.attempt,
        status,
        exit_code,
        stdout: log.text(Stream::Stdout).to_owned(),
        stderr: log.text(Stream::Stderr).to_owned(),
        started_at: started_at.unwrap_or(ended_at),
        ended_at,
        truncated: log.truncated(),
        effective,
        error,
    });
}

/// Removes a job's directory, following no links out of it.
async fn discard(shop: &Workshop, workspace: PathBuf) {
    let place = workspace.parent().unwrap_or(&workspace).to_owned();
    remove_left(&shop.engine, &shop.init, place).await;
}

/// Removes a tree. Rootless, what a job's users wrote belongs to subordinate ids and can only be
/// removed from inside podman's user namespace.
pub(super) async fn remove_left(engine: &Engine, init: &Path, tree: PathBuf) {
    let here = tree.clone();
    let removed = tokio::task::spawn_blocking(move || super::remove_tree(&here)).await;
    let error = match removed {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let outcome = match (init.to_str(), tree.to_str()) {
        (Some(init), Some(tree)) if engine.facts().rootless => engine
            .unshare(&[init, super::REMOVE_ARGUMENT, tree], REMOVE_LIMIT)
            .await
            .map_err(|error| error.to_string()),
        _ => Err(error),
    };
    if let Err(error) = outcome {
        tracing::warn!(tree = %tree.display(), error, "a workspace could not be removed; the next start tries again");
    }
}
