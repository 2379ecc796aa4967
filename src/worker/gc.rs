//! What is kept of jobs that have ended, for how long, and what goes sooner when room is short.

use super::{
    context::WorkerContext,
    ledger::{Job, Ledger, Requester},
    recovery::remove_orphans,
};
use crate::{
    api::{JobId, events::ResultEvent, time::Time},
    spool::Spool,
};
use std::{io, path::PathBuf, sync::Arc, time::Duration};

/// How often old results are looked for.
const GC_INTERVAL: Duration = Duration::from_mins(10);

/// Where jobs are kept, and for how long.
#[derive(Clone, Debug)]
pub struct StorageSettings {
    /// Where each job has its directory; in the data directory when `None`.
    pub jobs_dir: Option<PathBuf>,
    /// Bytes to keep free where jobs, images and state are, and as large a share of the inodes: below
    /// that no job is taken.
    pub min_free: u64,
    /// Bytes that are kept of each job's log.
    pub log_bytes: u64,
    /// How long a result is kept that nobody fetches.
    pub retain: Duration,
    /// How long an image is kept that this node pulled and no job uses; `None`: for ever.
    pub image_gc: Option<Duration>,
}

impl Default for StorageSettings {
    fn default() -> Self {
        Self {
            jobs_dir: None,
            min_free: 512 << 20,
            log_bytes: 64 << 20,
            retain: Duration::from_hours(30 * 24),
            image_gc: Some(Duration::from_hours(30 * 24)),
        }
    }
}

/// Collects the results that were not fetched for `retain`, for as long as the worker lives: logs and texts
/// first, so that for as long again a late request learns how its job ended and none is run twice.
pub(super) async fn run_gc(ctx: Arc<WorkerContext>, ledger: Arc<Ledger>, retain: Duration) {
    let (engine, node_uuid) = (ctx.engine.clone(), ctx.node_uuid.clone());
    let jobs_dir = ctx.disk.jobs_dir.clone();
    loop {
        // Another directory in the place of ours knows nothing of the jobs that run.
        if ctx.verify_data_dir().await.is_ok() {
            collect(&ctx, &ledger, retain).await;
        }
        tokio::select! {
            () = tokio::time::sleep(GC_INTERVAL) => {}
            () = engine.wait_for_recovery() => {}
            () = engine.wait_for_unremoved_container() => {}
        }
        if ctx.verify_data_dir().await.is_err() {
            continue;
        }
        if let Err(error) = remove_orphans(&engine, &node_uuid, &jobs_dir).await {
            tracing::warn!(%error, "orphaned containers not listed; retrying");
        }
    }
}

async fn collect(ctx: &Arc<WorkerContext>, ledger: &Arc<Ledger>, retain: Duration) {
    let (shared, jobs) = (Arc::clone(ctx), ledger.jobs());
    let expired = tokio::task::spawn_blocking(move || shrink_results(&shared, &jobs, retain)).await;
    let expired = expired.unwrap_or_else(|error| {
        tracing::error!(%error, "collection of old results panicked; retrying");
        Vec::new()
    });
    for id in expired.into_iter().chain(ledger.ended_surplus()) {
        // A failure is logged, and the next round tries again.
        let _ = ledger.forget(Requester::Gc, id, None).await;
    }
}

/// Makes ended jobs smaller, and has the trees removed that they left. Returns the jobs that are to be forgotten.
fn shrink_results(ctx: &WorkerContext, jobs: &[Arc<Job>], retain: Duration) -> Vec<JobId> {
    let now = Time::now();
    let mut is_full = ctx.disk.is_jobs_dir_short();
    let mut expired = Vec::new();
    for job in jobs.iter().filter(|job| job.has_ended()) {
        let Ok(Some(mut last)) = job.spool.result() else {
            continue;
        };
        let age = now.since(last.result.ended_at);
        let id = job.accepted.job_id;
        if age >= retain.saturating_mul(2) {
            tracing::warn!(job = %id, "result was never fetched and is too old; forgetting the job");
            expired.push(id);
        } else if age >= retain || is_full {
            if let Err(error) = shrink_result(&job.spool, &mut last, age >= retain) {
                tracing::warn!(job = %id, %error, "log of an ended job not removed; retrying");
            }
            is_full = is_full && ctx.disk.is_jobs_dir_short();
        }
    }
    if let Err(error) = ctx.trash.add_uppers(&ctx.disk.jobs_dir) {
        tracing::warn!(%error, "upper directories of ended jobs not listed; retrying");
    }
    ctx.trash.retry();
    expired
}

/// Lets go of the log, and of a result's texts where it is too old. The log first: on a full disk
/// nothing can be written before.
fn shrink_result(spool: &Spool, last: &mut ResultEvent, is_old: bool) -> io::Result<()> {
    spool.delete_log()?;
    if !is_old || last.outline.is_empty() {
        return Ok(());
    }
    tracing::warn!(job = %last.result.job_id, "of a result that nobody fetched only its end is kept");
    last.outline.clear();
    let result = &mut last.result;
    let streams = [
        (&mut result.stdout, &mut result.truncated.stdout),
        (&mut result.stderr, &mut result.truncated.stderr),
    ];
    for (text, is_cut) in streams {
        *is_cut |= !text.is_empty();
        text.clear();
    }
    spool.write_result(last)
}
