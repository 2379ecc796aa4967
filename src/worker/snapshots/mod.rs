//! Snapshots of sandboxes: what a user keeps of one that stays, to begin others from.
//!
//! ```text
//! <worker home>/snapshots/
//!   .new-<uuid>/              one that is being made, or was when an earlier process ended
//!   <id of its image>/
//!     record.json             what it is, written once
//!     workspace/              files of the workspace
//! podman: localhost/cynode-snapshots/<user id>:<name>, whose last layer has the files that changed in the image
//! ```
//!
//! A snapshot exists once the directory has its name and the image has its own; [`save()`] makes them in this order. What
//! a process that was killed has left of one before is removed by the next start ([`recover`]): directories without a
//! record or whose image has another id, images without a name, and the container that was being committed.
//!
//! One is made or removed at a time. Those of all users together are bounded by `--snapshot-quota` and by number, so
//! that the node's report can name them.

mod api;
mod remove;
mod restore;
mod save;

pub(super) use api::routes;
pub(super) use restore::begin_restore;
pub(super) use save::save;

use super::context::WorkerContext;
use crate::{
    api::{
        image::ImageRef,
        problem::{Problem, ProblemKind},
        size::ByteSize,
        snapshots::StoredSnapshot,
    },
    data_dir::make_private_dir,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

/// Most snapshots of a node: a report names at most 64 images of `localhost/`.
const MAX_SNAPSHOTS: usize = 48;
/// Start of the name of a directory that is not complete.
const UNFINISHED_PREFIX: &str = ".new-";
const RECORD_FILE: &str = "record.json";
const WORKSPACE_DIR: &str = "workspace";
/// Version of the record.
const RECORD_VERSION: u64 = 1;

/// Record of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u64,
    snapshot: StoredSnapshot,
}

/// Snapshots of a worker.
pub(super) struct Snapshots {
    dir: PathBuf,
    /// Most bytes.
    quota: u64,
    /// By the id of the image.
    known: Mutex<BTreeMap<String, StoredSnapshot>>,
    /// Permit to make or remove one.
    turn: Semaphore,
    /// Whether an earlier process has left something here.
    has_content: bool,
    /// Whether an image without a name could not be removed.
    has_nameless: AtomicBool,
}

impl Snapshots {
    /// Opens the directory of snapshots. Returns also what an earlier process has not completed.
    pub(super) fn open(dir: PathBuf, quota: u64) -> io::Result<(Self, Vec<PathBuf>)> {
        make_private_dir(&dir)?;
        let (mut known, mut unfinished) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            match read_record(&entry.path()) {
                Ok(snapshot) if entry.file_name() == snapshot.image_id.as_str() => {
                    known.insert(snapshot.image_id.clone(), snapshot);
                }
                Ok(_) => unfinished.push(entry.path()),
                Err(error) => {
                    let path = entry.path();
                    tracing::info!(path = %path.display(), %error, "unfinished snapshot removed");
                    unfinished.push(path);
                }
            }
        }
        let snapshots = Self {
            has_content: !known.is_empty() || !unfinished.is_empty(),
            dir,
            quota,
            known: known.into(),
            turn: Semaphore::new(1),
            has_nameless: AtomicBool::new(false),
        };
        Ok((snapshots, unfinished))
    }

    /// All snapshots.
    pub(super) fn list(&self) -> Vec<StoredSnapshot> {
        self.known.lock().values().cloned().collect()
    }

    /// Number of snapshots, and their bytes.
    pub(super) fn totals(&self) -> (usize, u64) {
        let known = self.known.lock();
        let bytes = known.values().map(|snapshot| snapshot.size_bytes);
        (known.len(), bytes.fold(0, u64::saturating_add))
    }

    /// Takes the turn to make or remove one.
    fn try_turn(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.turn.try_acquire().map_err(|_| {
            let detail = "this node makes or removes another snapshot at the moment; try again";
            Problem::new(ProblemKind::Conflict, detail)
        })
    }

    /// Bytes that a snapshot of this name may take; an earlier one of the name makes room for it.
    fn budget(&self, image: &ImageRef) -> Result<u64, Problem> {
        let known = self.known.lock();
        let others = known.values().filter(|known| known.image != image.as_str());
        let sizes: Vec<u64> = others.map(|other| other.size_bytes).collect();
        if sizes.len() >= MAX_SNAPSHOTS {
            let detail = format!(
                "this node has {MAX_SNAPSHOTS} snapshots, which is the maximum; remove some first"
            );
            return Err(Problem::new(ProblemKind::InsufficientStorage, detail));
        }
        let used = sizes.into_iter().fold(0, u64::saturating_add);
        let left = self.quota.saturating_sub(used);
        if left == 0 {
            return Err(self.over_quota(left));
        }
        Ok(left)
    }

    /// Problem of a snapshot that needs more than is left of the quota.
    fn over_quota(&self, left: u64) -> Problem {
        let (left, quota) = (left >> 20, ByteSize(self.quota));
        let detail = format!(
            "the snapshot needs more than the {left} MiB that are left of this node's {quota} for snapshots; remove others, remove files in the sandbox, or have the node's operator raise --snapshot-quota"
        );
        Problem::new(ProblemKind::InsufficientStorage, detail)
    }

    /// Ids of the images that this name has, or had before one that replaced it was complete.
    fn ids_of(&self, image: &ImageRef) -> Vec<String> {
        let known = self.known.lock();
        let of_name = known.values().filter(|known| known.image == image.as_str());
        of_name.map(|known| known.image_id.clone()).collect()
    }

    fn is_known(&self, image_id: &str) -> bool {
        self.known.lock().contains_key(image_id)
    }

    fn insert(&self, snapshot: StoredSnapshot) {
        let id = snapshot.image_id.clone();
        self.known.lock().insert(id, snapshot);
    }

    /// Forgets a snapshot. Returns its directory, which is to be removed.
    fn forget(&self, image_id: &str) -> PathBuf {
        self.known.lock().remove(image_id);
        self.dir.join(image_id)
    }

    /// Path of a directory for one that is being made.
    fn new_dir(&self) -> PathBuf {
        self.dir
            .join(format!("{UNFINISHED_PREFIX}{}", Uuid::new_v4()))
    }
}

/// Reads the record of a directory that is complete.
fn read_record(dir: &Path) -> io::Result<StoredSnapshot> {
    let text = fs::read(dir.join(RECORD_FILE))?;
    let record: Record = serde_json::from_slice(&text)?;
    if record.version != RECORD_VERSION {
        let text = format!("its record has version {}", record.version);
        return Err(io::Error::other(text));
    }
    Ok(record.snapshot)
}

/// Removes what an earlier process has left half made or half removed.
pub(super) async fn recover(ctx: Arc<WorkerContext>) {
    let snapshots = &ctx.snapshots;
    let Ok(_turn) = snapshots.turn.acquire().await else {
        return;
    };
    if !snapshots.has_content {
        return;
    }
    ctx.engine.discard_snapshot_container(&ctx.node_uuid).await;
    for snapshot in snapshots.list() {
        match ctx.engine.snapshot_image_id(&snapshot.image).await {
            Ok(Some(id)) if id == snapshot.image_id => {}
            Ok(_) => {
                tracing::warn!(image = snapshot.image, "snapshot without its image removed");
                let dir = snapshots.forget(&snapshot.image_id);
                ctx.trash.add(dir, None);
            }
            Err(error) => {
                tracing::warn!(image = snapshot.image, %error, "image of a snapshot not found out; kept");
            }
        }
    }
    remove_nameless(&ctx).await;
}

/// Tries again to remove images without a name that containers used.
pub(super) async fn retry_nameless(ctx: &WorkerContext) {
    if ctx.snapshots.has_nameless.load(Ordering::Relaxed)
        && let Ok(_turn) = ctx.snapshots.try_turn()
    {
        remove_nameless(ctx).await;
    }
}

/// Removes images of snapshots that have no name any more, unless a container uses them.
async fn remove_nameless(ctx: &WorkerContext) {
    let mut has_more = false;
    let nameless = match ctx.engine.nameless_snapshots(&ctx.node_uuid).await {
        Ok(nameless) => nameless,
        Err(error) => {
            tracing::warn!(%error, "images of removed snapshots not listed; retrying");
            ctx.snapshots.has_nameless.store(true, Ordering::Relaxed);
            return;
        }
    };
    for id in nameless {
        match ctx.engine.remove_snapshot_image(&id).await {
            Ok(()) => tracing::info!(id, "image of a removed snapshot removed"),
            // Such as one that a sandbox was begun from.
            Err(error) => {
                tracing::debug!(id, %error, "image of a removed snapshot not removed; retrying");
                has_more = true;
            }
        }
    }
    ctx.snapshots
        .has_nameless
        .store(has_more, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
