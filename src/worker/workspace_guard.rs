//! Stops a job that has more on disk than `--workspace-limit` allows to one.
//!
//! Project quotas would need a filesystem with them, root, and an id for each job that survives every crash; so what
//! a job has is measured, on any filesystem and without root. A measurement walks through all files, and is made when
//! one may be due: after free space has dropped by half of what the fullest job may still take, which is asked several
//! times a second and costs next to nothing, and else at an interval, since others may have freed space meanwhile. The
//! walks of all jobs together take at most a fifth of one processor.

use super::{context::WorkerContext, disk::StorageArea, disk_guard::measure, ledger::Job};
use crate::{
    engine::SandboxUsage,
    sandbox::{Overuse, StopReason},
    wait,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// Pause between two checks of the free space.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Time after which jobs are measured although no space is missing.
const MAX_INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a measurement, in multiples of the time that it took.
const PAUSE_FACTOR: u32 = 4;
/// Time limit of each part of a measurement; a job with more files than can be walked through in it is over its limit.
const WALK_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes free on the filesystems of jobs and of images.
type FreeSpace = [u64; 2];

/// Whether a job may have passed the limit since the last measurement, when the fullest had `largest` bytes.
fn is_due(limit: u64, largest: u64, before: FreeSpace, now: FreeSpace) -> bool {
    let dropped = before
        .iter()
        .zip(now)
        .map(|(before, now)| before.saturating_sub(now));
    let dropped = dropped.fold(0_u64, u64::saturating_add);
    dropped > limit.saturating_sub(largest) / 2
}

/// Bytes that a job has on disk.
fn used(usage: &SandboxUsage) -> u64 {
    usage.jobs.bytes.saturating_add(usage.images.bytes)
}

/// Guards the limit for as long as the worker lives.
pub(super) async fn run_workspace_guard(ctx: Arc<WorkerContext>, limit: u64) {
    let mut live = ctx.live.0.subscribe();
    let (mut before, mut largest) = (free_space(&ctx).await, 0);
    let mut measured_at = Instant::now();
    while wait::until(&mut live, |jobs| !jobs.is_empty())
        .await
        .is_ok()
    {
        sleep(CHECK_INTERVAL).await;
        let now = free_space(&ctx).await;
        // Space that was freed can be written again.
        before = [before[0].max(now[0]), before[1].max(now[1])];
        let is_overdue = measured_at.elapsed() > MAX_INTERVAL;
        if !is_overdue && !is_due(limit, largest, before, now) {
            continue;
        }
        let began = Instant::now();
        let jobs = live.borrow_and_update().clone();
        largest = stop_overfull(&ctx, &jobs, limit).await;
        // What a job wrote during its measurement counts as written after it.
        (before, measured_at) = (now, Instant::now());
        sleep(began.elapsed() * PAUSE_FACTOR).await;
    }
}

async fn free_space(ctx: &Arc<WorkerContext>) -> FreeSpace {
    let ctx = Arc::clone(ctx);
    let free = spawn_blocking(move || {
        [StorageArea::Jobs, StorageArea::Images].map(|area| {
            ctx.disk
                .dir(area)
                .space()
                .map_or(0, |space| space.bytes.free)
        })
    });
    free.await.unwrap_or_default()
}

/// Measures all jobs, and stops those that are over the limit. Returns the bytes of the fullest of the others.
async fn stop_overfull(ctx: &WorkerContext, jobs: &[Arc<Job>], limit: u64) -> u64 {
    let running: Vec<&Arc<Job>> = jobs.iter().filter(|job| !job.is_ending()).collect();
    let usages = join_all(running.iter().map(|job| measure(ctx, job, WALK_TIMEOUT))).await;
    let mut largest = 0;
    for (job, usage) in running.into_iter().zip(&usages) {
        let used = used(usage);
        if used <= limit {
            largest = largest.max(used);
            continue;
        }
        tracing::warn!(
            job = %job.accepted.job_id,
            used,
            limit,
            "job is over the limit of its workspace; stopping it"
        );
        let overuse = Overuse { used, limit };
        job.excess
            .send_replace(Some(StopReason::WorkspaceLimit(overuse)));
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn measurement_follows_writes() {
        assert!(!is_due(GIB, 0, [9 * GIB; 2], [9 * GIB - 1000; 2]));
        assert!(is_due(GIB, 0, [9 * GIB; 2], [8 * GIB, 9 * GIB]));
        assert!(is_due(GIB, GIB - 10, [9 * GIB; 2], [9 * GIB - 10; 2]));
        assert!(
            !is_due(GIB, 0, [9 * GIB; 2], [20 * GIB; 2]),
            "space was freed"
        );
    }

    proptest! {
        #[test]
        fn no_job_passes_limit_unseen(limit in 1..u64::MAX / 4, largest: u64, written in 0..u64::MAX / 4) {
            let largest = largest % limit;
            let before = [u64::MAX / 2; 2];
            // Nobody frees space.
            let now = [before[0] - written, before[1]];
            prop_assert!(is_due(limit, largest, before, now) || largest + written <= limit);
        }
    }
}
