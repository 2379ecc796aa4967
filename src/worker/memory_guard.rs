//! Stops the job whose use of memory grew the most when the machine has less than `--reserve-memory` available.
//!
//! The kernel ends a process only when nothing is left, and until then it slows everything down; the node and the jobs
//! that behave should not notice. While jobs run, the available memory is read several times a second. Near the reserve
//! each sandbox is measured, too, so that its growth is known when one has to go ([`choose_victim`]). What an old one has
//! at its first measurement is no growth. A job that is faster than that is the kernel's: sandboxes are its first
//! choice.

use super::{context::WorkerContext, ledger::Job};
use crate::{
    api::JobId,
    background,
    engine::sandbox_memory,
    sandbox::{Overuse, StopReason},
    wait,
};
use futures_util::future::join_all;
use std::{
    collections::{HashMap, VecDeque},
    fs, mem,
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep},
};

/// Pause between two checks.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Shortest time between two questions to podman for the init of a sandbox.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(1);
/// Time after the first look at the sandboxes for which no job is stopped while the init of another is being looked up.
const LOOKUP_GRACE: Duration = Duration::from_secs(1);
/// Time over which growth is measured.
const GROWTH_WINDOW: Duration = Duration::from_secs(30);
/// Multiple of the reserve below which sandboxes are measured.
const WATCH_FACTOR: u64 = 3;
/// Bytes that a job has to have gained, or else to use, before it is stopped.
const MIN_VICTIM_BYTES: u64 = 16 << 20;
/// Part of what is missing that jobs together have to use: else they have not caused the shortage.
const MIN_CAUSE_DIVISOR: u64 = 2;
/// Checks after which the log says, once, that it is not a job that takes the memory.
const UNEXPLAINED_CHECKS: u32 = 8;

/// Use that a job makes of memory.
#[derive(Clone, Copy, Debug)]
struct MemoryUse {
    used: u64,
    /// Bytes that it gained within the window.
    growth: u64,
    /// It is stopping or has ended, and its memory will be free soon.
    is_ending: bool,
    /// It is canceled, and may go on until its grace is over.
    is_canceled: bool,
}

/// Samples of a sandbox.
#[derive(Default)]
struct Samples {
    init: Option<Init>,
    /// Question to podman for the init that is under way, and when the last one began.
    lookup: Option<JoinHandle<Option<Init>>>,
    looked_up_at: Option<Instant>,
    bytes: VecDeque<(Instant, u64)>,
}

/// Init of a sandbox.
#[derive(Clone, Copy, Debug)]
struct Init {
    pid: u32,
    /// Whether the sandbox began within the window before it was found.
    is_new: bool,
}

/// Index of the job that is to be stopped: of those that aren't ending the one that grew most, or, where none grew,
/// the one that uses most; canceled ones first. None while the memory of those that are ending makes up for what is missing, and none if all
/// jobs together, or this one alone, use so little that something else has taken the memory.
fn choose_victim(missing: u64, uses: &[MemoryUse]) -> Option<usize> {
    let sum = |is_ending: bool| {
        let part = uses.iter().filter(|job| job.is_ending == is_ending);
        part.fold(0_u64, |sum, job| sum.saturating_add(job.used))
    };
    let returning = sum(true);
    let is_explained = returning.saturating_add(sum(false)) >= missing / MIN_CAUSE_DIVISOR;
    if missing == 0 || returning >= missing || !is_explained {
        return None;
    }
    let running = || uses.iter().enumerate().filter(|(_, job)| !job.is_ending);
    let most = |amount: fn(&MemoryUse) -> u64| {
        let causes = running().filter(|(_, job)| amount(job) >= MIN_VICTIM_BYTES);
        let (index, _) = causes.max_by_key(|(_, job)| (job.is_canceled, amount(job)))?;
        Some(index)
    };
    most(|job| job.growth).or_else(|| most(|job| job.used))
}

/// Guards the reserve for as long as the worker lives.
pub(super) async fn run_memory_guard(ctx: Arc<WorkerContext>, reserve: u64) {
    let mut live = ctx.live.0.subscribe();
    let mut samples: HashMap<JobId, Samples> = HashMap::new();
    let mut unexplained = 0_u32;
    let mut watched_since = None;
    while wait::until(&mut live, |jobs| !jobs.is_empty())
        .await
        .is_ok()
    {
        sleep(CHECK_INTERVAL).await;
        let available = spawn_blocking(available_memory).await.ok().flatten();
        let Some(available) = available.filter(|free| *free < reserve.saturating_mul(WATCH_FACTOR))
        else {
            samples.clear();
            (unexplained, watched_since) = (0, None);
            continue;
        };
        let jobs = live.borrow_and_update().clone();
        let uses = sample(&ctx, &jobs, &mut samples).await;
        let since: Instant = *watched_since.get_or_insert_with(Instant::now);
        let is_known = samples.values().all(|samples| samples.lookup.is_none());
        if !is_known && since.elapsed() < LOOKUP_GRACE {
            // The one that grew may be among those that aren't measured yet.
            continue;
        }
        let missing = reserve.saturating_sub(available);
        let Some(index) = choose_victim(missing, &uses) else {
            let is_short = missing > 0 && !uses.iter().any(|job| job.is_ending && job.used > 0);
            unexplained = if is_short {
                unexplained.saturating_add(1)
            } else {
                0
            };
            if unexplained == UNEXPLAINED_CHECKS {
                tracing::warn!(
                    available,
                    reserve,
                    "memory is below its reserve, and no job uses much of it"
                );
            }
            continue;
        };
        let (job, used) = (&jobs[index], uses[index].used);
        tracing::warn!(
            job = %job.accepted.job_id,
            used,
            growth = uses[index].growth,
            available,
            reserve,
            "memory is below its reserve; stopping the job whose use grew the most"
        );
        let overuse = Overuse {
            used,
            limit: reserve,
        };
        job.excess
            .send_replace(Some(StopReason::OutOfMemory(overuse)));
    }
}

/// Measures all jobs, and forgets those that are gone.
async fn sample(
    ctx: &Arc<WorkerContext>,
    jobs: &[Arc<Job>],
    samples: &mut HashMap<JobId, Samples>,
) -> Vec<MemoryUse> {
    samples.retain(|id, _| jobs.iter().any(|job| job.accepted.job_id == *id));
    for job in jobs {
        let samples = samples.entry(job.accepted.job_id).or_default();
        samples.find_init(ctx, job).await;
    }
    let init_of = |job: &Arc<Job>| samples.get(&job.accepted.job_id)?.init;
    let measured = join_all(jobs.iter().map(|job| measure(init_of(job)))).await;
    let now = Instant::now();
    let uses = jobs.iter().zip(measured).map(|(job, used)| {
        let samples = samples.entry(job.accepted.job_id).or_default();
        MemoryUse {
            used: used.unwrap_or(0),
            growth: samples.growth_to(used, now),
            is_ending: job.is_ending(),
            is_canceled: job.is_canceled(),
        }
    });
    uses.collect()
}

/// Init of a job's sandbox; `None` while it has none.
async fn look_up_init(ctx: Arc<WorkerContext>, job: Arc<Job>) -> Option<Init> {
    let container =
        job.with_spool(|spool| Some((spool.container_name()?, spool.container_named_at())));
    let (container, began) = container.await.ok()??;
    let pid = ctx.engine.init_pid(&container).await?;
    // A clock that was set back makes it new, too.
    let age = began.and_then(|began| began.elapsed().ok());
    let is_new = age.is_none_or(|age| age < GROWTH_WINDOW);
    Some(Init { pid, is_new })
}

/// Bytes of memory that a sandbox has; `None` before it runs and after its end.
async fn measure(init: Option<Init>) -> Option<u64> {
    let Init { pid, .. } = init?;
    spawn_blocking(move || sandbox_memory(pid)).await.ok()?
}

impl Samples {
    /// Finds the init of a sandbox that isn't known yet, in the background: podman is slow when memory is short, and may
    /// not keep the guard from looking.
    async fn find_init(&mut self, ctx: &Arc<WorkerContext>, job: &Arc<Job>) {
        if let Some(lookup) = self.lookup.take_if(|lookup| lookup.is_finished()) {
            // One that panicked is in the log.
            self.init = lookup.await.ok().flatten();
        }
        let is_recent = |at: Instant| at.elapsed() < LOOKUP_INTERVAL;
        let is_needed = self.init.is_none() && self.lookup.is_none() && !job.has_ended();
        if is_needed && !self.looked_up_at.is_some_and(is_recent) {
            let lookup = look_up_init(Arc::clone(ctx), Arc::clone(job));
            self.lookup = Some(background::spawn("sandbox_init", lookup));
            self.looked_up_at = Some(Instant::now());
        }
    }

    /// Adds a sample, and returns the growth since the oldest within the window. What a sandbox has at its first one has
    /// grown before, unless it is new.
    fn growth_to(&mut self, used: Option<u64>, now: Instant) -> u64 {
        let (Some(used), Some(init)) = (used, &mut self.init) else {
            // A job that is started again has another init.
            self.init = None;
            self.bytes.clear();
            return 0;
        };
        while let Some((at, _)) = self.bytes.front()
            && now.duration_since(*at) > GROWTH_WINDOW
        {
            self.bytes.pop_front();
        }
        if self.bytes.is_empty() {
            let before = if mem::take(&mut init.is_new) { 0 } else { used };
            self.bytes.push_back((now, before));
        }
        let before = self.bytes.front().map_or(used, |(_, bytes)| *bytes);
        self.bytes.push_back((now, used));
        used.saturating_sub(before)
    }
}

/// Bytes that the kernel can give to programs without swapping (proc(5)).
pub(super) fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn uses(list: &[(u64, u64, bool)]) -> Vec<MemoryUse> {
        let uses = list.iter();
        uses.map(|&(used, growth, is_ending)| MemoryUse {
            used: used * MIB,
            growth: growth * MIB,
            is_ending,
            is_canceled: false,
        })
        .collect()
    }

    #[test]
    fn job_that_grew_most_is_ended() {
        let choose = |list: &[_]| choose_victim(100 * MIB, &uses(list));
        assert_eq!(choose(&[]), None);
        assert_eq!(choose(&[(9000, 10, false), (300, 200, false)]), Some(1));
        assert_eq!(
            choose(&[(9000, 3, false), (300, 2, false)]),
            Some(0),
            "none grew"
        );
        assert_eq!(choose(&[(15, 15, false)]), None, "the job is not the cause");
        assert_eq!(
            choose(&[(300, 200, false), (500, 400, true)]),
            None,
            "it ends already"
        );
        assert_eq!(choose(&[(300, 200, false), (50, 400, true)]), Some(0));
        assert_eq!(choose_victim(0, &uses(&[(300, 200, false)])), None);
    }

    #[test]
    fn canceled_job_goes_before_others() {
        let mut uses = uses(&[(900, 300, false), (300, 200, false), (8, 8, false)]);
        uses[1].is_canceled = true;
        uses[2].is_canceled = true;
        assert_eq!(choose_victim(100 * MIB, &uses), Some(1));
    }

    #[test]
    fn growth_counts_within_window() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut samples = samples(false);
        let mut growth = |used, seconds| samples.growth_to(Some(used), at(seconds));
        assert_eq!(growth(100, 0), 0, "it may have grown long ago");
        assert_eq!(growth(150, 20), 50);
        assert_eq!(growth(160, 40), 10);
        assert_eq!(growth(90, 41), 0);
        assert!(available_memory().unwrap() > 0);
    }

    fn samples(is_new: bool) -> Samples {
        Samples {
            init: Some(Init { pid: 1, is_new }),
            ..Samples::default()
        }
    }

    #[test]
    fn all_of_new_sandbox_has_grown() {
        let start = Instant::now();
        let mut samples = samples(true);
        assert_eq!(samples.growth_to(Some(100), start), 100);
        assert_eq!(samples.growth_to(Some(150), start), 150);
        let later = start + GROWTH_WINDOW + Duration::from_secs(1);
        assert_eq!(samples.growth_to(Some(160), later), 0);
    }

    #[test]
    fn unknown_init_leaves_no_sample() {
        let start = Instant::now();
        let mut samples = samples(false);
        assert_eq!(samples.growth_to(None, start), 0);
        assert!(samples.init.is_none() && samples.bytes.is_empty());
        samples.init = Some(Init {
            pid: 1,
            is_new: false,
        });
        assert_eq!(samples.growth_to(Some(9000), start), 0);
    }

    proptest! {
        #[test]
        fn only_running_job_of_weight_is_chosen(
            missing: u64,
            list in proptest::collection::vec((0..1_u64 << 40, 0..1_u64 << 40, any::<bool>()), 0..8),
        ) {
            let uses: Vec<_> = list.iter().map(|&(used, growth, is_ending)| MemoryUse {
                used, growth: growth.min(used), is_ending, is_canceled: false,
            }).collect();
            if let Some(index) = choose_victim(missing, &uses) {
                let victim = uses[index];
                prop_assert!(!victim.is_ending && victim.used >= MIN_VICTIM_BYTES);
                let others = uses.iter().filter(|job| !job.is_ending);
                let most = others.map(|job| job.growth).max().unwrap_or(0);
                prop_assert!(victim.growth == most || most < MIN_VICTIM_BYTES);
            }
        }
    }
}
