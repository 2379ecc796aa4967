//! Garbage collection of images: removes those that this node pulled and no longer uses.

use super::{
    Engine, EngineError,
    images::Images,
    pulled_images::{PulledImage, PulledImages},
};
use crate::api::image::ImageRef;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

const REMOVE_TIMEOUT: Duration = Duration::from_mins(2);

/// Image that a name refers to.
#[derive(Deserialize)]
struct ImageInfo {
    id: String,
    size: u64,
}

impl ImageInfo {
    const FORMAT: &str = r#"--format={"id":{{json .ID}},"size":{{.Size}}}"#;
}

/// Outcome of one removal.
enum Removal {
    /// The image was removed; its size in bytes.
    Removed(u64),
    /// The image is missing, or its name refers to another one than the node pulled.
    NotOwned,
}

impl Images {
    /// Removes pulled images that have been unused for longer than `limit`, the longest unused first. `limit` is asked
    /// before each. Images in use and protected ones stay.
    pub async fn remove_unused<F: Future<Output = Duration>>(&self, limit: impl Fn() -> F) {
        let Some(pulled) = &self.pulled else {
            return;
        };
        for (image, known, unused) in pulled.unused_for(Duration::ZERO) {
            if unused < limit().await {
                break;
            }
            if self.protected.contains(&image) {
                continue;
            }
            // Locked during the removal: a job that needs it meanwhile waits, and pulls it again.
            let Some(_taken) = pulled.try_lock(&image) else {
                continue;
            };
            match remove(&self.engine, &image, &known).await {
                Ok(Removal::Removed(bytes)) => {
                    tracing::info!(%image, size_mib = bytes >> 20, unused_s = unused.as_secs(), "unused image removed");
                    pulled.remove(&image);
                    // At once: the operator may pull the same image next, and after a crash an outdated list would
                    // count that one as the node's.
                    save(pulled).await;
                }
                Ok(Removal::NotOwned) => pulled.remove(&image),
                // Such as an image that another container uses.
                Err(error) => {
                    tracing::debug!(%image, %error, "unused image could not be removed; retrying later");
                }
            }
        }
        save(pulled).await;
    }
}

async fn save(pulled: &Arc<PulledImages>) {
    let pulled = Arc::clone(pulled);
    let saved = tokio::task::spawn_blocking(move || pulled.save());
    if saved.await.is_err() {
        tracing::error!(
            "writing the list of pulled images panicked; the message of the panic is in the log above"
        );
    }
}

async fn remove(
    engine: &Engine,
    image: &ImageRef,
    known: &PulledImage,
) -> Result<Removal, EngineError> {
    let found: Option<ImageInfo> = engine
        .inspect_image_as(ImageInfo::FORMAT, image.as_str())
        .await?;
    let Some(found) = found.filter(|found| found.id == known.id) else {
        return Ok(Removal::NotOwned);
    };
    // By name and without force: another name of the same image stays, and so does an image in use.
    engine
        .call(&["rmi", image.as_str()], REMOVE_TIMEOUT)
        .await?;
    Ok(Removal::Removed(found.size))
}
