//! Maintenance of the database: expired tasks are removed, free space goes back to the disk, a moved data
//! directory is noticed, and a database that failed is probed until it works again.

use super::AppState;
use crate::{
    api::time::Time,
    backoff::Backoff,
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::{Retention, Store, StoreError},
};
use std::{sync::Arc, time::Duration};

/// Interval between removals of expired tasks: a tenth of the retention time, within these limits.
const MAX_RETENTION_INTERVAL: Duration = Duration::from_secs(10);
const MIN_RETENTION_INTERVAL: Duration = Duration::from_millis(100);
/// Interval between checks of the path of the data directory.
const DATA_DIR_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Backoff between probes of a database that failed.
const INITIAL_PROBE_BACKOFF: Duration = Duration::from_secs(1);
const MAX_PROBE_BACKOFF: Duration = Duration::from_secs(15);

/// Runs all maintenance until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    tokio::select! {
        () = run_retention(&state.store, state.settings.retention) => {}
        () = recover_store(&state) => {}
        () = watch_data_dir(&state) => {}
        () = shutdown_requested(shutdown) => {}
    }
}

/// Records a storage fault when the data directory was moved or removed.
async fn watch_data_dir(state: &AppState) {
    loop {
        tokio::time::sleep(DATA_DIR_CHECK_INTERVAL).await;
        state.storage_fault();
    }
}

async fn run_retention(store: &Store, keep: Retention) {
    let tenth = keep.age.map_or(MAX_RETENTION_INTERVAL, |age| age / 10);
    let interval = tenth.clamp(MIN_RETENTION_INTERVAL, MAX_RETENTION_INTERVAL);
    loop {
        tokio::time::sleep(interval).await;
        if let Err(error) = remove_expired(store, keep).await {
            let error = errors::chain(&error);
            tracing::warn!(error, "expired tasks can't be removed; retrying");
        }
    }
}

/// Removes all expired tasks, and gives the space back.
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
        tracing::info!(tasks, "expired tasks removed");
    }
    while store.shrink().await? {}
    if let Err(error) = store.restore_ballast() {
        tracing::debug!(%error, "no space can be reserved for a start on a full disk");
    }
    Ok(())
}

/// Probes the database after a fault until it works, then wakes the scheduler.
async fn recover_store(state: &AppState) {
    let store = &state.store;
    loop {
        store.wait_for_fault().await;
        let mut backoff = Backoff::new(INITIAL_PROBE_BACKOFF, MAX_PROBE_BACKOFF);
        while store.storage_fault().is_some() {
            tokio::time::sleep(backoff.next_delay()).await;
            if state.anchors.verify().is_err() {
                // A probe would succeed, in a directory that the next start does not find.
                continue;
            }
            if let Err(error) = store.probe().await {
                tracing::debug!(
                    error = errors::chain(&error),
                    "database still fails; retrying"
                );
            }
        }
        state.jobs.wake.notify_one();
    }
}
