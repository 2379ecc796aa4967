//! Background tasks of a worker: each runs for as long as the worker lives.

use super::{
    Settings, StorageSettings, context::WorkerContext, disk_guard, gc, image_gc, ledger::Ledger,
};
use crate::{
    api::image::ImageRef,
    background::BackgroundTasks,
    engine::{Engine, Images, PulledImages, probe},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long fetching a sandbox's image may take.
const PULL_TIMEOUT: Duration = Duration::from_mins(10);
/// How often the data directory is looked at.
const DATA_DIR_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Starts them all, but the removal of what jobs left ([`trash`](super::trash)), which has a queue of its own.
pub(super) fn spawn_all(
    tasks: &BackgroundTasks,
    ctx: &Arc<WorkerContext>,
    ledger: Arc<Ledger>,
    home: PathBuf,
    storage: &StorageSettings,
) {
    tasks.spawn("watch_podman", watch_podman(Arc::clone(ctx), home));
    tasks.spawn("watch_data_dir", watch_data_dir(Arc::clone(ctx)));
    tasks.spawn("disk_guard", disk_guard::run_disk_guard(Arc::clone(ctx)));
    if let Some(age) = storage.image_gc {
        tasks.spawn("image_gc", image_gc::run_image_gc(Arc::clone(ctx), age));
    }
    tasks.spawn("gc", gc::run_gc(Arc::clone(ctx), ledger, storage.retain));
}

/// The images of this host. Fetches the default image, so that the first job needn't wait for it.
pub(super) fn open_images(
    tasks: &BackgroundTasks,
    engine: &Engine,
    home: &Path,
    settings: &Settings,
) -> Arc<Images> {
    let mut patterns = settings.allowed_images.clone();
    // The operator has named it, and so its registry.
    patterns.extend(settings.default_image.as_ref().map(ImageRef::to_string));
    let pulled = PulledImages::open(home.join("pulled-images.json"));
    let kept = settings.default_image.iter().cloned().collect();
    let images = Images::new(engine.clone(), PULL_TIMEOUT, &patterns).with_gc(pulled, kept);
    let images = Arc::new(images);
    if let Some(image) = settings.default_image.clone() {
        let images = Arc::clone(&images);
        tasks.spawn("prefetch_image", async move {
            if let Err(error) = images.resolve(&image, |_| ()).await {
                tracing::warn!(%image, %error, "the default image is not here yet; the first job tries again");
            }
        });
    }
    images
}

/// Sees to podman for as long as the worker lives.
async fn watch_podman(ctx: Arc<WorkerContext>, home: PathBuf) {
    let probe_env = probe::ProbeEnv {
        init: ctx.init.path(),
        scratch: &home,
        node_uuid: Some(&ctx.node_uuid),
    };
    ctx.engine.run_health_monitor(probe_env).await;
}

/// Says when the data directory goes away, and when it is back, for as long as the worker lives.
async fn watch_data_dir(ctx: Arc<WorkerContext>) {
    let mut is_there = true;
    loop {
        tokio::time::sleep(DATA_DIR_CHECK_INTERVAL).await;
        let found = ctx.verify_data_dir().await;
        if found.is_ok() == is_there {
            continue;
        }
        is_there = found.is_ok();
        match found {
            Ok(()) => tracing::info!("data directory is back; taking jobs"),
            Err(problem) => tracing::error!(reason = problem.detail, "taking no jobs"),
        }
        ctx.changed.send_replace(());
    }
}

/// Names what nobody may remove any more: files of sandboxes of a node whose data directory is gone.
pub(super) async fn warn_about_strays(engine: &Engine) {
    match engine.orphaned_uppers().await {
        Ok(strays) => {
            if let Some(first) = strays.first() {
                tracing::warn!(
                    count = strays.len(),
                    first = %first.display(),
                    "files of another node's ended sandboxes are left; delete them where no such node runs any more"
                );
            }
        }
        Err(error) => {
            tracing::warn!(%error, "what other nodes may have left can't be looked for");
        }
    }
}
