//! Stops the job that takes a disk of the node below its reserve.
//!
//! While jobs run, the free space of the node's filesystems is checked several times a second, which costs
//! next to nothing. Only where it is below `--min-free-disk`, each sandbox is measured: its directory and
//! the files that its container wrote elsewhere. The job that uses most is stopped with the reason;
//! [`choose_victim`] decides. Its space counts as returning until it is cleared away, so that no other job is
//! stopped for the same shortage.

use super::{
    context::WorkerContext,
    disk::{Disk, StorageArea},
    ledger::Job,
    measure::measure,
};
use crate::{
    disk_space::{Resource, Shortage},
    engine::SandboxUsage,
    sandbox::{Excess, StopReason},
    wait,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// Pause between two checks of the free space.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Pause after a measurement, in multiples of the time that it took.
const PAUSE_FACTOR: u32 = 4;
/// Checks after which the log says, once, that it is not a job that fills the disk.
const UNEXPLAINED_CHECKS: u32 = 3;
/// Time limit of each part of a measurement; a part that exceeds it counts as unbounded.
const WALK_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that a job has to use before it is stopped.
const MIN_VICTIM_BYTES: u64 = 16 << 20;
/// Inodes that a job has to use before it is stopped.
const MIN_VICTIM_INODES: u64 = 1024;
/// Of a small reserve, the part that a job has to use before it is stopped.
const MIN_VICTIM_RESERVE_DIVISOR: u64 = 4;
/// Part of what is missing that jobs together have to use: else they have not caused the shortage.
const MIN_CAUSE_DIVISOR: u64 = 2;

/// Jobs that have, or may still have, something on disk.
#[derive(Clone, Default)]
pub(super) struct LiveJobs(pub(super) watch::Sender<Vec<Arc<Job>>>);

/// Entry of a job in [`LiveJobs`]. Dropped once nothing of the job is left on disk that will go.
pub(super) struct LiveJob {
    jobs: LiveJobs,
    pub(super) job: Arc<Job>,
}

impl LiveJobs {
    /// Lists a job until the last clone of the entry is dropped.
    pub(super) fn register(&self, job: &Arc<Job>) -> Arc<LiveJob> {
        self.0.send_modify(|jobs| jobs.push(Arc::clone(job)));
        Arc::new(LiveJob {
            jobs: self.clone(),
            job: Arc::clone(job),
        })
    }

    /// All jobs.
    pub(super) fn jobs(&self) -> Vec<Arc<Job>> {
        self.0.borrow().clone()
    }

    /// Number of jobs.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.borrow().len()
    }
}

impl Drop for LiveJob {
    fn drop(&mut self) {
        let is_other = |job: &Arc<Job>| !Arc::ptr_eq(job, &self.job);
        self.jobs.0.send_modify(|jobs| jobs.retain(is_other));
    }
}

/// Use that a job makes of the resource that is short.
#[derive(Clone, Copy, Debug)]
struct JobUsage {
    used: u64,
    /// It is stopping or has ended, and its space will be free soon.
    is_ending: bool,
    /// It is canceled, and may go on until its grace is over.
    is_canceled: bool,
}

/// Index of the job that is to be stopped: of those that aren't ending the one that uses most, canceled ones first. None while the space
/// of those that are ending makes up for what is missing; and none if all together, or this one alone, use so little
/// that something other than jobs has filled the disk.
fn choose_victim(shortage: &Shortage, uses: &[JobUsage]) -> Option<usize> {
    let sum = |is_ending: bool| {
        let part = uses.iter().filter(|job| job.is_ending == is_ending);
        part.fold(0_u64, |sum, job| sum.saturating_add(job.used))
    };
    let missing = shortage.missing();
    let returning = sum(true);
    if returning >= missing || returning.saturating_add(sum(false)) < missing / MIN_CAUSE_DIVISOR {
        return None;
    }
    let least = match shortage.of {
        Resource::Bytes => MIN_VICTIM_BYTES,
        Resource::Inodes => MIN_VICTIM_INODES,
    };
    let least = least
        .min(shortage.reserve / MIN_VICTIM_RESERVE_DIVISOR)
        .max(1);
    let running = uses.iter().enumerate().filter(|(_, job)| !job.is_ending);
    let causes = running.filter(|(_, job)| job.used >= least);
    let (index, _) = causes.max_by_key(|(_, job)| (job.is_canceled, job.used))?;
    Some(index)
}

/// Guards the disks for as long as the worker lives.
pub(super) async fn run_disk_guard(ctx: Arc<WorkerContext>) {
    let mut live = ctx.live.0.subscribe();
    // Checks in a row that found a shortage which no job explains; one alone may come from a job that just went.
    let mut unexplained = 0_u32;
    while wait::until(&mut live, |jobs| !jobs.is_empty())
        .await
        .is_ok()
    {
        sleep(CHECK_INTERVAL).await;
        let shared = Arc::clone(&ctx);
        let filesystems = spawn_blocking(move || short_filesystems(&shared.disk)).await;
        let filesystems = filesystems.unwrap_or_default();
        if filesystems.is_empty() {
            unexplained = 0;
            continue;
        }
        // What is cached can be had again, so it goes before a job does.
        ctx.contents.make_room(0).await;
        ctx.egress.make_room().await;
        let began = Instant::now();
        let jobs = live.borrow_and_update().clone();
        let usages = join_all(jobs.iter().map(|job| measure(&ctx, job, WALK_TIMEOUT))).await;
        let usages: Vec<_> = usages.into_iter().map(Option::unwrap_or_default).collect();
        if is_relieved(&filesystems, &jobs, &usages) {
            unexplained = 0;
        } else {
            unexplained = unexplained.saturating_add(1);
        }
        if unexplained == UNEXPLAINED_CHECKS {
            tracing::warn!(
                "disk is below its reserve, and no job uses much of it; see /readyz for the directory"
            );
        }
        sleep(began.elapsed() * PAUSE_FACTOR).await;
    }
}

/// A filesystem with less free space than its reserve.
struct ShortFilesystem {
    shortage: Shortage,
    /// One of the areas on it, for the log.
    area: StorageArea,
    has_jobs: bool,
    has_images: bool,
}

/// Filesystems that are short, each once, though several areas may be on it.
fn short_filesystems(disk: &Disk) -> Vec<ShortFilesystem> {
    let device_of = |area| disk.dir(area).device().ok();
    let (jobs, images) = (device_of(StorageArea::Jobs), device_of(StorageArea::Images));
    let mut devices = Vec::new();
    let mut filesystems = Vec::new();
    for (dir, shortage) in disk.shortages() {
        let device = dir.device().ok();
        if device.is_none() || !devices.contains(&device) {
            devices.push(device);
            filesystems.push(ShortFilesystem {
                shortage,
                area: dir.area,
                has_jobs: device.is_some() && device == jobs,
                has_images: device.is_some() && device == images,
            });
        }
    }
    filesystems
}

/// Stops jobs until one was stopped, whose space may be missing on other filesystems, too. Returns whether jobs
/// explain a shortage, and give back space.
fn is_relieved(
    filesystems: &[ShortFilesystem],
    jobs: &[Arc<Job>],
    usages: &[SandboxUsage],
) -> bool {
    let mut is_explained = false;
    for filesystem in filesystems {
        let relief = relieve(filesystem, jobs, usages);
        is_explained |= relief != Relief::None;
        if relief == Relief::Started {
            break;
        }
    }
    is_explained
}

/// Outcome of a check of one short filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relief {
    /// Jobs do not explain the shortage.
    None,
    /// Jobs that are ending will give back space.
    Pending,
    /// A job was stopped.
    Started,
}

/// Stops the job that causes most of a shortage, if there is one.
fn relieve(filesystem: &ShortFilesystem, jobs: &[Arc<Job>], usages: &[SandboxUsage]) -> Relief {
    let shortage = &filesystem.shortage;
    let uses: Vec<JobUsage> = jobs
        .iter()
        .zip(usages)
        .map(|(job, usage)| JobUsage {
            used: filesystem.used_by(usage),
            is_ending: job.is_ending(),
            is_canceled: job.is_canceled(),
        })
        .collect();
    let Some(index) = choose_victim(shortage, &uses) else {
        let is_pending = uses.iter().any(|job| job.is_ending && job.used > 0);
        return if is_pending {
            Relief::Pending
        } else {
            Relief::None
        };
    };
    let (job, used) = (&jobs[index], uses[index].used);
    tracing::warn!(
        job = %job.accepted.job_id,
        place = filesystem.area.as_str(),
        used = shortage.of.amount(used),
        free = shortage.of.amount(shortage.free),
        reserve = shortage.of.amount(shortage.reserve),
        "disk is below its reserve; stopping the job that uses most of it"
    );
    job.excess.send_replace(Some(StopReason::OutOfDisk(Excess {
        of: shortage.of,
        used,
        reserve: shortage.reserve,
    })));
    Relief::Started
}

impl ShortFilesystem {
    /// Amount of the missing resource that a sandbox uses here.
    fn used_by(&self, usage: &SandboxUsage) -> u64 {
        let parts = [(self.has_jobs, usage.jobs), (self.has_images, usage.images)];
        let parts = parts.iter().filter(|(is_here, _)| *is_here);
        // The disk is short: what a job may hide counts.
        let parts = parts.map(|(_, part)| part.worst_case());
        parts.fold(0_u64, |sum, part| {
            sum.saturating_add(match self.shortage.of {
                Resource::Bytes => part.bytes,
                Resource::Inodes => part.inodes,
            })
        })
    }
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
        uses.map(|&(used, is_ending)| JobUsage {
            used,
            is_ending,
            is_canceled: false,
        })
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
        assert_eq!(
            choose_victim(&[(15 * MIB, false)]),
            None,
            "the job is not the cause"
        );
        assert_eq!(
            choose_victim(&[(20 * MIB, false); 3]),
            None,
            "the jobs are not the cause"
        );
        assert_eq!(
            choose_victim(&[(40 * MIB, false); 12]),
            Some(11),
            "together the jobs are the cause"
        );
        assert_eq!(
            choose_victim(&[(20 * MIB, false), (900 * MIB, true)]),
            None,
            "the ending job frees enough space"
        );
        assert_eq!(
            choose_victim(&[(20 * MIB, false), (300 * MIB, true)]),
            Some(0),
            "the ending job doesn't free enough space"
        );
    }

    #[test]
    fn canceled_job_goes_before_others() {
        let mut uses = uses(&[(300 * MIB, false), (200 * MIB, false), (MIB, false)]);
        uses[1].is_canceled = true;
        uses[2].is_canceled = true;
        let short = short_of(100 * MIB, 512 * MIB);
        assert_eq!(choose_victim(&short, &uses), Some(1));
        uses[1].is_ending = true;
        assert_eq!(
            choose_victim(&short, &uses),
            Some(0),
            "what the canceled job has left is too little"
        );
    }

    #[test]
    fn small_reserve_lowers_victim_size() {
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
