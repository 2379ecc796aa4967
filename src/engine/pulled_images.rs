//! Images that this node pulled, and the last use of each.
//!
//! Only these may be removed by [`Images::remove_unused`]. An image that the operator pulled or built is not in the list,
//! nor is one whose name refers to another image by now. The list is a file in the node's state directory; where it
//! can't be read, no image is removed.
//!
//! A job holds a [lease](PulledImages::lease) on its image from before it is looked up until its sandbox is gone. A
//! removal does not wait for leases: an image with one stays. A job that comes while its image is being removed waits
//! for the removal and pulls it again.
//!
//! [`Images::remove_unused`]: super::Images::remove_unused

use crate::{
    api::{image::ImageRef, time::Time},
    files::{Durability, replace_file},
};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Version of the file.
const FILE_VERSION: u64 = 1;

/// A pulled image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PulledImage {
    /// Id of the pulled image.
    pub(super) id: String,
    /// End of its last use, in milliseconds.
    last_used_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct PulledFile {
    version: u64,
    images: BTreeMap<String, PulledImage>,
}

#[derive(Default)]
struct State {
    images: BTreeMap<String, PulledImage>,
    leases: HashMap<ImageRef, Arc<RwLock<()>>>,
    /// Number of changes since the start, and the number that the file has.
    changes: u64,
    saved_changes: u64,
}

/// All images that this node pulled.
pub struct PulledImages {
    path: PathBuf,
    state: Mutex<State>,
    /// Held while the file is written: leases need `state`, and must not wait for a slow disk.
    write: Mutex<()>,
}

/// Use of an image by a job, until dropped.
pub struct ImageLease {
    _held: OwnedRwLockReadGuard<()>,
    images: Arc<PulledImages>,
    image: ImageRef,
}

impl PulledImages {
    /// Reads the list from this file; it is empty where the file is missing or can't be read.
    pub fn open(path: PathBuf) -> Self {
        let images = read(&path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "list of pulled images can't be read; none of them will be removed");
            BTreeMap::new()
        });
        let state = State {
            images,
            ..State::default()
        };
        Self {
            path,
            state: Mutex::new(state),
            write: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn lock(&self, image: &ImageRef) -> Arc<RwLock<()>> {
        let mut state = self.state();
        state.leases.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(state.leases.entry(image.clone()).or_default())
    }

    /// Keeps an image from being removed while the lease lives. Waits for a removal of it that has begun.
    pub async fn lease(self: &Arc<Self>, image: &ImageRef) -> ImageLease {
        let lock = self.lock(image);
        ImageLease {
            _held: lock.read_owned().await,
            images: Arc::clone(self),
            image: image.clone(),
        }
    }

    /// Blocks new leases on an image; `None` while it has one.
    pub(super) fn try_lock(&self, image: &ImageRef) -> Option<OwnedRwLockWriteGuard<()>> {
        self.lock(image).try_write_owned().ok()
    }

    /// Adds an image that this node pulled.
    pub(super) fn record(&self, image: &ImageRef, id: &str) {
        let pulled = PulledImage {
            id: id.to_owned(),
            last_used_ms: Time::now().as_millis(),
        };
        let mut state = self.state();
        state.images.insert(image.to_string(), pulled);
        state.changes += 1;
    }

    /// Removes an image that is gone, or whose name refers to another one.
    pub(super) fn remove(&self, image: &ImageRef) {
        let mut state = self.state();
        state.images.remove(image.as_str());
        state.changes += 1;
    }

    /// Images that have been unused for `age`, the longest unused first, each with that time.
    pub(super) fn unused_for(&self, age: Duration) -> Vec<(ImageRef, PulledImage, Duration)> {
        let now = Time::now();
        let state = self.state();
        let images = state.images.iter().filter_map(|(name, pulled)| {
            let unused = now.since(Time::from_millis(pulled.last_used_ms));
            (unused >= age).then_some((name.parse().ok()?, pulled.clone(), unused))
        });
        let mut images: Vec<_> = images.collect();
        images.sort_by_key(|(_, _, unused)| std::cmp::Reverse(*unused));
        images
    }

    /// Writes the file if the list has changed. Blocks on the disk. A last use that a crash loses makes an image look
    /// older by at most one round of the collection.
    pub(super) fn save(&self) {
        let _write = self.write.lock();
        let (changes, images) = {
            let state = self.state();
            if state.changes == state.saved_changes {
                return;
            }
            (state.changes, state.images.clone())
        };
        let file = PulledFile {
            version: FILE_VERSION,
            images,
        };
        let written = serde_json::to_vec(&file)
            .map_err(io::Error::from)
            .and_then(|text| replace_file(&self.path, &text, Durability::Full));
        match written {
            Ok(()) => self.state().saved_changes = changes,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "list of pulled images can't be written; retrying later");
            }
        }
    }
}

impl Drop for ImageLease {
    fn drop(&mut self) {
        let mut state = self.images.state();
        if let Some(pulled) = state.images.get_mut(self.image.as_str()) {
            pulled.last_used_ms = Time::now().as_millis();
            state.changes += 1;
        }
    }
}

fn read(path: &PathBuf) -> io::Result<BTreeMap<String, PulledImage>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let file: PulledFile = serde_json::from_str(&text)?;
    if file.version != FILE_VERSION {
        return Err(io::Error::other(format!(
            "its version is {}, and this release reads version {FILE_VERSION}",
            file.version
        )));
    }
    Ok(file.images)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> ImageRef {
        name.parse().unwrap()
    }

    #[test]
    fn least_recently_used_order_survives_restart() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pulled-images.json");
        let file = r#"{"version":1,"images":{
            "docker.io/library/a:1":{"id":"x","last_used_ms":2000},
            "docker.io/library/b:1":{"id":"y","last_used_ms":1000}}}"#;
        fs::write(&path, file).unwrap();
        let images = PulledImages::open(path.clone());
        let names = |images: &PulledImages, age| -> Vec<String> {
            let unused = images.unused_for(age);
            unused.iter().map(|(name, ..)| name.to_string()).collect()
        };
        images.record(&image("c:1"), "z");
        let expected = ["docker.io/library/b:1", "docker.io/library/a:1"];
        assert_eq!(names(&images, Duration::from_hours(1)), expected);
        images.remove(&image("b:1"));
        images.save();
        let again = PulledImages::open(path.clone());
        assert_eq!(
            names(&again, Duration::ZERO),
            ["docker.io/library/a:1", "docker.io/library/c:1"]
        );
        for unreadable in [r#"{"version":2,"images":{}}"#, "nonsense"] {
            fs::write(&path, unreadable).unwrap();
            assert!(names(&PulledImages::open(path.clone()), Duration::ZERO).is_empty());
        }
    }

    #[tokio::test]
    async fn leased_image_is_not_removed() {
        let home = tempfile::tempdir().unwrap();
        let images = Arc::new(PulledImages::open(home.path().join("list")));
        let a = image("a");
        let lease = images.lease(&a).await;
        let second = images.lease(&a).await;
        assert!(images.try_lock(&a).is_none());
        assert!(images.try_lock(&image("b")).is_some());
        drop((lease, second));
        let taken = images.try_lock(&a).unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(20), images.lease(&a));
        assert!(waiting.await.is_err(), "a removal is under way");
        drop(taken);
        images.lease(&a).await;
    }
}
