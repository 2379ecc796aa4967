//! Collection of results that were never fetched, and of what ended jobs left.
//!
//! A result that is older than `--result-retention` loses its log and its texts; after as long again the job is
//! forgotten. Where the disk of the jobs is short of space, logs go sooner.

use super::{
    context::WorkerContext,
    ledger::{Job, Ledger, Requester},
    orphans::remove_orphans,
    snapshots,
};
use crate::{
    api::{JobId, events::ResultEvent, time::Time},
    spool::Spool,
};
use std::{io, sync::Arc, time::Duration};
use tokio::task::spawn_blocking;

/// Interval of the collection.
const GC_INTERVAL: Duration = Duration::from_mins(10);

/// Collects old results for as long as the worker lives.
pub(super) async fn run_gc(ctx: Arc<WorkerContext>, ledger: Arc<Ledger>, retain: Duration) {
    let (engine, node_uuid) = (ctx.engine.clone(), ctx.node_uuid.clone());
    let jobs_dir = ctx.disk.jobs_dir.clone();
    loop {
        // A directory that took its place knows nothing of the jobs that run.
        if ctx.verify_data_dir().await.is_ok() {
            ctx.contents.make_room(0).await;
            ctx.egress.make_room().await;
            collect(&ctx, &ledger, retain).await;
            snapshots::clear_up(&ctx).await;
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
    let expired = spawn_blocking(move || shrink_results(&shared, &jobs, retain)).await;
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

/// Removes the log, and the texts of a result that is too old: a late request still learns how its job ended, and
/// none is run twice. The log goes first: on a full disk nothing can be written before.
fn shrink_result(spool: &Spool, last: &mut ResultEvent, is_old: bool) -> io::Result<()> {
    spool.delete_log()?;
    if !is_old || last.outline.is_empty() {
        return Ok(());
    }
    tracing::warn!(job = %last.result.job_id, "result was not fetched in time; removing its output");
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
