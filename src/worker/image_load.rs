//! Load of an image that an admin pushed, from a content that is an OCI archive.
//!
//! One at a time. Podman's own words go to the log only: they quote the archive. Layers may unpack to far more than the
//! archive, so podman is ended when it takes too long, when the disk is short, and when this worker shuts down.

use super::{api::Api, context::WorkerContext, image_archive::image_name, prepare::not_allowed};
use crate::{
    api::{
        PAYLOAD_VERSION,
        image::ImageRef,
        images::{LOAD_LIMIT, LoadImages, LoadedImages},
        jobs::files::ContentHash,
        problem::{Problem, ProblemKind},
    },
    contents::Pin,
    data_dir::make_private_dir,
    engine::EngineError,
    http::{
        request::Request,
        response::{self, Reply},
    },
};
use futures_util::FutureExt as _;
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::spawn_blocking};
use uuid::Uuid;

/// Interval at which the disk is looked at while podman works.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 4096;
/// Permit to load an image.
static LOADS: Semaphore = Semaphore::const_new(1);

/// Loads an image and answers its name.
pub(super) async fn load(api: Arc<Api>, mut request: Request) -> Reply {
    let owner = api.authorize_long(&request)?;
    request.limit_body(MAX_BODY_BYTES);
    let LoadImages { sha256, .. } = request.payload().await?;
    api.ensure_sole_orchestrator(owner.as_ref())?;
    // Goes on when the caller leaves, who may ask again.
    let worker = Arc::clone(&api);
    let loaded = async move { load_content(&worker, sha256).await };
    let loaded = api.job_tasks.run_to_end("load_image", loaded).await;
    let image = loaded.map_err(|_| Problem::internal())??;
    response::ok(&LoadedImages {
        version: PAYLOAD_VERSION,
        images: vec![image.to_string()],
    })
}

async fn load_content(api: &Api, sha256: ContentHash) -> Result<ImageRef, Problem> {
    let ctx = &api.ctx;
    let Ok(_permit) = LOADS.try_acquire() else {
        let detail = "this node loads another image at the moment; try again";
        return Err(Problem::new(ProblemKind::Conflict, detail));
    };
    ctx.ensure_ready().await?;
    let (_pin, path, image) = checked(ctx, sha256).await?;
    let temp_dir = make_temp_dir(ctx).await?;
    tracing::info!(%image, "loading a pushed image");
    // As a job that uses the image: nothing removes it meanwhile.
    let _lease = ctx.images.lease(&image).await;
    let loaded = load_archive(api, &image, path, temp_dir.clone()).await;
    // Podman that is ended, or killed, leaves there what it has unpacked.
    ctx.trash.add(temp_dir, None);
    loaded?;
    tracing::info!(%image, "image loaded");
    // The next report names it.
    ctx.changed.send_replace(());
    Ok(image)
}

/// Makes a directory for what podman unpacks.
async fn make_temp_dir(ctx: &WorkerContext) -> Result<PathBuf, Problem> {
    let path = ctx.loads_dir.join(Uuid::new_v4().to_string());
    let dir = path.clone();
    let made = spawn_blocking(move || make_private_dir(&dir)).await;
    made.map_err(io::Error::from).flatten().map_err(|error| {
        tracing::error!(%error, "directory for a pushed image can't be made");
        let detail = "the data directory of this node can't be written; see its log";
        Problem::new(ProblemKind::Unavailable, detail)
    })?;
    Ok(path)
}

/// Loads an archive, until there is a reason to stop.
async fn load_archive(
    api: &Api,
    image: &ImageRef,
    path: PathBuf,
    temp_dir: PathBuf,
) -> Result<(), Problem> {
    let engine = api.ctx.engine.clone();
    let loading = async move { engine.load_archive(&path, &temp_dir, LOAD_LIMIT).await };
    let mut loading = loading.boxed();
    tokio::select! {
        loaded = &mut loading => loaded.map_err(|error| not_loaded(image, &error)),
        problem = reason_to_stop(api) => {
            // Blocks until podman has ended.
            let ended = spawn_blocking(move || drop(loading)).await;
            tracing::warn!(%image, reason = problem.detail, ended = ended.is_ok(), "load of an image ended");
            Err(problem)
        }
    }
}

/// Pin and path of the archive, and the name of its image, which this node allows.
async fn checked(
    ctx: &WorkerContext,
    sha256: ContentHash,
) -> Result<(Pin, PathBuf, ImageRef), Problem> {
    let (pin, path, file) = ctx.contents.pin_file(sha256).await?;
    let name = spawn_blocking(move || image_name(file)).await;
    let name = name.map_err(|_| Problem::internal())?;
    let image = name.map_err(|error| {
        let detail = format!("the archive can't be loaded: {error}");
        Problem::new(ProblemKind::InvalidRequest, detail)
    })?;
    if image.is_snapshot() {
        let detail = "the archive's image has a name that is reserved for snapshots of sandboxes; give it another one";
        return Err(Problem::new(ProblemKind::InvalidRequest, detail));
    }
    let lists = ctx.access.borrow().policy.allowed_images.clone();
    if lists.iter().all(|patterns| image.is_allowed_by(patterns)) {
        return Ok((pin, path, image));
    }
    let detail = not_allowed(&image, &lists);
    Err(Problem::new(ProblemKind::InvalidRequest, detail))
}

/// Waits for what ends a load: too little space, or a shutdown.
async fn reason_to_stop(api: &Api) -> Problem {
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        if api.is_closing() {
            let detail = "this worker is shutting down; push the image again later";
            return Problem::new(ProblemKind::Unavailable, detail);
        }
        let space = api.ctx.probe_disk(|ctx| ctx.disk.ensure_space()).await;
        if let Err(problem) = space.flatten() {
            return problem;
        }
    }
}

fn not_loaded(image: &ImageRef, error: &EngineError) -> Problem {
    tracing::warn!(%image, %error, "image not loaded");
    let (kind, detail) = match error {
        EngineError::Failed { .. } => (
            ProblemKind::InvalidRequest,
            "podman can't load the archive on this node, whose log says why",
        ),
        EngineError::TimedOut { .. } => (
            ProblemKind::Unavailable,
            "podman did not load the archive in time; push the image again when the node is less busy",
        ),
        _ => (
            ProblemKind::Unavailable,
            "podman does not work on this node, whose log says why",
        ),
    };
    Problem::new(kind, detail)
}
