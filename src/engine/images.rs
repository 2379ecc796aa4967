//! Resolution of an image name to the id of an image that is present, with a pull where it is missing.
//!
//! A present image is used without asking a registry, unless the job asks for a pull. A missing one is pulled once for
//! all jobs that wait for it.
//! Asking podman takes some 40 ms, so answers are cached until its image index changes; every pull, tag or removal
//! replaces that file, by any process.
//!
//! A user names the image, and so the registry that the node connects to. A registry that may be in the node's own
//! network is asked only where the operator named it, users don't see podman's message of a failed pull
//! ([`PullFault`]), and a pull is ended when no job waits for it any more.

use super::{
    Engine, EngineError, ImageLease, PulledImages,
    image_files::{FileCheckCache, not_runnable},
    image_metadata::{IndexStamp, ResolvedImage},
    local_images::{LocalNames, missing},
    pull_fault::{PullFault, sanitize_for_log},
};
use crate::{
    api::{image::ImageRef, jobs::PullPolicy},
    background, wait,
};
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

/// Interval of progress reports of a pull.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Answers of podman, valid for one version of its image index.
#[derive(Default)]
struct ResolvedCache {
    stamp: Option<IndexStamp>,
    images: HashMap<ImageRef, ResolvedImage>,
}

/// Failure to resolve an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image doesn't exist; another attempt is useless.
    #[error("{0}")]
    NotFound(String),
    /// The operator of the node doesn't permit the pull.
    #[error(
        "this node does not pull {0}: its registry may be a machine in the node's own network, which the node's operator has to permit by name: --allowed-image '{registry}/*' (in addition to '*' or other patterns for all other images)",
        registry = .0.registry()
    )]
    NotPermitted(ImageRef),
    /// The pull failed.
    #[error("{image} can't be pulled: {fault}")]
    Pull {
        /// Image.
        image: ImageRef,
        /// Class of the failure.
        fault: PullFault,
    },
    /// The image is present, and no sandbox may run it.
    #[error("{}", not_runnable(.0))]
    NotRunnable(String),
    /// No job waits for the pull any more.
    #[error("the pull was ended, because no job waited for it any more")]
    Abandoned,
    /// Podman failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The background task panicked.
    #[error("resolving an image failed: {0}; see the node's log")]
    TaskFailed(#[from] tokio::task::JoinError),
}

/// Images of this host.
pub struct Images {
    pub(super) engine: Engine,
    /// Images that may be removed; `None` without garbage collection.
    pub(super) pulled: Option<Arc<PulledImages>>,
    /// Images that are never removed.
    pub(super) protected: Vec<ImageRef>,
    pull_timeout: Duration,
    /// Image patterns of the operator.
    patterns: Vec<String>,
    known: Mutex<ResolvedCache>,
    /// By image, and whether it is pulled although it is present.
    resolutions: Mutex<HashMap<(ImageRef, bool), Resolution>>,
    pub(super) checked: Mutex<FileCheckCache>,
    pub(super) local: Mutex<LocalNames>,
}

/// A resolution in progress, including the pull, shared by all callers that wait for it.
#[derive(Clone)]
struct Resolution {
    outcome: Shared<BoxFuture<'static, Result<ResolvedImage, Arc<ImageError>>>>,
    /// Progress of the pull; empty before it begins.
    progress: watch::Receiver<String>,
    /// Number of callers that wait; incremented while the resolutions are locked.
    waiters: watch::Sender<usize>,
}

/// One caller that waits, until dropped.
struct Waiter(watch::Sender<usize>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.send_modify(|waiters| *waiters -= 1);
    }
}

impl Images {
    /// Images of this engine. `patterns` are the operator's image patterns.
    pub fn new(engine: Engine, pull_timeout: Duration, patterns: &[String]) -> Self {
        Self {
            engine,
            pulled: None,
            protected: Vec::new(),
            pull_timeout,
            patterns: patterns.to_owned(),
            known: Mutex::default(),
            resolutions: Mutex::default(),
            checked: Mutex::default(),
            local: Mutex::default(),
        }
    }

    /// Same, with garbage collection of pulled images other than the protected ones.
    pub fn with_gc(self, pulled: PulledImages, protected: Vec<ImageRef>) -> Self {
        Self {
            pulled: Some(Arc::new(pulled)),
            protected,
            ..self
        }
    }

    /// Keeps `image` from being removed while the lease lives. Waits for a removal of it that has begun.
    pub async fn lease(&self, image: &ImageRef) -> Option<ImageLease> {
        match &self.pulled {
            Some(pulled) => Some(pulled.lease(image).await),
            None => None,
        }
    }

    /// Resolves `image`, with a pull where the policy says so; an image of `localhost/` is in no registry, so that it
    /// is never pulled. Progress of the pull is passed to `on_progress`.
    pub async fn resolve(
        self: &Arc<Self>,
        image: &ImageRef,
        pull: PullPolicy,
        mut on_progress: impl FnMut(&str),
    ) -> Result<ResolvedImage, Arc<ImageError>> {
        let is_forced = pull == PullPolicy::Always && !image.is_local();
        if !is_forced && let Some(found) = self.cached(image).await {
            return check_metadata(found);
        }
        if pull == PullPolicy::Never {
            return self.find_present(image).await;
        }
        let Resolution {
            mut outcome,
            mut progress,
            waiters,
        } = self.join_resolution((image.clone(), is_forced));
        let _waiter = Waiter(waiters);
        loop {
            // At once for a caller that joins a running pull.
            let text = progress.borrow_and_update().clone();
            if !text.is_empty() {
                on_progress(&text);
            }
            tokio::select! {
                found = &mut outcome => return check_metadata(found?),
                Ok(()) = progress.changed() => {}
            }
        }
    }

    /// Whether the image is present. Also true where podman fails: the use of the image reports that.
    pub async fn is_present(&self, image: &ImageRef) -> bool {
        self.cached(image).await.is_some()
            || self
                .inspect(image)
                .await
                .map_or(true, |found| found.is_some())
    }

    /// The image, where it is present.
    async fn find_present(&self, image: &ImageRef) -> Result<ResolvedImage, Arc<ImageError>> {
        let found = self.inspect(image).await.map_err(ImageError::from)?;
        let not_found = || {
            if image.is_snapshot() {
                return ImageError::NotFound(missing(image));
            }
            let advice = "the task asks for an image that need not be pulled (pull: never)";
            ImageError::NotFound(format!("{image} is not on this node, and {advice}"))
        };
        check_metadata(found.ok_or_else(not_found)?)
    }

    /// Joins the resolution of an image that is in progress, or starts one. It is a task of its own, so that it goes
    /// on for others when a job that waits for it is canceled.
    fn join_resolution(self: &Arc<Self>, key: (ImageRef, bool)) -> Resolution {
        let mut resolutions = self.resolutions();
        if let Some(resolution) = resolutions.get(&key)
            && resolution.outcome.peek().is_none()
        {
            resolution.waiters.send_modify(|waiters| *waiters += 1);
            return resolution.clone();
        }
        let (report, progress) = watch::channel(String::new());
        let (waiters, waiting) = watch::channel(1);
        let (images, own_key) = (Arc::clone(self), key.clone());
        let task = background::spawn("resolve_image", async move {
            let (this, (name, is_forced)) = (Arc::clone(&images), own_key.clone());
            let mut find =
                async move { this.find_or_pull(&name, is_forced, &report).await }.boxed();
            tokio::select! {
                found = &mut find => {
                    images.resolutions().remove(&own_key);
                    found
                }
                () = images.wait_abandoned(&own_key, waiting) => {
                    // Blocks until podman has ended.
                    tokio::task::spawn_blocking(|| drop(find));
                    tracing::info!(image = %own_key.0, "no job waits for an image any more; pull ended");
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
        resolutions.insert(key, resolution.clone());
        resolution
    }

    /// Waits until no caller waits for a resolution. From then on it can't be joined.
    async fn wait_abandoned(&self, key: &(ImageRef, bool), mut waiting: watch::Receiver<usize>) {
        // Not an error: the resolution in the map has a sender.
        while wait::until(&mut waiting, |waiters| *waiters == 0)
            .await
            .is_ok()
        {
            let mut resolutions = self.resolutions();
            if *waiting.borrow_and_update() == 0 {
                resolutions.remove(key);
                return;
            }
        }
    }

    fn resolutions(&self) -> MutexGuard<'_, HashMap<(ImageRef, bool), Resolution>> {
        self.resolutions.lock()
    }

    async fn find_or_pull(
        &self,
        image: &ImageRef,
        is_forced: bool,
        progress: &watch::Sender<String>,
    ) -> Result<ResolvedImage, ImageError> {
        if !is_forced && let Some(found) = self.inspect(image).await? {
            return Ok(found);
        }
        if image.is_local() {
            return Err(ImageError::NotFound(missing(image)));
        }
        if !image.is_pullable(&self.patterns) {
            return Err(ImageError::NotPermitted(image.clone()));
        }
        tracing::info!(%image, "pulling image");
        if let Err(error) = self.pull(image, progress).await {
            let (mut fault, error) = (
                PullFault::classify(&error),
                sanitize_for_log(&error.to_string()),
            );
            if !image.has_named_registry(&self.patterns) {
                fault = fault.for_unnamed_registry();
            }
            tracing::warn!(%image, error, "image could not be pulled");
            let image = image.clone();
            return Err(ImageError::Pull { image, fault });
        }
        tracing::info!(%image, "image pulled");
        let found = self.inspect(image).await?;
        // Another pull may do: of two programs that name one image at the same time, podman can lose a name.
        let found = found.ok_or_else(|| ImageError::Pull {
            image: image.clone(),
            fault: PullFault::Vanished,
        })?;
        if let Some(pulled) = self.pulled.clone() {
            pulled.record(image, &found.id);
            tokio::task::spawn_blocking(move || pulled.save()).await?;
        }
        Ok(found)
    }

    /// Pulls an image and reports progress.
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
                .pull(image.as_str(), self.pull_timeout, on_progress)
        );
        let began = Instant::now();
        loop {
            tokio::select! {
                outcome = &mut pull => return outcome,
                () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                    let podman = sanitize_for_log(&last.lock());
                    let seconds = began.elapsed().as_secs();
                    tracing::info!(%image, seconds, podman, "still pulling image");
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

    async fn cached(&self, image: &ImageRef) -> Option<ResolvedImage> {
        let stamp = self.engine.index_stamp().await;
        let known = self.known.lock();
        if known.stamp.is_none() || known.stamp != stamp {
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

/// The image, unless its metadata forbids its use.
fn check_metadata(found: ResolvedImage) -> Result<ResolvedImage, Arc<ImageError>> {
    match found.fault {
        None => Ok(found),
        Some(fault) => Err(Arc::new(ImageError::NotRunnable(fault))),
    }
}
