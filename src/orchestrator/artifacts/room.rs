//! Room for uploads and files of tasks: a part of the quota, of which old uploads are evicted.

use super::{AppState, content_error};
use crate::{
    api::{error::ApiError, time::Time},
    contents::{ContentError, ContentStore},
    identity::Caller,
    store::RoomRequest,
};
use std::time::Duration;

/// Part of the quota that only files take that tasks leave: one in this many. Else uploads, which can be sent again,
/// would keep results from being stored, which can't be made again.
const RESULTS_PART: u64 = 5;
/// Time for which an upload stays after it was sent: the task that needs it may be on its way.
const MIN_AGE: Duration = Duration::from_mins(5);
/// Removals after an eviction; the first may have begun before it.
const MAX_REMOVALS: usize = 2;

/// Store for uploads and files of tasks, which may fill a part of the quota.
pub(in crate::orchestrator) fn intake(state: &AppState) -> ContentStore {
    let contents = &state.contents;
    let quota = contents.limits().quota;
    contents.with_quota(quota.map(|quota| quota - quota / RESULTS_PART))
}

/// Fails where `bytes` more don't fit, also after old uploads were evicted.
pub(in crate::orchestrator) async fn make_room(
    state: &AppState,
    caller: &Caller,
    name: &str,
    bytes: u64,
) -> Result<(), ApiError> {
    let intake = intake(state);
    let mut checked = intake.ensure_room(bytes).await;
    if let Err(ContentError::QuotaExceeded { quota, used }) = checked
        && bytes <= quota
    {
        let request = RoomRequest {
            owner: caller.user.id,
            name: name.to_owned(),
            size: bytes,
            missing: used.saturating_add(bytes).saturating_sub(quota),
            quota,
            keep_since: Time::now().minus(MIN_AGE),
        };
        let evicted = state.store.artifacts_evict(request).await?;
        if evicted > 0 {
            tracing::info!(
                evicted,
                bytes,
                "old uploads deleted to make room for another"
            );
            for _ in 0..MAX_REMOVALS {
                state.contents_gc.remove_now().await;
                checked = intake.ensure_room(bytes).await;
                if checked.is_ok() {
                    break;
                }
            }
        }
    }
    checked.map_err(content_error)
}
