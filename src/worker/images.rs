//! From an image reference to the id of an image that is here.
//!
//! An image that is present is used without a registry being asked. A missing one is pulled
//! once, however many jobs wait for it. Asking podman costs some 40 ms, so answers are kept
//! for as long as its image index is the same file with the same content; any pull, tag or
//! removal by anybody replaces that file.

use crate::{
    api::{
        image::ImageRef,
        jobs::{JobError, JobErrorKind},
    },
    engine::{Engine, EngineError},
};
use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const INSPECT_LIMIT: Duration = Duration::from_secs(30);
const PULL_LIMIT: Duration = Duration::from_mins(10);

/// Which content of the image index: inode, size, time of change.
type Stamp = (u64, u64, i64, i64);

#[derive(Default)]
struct Known {
    stamp: Option<Stamp>,
    ids: HashMap<ImageRef, String>,
}

/// The images of this host.
pub(super) struct Images {
    engine: Engine,
    index: PathBuf,
    known: Mutex<Known>,
    pulls: Mutex<HashMap<ImageRef, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    pub(super) fn new(engine: Engine) -> Self {
        let facts = engine.facts();
        let index = facts
            .graph_root
            .join(format!("{}-images/images.json", facts.graph_driver));
        Self {
            engine,
            index,
            known: Mutex::default(),
            pulls: Mutex::default(),
        }
    }

    /// The id of `image`, pulled first where it is missing.
    pub(super) async fn resolve(self: &Arc<Self>, image: &ImageRef) -> Result<String, JobError> {
        if let Some(id) = self.recall(image) {
            return Ok(id);
        }
        let (images, image) = (Arc::clone(self), image.clone());
        // A task of its own: a job that is canceled stops waiting, and the pull goes on for others.
        tokio::spawn(async move { images.find(&image).await })
            .await
            .unwrap_or_else(|error| Err(failed(JobErrorKind::EngineError, error.to_string())))
    }

    async fn find(&self, image: &ImageRef) -> Result<String, JobError> {
        if let Some(id) = self.inspect(image).await? {
            return Ok(id);
        }
        if image.as_str().starts_with("localhost/") {
            let message = format!(
                "{image} is not on this node, and localhost/ images are in no registry; build it here"
            );
            return Err(failed(JobErrorKind::ImageNotFound, message));
        }
        let turn = {
            let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            pulls.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(pulls.entry(image.clone()).or_default())
        };
        let _turn = turn.lock().await;
        if let Some(id) = self.inspect(image).await? {
            return Ok(id);
        }
        tracing::info!(%image, "pulling an image");
        match self.engine.pull(image.as_str(), PULL_LIMIT).await {
            Ok(_) => tracing::info!(%image, "the image is here"),
            Err(error) => {
                tracing::warn!(%image, %error, "the image could not be pulled");
                return Err(pull_error(&error));
            }
        }
        self.inspect(image).await?.ok_or_else(|| {
            failed(
                JobErrorKind::EngineError,
                format!("{image} was pulled and is not there; see podman images"),
            )
        })
    }

    async fn inspect(&self, image: &ImageRef) -> Result<Option<String>, JobError> {
        // Taken before podman looks: a change in between makes the answer useless, not wrong.
        let stamp = self.stamp();
        let asked = ["image", "inspect", "--format={{.Id}}", image.as_str()];
        match self.engine.call(&asked, INSPECT_LIMIT).await {
            Ok(id) => {
                let id = id.trim().to_owned();
                self.remember(image, &id, stamp);
                Ok(Some(id))
            }
            Err(EngineError::Failed { message, .. }) if is_missing(&message) => Ok(None),
            Err(error) => Err(failed(JobErrorKind::EngineError, error.to_string())),
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        let file = std::fs::metadata(&self.index).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    }

    fn recall(&self, image: &ImageRef) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.stamp.is_none() || known.stamp != self.stamp() {
            return None;
        }
        known.ids.get(image).cloned()
    }

    fn remember(&self, image: &ImageRef, id: &str, stamp: Option<Stamp>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.stamp != stamp {
            *known = Known {
                stamp,
                ids: HashMap::new(),
            };
        }
        known.ids.insert(image.clone(), id.to_owned());
    }
}

fn is_missing(message: &str) -> bool {
    message.contains("no such image")
        || message.contains("image not known")
        || message.contains("failed to find image")
}

/// Podman has no codes for this, only words; those of the registry protocol are stable.
fn pull_error(error: &EngineError) -> JobError {
    let message = error.to_string();
    let nowhere = [
        "manifest unknown",
        "name unknown",
        "not found: ",
        "requested access to the resource is denied",
    ];
    let kind = if nowhere.iter().any(|words| message.contains(words)) {
        JobErrorKind::ImageNotFound
    } else {
        JobErrorKind::ImagePullFailed
    };
    failed(kind, message)
}

fn failed(kind: JobErrorKind, message: String) -> JobError {
    JobError { kind, message }
}
