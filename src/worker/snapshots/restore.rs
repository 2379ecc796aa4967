//! Workspace of a snapshot, copied to that of a job that begins from it.

use super::WORKSPACE_DIR;
use crate::{
    api::size::ByteSize,
    engine::{Copied, CopyError, CopyKind, CopyRequest},
    worker::{context::WorkerContext, placement::PlaceError},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Time in which a workspace has to be copied.
const COPY_TIMEOUT: Duration = Duration::from_mins(30);

/// Begins to copy the workspace of a snapshot, by the id of its image, to `workspace`, which exists. The copy ends when
/// it is dropped. It returns what the workspace has then: the job's own files share its limit.
pub(in crate::worker) fn begin_restore(
    ctx: &WorkerContext,
    image_id: &str,
    workspace: PathBuf,
) -> Result<BoxFuture<'static, Result<Copied, PlaceError>>, PlaceError> {
    let snapshots = Arc::clone(&ctx.snapshots);
    if !snapshots.is_known(image_id) {
        return Err(removed());
    }
    let max_bytes = ctx.workspace_limit.unwrap_or(u64::MAX);
    let request = CopyRequest {
        from: snapshots.dir.join(image_id).join(WORKSPACE_DIR),
        to: workspace,
        kind: CopyKind::Workspace,
        max_bytes,
        min_free: ctx.disk.min_free,
    };
    let (engine, init) = (ctx.engine.clone(), ctx.init.path().to_owned());
    let image_id = image_id.to_owned();
    let restored = async move {
        let copied = engine.copy_tree(&init, &request, COPY_TIMEOUT).await;
        // Without some of its files, when it was removed meanwhile.
        if !snapshots.is_known(&image_id) {
            return Err(removed());
        }
        let copied = copied.map_err(|error| place_error(error, max_bytes))?;
        tracing::debug!(
            image_id,
            bytes = copied.bytes,
            entries = copied.entries,
            "workspace of a snapshot copied"
        );
        Ok(copied)
    };
    Ok(restored.boxed())
}

fn removed() -> PlaceError {
    let reason = "the files of the snapshot are not on this node any more: it was removed or replaced; create the sandbox again, or make another snapshot";
    PlaceError::Invalid(reason.to_owned())
}

fn place_error(error: CopyError, limit: u64) -> PlaceError {
    match error {
        CopyError::TooLarge => PlaceError::TooLarge(format!(
            "the workspace of the snapshot needs more than the {} that a workspace may hold (--workspace-limit of the node)",
            ByteSize(limit)
        )),
        CopyError::NoSpace(reason) => PlaceError::NoSpace(format!(
            "the node's disk has no room for the workspace of the snapshot ({reason}); remove snapshots, or make room on the node"
        )),
        CopyError::Refused(reason) | CopyError::Failed(reason) => PlaceError::Failed(format!(
            "the workspace of the snapshot can't be copied: {reason}"
        )),
    }
}
