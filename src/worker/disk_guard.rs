//! Ends the job that takes the node's disk below its reserve.
//!
//! While jobs run, the room on the node's filesystems is looked at several times a second, which costs
//! next to nothing. Only where it is below `--min-free-disk` each sandbox is measured: its directory and
//! what its container wrote elsewhere. The one that grew most since its start, which is what it takes up
//! now, is ended with the reason; [`choose_victim`] says when. Its room counts as coming back until it is cleared
//! away, so that no other job is ended for the same shortage.

use super::{
    context::WorkerContext,
    disk::{StorageArea, StorageDir},
    ledger::Job,
};
use crate::{
    disk_space::{Resource, Shortage},
    engine::SandboxUsage,
    sandbox::Excess,
    wait,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// Between two looks at the room.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// So many times longer than a measurement took is the pause after it.
const PAUSE_FACTOR: u32 = 4;
/// After so many looks the log says, once, that it is not a job that fills the disk.
const UNEXPLAINED_CHECKS: u32 = 3;
/// A job that uses less is never ended for want of room.
const MIN_VICTIM_BYTES: u64 = 16 << 20;
/// The same for inodes.
const MIN_VICTIM_INODES: u64 = 1024;
/// Of a reserve that is small itself, a job that uses less than this part of it is never ended.
const MIN_VICTIM_RESERVE_DIVISOR: u64 = 4;
/// Jobs that together use less than this part of what is missing have not caused the shortage.
const MIN_CAUSE_DIVISOR: u64 = 2;

/// Jobs that have, or may still have, something on disk.
#[derive(Clone, Default)]
pub(super) struct LiveJobs(watch::Sender<Vec<Arc<Job>>>);

/// Takes a job off the list when dropped: once nothing of it is left on disk that will go.
pub(super) struct LiveJob {
    jobs: LiveJobs,
    pub(super) job: Arc<Job>,
}

impl LiveJobs {
    /// Lists a job until the answer, and what shares it, is dropped.
    pub(super) fn register(&self, job: &Arc<Job>) -> Arc<LiveJob> {
        self.0.send_modify(|jobs| jobs.push(Arc::clone(job)));
        Arc::new(LiveJob {
            jobs: self.clone(),
            job: Arc::clone(job),
        })
    }

    /// Number of jobs on the list.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.borrow().len()
    }
}

impl Drop for LiveJob {
    fn drop(&mut self) {
        let left = |job: &Arc<Job>| !Arc::ptr_eq(job, &self.job);
        self.jobs.0.send_modify(|jobs| jobs.retain(left));
    }
}

/// What a job uses of that of which there is a shortage.
#[derive(Clone, Copy, Debug)]
struct JobUsage {
    used: u64,
    /// It is ending or has ended, and its room will be free soon.
    is_ending: bool,
}

/// Which job is to be ended, by its place in the list: of those that aren't ending already the one that
/// uses most. None while the room of those that are ending makes up for what is missing. None, either, if all
/// together, or this one alone, use so little that something other than jobs has filled the disk.
fn choose_victim(shortage: &Shortage, uses: &[JobUsage]) -> Option<usize> {
    let sum = |is_ending: bool| {
        let part = uses.iter().filter(|job| job.is_ending == is_ending);
        part.fold(0_u64, |sum, job| sum.saturating_add(job.used))
    };
    let missing = shortage.missing();
    let coming = sum(true);
    if coming >= missing || coming.saturating_add(sum(false)) < missing / MIN_CAUSE_DIVISOR {
        return None;
    }
    let innocent = match shortage.of {
        Resource::Bytes => MIN_VICTIM_BYTES,
        Resource::Inodes => MIN_VICTIM_INODES,
    };
    let least = innocent
        .min(shortage.reserve / MIN_VICTIM_RESERVE_DIVISOR)
        .max(1);
    let going = uses.iter().enumerate().filter(|(_, job)| !job.is_ending);
    let (index, largest) = going.max_by_key(|(_, job)| job.used)?;
    (largest.used >= least).then_some(index)
}

/// Watches the room for as long as it is awaited.
pub(super) async fn run_disk_guard(ctx: Arc<WorkerContext>) {
    let mut live = ctx.live.0.subscribe();
    // Looks in a row for whose shortage no job accounts; of one alone, the job's room may just have come back.
    let mut unexplained = 0_u32;
    loop {
        if wait::until(&mut live, |jobs| !jobs.is_empty())
            .await
            .is_err()
        {
            return;
        }
        sleep(CHECK_INTERVAL).await;
        let shortages = shortages_by_device(&ctx);
        if shortages.is_empty() {
            unexplained = 0;
            continue;
        }
        let began = Instant::now();
        let jobs = live.borrow_and_update().clone();
        let usages = join_all(jobs.iter().map(|job| measure(&ctx, job))).await;
        let mut is_explained = false;
        for (dir, shortage) in shortages {
            let relief = relieve(&ctx, dir, &shortage, &jobs, &usages);
            is_explained |= relief != Relief::None;
            if relief == Relief::Started {
                // Its room may be missing elsewhere, too: the next look will tell.
                break;
            }
        }
        unexplained = if is_explained {
            0
        } else {
            unexplained.saturating_add(1)
        };
        if unexplained == UNEXPLAINED_CHECKS {
            tracing::warn!(
                "disk is below its reserve, and no job uses much of it; see /readyz for the directory"
            );
        }
        sleep(began.elapsed() * PAUSE_FACTOR).await;
    }
}

/// Each short filesystem once, by one of the places on it.
fn shortages_by_device(ctx: &WorkerContext) -> Vec<(&StorageDir, Shortage)> {
    let mut devices = Vec::new();
    let mut shortages = Vec::new();
    for (dir, shortage) in ctx.disk.shortages() {
        let device = dir.device().ok();
        if device.is_none_or(|device| !devices.contains(&device)) {
            devices.extend(device);
            shortages.push((dir, shortage));
        }
    }
    shortages
}

async fn measure(ctx: &WorkerContext, job: &Job) -> SandboxUsage {
    let container = job.spool.container_name();
    let measured = ctx
        .engine
        .measure(ctx.init.path(), job.spool.path(), container.as_deref());
    measured.await.unwrap_or_else(|error| {
        tracing::warn!(job = %job.accepted.job_id, %error, "a sandbox can't be measured");
        SandboxUsage::default()
    })
}

/// Outcome of one look at a shortage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relief {
    /// Jobs don't account for it.
    None,
    /// Jobs that are ending will give room.
    Pending,
    /// A job was told to end.
    Started,
}

/// Has the job end that accounts most for a shortage, if there is one.
fn relieve(
    ctx: &WorkerContext,
    dir: &StorageDir,
    shortage: &Shortage,
    jobs: &[Arc<Job>],
    usages: &[SandboxUsage],
) -> Relief {
    let is_on = |purpose| {
        let device = ctx.disk.dir(purpose).device();
        matches!((device, dir.device()), (Ok(one), Ok(other)) if one == other)
    };
    let (holds_jobs, holds_images) = (is_on(StorageArea::Jobs), is_on(StorageArea::Images));
    let used = |usage: &SandboxUsage| {
        let parts = [(holds_jobs, usage.jobs), (holds_images, usage.images)];
        let parts = parts.iter().filter(|(is_on, _)| *is_on);
        parts.fold(0_u64, |sum, (_, part)| {
            sum.saturating_add(match shortage.of {
                Resource::Bytes => part.bytes,
                Resource::Inodes => part.inodes,
            })
        })
    };
    let is_ending =
        |job: &Job| job.has_ended() || *job.cancel.borrow() || job.excess.borrow().is_some();
    let uses: Vec<JobUsage> = jobs
        .iter()
        .zip(usages)
        .map(|(job, usage)| JobUsage {
            used: used(usage),
            is_ending: is_ending(job),
        })
        .collect();
    let Some(index) = choose_victim(shortage, &uses) else {
        let is_coming = uses.iter().any(|job| job.is_ending && job.used > 0);
        return if is_coming {
            Relief::Pending
        } else {
            Relief::None
        };
    };
    let (job, used) = (&jobs[index], uses[index].used);
    tracing::warn!(
        job = %job.accepted.job_id,
        place = dir.area.as_str(),
        used = shortage.of.amount(used),
        free = shortage.of.amount(shortage.free),
        reserve = shortage.of.amount(shortage.reserve),
        "disk is below its reserve; ending the job that uses most of it"
    );
    job.excess.send_replace(Some(Excess {
        of: shortage.of,
        used,
        reserve: shortage.reserve,
    }));
    Relief::Started
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn short_of(free: u64, reserve: u64) -> Shortage {
        Shortage {
            of: Resource::Bytes,
            free,
            reserve,
        }
    }

    fn uses(list: &[(u64, bool)]) -> Vec<JobUsage> {
        let uses = list.iter();
        uses.map(|&(used, is_ending)| JobUsage { used, is_ending })
            .collect()
    }

    #[test]
    fn largest_job_is_ended() {
        let short = short_of(100 * MIB, 512 * MIB);
        let choose_victim = |list: &[_]| choose_victim(&short, &uses(list));
        assert_eq!(choose_victim(&[]), None);
        assert_eq!(
            choose_victim(&[(20 * MIB, false), (900 * MIB, false)]),
            Some(1)
        );
        assert_eq!(choose_victim(&[(15 * MIB, false)]), None, "not its fault");
        assert_eq!(choose_victim(&[(20 * MIB, false); 3]), None, "nor theirs");
        assert_eq!(
            choose_victim(&[(40 * MIB, false); 12]),
            Some(11),
            "together they are"
        );
        assert_eq!(
            choose_victim(&[(20 * MIB, false), (900 * MIB, true)]),
            None,
            "its room comes back"
        );
        assert_eq!(
            choose_victim(&[(20 * MIB, false), (300 * MIB, true)]),
            Some(0),
            "which isn't enough"
        );
    }

    #[test]
    fn small_reserve_spares_less() {
        assert_eq!(
            choose_victim(&short_of(5 * MIB, 8 * MIB), &uses(&[(2 * MIB, false)])),
            Some(0)
        );
        assert_eq!(
            choose_victim(&short_of(7 * MIB, 8 * MIB), &uses(&[(MIB, false)])),
            None
        );
    }

    proptest! {
        #[test]
        fn largest_running_job_is_chosen(
            free: u64,
            reserve: u64,
            list in proptest::collection::vec((any::<u64>(), any::<bool>()), 0..8),
            of in prop_oneof![Just(Resource::Bytes), Just(Resource::Inodes)],
        ) {
            let shortage = Shortage { of, free: free.min(reserve), reserve };
            let uses = uses(&list);
            let sum = |list: &mut dyn Iterator<Item = &JobUsage>| {
                list.fold(0_u64, |sum, job| sum.saturating_add(job.used))
            };
            let all = sum(&mut uses.iter());
            let coming = sum(&mut uses.iter().filter(|job| job.is_ending));
            let missing = shortage.missing();
            match choose_victim(&shortage, &uses) {
                Some(index) => {
                    prop_assert!(!uses[index].is_ending && uses[index].used > 0);
                    prop_assert!(uses.iter().all(|job| job.is_ending || job.used <= uses[index].used));
                    prop_assert!(coming < missing && all >= missing / MIN_CAUSE_DIVISOR);
                }
                None => prop_assert!(
                    coming >= missing
                        || all < missing / MIN_CAUSE_DIVISOR
                        || uses.iter().all(|job| job.is_ending || job.used < MIN_VICTIM_BYTES)
                ),
            }
        }
    }
}
