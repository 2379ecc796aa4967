//! Background tasks of a worker, which run for as long as it lives.

use super::{
    Settings, context::WorkerContext, disk_guard, gc, image_gc, ledger::Ledger, memory_guard,
    trash::RemovalQueue, warm, workspace_guard,
};
use crate::{
    api::{image::ImageRef, jobs::PullPolicy},
    background::BackgroundTasks,
    engine::{Engine, Images, PulledImages, probe},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Time in which the image of a sandbox has to be pulled.
const PULL_TIMEOUT: Duration = Duration::from_mins(10);
/// Interval of the checks of the data directory.
const DATA_DIR_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Starts all of them.
pub(super) fn spawn_all(
    tasks: &BackgroundTasks,
    ctx: &Arc<WorkerContext>,
    ledger: Arc<Ledger>,
    queue: RemovalQueue,
    home: PathBuf,
    settings: &Settings,
) {
    let (storage, trash) = (&settings.storage, Arc::clone(&ctx.trash));
    tasks.spawn("trash", async move { trash.run(queue).await });
    tasks.spawn("watch_podman", watch_podman(Arc::clone(ctx), home));
    tasks.spawn("watch_data_dir", watch_data_dir(Arc::clone(ctx)));
    let shared = Arc::clone(ctx);
    tasks.spawn(
        "egress_cache",
        async move { shared.egress.open_cache().await },
    );
    tasks.spawn("disk_guard", disk_guard::run_disk_guard(Arc::clone(ctx)));
    if let Some(limit) = storage.workspace_limit {
        let guard = workspace_guard::run_workspace_guard(Arc::clone(ctx), limit);
        tasks.spawn("workspace_guard", guard);
    }
    if settings.reserve_memory > 0 {
        let guard = memory_guard::run_memory_guard(Arc::clone(ctx), settings.reserve_memory);
        tasks.spawn("memory_guard", guard);
    }
    if let Some(age) = storage.image_gc {
        tasks.spawn("image_gc", image_gc::run_image_gc(Arc::clone(ctx), age));
    }
    let pool = warm::run_warm_pool(Arc::clone(ctx), settings.reserve_memory);
    tasks.spawn("warm_pool", pool);
    tasks.spawn("gc", gc::run_gc(Arc::clone(ctx), ledger, storage.retain));
}

/// Opens the images of this host, and pulls those to prefetch in the background, before the first job needs them.
pub(super) fn open_images(
    tasks: &BackgroundTasks,
    engine: &Engine,
    home: &Path,
    settings: &Settings,
) -> Arc<Images> {
    let mut patterns = settings.allowed_images.clone();
    // An image that the operator names is allowed.
    patterns.extend(settings.prefetch_images.iter().map(ImageRef::to_string));
    let pulled = PulledImages::open(home.join("pulled-images.json"));
    let kept = settings.prefetch_images.clone();
    let images = Images::new(engine.clone(), PULL_TIMEOUT, &patterns).with_gc(pulled, kept);
    let images = Arc::new(images);
    for image in settings.prefetch_images.clone() {
        let images = Arc::clone(&images);
        tasks.spawn("prefetch_image", async move {
            if let Err(error) = images.resolve(&image, PullPolicy::Missing, |_| ()).await {
                tracing::warn!(%image, %error, "image not prefetched; the first job that needs it tries again");
            }
        });
    }
    images
}

/// Monitors podman's health.
async fn watch_podman(ctx: Arc<WorkerContext>, home: PathBuf) {
    let probe_env = probe::ProbeEnv {
        init: ctx.init.path(),
        scratch: &home,
        node_uuid: Some(&ctx.node_uuid),
    };
    ctx.engine.run_health_monitor(probe_env).await;
}

/// Reports that the data directory was moved, and that it is back.
async fn watch_data_dir(ctx: Arc<WorkerContext>) {
    let mut is_in_place = true;
    loop {
        tokio::time::sleep(DATA_DIR_CHECK_INTERVAL).await;
        let verified = ctx.verify_data_dir().await;
        if verified.is_ok() == is_in_place {
            continue;
        }
        is_in_place = verified.is_ok();
        match verified {
            Ok(()) => tracing::info!("data directory is back; taking jobs"),
            Err(problem) => tracing::error!(reason = problem.detail, "taking no jobs"),
        }
        ctx.changed.send_replace(());
    }
}

/// Warns about files of ended sandboxes that another node has left, which it alone may remove. Its data directory may
/// be gone.
pub(super) async fn warn_about_strays(engine: &Engine) {
    match engine.orphaned_uppers().await {
        Ok(strays) => {
            if let Some(first) = strays.first() {
                tracing::warn!(
                    count = strays.len(),
                    first = %first.display(),
                    "another node has left files of ended sandboxes; delete them if that node no longer exists"
                );
            }
        }
        Err(error) => {
            tracing::warn!(%error, "files of other nodes not listed");
        }
    }
}
