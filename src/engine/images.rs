//! From an image reference to the id of an image that is here.
//!
//! An image that is present is used without a registry being asked. A missing one is pulled
//! once, however many jobs wait for it. Asking podman costs some 40 ms, so answers are kept
//! for as long as its image index is the same file with the same content; any pull, tag or
//! removal by anybody replaces that file.
//!
//! A user names the image, and so the registry that the node connects to. One that can be in the node's own
//! network is asked only where the operator named it, no user reads podman's words of a pull
//! ([`PullFault`]), and a pull that nobody waits for any more is ended.

use super::{
    Engine, EngineError, ImageLease, PulledImages,
    image_check::Checked,
    pull_fault::{PullFault, for_log},
};
use crate::{api::image::ImageRef, wait};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

const INSPECT_LIMIT: Duration = Duration::from_secs(30);
/// How often a pull says how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// Which content of the image index: inode, size, time of change.
type Stamp = (u64, u64, i64, i64);

#[derive(Default)]
struct Known {
    stamp: Option<Stamp>,
    ids: HashMap<ImageRef, String>,
}

/// Why an image can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No such image; asking again is of no use.
    #[error("{0}")]
    NotFound(String),
    /// The node's operator doesn't permit its pull.
    #[error(
        "this node does not pull {0}: its registry can be a machine of the node's own network, which the node's operator has to permit by its name: --allowed-image '{registry}/*' (beside '*' or other patterns for all other images)",
        registry = .0.registry()
    )]
    NotPermitted(ImageRef),
    /// It could not be pulled.
    #[error("{image} can't be pulled: {fault}")]
    Pull {
        /// Image.
        image: ImageRef,
        /// Class of the failure.
        fault: PullFault,
    },
    /// Everybody who waited for it has gone.
    #[error("the pull was ended, since nobody waited for it any more")]
    Abandoned,
    /// Podman could not say.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A fault of ours.
    #[error("looking for an image ended early: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

/// The images of this host.
pub struct Images {
    pub(super) engine: Engine,
    /// Those that may be removed again; `None` where nobody asks for that.
    pub(super) pulled: Option<Arc<PulledImages>>,
    /// Images that are never removed.
    pub(super) kept: Vec<ImageRef>,
    index: PathBuf,
    pull_limit: Duration,
    /// Image patterns of the operator.
    patterns: Vec<String>,
    known: Mutex<Known>,
    searches: Mutex<HashMap<ImageRef, Search>>,
    pub(super) checked: Mutex<Checked>,
}

/// A look for an image that is under way, a pull included, shared by all who wait for it.
#[derive(Clone)]
struct Search {
    outcome: Shared<BoxFuture<'static, Result<String, Arc<ImageError>>>>,
    /// What there is to tell while it takes its time; empty before.
    progress: watch::Receiver<String>,
    /// Number of those who wait; counted while the searches are locked.
    waiters: watch::Sender<usize>,
}

/// One who waits for a search.
struct Waiter(watch::Sender<usize>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.send_modify(|waiters| *waiters -= 1);
    }
}

impl Images {
    /// Images of this engine; a pull may take `pull_limit`. `patterns` are the operator's.
    pub fn new(engine: Engine, pull_limit: Duration, patterns: &[String]) -> Self {
        let facts = engine.facts();
        let index = facts
            .graph_root
            .join(format!("{}-images/images.json", facts.graph_driver));
        Self {
            engine,
            pulled: None,
            kept: Vec::new(),
            index,
            pull_limit,
            patterns: patterns.to_owned(),
            known: Mutex::default(),
            searches: Mutex::default(),
            checked: Mutex::default(),
        }
    }

    /// The same, which notes what is pulled, so that it can be removed again, but for the images to keep.
    pub fn noting(self, pulled: PulledImages, kept: Vec<ImageRef>) -> Self {
        Self {
            pulled: Some(Arc::new(pulled)),
            kept,
            ..self
        }
    }

    /// Keeps `image` from being removed until the answer is dropped; waits for a removal under way.
    pub async fn lease(&self, image: &ImageRef) -> Option<ImageLease> {
        match &self.pulled {
            Some(pulled) => Some(pulled.lease(image).await),
            None => None,
        }
    }

    /// The id of `image`, pulled first where it is missing; `note` hears how far that is.
    pub async fn resolve(
        self: &Arc<Self>,
        image: &ImageRef,
        mut note: impl FnMut(&str),
    ) -> Result<String, Arc<ImageError>> {
        if let Some(id) = self.recall(image) {
            return Ok(id);
        }
        let Search {
            mut outcome,
            mut progress,
            waiters,
        } = self.search(image);
        let _waiter = Waiter(waiters);
        loop {
            // One that comes late hears at once how far it is.
            let told = progress.borrow_and_update().clone();
            if !told.is_empty() {
                note(&told);
            }
            tokio::select! {
                found = &mut outcome => return found,
                Ok(()) = progress.changed() => {}
            }
        }
    }

    /// Whether the image is on this host; yes where podman can't say, for whoever uses it is told so.
    pub async fn is_present(&self, image: &ImageRef) -> bool {
        self.recall(image).is_some()
            || self
                .inspect(image)
                .await
                .map_or(true, |found| found.is_some())
    }

    /// The search for `image` that is under way, or a new one, with one more who waits for it. It is a task
    /// of its own: a job that is canceled stops waiting, and the search goes on for others.
    fn search(self: &Arc<Self>, image: &ImageRef) -> Search {
        let mut searches = self.searches();
        if let Some(search) = searches.get(image)
            && search.outcome.peek().is_none()
        {
            search.waiters.send_modify(|waiters| *waiters += 1);
            return search.clone();
        }
        let (told, progress) = watch::channel(String::new());
        let (waiters, waiting) = watch::channel(1);
        let (images, wanted) = (Arc::clone(self), image.clone());
        let task = tokio::spawn(async move {
            let (finder, sought) = (Arc::clone(&images), wanted.clone());
            let mut find = async move { finder.find(&sought, &told).await }.boxed();
            tokio::select! {
                found = &mut find => {
                    images.searches().remove(&wanted);
                    found
                }
                () = images.abandoned(&wanted, waiting) => {
                    // Waits for a podman that is told to end.
                    tokio::task::spawn_blocking(|| drop(find));
                    tracing::info!(image = %wanted, "nobody waits for an image any more; its pull is ended");
                    Err(ImageError::Abandoned)
                }
            }
        });
        let outcome = async {
            task.await
                .unwrap_or_else(|error| Err(error.into()))
                .map_err(Arc::new)
        };
        let outcome = outcome.boxed().shared();
        let search = Search {
            outcome,
            progress,
            waiters,
        };
        searches.insert(image.clone(), search.clone());
        search
    }

    /// Resolves once nobody waits for the search any more; from then on it is found by nobody.
    async fn abandoned(&self, image: &ImageRef, mut waiting: watch::Receiver<usize>) {
        // An error can't be: the search that is found holds a sender.
        while wait::until(&mut waiting, |waiters| *waiters == 0)
            .await
            .is_ok()
        {
            let mut searches = self.searches();
            if *waiting.borrow_and_update() == 0 {
                searches.remove(image);
                return;
            }
        }
    }

    fn searches(&self) -> MutexGuard<'_, HashMap<ImageRef, Search>> {
        self.searches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(
        &self,
        image: &ImageRef,
        progress: &watch::Sender<String>,
    ) -> Result<String, ImageError> {
        if let Some(id) = self.inspect(image).await? {
            return Ok(id);
        }
        if image.is_local() {
            let message = format!(
                "{image} is not on this node, and localhost/ images are in no registry; build it here"
            );
            return Err(ImageError::NotFound(message));
        }
        if !image.may_be_pulled(&self.patterns) {
            return Err(ImageError::NotPermitted(image.clone()));
        }
        tracing::info!(%image, "pulling an image");
        if let Err(error) = self.pull(image, progress).await {
            let (fault, error) = (PullFault::of(&error), for_log(&error.to_string()));
            tracing::warn!(%image, error, "the image could not be pulled");
            let image = image.clone();
            return Err(ImageError::Pull { image, fault });
        }
        tracing::info!(%image, "the image is here");
        let found = self.inspect(image).await?;
        let id = found.ok_or_else(|| {
            ImageError::NotFound(format!(
                "{image} was pulled and is not there; see podman images"
            ))
        })?;
        if let Some(pulled) = self.pulled.clone() {
            pulled.note(image, &id);
            tokio::task::spawn_blocking(move || pulled.save()).await?;
        }
        Ok(id)
    }

    /// Pulls, and says now and then how far it is.
    async fn pull(
        &self,
        image: &ImageRef,
        progress: &watch::Sender<String>,
    ) -> Result<(), EngineError> {
        progress.send_replace(format!("pulling {image}"));
        let last = Mutex::new(String::new());
        let note = |line: &str| {
            line.clone_into(&mut last.lock().unwrap_or_else(PoisonError::into_inner));
        };
        let mut pull = pin!(self.engine.pull(image.as_str(), self.pull_limit, note));
        let began = Instant::now();
        loop {
            tokio::select! {
                outcome = &mut pull => return outcome,
                () = tokio::time::sleep(PROGRESS) => {
                    let podman = for_log(&last.lock().unwrap_or_else(PoisonError::into_inner));
                    let seconds = began.elapsed().as_secs();
                    tracing::info!(%image, seconds, podman, "still pulling");
                    progress.send_replace(format!("pulling {image} for {seconds} s"));
                }
            }
        }
    }

    async fn inspect(&self, image: &ImageRef) -> Result<Option<String>, EngineError> {
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
            Err(error) => Err(error),
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

pub(super) fn is_missing(message: &str) -> bool {
    message.contains("no such image")
        || message.contains("image not known")
        || message.contains("failed to find image")
}
