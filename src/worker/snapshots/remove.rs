//! Removal of a snapshot.

use super::remove_nameless;
use crate::{
    api::{
        image::ImageRef,
        problem::{Problem, ProblemKind},
    },
    engine::{EngineError, is_image_in_use},
    worker::context::WorkerContext,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// Longest wait for sandboxes of the image that are kept ready for jobs, and end now.
const WARM_END_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Removes the snapshot of this name: its image first, while whose name is there the snapshot exists. An image without a
/// directory is removed, too, such as one whose directory could not be read; and a directory without an image.
pub(super) async fn remove(ctx: &Arc<WorkerContext>, image: &ImageRef) -> Result<(), Problem> {
    let snapshots = &ctx.snapshots;
    let _turn = snapshots.turn().await?;
    let ids = snapshots.ids_of(image);
    if ids.is_empty() {
        let found = ctx.engine.has_snapshot(&ctx.node_uuid, image.as_str());
        if !found.await.map_err(|error| not_removed(image, &error))? {
            return Err(Problem::not_found("snapshot"));
        }
    }
    let removed = remove_image(ctx, image).await;
    removed.map_err(|error| not_removed(image, &error))?;
    for id in ids {
        ctx.trash.add(snapshots.forget(&id), None);
    }
    tracing::info!(%image, "snapshot removed");
    remove_nameless(ctx).await;
    // The next report doesn't name it.
    ctx.changed.send_replace(());
    Ok(())
}

async fn remove_image(ctx: &WorkerContext, image: &ImageRef) -> Result<(), EngineError> {
    let mut deadline = Instant::now();
    if ctx.warm.end_image(image) {
        deadline += WARM_END_TIMEOUT;
    }
    loop {
        let removed = ctx.engine.remove_snapshot_image(image.as_str()).await;
        let is_in_use = removed.as_ref().is_err_and(is_image_in_use);
        if !is_in_use || Instant::now() >= deadline {
            return removed;
        }
        sleep(RETRY_DELAY).await;
    }
}

fn not_removed(image: &ImageRef, error: &EngineError) -> Problem {
    if is_image_in_use(error) {
        let detail = "a sandbox that began from this snapshot has not ended; delete that sandbox first, or wait for its end";
        return Problem::new(ProblemKind::Conflict, detail);
    }
    tracing::warn!(%image, %error, "snapshot not removed");
    let detail =
        "the node can't remove the snapshot now; try again, and see its log if it persists";
    Problem::new(ProblemKind::Unavailable, detail)
}
