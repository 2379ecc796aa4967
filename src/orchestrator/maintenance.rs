//! Maintenance of the database: expired tasks are removed, free space goes back to the disk, a moved data
//! directory is noticed, and a database that failed is probed until it works again.

use super::AppState;
use crate::{
    api::{JobId, time::Time},
    backoff::Backoff,
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::{Retention, StoreError},
};
use std::{io, sync::Arc, time::Duration};
use tokio::task::spawn_blocking;

/// Interval between removals of expired tasks: a tenth of the retention time, within these limits.
const MAX_RETENTION_INTERVAL: Duration = Duration::from_secs(10);
const MIN_RETENTION_INTERVAL: Duration = Duration::from_millis(100);
/// Longest interval between removals of kept logs that are too old, each of which lists them all.
const MAX_LOG_RETENTION_INTERVAL: Duration = Duration::from_mins(10);
/// Interval between checks of the path of the data directory.
const DATA_DIR_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Backoff between probes of a database that failed.
const INITIAL_PROBE_BACKOFF: Duration = Duration::from_secs(1);
const MAX_PROBE_BACKOFF: Duration = Duration::from_secs(15);

/// Runs all maintenance until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    tokio::select! {
        () = run_deletions(&state) => {}
        () = recover_store(&state) => {}
        () = watch_data_dir(&state) => {}
        () = shutdown_requested(shutdown) => {}
    }
}

/// Removes what has expired, except in a drill.
async fn run_deletions(state: &AppState) {
    if state.settings.drill {
        return std::future::pending().await;
    }
    tokio::join!(run_retention(state), run_log_retention(state));
}

/// Records a storage fault when the data directory was moved or removed.
async fn watch_data_dir(state: &AppState) {
    loop {
        tokio::time::sleep(DATA_DIR_CHECK_INTERVAL).await;
        state.storage_fault();
    }
}

async fn run_retention(state: &AppState) {
    let keep = state.settings.retention;
    let tenth = keep.age.map_or(MAX_RETENTION_INTERVAL, |age| age / 10);
    let interval = tenth.clamp(MIN_RETENTION_INTERVAL, MAX_RETENTION_INTERVAL);
    loop {
        tokio::time::sleep(interval).await;
        if let Err(error) = remove_expired(state, keep).await {
            let error = errors::chain(&error);
            tracing::warn!(error, "expired tasks can't be removed; retrying");
        }
    }
}

/// Removes the kept logs of unknown jobs, which a killed process left, and from then on those that are too old.
async fn run_log_retention(state: &AppState) {
    if let Err(error) = remove_unknown_logs(state).await {
        let error = errors::chain(&error);
        tracing::warn!(
            error,
            "kept logs of deleted tasks not removed; the next start tries again"
        );
    }
    let Some(age) = state.settings.logs.age else {
        return std::future::pending().await;
    };
    let interval = (age / 10).clamp(MIN_RETENTION_INTERVAL, MAX_LOG_RETENTION_INTERVAL);
    loop {
        tokio::time::sleep(interval).await;
        let archive = Arc::clone(&state.log_archive);
        let expired = spawn_blocking(move || {
            let expired = archive.expired(Time::now())?;
            archive.remove(&expired);
            Ok::<_, io::Error>(expired.len())
        });
        match expired.await.map_err(io::Error::from).flatten() {
            Ok(0) => {}
            Ok(logs) => tracing::info!(logs, "expired logs removed"),
            Err(error) => tracing::warn!(%error, "expired logs can't be removed; retrying"),
        }
    }
}

async fn remove_unknown_logs(state: &AppState) -> Result<(), UnknownLogsError> {
    let archive = Arc::clone(&state.log_archive);
    let jobs = spawn_blocking(move || archive.jobs()).await;
    let jobs = jobs.map_err(io::Error::from).flatten()?;
    let unknown = state.store.jobs_unknown(jobs).await?;
    remove_logs(state, unknown).await;
    Ok(())
}

async fn remove_logs(state: &AppState, jobs: Vec<JobId>) {
    let archive = Arc::clone(&state.log_archive);
    if let Err(error) = spawn_blocking(move || archive.remove(&jobs)).await {
        tracing::warn!(%error, "kept logs not removed");
    }
}

/// Failure to find the kept logs of unknown jobs.
#[derive(Debug, thiserror::Error)]
enum UnknownLogsError {
    #[error("the directory of kept logs can't be read")]
    Directory(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Removes all expired tasks with their kept logs, and gives the space back.
async fn remove_expired(state: &AppState, keep: Retention) -> Result<(), StoreError> {
    let store = &state.store;
    let mut tasks = 0;
    loop {
        let expired = store.expired_delete(keep, Time::now()).await?;
        tasks += expired.tasks;
        if !expired.jobs.is_empty() {
            remove_logs(state, expired.jobs).await;
        }
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
