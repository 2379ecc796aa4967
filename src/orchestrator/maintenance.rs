//! What an orchestrator does for its store beside all work: forgets what is not kept any more,
//! gives the room back, and sees when a data directory goes away and when a disk that failed is well again.

use super::AppState;
use crate::{
    api::time::Time,
    backoff::Backoff,
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::{Retention, Store, StoreError},
};
use std::{sync::Arc, time::Duration};

/// Between two looks for what is not kept any more. So late may a task be forgotten.
const MAX_RETENTION_INTERVAL: Duration = Duration::from_secs(10);
const MIN_RETENTION_INTERVAL: Duration = Duration::from_millis(100);
/// How often the data directory is looked at.
const DATA_DIR_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Backoff between two probes.
const INITIAL_PROBE_BACKOFF: Duration = Duration::from_secs(1);
const MAX_PROBE_BACKOFF: Duration = Duration::from_secs(15);

/// Runs until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    tokio::select! {
        () = run_retention(&state.store, state.settings.retention) => {}
        () = recover_store(&state) => {}
        () = watch_data_dir(&state) => {}
        () = shutdown_requested(shutdown) => {}
    }
}

/// Notes when the data directory is no more where it was.
async fn watch_data_dir(state: &AppState) {
    loop {
        tokio::time::sleep(DATA_DIR_CHECK_INTERVAL).await;
        state.storage_fault();
    }
}

/// Looks at a pace that goes with how long tasks are kept.
async fn run_retention(store: &Store, keep: Retention) {
    let pace = keep.age.map_or(MAX_RETENTION_INTERVAL, |age| age / 10);
    loop {
        tokio::time::sleep(pace.clamp(MIN_RETENTION_INTERVAL, MAX_RETENTION_INTERVAL)).await;
        if let Err(error) = remove_expired(store, keep).await {
            let error = errors::chain(&error);
            tracing::warn!(error, "what is not kept any more can't be forgotten now");
        }
    }
}

/// Forgets all that is to go, and gives back what that leaves.
async fn remove_expired(store: &Store, keep: Retention) -> Result<(), StoreError> {
    let mut tasks = 0;
    loop {
        let expired = store.expired_delete(keep, Time::now()).await?;
        tasks += expired.tasks;
        if !expired.more {
            break;
        }
    }
    if tasks > 0 {
        tracing::info!(tasks, "finished tasks were forgotten");
    }
    while store.shrink().await? {}
    if let Err(error) = store.restore_ballast() {
        tracing::debug!(%error, "no room can be kept for a start on a full disk");
    }
    Ok(())
}

/// Probes a store in trouble with growing backoff, and has work go on once it is well.
async fn recover_store(state: &AppState) {
    let store = &state.store;
    loop {
        store.wait_for_fault().await;
        let mut backoff = Backoff::new(INITIAL_PROBE_BACKOFF, MAX_PROBE_BACKOFF);
        while store.storage_fault().is_some() {
            tokio::time::sleep(backoff.next_delay()).await;
            if state.anchors.verify().is_err() {
                // It can be written well enough, where nobody finds it.
                continue;
            }
            if let Err(error) = store.probe().await {
                tracing::debug!(error = errors::chain(&error), "the store is not well yet");
            }
        }
        state.jobs.wake.notify_one();
    }
}
