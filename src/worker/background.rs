//! Background tasks of a worker: each runs for as long as the worker lives.

use super::{Settings, Storage, disk_guard, image_gc, job::Workshop, ledger::Ledger, storage};
use crate::{
    api::image::ImageRef,
    engine::{Engine, Images, PulledImages, probe},
    tasks::Tasks,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long fetching a sandbox's image may take.
const PULL_LIMIT: Duration = Duration::from_mins(10);
/// How often the data directory is looked at.
const PLACE_INTERVAL: Duration = Duration::from_secs(2);

/// Starts them all, but the removal of what jobs left ([`trash`](super::trash)), which has a queue of its own.
pub(super) fn start(
    tasks: &Tasks,
    shop: &Arc<Workshop>,
    ledger: Arc<Ledger>,
    home: PathBuf,
    storage: &Storage,
) {
    tasks.spawn(watch_podman(Arc::clone(shop), home));
    tasks.spawn(watch_place(Arc::clone(shop)));
    tasks.spawn(disk_guard::run(Arc::clone(shop)));
    if let Some(age) = storage.image_gc {
        tasks.spawn(image_gc::run(Arc::clone(shop), age));
    }
    tasks.spawn(storage::keep_house(
        Arc::clone(shop),
        ledger,
        storage.retain,
    ));
}

/// The images of this host. Fetches the default image, so that the first job needn't wait for it.
pub(super) fn images(
    tasks: &Tasks,
    engine: &Engine,
    home: &Path,
    settings: &Settings,
) -> Arc<Images> {
    let mut patterns = settings.allowed_images.clone();
    // The operator has named it, and so its registry.
    patterns.extend(settings.default_image.as_ref().map(ImageRef::to_string));
    let pulled = PulledImages::open(home.join("pulled-images.json"));
    let kept = settings.default_image.iter().cloned().collect();
    let images = Images::new(engine.clone(), PULL_LIMIT, &patterns).noting(pulled, kept);
    let images = Arc::new(images);
    if let Some(image) = settings.default_image.clone() {
        let images = Arc::clone(&images);
        tasks.spawn(async move {
            if let Err(error) = images.resolve(&image, |_| ()).await {
                tracing::warn!(%image, %error, "the default image is not here yet; the first job tries again");
            }
        });
    }
    images
}

/// Sees to podman for as long as the worker lives.
async fn watch_podman(shop: Arc<Workshop>, home: PathBuf) {
    let ground = probe::Ground {
        init: shop.init.path(),
        scratch: &home,
        node_uuid: Some(&shop.node_uuid),
    };
    shop.engine.watch_over(ground).await;
}

/// Says when the data directory goes away, and when it is back, for as long as the worker lives.
async fn watch_place(shop: Arc<Workshop>) {
    let mut is_there = true;
    loop {
        tokio::time::sleep(PLACE_INTERVAL).await;
        let found = shop.place.check();
        if found.is_ok() == is_there {
            continue;
        }
        is_there = found.is_ok();
        match found {
            Ok(()) => tracing::info!("data directory is back; taking jobs"),
            Err(misplaced) => tracing::error!(reason = %misplaced, "taking no jobs"),
        }
        shop.changed.send_replace(());
    }
}

/// Names what nobody may remove any more: files of sandboxes of a node whose data directory is gone.
pub(super) async fn warn_of_strays(engine: &Engine) {
    match engine.stray_uppers().await {
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
