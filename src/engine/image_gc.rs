//! Removal of images that this node pulled and no longer uses.

use super::{
    Engine, EngineError,
    images::{Images, is_missing},
    pulled::PulledImage,
};
use crate::api::image::ImageRef;
use std::{sync::Arc, time::Duration};

/// How long podman may take to look at an image or to remove one.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(30);
const REMOVE_TIMEOUT: Duration = Duration::from_mins(2);

/// Outcome of one removal.
enum Removed {
    /// It is gone, with so many bytes.
    Yes(u64),
    /// It was gone, or its reference means another image than the one that was pulled.
    NotOurs,
}

impl Images {
    /// Removes pulled images, the longest unused first, that nobody has used for as long as `limit` says, which
    /// is asked before each. Those in use, and those to be kept in any case, stay.
    pub async fn collect(&self, limit: impl Fn() -> Duration) {
        let Some(pulled) = &self.pulled else {
            return;
        };
        for (image, known, unused) in pulled.unused_for(Duration::ZERO) {
            if unused < limit() {
                break;
            }
            if self.kept.contains(&image) {
                continue;
            }
            // Held until it is gone: a job that wants it meanwhile waits, and pulls it again.
            let Some(_taken) = pulled.take(&image) else {
                continue;
            };
            match remove(&self.engine, &image, &known).await {
                Ok(Removed::Yes(bytes)) => {
                    tracing::info!(%image, size_mib = bytes >> 20, unused_s = unused.as_secs(), "removed an unused image");
                    pulled.forget(&image);
                }
                Ok(Removed::NotOurs) => pulled.forget(&image),
                // Such as one that a container of somebody else uses.
                Err(error) => {
                    tracing::debug!(%image, %error, "an unused image can't be removed; trying again");
                }
            }
        }
        let pulled = Arc::clone(pulled);
        if tokio::task::spawn_blocking(move || pulled.save())
            .await
            .is_err()
        {
            tracing::error!(
                "writing the list of pulled images panicked; the lines above say where"
            );
        }
    }
}

async fn remove(
    engine: &Engine,
    image: &ImageRef,
    known: &PulledImage,
) -> Result<Removed, EngineError> {
    let inspect = [
        "image",
        "inspect",
        "--format={{.Id}} {{.Size}}",
        image.as_str(),
    ];
    let found = match engine.call(&inspect, INSPECT_TIMEOUT).await {
        Err(EngineError::Failed { message, .. }) if is_missing(&message) => {
            return Ok(Removed::NotOurs);
        }
        found => found?,
    };
    let (id, size) = found.trim().split_once(' ').unwrap_or_default();
    if id != known.id {
        return Ok(Removed::NotOurs);
    }
    // By its name and without force: another name of the same image stays, and so does one in use.
    engine
        .call(&["rmi", image.as_str()], REMOVE_TIMEOUT)
        .await?;
    Ok(Removed::Yes(size.parse().unwrap_or(0)))
}
