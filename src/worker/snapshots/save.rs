//! Makes a snapshot of a sandbox that runs, and goes on running.
//!
//! The files are copied one after the other: what a command writes meanwhile is in the snapshot or not, file by file. A
//! sandbox that ends meanwhile loses its files under the copy, so it has to run still when all are copied.

use super::{RECORD_FILE, RECORD_VERSION, Record, WORKSPACE_DIR, remove_nameless};
use crate::{
    api::{
        error::ApiError,
        image::ImageRef,
        problem::{Problem, ProblemKind},
        snapshots::StoredSnapshot,
        time::Time,
    },
    data_dir::make_private_subdir,
    disk_space::Shortage,
    engine::{CopyError, CopyKind, CopyRequest, EngineError},
    files::{Durability, replace_file},
    worker::{api::Api, context::WorkerContext, disk::StorageArea, ledger::Job, sessions},
};
use futures_util::FutureExt as _;
use rustix::fs::syncfs;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::spawn_blocking;

/// Time in which each part has to be copied.
const COPY_TIMEOUT: Duration = Duration::from_mins(30);
/// Bytes beyond the reserve that a snapshot leaves free: it stops before the disk guard ends a job for want of them.
const HEADROOM_BYTES: u64 = 256 << 20;
/// Interval at which the disk is looked at meanwhile: shorter than that of the disk guard.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Image of a snapshot that has no name yet, and the space that it takes with its workspace.
struct Committed {
    image_id: String,
    size_bytes: u64,
}

/// Makes a snapshot of this name, which replaces an earlier one. Once begun it is not to be dropped.
pub(in crate::worker) async fn save(
    api: &Api,
    job: &Arc<Job>,
    image: &ImageRef,
) -> Result<StoredSnapshot, ApiError> {
    let ctx = &api.ctx;
    let _turn = ctx.snapshots.turn().await?;
    ctx.ensure_ready().await?;
    let budget = ctx.snapshots.budget(image)?;
    let dir = ctx.snapshots.new_dir();
    tracing::info!(%image, job = %job.accepted.job_id, "making a snapshot");
    let committed = commit_watched(api, job, &dir, budget).await;
    // Where that fails, the collection does it.
    ctx.engine.discard_snapshot_container(&ctx.node_uuid).await;
    let saved = match committed {
        Ok(committed) => publish(ctx, &dir, image, committed).await,
        Err(error) => Err(error),
    };
    match &saved {
        Ok(saved) => {
            let size_mib = saved.size_bytes >> 20;
            tracing::info!(%image, size_mib, "snapshot made");
            // The next report names it.
            ctx.changed.send_replace(());
        }
        Err(error) => {
            let reason = &error.problem().detail;
            tracing::warn!(%image, reason, "no snapshot made");
            ctx.trash.add(dir, None);
        }
    }
    // Of the snapshot that was replaced, or of one that failed.
    remove_nameless(ctx).await;
    saved
}

/// Copies and commits, until there is a reason to stop.
async fn commit_watched(
    api: &Api,
    job: &Arc<Job>,
    dir: &Path,
    budget: u64,
) -> Result<Committed, ApiError> {
    let (ctx, job, dir) = (Arc::clone(&api.ctx), Arc::clone(job), dir.to_owned());
    let committing = async move { commit(&ctx, &job, &dir, budget).await };
    let mut committing = committing.boxed();
    tokio::select! {
        committed = &mut committing => committed,
        reason = reason_to_stop(api) => {
            // Blocks until the process that works has ended.
            let ended = spawn_blocking(move || drop(committing)).await;
            ended.map_err(ApiError::internal)?;
            Err(reason)
        }
    }
}

async fn commit(
    ctx: &Arc<WorkerContext>,
    job: &Arc<Job>,
    dir: &Path,
    budget: u64,
) -> Result<Committed, ApiError> {
    let (engine, node_uuid) = (&ctx.engine, ctx.node_uuid.as_str());
    let container = job.with_spool(|spool| spool.container_name()).await;
    let container = container.map_err(ApiError::internal)?;
    let container = container.ok_or_else(not_running)?;
    let base = engine.container_image(&container).await;
    let base = base.map_err(engine_failed)?;
    let upper = engine.upper_dir(&container).await.map_err(engine_failed)?;
    let upper = upper.ok_or_else(no_driver)?;
    let earlier = engine.snapshot_layer_bytes(node_uuid, &base).await;
    // Stays while this one does, also when the snapshot that it belongs to is removed.
    let earlier = earlier.map_err(engine_failed)?;
    let temp_dir = make_dirs(dir).await.map_err(disk_failed)?;
    let mut copy = PartCopy {
        ctx,
        budget,
        left: budget.saturating_sub(earlier),
    };
    let (from, to) = (job.spool.workspace(), dir.join(WORKSPACE_DIR));
    let workspace_bytes = copy.run(from, to, CopyKind::Workspace).await?;
    let layer = engine.begin_snapshot(node_uuid, &base).await;
    let layer = layer.map_err(engine_failed)?.ok_or_else(no_driver)?;
    let upper_bytes = copy.run(upper, layer, CopyKind::Upper).await?;
    sessions::ensure_running(job).await?;
    ensure_room(ctx, upper_bytes).await?;
    let layer_bytes = earlier.saturating_add(upper_bytes);
    let committed = engine.commit_snapshot(node_uuid, layer_bytes, &temp_dir);
    let image_id = committed.await.map_err(engine_failed)?;
    let removed = spawn_blocking(move || fs::remove_dir_all(temp_dir)).await;
    removed
        .map_err(io::Error::from)
        .flatten()
        .map_err(disk_failed)?;
    Ok(Committed {
        image_id,
        size_bytes: workspace_bytes.saturating_add(layer_bytes),
    })
}

/// Makes the directory of a snapshot, with that of its workspace, and returns one for podman's temporary files.
async fn make_dirs(dir: &Path) -> io::Result<PathBuf> {
    let dir = dir.to_owned();
    let made = spawn_blocking(move || {
        make_private_subdir(&dir)?;
        make_private_subdir(&dir.join(WORKSPACE_DIR))?;
        let temp_dir = dir.join("tmp");
        make_private_subdir(&temp_dir)?;
        io::Result::Ok(temp_dir)
    });
    made.await.map_err(io::Error::from).flatten()
}

/// Copies of the parts of a snapshot, which share its room.
struct PartCopy<'a> {
    ctx: &'a WorkerContext,
    budget: u64,
    left: u64,
}

impl PartCopy<'_> {
    /// Copies a part, and returns the bytes that it takes.
    async fn run(&mut self, from: PathBuf, to: PathBuf, kind: CopyKind) -> Result<u64, ApiError> {
        let ctx = self.ctx;
        let request = CopyRequest {
            from,
            to,
            kind,
            max_bytes: self.left,
            min_free: reserve(ctx),
        };
        let copied = ctx
            .engine
            .copy_tree(ctx.init.path(), &request, COPY_TIMEOUT)
            .await;
        let copied = copied.map_err(|error| self.problem(error, kind))?;
        self.left = self.left.saturating_sub(copied.bytes);
        Ok(copied.bytes)
    }

    fn problem(&self, error: CopyError, kind: CopyKind) -> ApiError {
        let part = match kind {
            CopyKind::Workspace => "/workspace",
            CopyKind::Upper => "what the sandbox wrote outside of /workspace",
        };
        let problem = match error {
            CopyError::TooLarge => self.ctx.snapshots.over_quota(self.budget),
            CopyError::NoSpace(reason) => no_room(&reason),
            CopyError::Refused(reason) => {
                let detail = format!("{part} can't be kept as a snapshot: {reason}");
                Problem::new(ProblemKind::Conflict, detail)
            }
            CopyError::Failed(reason) => return failed().caused_by(format!("{part}: {reason}")),
        };
        problem.into()
    }
}

/// Bytes that a snapshot leaves free.
fn reserve(ctx: &WorkerContext) -> u64 {
    ctx.disk.min_free.saturating_add(HEADROOM_BYTES)
}

/// Fails unless there is room for a layer of so many bytes beside the copy that it is made from: podman writes an archive
/// of it to the data directory, and unpacks that in its storage. Both may be on one disk.
async fn ensure_room(ctx: &Arc<WorkerContext>, bytes: u64) -> Result<(), ApiError> {
    ensure_reserve(ctx, [bytes, bytes.saturating_mul(2)]).await
}

/// Fails unless the reserve is left when so many bytes come to the data directory and to podman's storage.
async fn ensure_reserve(ctx: &Arc<WorkerContext>, coming: [u64; 2]) -> Result<(), ApiError> {
    let look = move |ctx: &WorkerContext| -> io::Result<Option<Shortage>> {
        let areas = [StorageArea::State, StorageArea::Images];
        for (area, bytes) in areas.into_iter().zip(coming) {
            let space = ctx.disk.dir(area).space()?;
            if let Some(shortage) = space.shortage_with(reserve(ctx), bytes) {
                return Ok(Some(shortage));
            }
        }
        Ok(None)
    };
    match ctx.probe_disk(look).await?.map_err(disk_failed)? {
        None => Ok(()),
        Some(shortage) => Err(no_room(&shortage.to_string()).into()),
    }
}

/// Makes what was committed a snapshot: its directory first, then the name of its image.
async fn publish(
    ctx: &Arc<WorkerContext>,
    dir: &Path,
    image: &ImageRef,
    committed: Committed,
) -> Result<StoredSnapshot, ApiError> {
    let snapshots = &ctx.snapshots;
    let earlier = snapshots.ids_of(image);
    let snapshot = StoredSnapshot {
        image: image.to_string(),
        image_id: committed.image_id,
        size_bytes: committed.size_bytes,
        created_at: Time::now(),
    };
    let (from, to) = (dir.to_owned(), snapshots.dir.join(&snapshot.image_id));
    let record = Record {
        version: RECORD_VERSION,
        snapshot: snapshot.clone(),
    };
    let written = spawn_blocking(move || write_record(&from, &to, &record)).await;
    let written = written.map_err(io::Error::from).flatten();
    written.map_err(disk_failed)?;
    snapshots.insert(snapshot.clone());
    name_image(ctx, &snapshot).await?;
    for id in earlier {
        ctx.trash.add(snapshots.forget(&id), None);
    }
    Ok(snapshot)
}

/// Gives the image of a snapshot its name.
async fn name_image(ctx: &WorkerContext, snapshot: &StoredSnapshot) -> Result<(), ApiError> {
    let StoredSnapshot {
        image, image_id, ..
    } = snapshot;
    let Err(error) = ctx.engine.tag_image(image_id, image).await else {
        return Ok(());
    };
    // A call that was ended at its time limit may have done it.
    match ctx.engine.snapshot_image_id(image).await {
        Ok(Some(id)) if id == *image_id => return Ok(()),
        Ok(Some(_)) => ctx.trash.add(ctx.snapshots.forget(image_id), None),
        // Either this one or the earlier one is it. Both stay until podman's list of images tells.
        Ok(None) | Err(_) => {}
    }
    Err(engine_failed(error))
}

/// Completes the directory of a snapshot. It survives a loss of power from then on, with all of its files.
fn write_record(from: &Path, to: &Path, record: &Record) -> io::Result<()> {
    let text = serde_json::to_vec(record)?;
    syncfs(File::open(from)?)?;
    replace_file(&from.join(RECORD_FILE), &text, Durability::Full)?;
    fs::rename(from, to)?;
    match to.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Waits for what ends a snapshot that is being made: too little space, or a shutdown.
async fn reason_to_stop(api: &Api) -> ApiError {
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        if api.is_closing() {
            let detail = "this node is shutting down; make the snapshot again later";
            return Problem::new(ProblemKind::Unavailable, detail).into();
        }
        // The disk guard ends a job at the plain reserve.
        if let Err(reason) = ensure_reserve(&api.ctx, [0; 2]).await {
            return reason;
        }
    }
}

fn not_running() -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        "the sandbox does not run yet; wait until its status is running, then repeat the call",
    )
}

fn no_driver() -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        "podman on this node stores containers in a way of which no snapshot can be made; have its operator use the storage driver overlay (storage.conf), or use another node",
    )
}

fn no_room(reason: &str) -> Problem {
    let detail = format!(
        "the node's disk has no room for the snapshot ({reason}); remove snapshots or files in the sandbox, or have its operator make room"
    );
    Problem::new(ProblemKind::InsufficientStorage, detail)
}

fn failed() -> Problem {
    Problem::new(
        ProblemKind::Unavailable,
        "the node can't make the snapshot now; try again, and see its log if it persists",
    )
}

fn engine_failed(error: EngineError) -> ApiError {
    failed().caused_by(error)
}

fn disk_failed(error: io::Error) -> ApiError {
    failed().caused_by(error)
}
