//! Removal of images that this node pulled and no longer uses.

use super::{
    Engine, EngineError,
    images::Images,
    pulled_images::{PulledImage, PulledImages},
};
use crate::api::image::ImageRef;
use serde::Deserialize;
use std::{future::Future, sync::Arc, time::Duration};

/// How long podman may take to remove an image.
const REMOVE_TIMEOUT: Duration = Duration::from_mins(2);

/// What podman has by a name.
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
    /// It is gone, with so many bytes.
    Removed(u64),
    /// It was gone, or its reference means another image than the one that was pulled.
    NotOwned,
}

impl Images {
    /// Removes pulled images, the longest unused first, that nobody has used for as long as `limit` says, which
    /// is asked before each. Those in use, and those to be kept in any case, stay.
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
            // Held until it is gone: a job that wants it meanwhile waits, and pulls it again.
            let Some(_taken) = pulled.try_lock(&image) else {
                continue;
            };
            match remove(&self.engine, &image, &known).await {
                Ok(Removal::Removed(bytes)) => {
                    tracing::info!(%image, size_mib = bytes >> 20, unused_s = unused.as_secs(), "removed an unused image");
                    pulled.remove(&image);
                    // At once: the operator may pull the same image next, and a list that was lost with a crash
                    // would have it pass for ours.
                    save(pulled).await;
                }
                Ok(Removal::NotOwned) => pulled.remove(&image),
                // Such as one that a container of somebody else uses.
                Err(error) => {
                    tracing::debug!(%image, %error, "an unused image can't be removed; trying again");
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
        tracing::error!("writing the list of pulled images panicked; the lines above say where");
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
    // By its name and without force: another name of the same image stays, and so does one in use.
    engine
        .call(&["rmi", image.as_str()], REMOVE_TIMEOUT)
        .await?;
    Ok(Removal::Removed(found.size))
}
