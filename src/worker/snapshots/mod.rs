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
//! a process that was killed has left of one before is removed by the collection ([`clear_up`]): directories without a
//! record, those whose image has no name or whose name another image has, images without a name, and the container that
//! was being committed. What can't be read, or whose image is not found, stays: a user's files are not removed for want
//! of an answer.
//!
//! One is made or removed at a time. Those of all users together are bounded by `--snapshot-quota` and by number, so
//! that the node's report can name them; those of one user by number, too.

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
    engine::{EngineError, SnapshotImage},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};
use uuid::Uuid;

/// Most snapshots of a node, since a report names them all.
const MAX_SNAPSHOTS: usize = 48;
/// Most snapshots of a user on a node, so that one leaves some to others.
const MAX_SNAPSHOTS_PER_USER: usize = 16;
/// Longest wait for the turn to make or remove one.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// Bytes of the images of removed and replaced ones that containers still use, by id. After a start they count once
    /// they have been looked for.
    retired: Mutex<BTreeMap<String, u64>>,
    /// Permit to make or remove one.
    turn: Semaphore,
}

impl Snapshots {
    /// Opens the directory of snapshots. Returns also what an earlier process has not completed.
    pub(super) fn open(dir: PathBuf, quota: u64) -> io::Result<(Self, Vec<PathBuf>)> {
        make_private_dir(&dir)?;
        let (mut known, mut unfinished) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let path = entry.path();
            match read_entry(&entry) {
                Ok(Some(snapshot)) => {
                    known.insert(snapshot.image_id.clone(), snapshot);
                }
                Ok(None) => {
                    tracing::info!(path = %path.display(), "unfinished snapshot removed");
                    unfinished.push(path);
                }
                // Such as a disk's fault, or a record of a later version.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "snapshot can't be read; left alone");
                }
            }
        }
        let snapshots = Self {
            dir,
            quota,
            known: known.into(),
            retired: Mutex::default(),
            turn: Semaphore::new(1),
        };
        Ok((snapshots, unfinished))
    }

    /// All snapshots.
    pub(super) fn list(&self) -> Vec<StoredSnapshot> {
        self.known.lock().values().cloned().collect()
    }

    /// Names of the images of all.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let known = self.known.lock();
        known
            .values()
            .map(|snapshot| snapshot.image.clone())
            .collect()
    }

    /// Number of snapshots, and their bytes with those of removed ones that are still in use.
    pub(super) fn totals(&self) -> (usize, u64) {
        let retired = self.retired_bytes();
        let known = self.known.lock();
        let bytes = known.values().map(|snapshot| snapshot.size_bytes);
        (known.len(), bytes.fold(retired, u64::saturating_add))
    }

    fn retired_bytes(&self) -> u64 {
        let retired = self.retired.lock();
        retired.values().copied().fold(0, u64::saturating_add)
    }

    /// Takes the turn to make or remove one. Waits for a while, since a round of the collection is short.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Problem> {
        let turn = timeout(TURN_TIMEOUT, self.turn.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or_else(|| {
            let detail = "this node makes or removes another snapshot at the moment; try again";
            Problem::new(ProblemKind::Conflict, detail)
        })
    }

    /// Bytes that a snapshot of this name may take; an earlier one of the name makes room for it.
    fn budget(&self, image: &ImageRef) -> Result<u64, Problem> {
        let retired = self.retired_bytes();
        let known = self.known.lock();
        let others = known.values().filter(|known| known.image != image.as_str());
        let owner = repository(image.as_str());
        let own = others
            .clone()
            .filter(|other| repository(&other.image) == owner);
        if own.count() >= MAX_SNAPSHOTS_PER_USER {
            let detail = format!(
                "this user has {MAX_SNAPSHOTS_PER_USER} snapshots on this node, which is the maximum for one user; remove some first, or make one of a name that exists"
            );
            return Err(Problem::new(ProblemKind::InsufficientStorage, detail));
        }
        let sizes: Vec<u64> = others.map(|other| other.size_bytes).collect();
        if sizes.len() >= MAX_SNAPSHOTS {
            let detail = format!(
                "this node has {MAX_SNAPSHOTS} snapshots, which is the maximum; remove some first"
            );
            return Err(Problem::new(ProblemKind::InsufficientStorage, detail));
        }
        let used = sizes.into_iter().fold(retired, u64::saturating_add);
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
            "the snapshot needs more than the {left} MiB that are left of this node's {quota} for snapshots; remove others, delete sandboxes that began from replaced ones, remove files in the sandbox, or have the node's operator raise --snapshot-quota"
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

/// Image of a snapshot without its name: the same for all of a user.
fn repository(image: &str) -> &str {
    image
        .rsplit_once(':')
        .map_or(image, |(repository, _)| repository)
}

/// Reads a directory of a snapshot; `None` for one that is not complete.
fn read_entry(entry: &fs::DirEntry) -> io::Result<Option<StoredSnapshot>> {
    let name = entry.file_name();
    let prefix = UNFINISHED_PREFIX.as_bytes();
    if name.as_encoded_bytes().starts_with(prefix) {
        return Ok(None);
    }
    match read_record(&entry.path()) {
        Ok(snapshot) if name == snapshot.image_id.as_str() => Ok(Some(snapshot)),
        Ok(_) => Err(io::Error::other("its record is of another image")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
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

/// What podman's images say of a snapshot whose directory is complete.
#[derive(PartialEq, Eq, Debug)]
enum Fate {
    /// It is complete.
    Whole,
    /// Another image has its name, or its image has none: it was replaced, or never got its name or lost it to a removal.
    Over,
    /// Nothing is known of its image. That is no proof that it is gone: podman may have been asked in another storage.
    Missing,
}

fn fate(snapshot: &StoredSnapshot, images: &[SnapshotImage]) -> Fate {
    let is_named = |image: &&SnapshotImage| image.name.as_ref() == Some(&snapshot.image);
    if let Some(named) = images.iter().find(is_named) {
        return match named.id == snapshot.image_id {
            true => Fate::Whole,
            false => Fate::Over,
        };
    }
    let is_nameless = |image: &SnapshotImage| image.name.is_none() && image.id == snapshot.image_id;
    match images.iter().any(is_nameless) {
        true => Fate::Over,
        false => Fate::Missing,
    }
}

/// Removes what is left of snapshots: half made ones of an earlier process, whose podman may go on after it, and images
/// without a name that containers used. For every round of the collection; the first one is at the start.
pub(super) async fn clear_up(ctx: &WorkerContext) {
    // Whoever has the turn clears up behind itself.
    if let Ok(_turn) = ctx.snapshots.turn.try_acquire() {
        // What can't be removed now is tried again in the next round.
        ctx.engine.discard_snapshot_container(&ctx.node_uuid).await;
        remove_nameless(ctx).await;
    }
}

/// Compares the directories with podman's images, and forgets those that are over.
async fn compare(ctx: &WorkerContext) -> Result<(), EngineError> {
    let snapshots = &ctx.snapshots;
    let known = snapshots.list();
    if known.is_empty() {
        return Ok(());
    }
    let images = ctx.engine.snapshot_images(&ctx.node_uuid).await?;
    for snapshot in known {
        let image = &snapshot.image;
        match fate(&snapshot, &images) {
            Fate::Whole => {}
            Fate::Over => {
                tracing::info!(image, "incomplete or replaced snapshot removed");
                ctx.trash.add(snapshots.forget(&snapshot.image_id), None);
            }
            Fate::Missing => {
                tracing::warn!(
                    image,
                    "podman has no image of this snapshot; its files are kept until its user removes it"
                );
            }
        }
    }
    Ok(())
}

/// Removes images of snapshots that have no name any more, unless a container uses them.
async fn remove_nameless(ctx: &WorkerContext) {
    // First: of a snapshot whose image is removed here nothing would say that it is over.
    if let Err(error) = compare(ctx).await {
        tracing::warn!(%error, "images of snapshots not listed; retrying");
        return;
    }
    let nameless = match ctx.engine.nameless_snapshots(&ctx.node_uuid).await {
        Ok(nameless) => nameless,
        Err(error) => {
            tracing::warn!(%error, "images of removed snapshots not listed; retrying");
            return;
        }
    };
    let mut retired = BTreeMap::new();
    for SnapshotImage {
        id, layer_bytes, ..
    } in nameless
    {
        match ctx.engine.remove_snapshot_image(&id).await {
            Ok(()) => tracing::info!(id, "image of a removed snapshot removed"),
            // Such as one that a sandbox was begun from.
            Err(error) => {
                tracing::debug!(id, %error, "image of a removed snapshot not removed; retrying");
                retired.insert(id, layer_bytes);
            }
        }
    }
    *ctx.snapshots.retired.lock() = retired;
}

#[cfg(test)]
mod tests;
