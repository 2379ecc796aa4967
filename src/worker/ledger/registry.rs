//! Jobs and tombstones of a worker in memory, and every decision about them.
//!
//! Nothing here reads, writes or waits. A change that has to reach the disk first is begun
//! ([`admit`](Registry::admit), [`forget`](Registry::forget)), written by the [ledger](super) without its lock, and
//! then [accepted](Registry::accept), [removed](Registry::remove) or [aborted](Registry::abort). Meanwhile the id is
//! *busy*: every call about the same job waits for the outcome, and a job that is being accepted holds its slot.
//! Calls about other jobs are answered as always, also while the disk hangs.

mod gpus;
mod slots;

use super::job::{Job, is_owned_by, state_of};
use crate::{
    api::{
        JobId, OrchestratorId,
        jobs::{JobState, resources::GpuRequest},
        problem::{Problem, ProblemKind},
        time::Time,
    },
    spool::AcceptedJob,
    worker::{gpus::SharedGpus, tombstones::Tombstones},
};
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// Number of ended jobs that are kept; the oldest go first.
const MAX_ENDED_JOBS: usize = 50_000;
/// Delay after which a job is to be sent again whose image has to be pulled while the limit of pulls is reached.
const PULLS_FULL_RETRY_SECONDS: u64 = 5;

/// Outcome of a change, once there is one.
pub(super) type Outcome = watch::Receiver<Option<Result<(), Problem>>>;

/// Jobs and tombstones of a worker.
pub(super) struct Registry {
    max_concurrency: usize,
    jobs: HashMap<JobId, Arc<Job>>,
    changes: HashMap<JobId, Change>,
    /// Number of changes that were begun.
    begun: u64,
    tombstones: Tombstones,
    gpus: SharedGpus,
    /// Set at shutdown: every job ends, those that are being accepted as well, with at most this time between TERM and
    /// KILL.
    shutdown_grace: Option<Duration>,
}

/// Identity of a change: the next one of the same job has another.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChangeId {
    pub(super) job: JobId,
    serial: u64,
}

/// Change of one job that is being written to disk.
struct Change {
    serial: u64,
    /// The attempt that is being accepted; `None` while one is being forgotten.
    accepts: Option<AcceptedJob>,
    outcome: watch::Sender<Option<Result<(), Problem>>>,
}

/// Decision about a request to run a job.
pub(super) enum Decision {
    /// The job runs, or has run.
    Known(Arc<Job>),
    /// The job is new, and its id is busy now: write it down, with the graphics processors that it has.
    Begun { change: ChangeId, gpus: Vec<String> },
    /// Another change is under way. `is_same` when it accepts the same request, which then gets the same answer.
    Busy { outcome: Outcome, is_same: bool },
}

/// Decision about a request to forget a job.
pub(super) enum Removal {
    /// The attempt has a tombstone already.
    Done,
    /// The id is busy now: write down a tombstone of this attempt.
    Begun { change: ChangeId, attempt: u32 },
    /// Another change is under way.
    Busy(Outcome),
}

/// Job of an id.
pub(super) enum Lookup {
    Found(Arc<Job>),
    /// A change is under way.
    Busy(Outcome),
}

/// Caller of [`Registry::forget`].
#[derive(Clone, Copy)]
pub(in crate::worker) enum Requester<'a> {
    /// The collection of old results, which may forget every job.
    Gc,
    /// An orchestrator, which may forget its own.
    Orchestrator(Option<&'a OrchestratorId>),
}

impl Registry {
    pub(super) fn new(
        max_concurrency: usize,
        jobs: &[Arc<Job>],
        tombstones: Tombstones,
        gpus: SharedGpus,
    ) -> Self {
        let jobs = jobs.iter();
        Self {
            max_concurrency,
            jobs: jobs
                .map(|job| (job.accepted.job_id, Arc::clone(job)))
                .collect(),
            changes: HashMap::new(),
            begun: 0,
            tombstones,
            gpus,
            shutdown_grace: None,
        }
    }

    /// Begins to accept a job, unless it is known, refused, or busy.
    pub(super) fn admit(
        &mut self,
        wanted: &AcceptedJob,
        gpus: Option<&GpuRequest>,
    ) -> Result<Decision, Problem> {
        self.check_tombstone(wanted)?;
        if let Some(change) = self.changes.get(&wanted.job_id) {
            return Ok(Decision::Busy {
                outcome: change.outcome.subscribe(),
                is_same: change
                    .accepts
                    .as_ref()
                    .is_some_and(|it| is_same(it, wanted)),
            });
        }
        if let Some(known) = self.jobs.get(&wanted.job_id) {
            check_known(&known.accepted, wanted)?;
            if known.accepted.attempt == wanted.attempt {
                return Ok(Decision::Known(Arc::clone(known)));
            }
        }
        self.check_slots(wanted)?;
        let gpus = match gpus {
            Some(request) => self.allocate_gpus(wanted, request)?,
            None => Vec::new(),
        };
        let accepted = AcceptedJob {
            gpus: gpus.clone(),
            ..wanted.clone()
        };
        let change = self.begin(wanted.job_id, Some(accepted));
        Ok(Decision::Begun { change, gpus })
    }

    /// Publishes a job that is on disk now. Answers the lower attempt that it replaces, which is canceled.
    pub(super) fn accept(&mut self, change: ChangeId, job: &Arc<Job>) -> Option<Arc<Job>> {
        if let Some(grace) = self.shutdown_grace {
            job.close(grace);
        }
        let replaced = self.jobs.insert(change.job, Arc::clone(job));
        if let Some(replaced) = &replaced {
            replaced.remove_on_drop();
            // The next attempt runs, or has run elsewhere.
            replaced.cancel(Duration::ZERO);
        }
        self.end_change(change, Ok(()));
        replaced
    }

    /// Begins to forget a job that has ended, where it is of this attempt if any is named. An attempt that is not
    /// known gets a tombstone as well: its request may still be under way.
    pub(super) fn forget(
        &mut self,
        requester: Requester<'_>,
        id: JobId,
        attempt: Option<u32>,
    ) -> Result<Removal, Problem> {
        if let Some(change) = self.changes.get(&id) {
            return Ok(Removal::Busy(change.outcome.subscribe()));
        }
        let attempt = if let Some(job) = self.jobs.get(&id) {
            if let Requester::Orchestrator(owner) = requester
                && !job.belongs_to(owner)
            {
                return Err(Problem::not_found("job"));
            }
            job.check_attempt(attempt)?;
            if !job.has_ended() {
                return Err(Problem::new(
                    ProblemKind::Conflict,
                    "the job still runs; cancel it first, or wait for its end",
                ));
            }
            job.accepted.attempt
        } else {
            let highest = self.tombstones.highest_attempt(id);
            match attempt {
                Some(attempt) if highest < Some(attempt) => attempt,
                _ if highest.is_some() => return Ok(Removal::Done),
                _ => return Err(Problem::not_found("job")),
            }
        };
        let change = self.begin(id, None);
        Ok(Removal::Begun { change, attempt })
    }

    /// Replaces a job, where there is one, by its tombstone, which is on disk now.
    pub(super) fn remove(&mut self, change: ChangeId, attempt: u32, at: Time) -> Option<Arc<Job>> {
        self.tombstones.insert(at, change.job, attempt);
        let forgotten = self.jobs.remove(&change.job);
        if let Some(forgotten) = &forgotten {
            forgotten.remove_on_drop();
        }
        self.end_change(change, Ok(()));
        forgotten
    }

    /// Ends a change that did not reach the disk: everything is as before.
    pub(super) fn abort(&mut self, change: ChangeId, problem: Problem) {
        self.end_change(change, Err(problem));
    }

    /// The job of an id, where it belongs to `owner`, and is of this attempt if any is named.
    pub(super) fn get(
        &self,
        owner: Option<&OrchestratorId>,
        id: JobId,
        attempt: Option<u32>,
    ) -> Result<Lookup, Problem> {
        if let Some(change) = self.changes.get(&id) {
            return Ok(Lookup::Busy(change.outcome.subscribe()));
        }
        let job = self.jobs.get(&id).filter(|job| job.belongs_to(owner));
        let job = job.ok_or_else(|| Problem::not_found("job"))?;
        job.check_attempt(attempt)?;
        Ok(Lookup::Found(Arc::clone(job)))
    }

    /// States of all jobs of `owner`, in the order of their ids. One that is being accepted counts as running, so
    /// that a caller that looks for superseded attempts misses none.
    pub(super) fn states(&self, owner: Option<&OrchestratorId>) -> Vec<JobState> {
        let own = self.jobs.values().filter(|job| job.belongs_to(owner));
        let mut states: Vec<_> = own.map(|job| job.state()).collect();
        let accepting = self.accepting().filter(|it| is_owned_by(it, owner));
        for accepted in accepting {
            states.retain(|state| state.job_id != accepted.job_id);
            states.push(state_of(accepted, JobState::RUNNING));
        }
        states.sort_by_key(|state| state.job_id);
        states
    }

    /// All jobs, in the order of their ids.
    pub(super) fn jobs(&self) -> Vec<Arc<Job>> {
        let mut jobs: Vec<_> = self.jobs.values().cloned().collect();
        jobs.sort_by_key(|job| job.accepted.job_id);
        jobs
    }

    /// Jobs that have ended and are too many to be kept, the oldest first.
    pub(super) fn ended_surplus(&self) -> Vec<JobId> {
        let mut ended: Vec<_> = self.jobs.values().filter(|job| job.has_ended()).collect();
        ended.sort_by_key(|job| job.accepted.job_id);
        let surplus = ended.len().saturating_sub(MAX_ENDED_JOBS);
        let surplus = ended[..surplus].iter();
        surplus.map(|job| job.accepted.job_id).collect()
    }

    /// Number of jobs that have not ended.
    pub(super) fn running_count(&self) -> usize {
        let running = self.jobs.values().filter(|job| !job.has_ended());
        running.count()
    }

    /// Number of slots that jobs of other orchestrators than this one occupy.
    pub(super) fn foreign_slot_count(&self, owner: Option<&OrchestratorId>) -> usize {
        let holders = self.slot_holders();
        holders.filter(|holder| !is_owned_by(holder, owner)).count()
    }

    /// Number of jobs of this orchestrator that wait for the pull of their image, and occupy no slot.
    pub(super) fn pulling_count(&self, owner: Option<&OrchestratorId>) -> usize {
        let own = self.jobs.values().filter(|job| job.belongs_to(owner));
        own.filter(|job| job.is_pulling()).count()
    }

    /// Refuses a new job whose image is not here while as many wait for theirs as there are slots: each
    /// takes memory, and most of them a podman.
    pub(super) fn check_pull_limit(&self, id: JobId) -> Result<(), Problem> {
        let pulling = self.jobs.values().filter(|job| job.is_pulling());
        if self.jobs.contains_key(&id) || pulling.count() < self.max_concurrency {
            return Ok(());
        }
        let detail = "this worker already waits for as many image pulls as it has slots; send the job again later, or \
            pull its image on the node first";
        Err(Problem::new(ProblemKind::PullsFull, detail).retry_after(PULLS_FULL_RETRY_SECONDS))
    }

    /// Cancels every job, also those that are being accepted, with at most this time between TERM and KILL.
    pub(super) fn cancel_all(&mut self, max_grace: Duration) {
        self.shutdown_grace = Some(max_grace);
        for job in self.jobs.values() {
            job.close(max_grace);
        }
    }

    /// Index of the tombstones.
    pub(super) fn tombstones(&self) -> &Tombstones {
        &self.tombstones
    }

    fn begin(&mut self, job: JobId, accepts: Option<AcceptedJob>) -> ChangeId {
        self.begun += 1;
        let serial = self.begun;
        let change = Change {
            serial,
            accepts,
            outcome: watch::Sender::new(None),
        };
        self.changes.insert(job, change);
        ChangeId { job, serial }
    }

    /// Ends a change, unless it has ended already: the one that is under way may be a later one.
    fn end_change(&mut self, id: ChangeId, outcome: Result<(), Problem>) {
        if let Entry::Occupied(change) = self.changes.entry(id.job)
            && change.get().serial == id.serial
        {
            let change = change.remove();
            change.outcome.send_replace(Some(outcome));
        }
    }

    fn accepting(&self) -> impl Iterator<Item = &AcceptedJob> {
        self.changes.values().filter_map(|it| it.accepts.as_ref())
    }

    /// Jobs that hold a slot. A replaced attempt and the one that replaces it share theirs.
    fn slot_holders(&self) -> impl Iterator<Item = &AcceptedJob> {
        let holders = self.jobs.values().filter(|job| job.has_slot());
        let holders = holders.map(|job| &job.accepted);
        let is_current = |it: &&AcceptedJob| {
            let change = self.changes.get(&it.job_id);
            change.is_none_or(|change| change.accepts.is_none())
        };
        holders.filter(is_current).chain(self.accepting())
    }

    fn check_tombstone(&self, wanted: &AcceptedJob) -> Result<(), Problem> {
        let highest = self.tombstones.highest_attempt(wanted.job_id);
        if highest.is_some_and(|attempt| wanted.attempt <= attempt) {
            return Err(Problem::new(
                ProblemKind::JobAlreadyFinished,
                "this attempt has ended and its result was fetched; create a new job to run it again",
            ));
        }
        Ok(())
    }
}

fn is_same(one: &AcceptedJob, other: &AcceptedJob) -> bool {
    let key = |it: &AcceptedJob| (it.task_id, it.attempt, it.orchestrator_id.clone());
    key(one) == key(other) && one.spec_sha256 == other.spec_sha256
}

/// Refuses a request that contradicts the job of its id.
fn check_known(known: &AcceptedJob, wanted: &AcceptedJob) -> Result<(), Problem> {
    let conflict = |detail: String| Err(Problem::new(ProblemKind::Conflict, detail));
    if !is_owned_by(known, wanted.orchestrator_id.as_ref()) {
        return conflict(
            "this job id belongs to a job of another orchestrator; use a new id for new work"
                .to_owned(),
        );
    }
    if known.task_id != wanted.task_id || known.spec_sha256 != wanted.spec_sha256 {
        return conflict(
            "this job id is known with another task_id or another sandbox; use a new id for new work".to_owned(),
        );
    }
    if wanted.attempt < known.attempt {
        return conflict(format!(
            "attempt {} of this job is over; attempt {} is current",
            wanted.attempt, known.attempt
        ));
    }
    Ok(())
}
