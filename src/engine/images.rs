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
    image_files::{FileCheckCache, not_runnable},
    image_metadata::{IndexStamp, ResolvedImage},
    pull_fault::{PullFault, sanitize_for_log},
};
use crate::{api::image::ImageRef, background, wait};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::HashMap,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// How often a pull says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Default)]
struct ResolvedCache {
    stamp: Option<IndexStamp>,
    images: HashMap<ImageRef, ResolvedImage>,
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
    /// It is here, and no sandbox may be started from it.
    #[error("{}", not_runnable(.0))]
    NotRunnable(String),
    /// Everybody who waited for it has gone.
    #[error("the pull was ended, since nobody waited for it any more")]
    Abandoned,
    /// Podman could not say.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A fault of ours.
    #[error("looking for an image ended early: {0}")]
    TaskFailed(#[from] tokio::task::JoinError),
}

/// The images of this host.
pub struct Images {
    pub(super) engine: Engine,
    /// Those that may be removed again; `None` where nobody asks for that.
    pub(super) pulled: Option<Arc<PulledImages>>,
    /// Images that are never removed.
    pub(super) protected: Vec<ImageRef>,
    pull_limit: Duration,
    /// Image patterns of the operator.
    patterns: Vec<String>,
    known: Mutex<ResolvedCache>,
    resolutions: Mutex<HashMap<ImageRef, Resolution>>,
    pub(super) checked: Mutex<FileCheckCache>,
}

/// A look for an image that is under way, a pull included, shared by all who wait for it.
#[derive(Clone)]
struct Resolution {
    outcome: Shared<BoxFuture<'static, Result<ResolvedImage, Arc<ImageError>>>>,
    /// What there is to tell while it takes its time; empty before.
    progress: watch::Receiver<String>,
    /// Number of those who wait; counted while the resolutions are locked.
    waiters: watch::Sender<usize>,
}

/// One who waits for a resolution.
struct Waiter(watch::Sender<usize>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.send_modify(|waiters| *waiters -= 1);
    }
}

impl Images {
    /// Images of this engine; a pull may take `pull_limit`. `patterns` are the operator's.
    pub fn new(engine: Engine, pull_limit: Duration, patterns: &[String]) -> Self {
        Self {
            engine,
            pulled: None,
            protected: Vec::new(),
            pull_limit,
            patterns: patterns.to_owned(),
            known: Mutex::default(),
            resolutions: Mutex::default(),
            checked: Mutex::default(),
        }
    }

    /// The same, which notes what is pulled, so that it can be removed again, but for the images to keep.
    pub fn with_gc(self, pulled: PulledImages, protected: Vec<ImageRef>) -> Self {
        Self {
            pulled: Some(Arc::new(pulled)),
            protected,
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

    /// What `image` is, pulled first where it is missing; `on_progress` hears how far that is.
    pub async fn resolve(
        self: &Arc<Self>,
        image: &ImageRef,
        mut on_progress: impl FnMut(&str),
    ) -> Result<ResolvedImage, Arc<ImageError>> {
        if let Some(found) = self.cached(image) {
            return check_metadata(found);
        }
        let Resolution {
            mut outcome,
            mut progress,
            waiters,
        } = self.join_resolution(image);
        let _waiter = Waiter(waiters);
        loop {
            // One that comes late hears at once how far it is.
            let told = progress.borrow_and_update().clone();
            if !told.is_empty() {
                on_progress(&told);
            }
            tokio::select! {
                found = &mut outcome => return check_metadata(found?),
                Ok(()) = progress.changed() => {}
            }
        }
    }

    /// Whether the image is on this host; yes where podman can't say, for whoever uses it is told so.
    pub async fn is_present(&self, image: &ImageRef) -> bool {
        self.cached(image).is_some()
            || self
                .inspect(image)
                .await
                .map_or(true, |found| found.is_some())
    }

    /// The resolution for `image` that is under way, or a new one, with one more who waits for it. It is a task
    /// of its own: a job that is canceled stops waiting, and the resolution goes on for others.
    fn join_resolution(self: &Arc<Self>, image: &ImageRef) -> Resolution {
        let mut resolutions = self.resolutions();
        if let Some(resolution) = resolutions.get(image)
            && resolution.outcome.peek().is_none()
        {
            resolution.waiters.send_modify(|waiters| *waiters += 1);
            return resolution.clone();
        }
        let (told, progress) = watch::channel(String::new());
        let (waiters, waiting) = watch::channel(1);
        let (images, wanted) = (Arc::clone(self), image.clone());
        let task = background::spawn("resolve_image", async move {
            let (finder, sought) = (Arc::clone(&images), wanted.clone());
            let mut find = async move { finder.find_or_pull(&sought, &told).await }.boxed();
            tokio::select! {
                found = &mut find => {
                    images.resolutions().remove(&wanted);
                    found
                }
                () = images.wait_abandoned(&wanted, waiting) => {
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
        let resolution = Resolution {
            outcome,
            progress,
            waiters,
        };
        resolutions.insert(image.clone(), resolution.clone());
        resolution
    }

    /// Resolves once nobody waits for the resolution any more; from then on it is found by nobody.
    async fn wait_abandoned(&self, image: &ImageRef, mut waiting: watch::Receiver<usize>) {
        // An error can't be: the resolution that is found holds a sender.
        while wait::until(&mut waiting, |waiters| *waiters == 0)
            .await
            .is_ok()
        {
            let mut resolutions = self.resolutions();
            if *waiting.borrow_and_update() == 0 {
                resolutions.remove(image);
                return;
            }
        }
    }

    fn resolutions(&self) -> MutexGuard<'_, HashMap<ImageRef, Resolution>> {
        self.resolutions.lock()
    }

    async fn find_or_pull(
        &self,
        image: &ImageRef,
        progress: &watch::Sender<String>,
    ) -> Result<ResolvedImage, ImageError> {
        if let Some(found) = self.inspect(image).await? {
            return Ok(found);
        }
        if image.is_local() {
            let message = format!(
                "{image} is not on this node, and localhost/ images are in no registry; build it here"
            );
            return Err(ImageError::NotFound(message));
        }
        if !image.is_pullable(&self.patterns) {
            return Err(ImageError::NotPermitted(image.clone()));
        }
        tracing::info!(%image, "pulling an image");
        if let Err(error) = self.pull(image, progress).await {
            let (mut fault, error) = (
                PullFault::classify(&error),
                sanitize_for_log(&error.to_string()),
            );
            if !image.has_named_registry(&self.patterns) {
                fault = fault.for_unnamed_registry();
            }
            tracing::warn!(%image, error, "the image could not be pulled");
            let image = image.clone();
            return Err(ImageError::Pull { image, fault });
        }
        tracing::info!(%image, "the image is here");
        let found = self.inspect(image).await?;
        let found = found.ok_or_else(|| {
            ImageError::NotFound(format!(
                "{image} was pulled and is not there; see podman images"
            ))
        })?;
        if let Some(pulled) = self.pulled.clone() {
            pulled.record(image, &found.id);
            tokio::task::spawn_blocking(move || pulled.save()).await?;
        }
        Ok(found)
    }

    /// Pulls, and says now and then how far it is.
    async fn pull(
        &self,
        image: &ImageRef,
        progress: &watch::Sender<String>,
    ) -> Result<(), EngineError> {
        progress.send_replace(format!("pulling {image}"));
        let last = Mutex::new(String::new());
        let on_progress = |line: &str| {
            line.clone_into(&mut last.lock());
        };
        let mut pull = pin!(
            self.engine
                .pull(image.as_str(), self.pull_limit, on_progress)
        );
        let began = Instant::now();
        loop {
            tokio::select! {
                outcome = &mut pull => return outcome,
                () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                    let podman = sanitize_for_log(&last.lock());
                    let seconds = began.elapsed().as_secs();
                    tracing::info!(%image, seconds, podman, "still pulling");
                    progress.send_replace(format!("pulling {image} for {seconds} s"));
                }
            }
        }
    }

    async fn inspect(&self, image: &ImageRef) -> Result<Option<ResolvedImage>, EngineError> {
        let found = self.engine.inspect_image(image.as_str()).await?;
        if let Some(found) = &found {
            self.cache(image, found);
        }
        Ok(found)
    }

    fn cached(&self, image: &ImageRef) -> Option<ResolvedImage> {
        let known = self.known.lock();
        if known.stamp.is_none() || known.stamp != self.engine.index_stamp() {
            return None;
        }
        known.images.get(image).cloned()
    }

    fn cache(&self, image: &ImageRef, found: &ResolvedImage) {
        let mut known = self.known.lock();
        if known.stamp != found.stamp {
            *known = ResolvedCache {
                stamp: found.stamp,
                images: HashMap::new(),
            };
        }
        known.images.insert(image.clone(), found.clone());
    }
}

/// The image, unless what it orders forbids its use.
fn check_metadata(found: ResolvedImage) -> Result<ResolvedImage, Arc<ImageError>> {
    match found.fault {
        None => Ok(found),
        Some(fault) => Err(Arc::new(ImageError::NotRunnable(fault))),
    }
}
