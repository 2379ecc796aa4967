//! Images that this node pulled, and when each was last used.
//!
//! Only these may be removed by [`Images::remove_unused`]: an image that the operator pulled or built is never
//! noted here, nor is one whose reference means another image by now. The list is in a file of the node's
//! state; a file that can't be read means that no image is ours to remove.
//!
//! A job holds a [lease](PulledImages::lease) on its image from before it is looked for until its sandbox is
//! gone, and a removal waits for nobody: an image with a lease stays. A job that comes while its image is
//! being removed waits for that, and has it pulled again.
//!
//! [`Images::remove_unused`]: super::Images::remove_unused

use crate::{
    api::{image::ImageRef, time::Time},
    data_dir::write_private,
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
    /// Id of the image that was pulled.
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
    is_changed: bool,
}

/// All images that this node pulled.
pub struct PulledImages {
    path: PathBuf,
    state: Mutex<State>,
}

/// Use of an image by a job.
pub struct ImageLease {
    _held: OwnedRwLockReadGuard<()>,
    images: Arc<PulledImages>,
    image: ImageRef,
}

impl PulledImages {
    /// Reads what an earlier process noted in this file.
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

    /// Keeps an image from being removed until the answer is dropped; waits for a removal under way.
    pub async fn lease(self: &Arc<Self>, image: &ImageRef) -> ImageLease {
        let lock = self.lock(image);
        ImageLease {
            _held: lock.read_owned().await,
            images: Arc::clone(self),
            image: image.clone(),
        }
    }

    /// Keeps everybody from using an image; `None` while it is in use.
    pub(super) fn try_lock(&self, image: &ImageRef) -> Option<OwnedRwLockWriteGuard<()>> {
        self.lock(image).try_write_owned().ok()
    }

    /// Notes that this node pulled an image.
    pub(super) fn record(&self, image: &ImageRef, id: &str) {
        let pulled = PulledImage {
            id: id.to_owned(),
            last_used_ms: Time::now().as_millis(),
        };
        let mut state = self.state();
        state.images.insert(image.to_string(), pulled);
        state.is_changed = true;
    }

    /// Notes that an image is gone, or is not the one that was pulled.
    pub(super) fn remove(&self, image: &ImageRef) {
        let mut state = self.state();
        state.is_changed |= state.images.remove(image.as_str()).is_some();
    }

    /// Images that were not used for `age`, the longest unused first.
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

    /// Writes down what has changed. A last use that is lost with a crash makes an image look older by a
    /// round at most.
    pub(super) fn save(&self) {
        let mut state = self.state();
        if !state.is_changed {
            return;
        }
        let file = PulledFile {
            version: FILE_VERSION,
            images: state.images.clone(),
        };
        let written = serde_json::to_vec(&file)
            .map_err(io::Error::from)
            .and_then(|text| write_private(&self.path, &text));
        match written {
            Ok(()) => state.is_changed = false,
            Err(error) => {
                tracing::warn!(%error, "list of pulled images can't be written; trying again")
            }
        }
    }
}

impl Drop for ImageLease {
    fn drop(&mut self) {
        let mut state = self.images.state();
        if let Some(pulled) = state.images.get_mut(self.image.as_str()) {
            pulled.last_used_ms = Time::now().as_millis();
            state.is_changed = true;
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
            "it has version {}, and this cynode knows {FILE_VERSION}",
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
    fn longest_unused_image_comes_first_over_a_restart() {
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
    async fn leased_image_is_not_taken() {
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
