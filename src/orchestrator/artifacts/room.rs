//! Room for uploads and files of tasks: a part of the quota, of which old uploads are evicted.

use super::{AppState, content_error};
use crate::{
    api::{UserId, error::ApiError, time::Time},
    contents::{ContentError, ContentStore},
    identity::Caller,
    store::{Evicted, RoomRequest, UnfinishedBytes},
};
use std::{collections::BTreeMap, io, time::Duration};
use tokio::task::spawn_blocking;

/// Part of the quota that only files take that tasks leave: one in this many. Else uploads, which can be sent again,
/// would keep results from being stored, which can't be made again.
pub(super) const RESULTS_PART: u64 = 5;
/// Part of the room that an upload reserves at most before it arrives: one in this many. Else uploads that are announced
/// and sent slowly would keep all others out.
const RESERVED_PART: u64 = 16;
/// Most bytes that an upload reserves where there is no quota.
const RESERVED_BYTES: u64 = 1 << 30;
/// Time for which an upload stays after it was sent: the task that needs it may be on its way.
const MIN_AGE: Duration = Duration::from_mins(5);
/// Removals after an eviction; the first may have begun before it.
const MAX_REMOVALS: usize = 2;

/// Content that is to be stored.
pub(in crate::orchestrator) struct Coming<'a> {
    /// Name of the upload; empty for what comes with a task.
    pub(in crate::orchestrator) name: &'a str,
    /// Name of its partial file.
    pub(in crate::orchestrator) key: Option<&'a str>,
    /// Bytes that have not arrived.
    pub(in crate::orchestrator) bytes: u64,
}

/// Store for uploads and files of tasks, which may fill a part of the quota.
pub(in crate::orchestrator) fn intake(state: &AppState) -> ContentStore {
    let contents = &state.contents;
    let quota = contents.limits().quota;
    let quota = quota.map(|quota| quota - quota / RESULTS_PART);
    let reserve_limit = quota.map_or(RESERVED_BYTES, |quota| quota / RESERVED_PART);
    contents.with_limits(quota, reserve_limit)
}

/// Fails where `coming` does not fit, also after old and unfinished uploads were evicted.
pub(in crate::orchestrator) async fn make_room(
    state: &AppState,
    caller: &Caller,
    coming: Coming<'_>,
) -> Result<(), ApiError> {
    let (intake, bytes) = (intake(state), coming.bytes);
    let mut checked = intake.ensure_room(bytes).await;
    if let Err(ContentError::QuotaExceeded { quota, used }) = checked
        && bytes <= quota
    {
        let key = coming.key.unwrap_or_default();
        let request = RoomRequest {
            owner: caller.user.id,
            name: coming.name.to_owned(),
            size: bytes,
            missing: used.saturating_add(bytes).saturating_sub(quota),
            quota,
            keep_since: Time::now().minus(MIN_AGE),
            unfinished: unfinished(state, key).await?,
        };
        let Evicted {
            uploads,
            unfinished,
        } = state.store.artifacts_evict(request).await?;
        let discarded = discard(state, key, unfinished).await?;
        if uploads > 0 || discarded > 0 {
            tracing::warn!(
                uploads,
                discarded,
                bytes,
                "old and unfinished uploads deleted to make room for another"
            );
            checked = intake.ensure_room(bytes).await;
        }
        let removals = if uploads > 0 { MAX_REMOVALS } else { 0 };
        for _ in 0..removals {
            if checked.is_ok() {
                break;
            }
            state.contents_gc.remove_now().await;
            checked = intake.ensure_room(bytes).await;
        }
    }
    checked.map_err(content_error)
}

/// Bytes of unfinished uploads of each user. The upload `key` does not go.
async fn unfinished(
    state: &AppState,
    key: &str,
) -> Result<BTreeMap<UserId, UnfinishedBytes>, ApiError> {
    let (contents, key) = (state.contents.clone(), key.to_owned());
    let summed = spawn_blocking(move || {
        let mut users: BTreeMap<UserId, UnfinishedBytes> = BTreeMap::new();
        for upload in contents.unfinished("")? {
            // Others are files that tasks left.
            let Some(owner) = owner(&upload.key) else {
                continue;
            };
            let bytes = users.entry(owner).or_default();
            bytes.all += upload.size_bytes;
            if upload.is_idle && upload.key != key {
                bytes.idle += upload.size_bytes;
            }
        }
        Ok::<_, io::Error>(users)
    });
    let summed = summed.await.map_err(ApiError::internal)?;
    summed.map_err(ApiError::internal)
}

/// User whose upload a key names.
fn owner(key: &str) -> Option<UserId> {
    /// Length of an id as text.
    const ID_LENGTH: usize = 36;
    key.get(..ID_LENGTH)?.parse().ok()
}

/// Removes the oldest unfinished uploads of users up to a number of bytes of each. Returns the number of uploads.
async fn discard(
    state: &AppState,
    kept: &str,
    chosen: BTreeMap<UserId, u64>,
) -> Result<usize, ApiError> {
    let (contents, kept) = (state.contents.clone(), kept.to_owned());
    let discarded = spawn_blocking(move || {
        let discard = |(user, bytes)| contents.discard_bytes(&format!("{user}-"), &kept, bytes);
        chosen.into_iter().map(discard).sum::<io::Result<usize>>()
    });
    let discarded = discarded.await.map_err(ApiError::internal)?;
    discarded.map_err(ApiError::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_their_owner() {
        let user = UserId::new();
        assert_eq!(owner(&format!("{user}-key-a")), Some(user));
        assert_eq!(owner("job-0198c0a0-0000-7000-8000-000000000000-1-0"), None);
        assert_eq!(owner("é"), None);
    }
}
