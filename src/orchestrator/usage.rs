//! Use of models: requests that have ended are collected here and written in batches, and read as sums.
//!
//! A request doesn't wait for the disk: [`UsageRecorder::record`] puts it into memory. The background task writes all
//! that wait in one commit, at once, so that those that end meanwhile share the next one. What the process had not
//! written when it was killed, a few milliseconds in general, is lost: this is accounting for people, not billing.

use super::AppState;
use crate::{
    api::{error::ApiError, usage::Usage},
    backoff::Backoff,
    errors,
    http::server::{Shutdown, shutdown_requested},
    identity::Caller,
    store::{Store, UsageFilter, UsageRecord},
    wait,
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Maximum number of records that wait, of about 500 bytes each. Further ones are dropped while the database fails.
const MAX_WAITING: usize = 20_000;
/// Maximum number of records in one commit, which other writes wait for.
const BATCH_LIMIT: usize = 500;
/// Longest wait of a reader for the records before it.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Backoff between attempts to write.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// Records of requests to models that have ended.
pub(super) struct UsageRecorder {
    waiting: Mutex<Vec<UsageRecord>>,
    /// Number of records so far, and number of those that were written or dropped.
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    recorded: u64,
    settled: u64,
}

impl Default for UsageRecorder {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
        }
    }
}

impl UsageRecorder {
    /// Records a request that has ended.
    pub(super) fn record(&self, record: UsageRecord) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= MAX_WAITING {
            drop(waiting);
            tracing::warn!(
                user = %record.user,
                "request to a model not recorded: the database takes no writes, and too many records wait"
            );
            return;
        }
        waiting.push(record);
        drop(waiting);
        self.progress.send_modify(|progress| progress.recorded += 1);
    }

    /// Waits until all records so far are written, at most for [`FLUSH_TIMEOUT`].
    async fn flushed(&self) {
        let mut progress = self.progress.subscribe();
        let target = progress.borrow().recorded;
        let settled = wait::until(&mut progress, |now| now.settled >= target);
        if tokio::time::timeout(FLUSH_TIMEOUT, settled).await.is_err() {
            tracing::debug!("sums of use are read before the latest requests are written");
        }
    }

    /// Writes the records that wait; false where the database failed, and they wait on.
    async fn write(&self, store: &Store) -> bool {
        loop {
            let batch: Vec<UsageRecord> = {
                let mut waiting = self.waiting.lock();
                let count = waiting.len().min(BATCH_LIMIT);
                waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                return true;
            }
            let count = batch.len() as u64;
            if let Err(error) = store.usage_add(batch.clone()).await {
                self.waiting.lock().splice(0..0, batch);
                let error = errors::chain(&error);
                tracing::warn!(error, count, "use of models can't be written; retrying");
                return false;
            }
            self.progress
                .send_modify(|progress| progress.settled += count);
        }
    }
}

/// Writes records until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    let recorder = &state.usage;
    let writes = async {
        let mut progress = recorder.progress.subscribe();
        let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
        loop {
            if recorder.write(&state.store).await {
                backoff.reset();
                let waits = |now: &Progress| now.settled < now.recorded;
                // The sender lives in `state`, so this can't fail.
                let _ = wait::until(&mut progress, waits).await;
            } else {
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    };
    tokio::select! {
        () = writes => {}
        () = shutdown_requested(shutdown) => {}
    }
}

/// Writes the last records, once no request is left.
pub(super) async fn write_rest(state: &AppState) {
    if !state.usage.write(&state.store).await {
        tracing::error!("use of models since the database failed is lost");
    }
}

/// Sums of use: of the caller, of all users for an admin.
pub(super) async fn list(
    state: &AppState,
    caller: &Caller,
    filter: UsageFilter,
) -> Result<Usage, ApiError> {
    state.usage.flushed().await;
    let (since, until) = (filter.since, filter.until);
    let (limit, offset) = (filter.limit, filter.offset);
    let filter = UsageFilter {
        owner: caller.visible_owner(),
        limit: limit + 1,
        ..filter
    };
    let mut usage = state.store.usage_list(caller.user.id, filter).await?;
    let has_more = usage.len() > limit as usize;
    usage.truncate(limit as usize);
    Ok(Usage {
        since,
        until,
        usage,
        next_cursor: if has_more {
            (offset + limit).to_string()
        } else {
            String::new()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{
            UserId,
            audit::{AuditAction, AuditEvent},
            time::Time,
            usage::{Day, UsageField},
        },
        store::NewUser,
    };

    const NOW: Time = Time::from_millis(1_790_000_000_000);

    fn record(user: UserId) -> UsageRecord {
        UsageRecord {
            user,
            key: None,
            task: None,
            model: "tiny".to_owned(),
            prompt_tokens: 1,
            completion_tokens: 2,
            event: AuditEvent::new(AuditAction::InferenceRequest, NOW, None),
        }
    }

    async fn requests(store: &Store) -> u64 {
        let filter = UsageFilter {
            owner: None,
            handle: None,
            since: Day::of(NOW),
            until: Day::of(NOW),
            by: vec![UsageField::Model],
            offset: 0,
            limit: 9,
        };
        let sums = store.usage_list(UserId::new(), filter).await.unwrap();
        sums.iter().map(|sum| sum.requests).sum()
    }

    #[tokio::test]
    async fn failed_write_keeps_records_in_order() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let recorder = UsageRecorder::default();
        // There is no such user, so the database refuses the record.
        recorder.record(record(UserId::new()));
        assert!(!recorder.write(&store).await);
        assert_eq!(recorder.waiting.lock().len(), 1);
        assert_eq!(recorder.progress.borrow().settled, 0);
    }

    #[tokio::test]
    async fn large_backlog_is_written_in_batches() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let new = NewUser {
            handle: "ann".to_owned(),
            password_hash: String::new(),
            email: None,
            is_admin: false,
        };
        let event = AuditEvent::new(AuditAction::UserCreate, NOW, None);
        let ann = store.user_create(new, None, event).await.unwrap().unwrap();
        let recorder = UsageRecorder::default();
        for _ in 0..=MAX_WAITING {
            recorder.record(record(ann.id));
        }
        assert_eq!(recorder.progress.borrow().recorded, MAX_WAITING as u64);
        recorder.waiting.lock().truncate(BATCH_LIMIT + 1);
        assert!(recorder.write(&store).await);
        assert!(recorder.waiting.lock().is_empty());
        assert_eq!(requests(&store).await, BATCH_LIMIT as u64 + 1);
    }
}
