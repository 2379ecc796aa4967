//! What is kept of jobs that have ended, for how long, and what goes sooner when room is short.

use super::{context::WorkerContext, ledger::Ledger, recovery::remove_orphans};
use crate::{
    api::{events::ResultEvent, time::Time},
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

/// Lets go of what nobody has fetched for `retain`, for as long as the worker lives: logs and texts
/// first, so that for as long again a late request hears how its job ended and none is run twice.
pub(super) async fn run_gc(ctx: Arc<WorkerContext>, ledger: Arc<Ledger>, retain: Duration) {
    let (engine, node_uuid) = (ctx.engine.clone(), ctx.node_uuid.clone());
    let jobs_dir = ctx.disk.jobs_dir.clone();
    loop {
        // What stands in the place of a data directory that is gone knows nothing of the jobs that run.
        if ctx.anchors.verify().is_ok() {
            let (ctx, ledger) = (Arc::clone(&ctx), Arc::clone(&ledger));
            let round = tokio::task::spawn_blocking(move || collect(&ctx, &ledger, retain));
            if round.await.is_err() {
                tracing::error!("looking for old results failed; the lines above say where");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(GC_INTERVAL) => {}
            () = engine.wait_for_recovery() => {}
            () = engine.wait_for_unremoved_container() => {}
        }
        if ctx.anchors.verify().is_err() {
            continue;
        }
        if let Err(error) = remove_orphans(&engine, &node_uuid, &jobs_dir).await {
            tracing::warn!(%error, "what earlier jobs may have left can't be looked for; it is tried again");
        }
    }
}

fn collect(ctx: &WorkerContext, ledger: &Ledger, retain: Duration) {
    let now = Time::now();
    let mut is_full = ctx.disk.is_jobs_dir_short();
    for job in ledger.list().into_iter().filter(|job| job.has_ended()) {
        let Ok(Some(mut last)) = job.spool.result() else {
            continue;
        };
        let age = now.since(last.result.ended_at);
        let id = job.accepted.job_id;
        if age >= retain.saturating_mul(2) {
            tracing::warn!(job = %id, "a result that nobody fetched is forgotten");
            // Should that fail, the next round tries again.
            let _ = ledger.forget(id, None);
        } else if age >= retain || is_full {
            if let Err(error) = shrink_result(&job.spool, &mut last, age >= retain) {
                tracing::warn!(job = %id, %error, "what a job left could not be made smaller");
            }
            is_full = is_full && ctx.disk.is_jobs_dir_short();
        }
    }
    if let Err(error) = ctx.trash.add_uppers(&ctx.disk.jobs_dir) {
        tracing::warn!(%error, "what ended jobs left can't be looked for; trying again");
    }
    ctx.trash.retry();
    for id in ledger.ended_surplus() {
        let _ = ledger.forget(id, None);
    }
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
