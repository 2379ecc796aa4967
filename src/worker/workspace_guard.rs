//! Stops a job that has more on disk than `--workspace-limit` allows to one.
//!
//! Project quotas would need a filesystem with them, root, and an id for each job that survives every crash; so what
//! a job has is measured, on any filesystem and without root. A measurement walks through all files, and is made when
//! one may be due: after free space has dropped by half of what the job may still take, which is asked several
//! times a second and costs next to nothing, and else at an interval, since others may have freed space meanwhile. The
//! walks of all jobs together take about a fifth of one processor.
//!
//! Of some files the size can't be known, such as those whose descriptors are in transit through a socket, which
//! ordinary programs have, too. A job with such files is over its limit only when it stays that way, and the space that
//! is missing since its last whole measurement could be its own.

use super::{context::WorkerContext, disk::StorageArea, ledger::Job, measure::measure};
use crate::{
    api::JobId,
    engine::SandboxUsage,
    sandbox::{Overuse, StopReason},
    wait,
};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// Pause between two checks of the free space.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Time after which jobs are measured although no space is missing.
const MAX_INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a measurement, in multiples of the time that it took and of the number of jobs.
const PAUSE_FACTOR: u32 = 4;
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(80);
/// Measurements in a row that may fail, or leave open whether the job is over its limit: then it is.
const MAX_FAILURES: u32 = 5;
/// Time limit of each part of a measurement; a job with more files than can be walked through in it is over its limit.
const WALK_TIMEOUT: Duration = Duration::from_secs(20);
/// A measurement of a job, which began at a time.
type Walk = (Arc<Job>, Instant, Option<SandboxUsage>);
/// Bytes free on the filesystems of jobs and of images; 0 for the second where both are the same.
type FreeSpace = [u64; 2];

/// Whether a job may have passed the limit since its last measurement, when it had `largest` bytes.
fn is_due(limit: u64, largest: u64, before: FreeSpace, now: FreeSpace) -> bool {
    dropped(before, now) > limit.saturating_sub(largest) / 2
}

/// Bytes that are missing since `before`.
fn dropped(before: FreeSpace, now: FreeSpace) -> u64 {
    let parts = before.iter().zip(now);
    let parts = parts.map(|(before, now)| before.saturating_sub(now));
    parts.fold(0, u64::saturating_add)
}

/// Bytes that a job is known to have on disk.
fn used(usage: &SandboxUsage) -> u64 {
    usage.jobs.bytes.saturating_add(usage.images.bytes)
}

/// Guards the limit for as long as the worker lives.
pub(super) async fn run_workspace_guard(ctx: Arc<WorkerContext>, limit: u64) {
    let mut live = ctx.live.0.subscribe();
    let mut guarded: HashMap<(JobId, u32), Guarded> = HashMap::new();
    let mut walks: FuturesUnordered<BoxFuture<'_, Walk>> = FuturesUnordered::new();
    let is_one = areas_share_device(&ctx).await;
    loop {
        let has_jobs = |jobs: &Vec<_>| !jobs.is_empty();
        if walks.is_empty() && wait::until(&mut live, has_jobs).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(CHECK_INTERVAL) => {}
            Some((job, began, usage)) = walks.next() => {
                let jobs = u32::try_from(guarded.len()).unwrap_or(u32::MAX);
                if let Some(state) = guarded.get_mut(&key_of(&job)) {
                    // While podman works for nothing, no job is to blame.
                    let is_blamed = ctx.engine.health_error().is_none();
                    state.end(usage, is_blamed, limit, (began, Instant::now()), jobs);
                    stop_overfull(&job, state.used, limit);
                }
                continue;
            }
        }
        let free = free_space(&ctx, is_one).await;
        let mut jobs = live.borrow_and_update().clone();
        jobs.retain(|job| !job.is_ending());
        guarded.retain(|key, _| jobs.iter().any(|job| key_of(job) == *key));
        for job in jobs {
            let now = Instant::now();
            let state = guarded.entry(key_of(&job));
            let state = state.or_insert_with(|| Guarded::new(free, now));
            if state.begin(limit, free, now) {
                let ctx = &ctx;
                walks.push(
                    async move {
                        let usage = measure(ctx, &job, WALK_TIMEOUT).await;
                        (job, now, usage)
                    }
                    .boxed(),
                );
            }
        }
    }
}

fn key_of(job: &Job) -> (JobId, u32) {
    (job.accepted.job_id, job.accepted.attempt)
}

/// State of a job, which has a pause of its own: one that is slow to measure delays no other.
#[derive(Debug)]
struct Guarded {
    /// Bytes that it had at least; `u64::MAX` where it can't be measured.
    used: u64,
    /// Free space at the last measurement.
    before: FreeSpace,
    /// Bytes that it had at the last measurement of all files, and the free space then.
    whole: (u64, FreeSpace),
    /// Free space now.
    free: FreeSpace,
    measured_at: Instant,
    paused_until: Instant,
    is_in_walk: bool,
    /// Measurements in a row that failed.
    failures: u32,
}

impl Guarded {
    fn new(before: FreeSpace, now: Instant) -> Self {
        Self {
            used: 0,
            before,
            whole: (0, before),
            free: before,
            measured_at: now,
            paused_until: now,
            is_in_walk: false,
            failures: 0,
        }
    }

    /// Whether the job is to be measured now; its measurement has begun then.
    fn begin(&mut self, limit: u64, free: FreeSpace, now: Instant) -> bool {
        self.free = free;
        // Space that was freed can be written again.
        for before in [&mut self.before, &mut self.whole.1] {
            *before = [before[0].max(free[0]), before[1].max(free[1])];
        }
        if self.is_in_walk || now < self.paused_until {
            return false;
        }
        let is_overdue = now.duration_since(self.measured_at) > MAX_INTERVAL;
        if !is_overdue && !is_due(limit, self.used, self.before, free) {
            return false;
        }
        // Bytes written during a measurement count as written after it.
        (self.before, self.is_in_walk) = (free, true);
        true
    }

    /// Ends a measurement; `usage` is `None` where it failed, which counts against the job when it `is_blamed`.
    fn end(
        &mut self,
        usage: Option<SandboxUsage>,
        is_blamed: bool,
        limit: u64,
        (began, now): (Instant, Instant),
        jobs: u32,
    ) {
        let pause = (now - began).saturating_mul(PAUSE_FACTOR.saturating_mul(jobs));
        (self.measured_at, self.paused_until) = (now, now + pause.min(MAX_PAUSE));
        self.is_in_walk = false;
        let is_failed = match usage {
            Some(usage) => {
                self.used = used(&usage);
                let is_partial = usage.jobs.is_partial || usage.images.is_partial;
                if !is_partial {
                    self.whole = (self.used, self.before);
                }
                is_partial && self.may_be_over(limit)
            }
            None if is_blamed => true,
            None => return,
        };
        if !is_failed {
            self.failures = 0;
            return;
        }
        self.failures += 1;
        if self.failures >= MAX_FAILURES {
            self.used = u64::MAX;
        }
    }

    /// Whether the job is over its limit if all space that is missing since its last whole measurement is its own.
    fn may_be_over(&self, limit: u64) -> bool {
        let (used, before) = self.whole;
        used.saturating_add(dropped(before, self.free)) > limit
    }
}

/// Whether jobs and images share a filesystem.
async fn areas_share_device(ctx: &Arc<WorkerContext>) -> bool {
    let ctx = Arc::clone(ctx);
    let is_one = spawn_blocking(move || {
        let device = |area| ctx.disk.dir(area).device().ok();
        let jobs = device(StorageArea::Jobs);
        jobs.is_some() && jobs == device(StorageArea::Images)
    });
    is_one.await.unwrap_or_default()
}

async fn free_space(ctx: &Arc<WorkerContext>, is_one: bool) -> FreeSpace {
    let ctx = Arc::clone(ctx);
    let free = spawn_blocking(move || {
        let dirs = [StorageArea::Jobs, StorageArea::Images].map(|area| ctx.disk.dir(area));
        let [jobs, images] = dirs.map(|dir| dir.space().map_or(0, |space| space.bytes.free));
        [jobs, if is_one { 0 } else { images }]
    });
    free.await.unwrap_or_default()
}

/// Stops a job that is over the limit.
fn stop_overfull(job: &Job, used: u64, limit: u64) {
    if used <= limit || job.is_ending() {
        return;
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

    #[test]
    fn slow_job_is_paused_alone_and_failures_end_it() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut job = Guarded::new([9 * GIB; 2], start);
        assert!(!job.begin(GIB, [9 * GIB; 2], at(1)));
        assert!(job.begin(GIB, [9 * GIB; 2], at(6)), "overdue");
        assert!(!job.begin(GIB, [0; 2], at(7)), "under way");
        job.end(Some(usage(5, false)), true, GIB, (at(6), at(8)), 2);
        assert!(!job.begin(GIB, [0; 2], at(23)), "2 s are paid for with 16");
        assert!(job.begin(GIB, [0; 2], at(24)));
        for _ in 0..MAX_FAILURES {
            assert_eq!(job.used, 5);
            job.end(None, false, GIB, (at(24), at(24)), 1);
            job.end(None, true, GIB, (at(24), at(24)), 1);
        }
        assert_eq!(job.used, u64::MAX);
        job.end(Some(usage(7, false)), true, GIB, (at(24), at(24)), 1);
        assert_eq!(job.used, 7);
    }

    fn usage(bytes: u64, is_partial: bool) -> SandboxUsage {
        let mut usage = SandboxUsage::default();
        (usage.jobs.bytes, usage.images.is_partial) = (bytes, is_partial);
        usage
    }

    #[test]
    fn unknown_files_count_once_space_is_missing() {
        let start = Instant::now();
        let mut job = Guarded::new([9 * GIB, 0], start);
        let end = |job: &mut Guarded, is_partial| {
            let measured = Some(usage(GIB / 2, is_partial));
            job.end(measured, true, GIB, (start, start), 1);
        };
        assert!(job.begin(GIB, [8 * GIB, 0], start));
        end(&mut job, false);
        for _ in 0..3 * MAX_FAILURES {
            end(&mut job, true);
        }
        assert_eq!(job.used, GIB / 2, "nothing is missing");
        assert!(job.begin(GIB, [7 * GIB, 0], start));
        for _ in 1..MAX_FAILURES {
            end(&mut job, true);
            assert_eq!(job.used, GIB / 2, "it may be in transit for a moment");
        }
        let mut hidden = job;
        end(&mut hidden, true);
        assert_eq!(hidden.used, u64::MAX);
        end(&mut hidden, false);
        assert_eq!((hidden.used, hidden.failures), (GIB / 2, 0));
        end(&mut hidden, true);
        assert_eq!(hidden.failures, 0, "others have taken the space");
    }

    proptest! {
        #[test]
        fn no_job_passes_limit_unseen(limit in 1..u64::MAX / 4, largest: u64, written in 0..u64::MAX / 4) {
            let largest = largest % limit;
            let before = [u64::MAX / 2; 2];
            // No space is freed.
            let now = [before[0] - written, before[1]];
            prop_assert!(is_due(limit, largest, before, now) || largest + written <= limit);
        }
    }
}
