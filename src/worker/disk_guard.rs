//! Ends the job that takes the node's disk below its reserve.
//!
//! While jobs run, the room on the node's filesystems is looked at several times a second, which costs
//! next to nothing. Only where it is below `--min-free-disk` each sandbox is measured: its directory and
//! what its container wrote elsewhere. The one that grew most since its start, which is what it takes up
//! now, is ended with the reason; [`choose`] says when. Its room counts as coming back until it is cleared
//! away, so that no other job is ended for the same shortage.

use super::{
    disk::{Place, Purpose},
    job::Workshop,
    ledger::Job,
};
use crate::{
    disk_space::{Resource, Shortage},
    engine::SandboxUsage,
    shim::Excess,
    wait,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// Between two looks at the room.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// So many times longer than a measurement took is the pause after it.
const PAUSE_FACTOR: u32 = 4;
/// After so many looks the log says, once, that it is not a job that fills the disk.
const UNEXPLAINED_LOOKS: u32 = 3;
/// A job that uses less is never ended for want of room.
const INNOCENT_BYTES: u64 = 16 << 20;
/// The same for inodes.
const INNOCENT_INODES: u64 = 1024;
/// Of a reserve that is small itself, a job that uses less than this part of it is never ended.
const INNOCENT_PART: u64 = 4;
/// Jobs that together use less than this part of what is missing have not caused the shortage.
const CAUSE_PART: u64 = 2;

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
    pub(super) fn enter(&self, job: &Arc<Job>) -> Arc<LiveJob> {
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
struct Use {
    used: u64,
    /// It is ending or has ended, and its room will be free soon.
    is_ending: bool,
}

/// Which job is to be ended, by its place in the list: of those that aren't ending already the one that
/// uses most. None while the room of those that are ending makes up for what is missing. None, either, if all
/// together, or this one alone, use so little that something other than jobs has filled the disk.
fn choose(shortage: &Shortage, uses: &[Use]) -> Option<usize> {
    let sum = |is_ending: bool| {
        let part = uses.iter().filter(|job| job.is_ending == is_ending);
        part.fold(0_u64, |sum, job| sum.saturating_add(job.used))
    };
    let missing = shortage.missing();
    let coming = sum(true);
    if coming >= missing || coming.saturating_add(sum(false)) < missing / CAUSE_PART {
        return None;
    }
    let innocent = match shortage.of {
        Resource::Bytes => INNOCENT_BYTES,
        Resource::Inodes => INNOCENT_INODES,
    };
    let least = innocent.min(shortage.reserve / INNOCENT_PART).max(1);
    let going = uses.iter().enumerate().filter(|(_, job)| !job.is_ending);
    let (index, largest) = going.max_by_key(|(_, job)| job.used)?;
    (largest.used >= least).then_some(index)
}

/// Watches the room for as long as it is awaited.
pub(super) async fn run(shop: Arc<Workshop>) {
    let mut live = shop.live.0.subscribe();
    // Looks in a row for whose shortage no job accounts; of one alone, the job's room may just have come back.
    let mut unexplained = 0_u32;
    loop {
        if wait::until(&mut live, |jobs| !jobs.is_empty())
            .await
            .is_err()
        {
            return;
        }
        sleep(LOOK_INTERVAL).await;
        let shortages = by_device(&shop);
        if shortages.is_empty() {
            unexplained = 0;
            continue;
        }
        let began = Instant::now();
        let jobs = live.borrow_and_update().clone();
        let usages = join_all(jobs.iter().map(|job| measure(&shop, job))).await;
        let mut is_explained = false;
        for (place, shortage) in shortages {
            let relief = relieve(&shop, place, &shortage, &jobs, &usages);
            is_explained |= relief != Relief::None;
            if relief == Relief::Begun {
                // Its room may be missing elsewhere, too: the next look will tell.
                break;
            }
        }
        unexplained = if is_explained {
            0
        } else {
            unexplained.saturating_add(1)
        };
        if unexplained == UNEXPLAINED_LOOKS {
            tracing::warn!(
                "disk is below its reserve, and no job uses much of it; see /readyz for the directory"
            );
        }
        sleep(began.elapsed() * PAUSE_FACTOR).await;
    }
}

/// Each short filesystem once, by one of the places on it.
fn by_device(shop: &Workshop) -> Vec<(&Place, Shortage)> {
    let mut devices = Vec::new();
    let mut shortages = Vec::new();
    for (place, shortage) in shop.disk.shortages() {
        let device = place.device().ok();
        if device.is_none_or(|device| !devices.contains(&device)) {
            devices.extend(device);
            shortages.push((place, shortage));
        }
    }
    shortages
}

async fn measure(shop: &Workshop, job: &Job) -> SandboxUsage {
    let container = job.spool.container();
    let measured = shop
        .engine
        .measure(shop.init.path(), job.spool.path(), container.as_deref());
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
    Coming,
    /// A job was told to end.
    Begun,
}

/// Has the job end that accounts most for a shortage, if there is one.
fn relieve(
    shop: &Workshop,
    place: &Place,
    shortage: &Shortage,
    jobs: &[Arc<Job>],
    usages: &[SandboxUsage],
) -> Relief {
    let is_on = |purpose| {
        let device = shop.disk.place(purpose).device();
        matches!((device, place.device()), (Ok(one), Ok(other)) if one == other)
    };
    let (holds_jobs, holds_images) = (is_on(Purpose::Jobs), is_on(Purpose::Images));
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
    let uses: Vec<Use> = jobs
        .iter()
        .zip(usages)
        .map(|(job, usage)| Use {
            used: used(usage),
            is_ending: is_ending(job),
        })
        .collect();
    let Some(index) = choose(shortage, &uses) else {
        let is_coming = uses.iter().any(|job| job.is_ending && job.used > 0);
        return if is_coming {
            Relief::Coming
        } else {
            Relief::None
        };
    };
    let (job, used) = (&jobs[index], uses[index].used);
    tracing::warn!(
        job = %job.accepted.job_id,
        place = place.purpose.as_str(),
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
    Relief::Begun
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

    fn uses(list: &[(u64, bool)]) -> Vec<Use> {
        let uses = list.iter();
        uses.map(|&(used, is_ending)| Use { used, is_ending })
            .collect()
    }

    #[test]
    fn largest_job_is_ended() {
        let short = short_of(100 * MIB, 512 * MIB);
        let choose = |list: &[_]| choose(&short, &uses(list));
        assert_eq!(choose(&[]), None);
        assert_eq!(choose(&[(20 * MIB, false), (900 * MIB, false)]), Some(1));
        assert_eq!(choose(&[(15 * MIB, false)]), None, "not its fault");
        assert_eq!(choose(&[(20 * MIB, false); 3]), None, "nor theirs");
        assert_eq!(
            choose(&[(40 * MIB, false); 12]),
            Some(11),
            "together they are"
        );
        assert_eq!(
            choose(&[(20 * MIB, false), (900 * MIB, true)]),
            None,
            "its room comes back"
        );
        assert_eq!(
            choose(&[(20 * MIB, false), (300 * MIB, true)]),
            Some(0),
            "which isn't enough"
        );
    }

    #[test]
    fn small_reserve_spares_less() {
        assert_eq!(
            choose(&short_of(5 * MIB, 8 * MIB), &uses(&[(2 * MIB, false)])),
            Some(0)
        );
        assert_eq!(
            choose(&short_of(7 * MIB, 8 * MIB), &uses(&[(MIB, false)])),
            None
        );
    }

    proptest! {
        #[test]
        fn only_the_largest_that_is_not_ending_is_chosen(
            free: u64,
            reserve: u64,
            list in proptest::collection::vec((any::<u64>(), any::<bool>()), 0..8),
            of in prop_oneof![Just(Resource::Bytes), Just(Resource::Inodes)],
        ) {
            let shortage = Shortage { of, free: free.min(reserve), reserve };
            let uses = uses(&list);
            let sum = |list: &mut dyn Iterator<Item = &Use>| {
                list.fold(0_u64, |sum, job| sum.saturating_add(job.used))
            };
            let all = sum(&mut uses.iter());
            let coming = sum(&mut uses.iter().filter(|job| job.is_ending));
            let missing = shortage.missing();
            match choose(&shortage, &uses) {
                Some(index) => {
                    prop_assert!(!uses[index].is_ending && uses[index].used > 0);
                    prop_assert!(uses.iter().all(|job| job.is_ending || job.used <= uses[index].used));
                    prop_assert!(coming < missing && all >= missing / CAUSE_PART);
                }
                None => prop_assert!(
                    coming >= missing
                        || all < missing / CAUSE_PART
                        || uses.iter().all(|job| job.is_ending || job.used < INNOCENT_BYTES)
                ),
            }
        }
    }
}
