//! Which jobs this worker knows, and who may start, replace or forget one.
//!
//! The job id makes everything idempotent: a known job is never started a second time, a
//! repeated request gets what the first one got. The attempt fences: a higher one replaces
//! a lower, a lower is refused. A forgotten job leaves a [tombstone](super::tombstones).
//!
//! A job belongs to the orchestrator that sent it. Another one, to which the node has moved meanwhile,
//! neither sees, ends nor forgets it: it goes on, and its result stays for the first. A job without a
//! known owner belongs to all of them.
//!
//! What is known of a job is on disk, in its [`Spool`], before anybody is told that it was
//! accepted; here is only what is needed to find it. So a worker that was killed knows all of it
//! again at its next start ([`super::recovery`]).

mod job;

pub(super) use job::Job;

use super::tombstones::Tombstones;
use crate::{
    api::{
        JobId, OrchestratorId,
        image::ImageRef,
        jobs::{RunJob, SandboxSpec},
        problem::{Problem, ProblemKind},
        time::Time,
    },
    digest::sha256_hex,
    spool::{AcceptedJob, Spool},
};
use parking_lot::{Mutex, MutexGuard};
use std::{collections::HashMap, io, path::PathBuf, sync::Arc};
/// Ended jobs that are kept, whatever room there is; the oldest go first.
const MAX_ENDED_JOBS: usize = 50_000;

/// Before a job whose image has to be pulled is to be sent again while all places of pulls are taken, in seconds.
const PULLS_FULL_RETRY_SECONDS: u64 = 5;

/// What becomes of a request to run.
pub(super) enum Admission {
    /// It is new; start it.
    New(Arc<Job>, SandboxSpec),
    /// It runs, or has run.
    Known(Arc<Job>),
}

struct Inner {
    jobs: HashMap<JobId, Arc<Job>>,
    tombstones: Tombstones,
}

/// The jobs of a worker.
pub(super) struct Ledger {
    max_concurrency: usize,
    jobs_dir: PathBuf,
    inner: Mutex<Inner>,
}

impl Ledger {
    /// With the jobs that an earlier process accepted.
    pub(super) fn new(
        max_concurrency: usize,
        jobs_dir: PathBuf,
        jobs: &[Arc<Job>],
        tombstones: Tombstones,
    ) -> Self {
        let jobs = jobs
            .iter()
            .map(|job| (job.accepted.job_id, Arc::clone(job)));
        Self {
            max_concurrency,
            jobs_dir,
            inner: Mutex::new(Inner {
                jobs: jobs.collect(),
                tombstones,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Lets a request of `owner` in, or says why not. `room` tells whether there is room for one more.
    pub(super) fn admit(
        &self,
        owner: Option<OrchestratorId>,
        run: RunJob,
        image: &ImageRef,
        room: impl FnOnce() -> Result<(), Problem>,
    ) -> Result<Admission, Problem> {
        let mut inner = self.lock();
        if let Some(known) = inner.find_known(owner.as_ref(), &run)? {
            return Ok(Admission::Known(known));
        }
        let running = inner
            .jobs
            .values()
            .filter(|job| job.accepted.job_id != run.job_id && job.has_slot());
        let (own, others): (Vec<_>, Vec<_>) =
            running.partition(|job| job.belongs_to(owner.as_ref()));
        if own.len() + others.len() >= self.max_concurrency {
            return Err(self.slots_full(others.len()));
        }
        room()?;
        let accepted = AcceptedJob {
            task_id: run.task_id,
            job_id: run.job_id,
            attempt: run.attempt,
            image: image.to_string(),
            spec_sha256: spec_digest(&run.sandbox),
            accepted_at: Time::now(),
            orchestrator_id: owner,
        };
        let spool = Spool::at(self.jobs_dir.join(Spool::dir_name(run.job_id, run.attempt)));
        if let Err(error) = spool.create(&accepted, &run.sandbox) {
            spool.remove_on_drop();
            tracing::error!(job = %run.job_id, %error, "a job can't be written down");
            return Err(storage_error(&error));
        }
        let job = Arc::new(Job::new(accepted, spool, None));
        if let Some(replaced) = inner.jobs.insert(run.job_id, Arc::clone(&job)) {
            replaced.spool.remove_on_drop();
            replaced.cancel.send_replace(true);
        }
        Ok(Admission::New(job, run.sandbox))
    }

    fn slots_full(&self, others: usize) -> Problem {
        let slots = self.max_concurrency;
        let by_others = match others {
            0 => String::new(),
            n => format!(" ({n} of them by jobs of another orchestrator)"),
        };
        Problem::new(
            ProblemKind::TooManyRequests,
            format!(
                "all {slots} slots of this worker are taken{by_others}; try again when a job has ended"
            ),
        )
        .retry_after(1)
    }

    /// A job that is known and belongs to `owner`, and of which this attempt is asked for, if any is.
    pub(super) fn get(
        &self,
        owner: Option<&OrchestratorId>,
        id: JobId,
        attempt: Option<u32>,
    ) -> Result<Arc<Job>, Problem> {
        let known = self.lock().jobs.get(&id).cloned();
        let job = known.filter(|job| job.belongs_to(owner));
        let job = job.ok_or_else(|| Problem::not_found("job"))?;
        job.check_attempt(attempt)?;
        Ok(job)
    }

    /// All jobs, in the order of their ids.
    pub(super) fn list(&self) -> Vec<Arc<Job>> {
        let mut jobs: Vec<_> = self.lock().jobs.values().cloned().collect();
        jobs.sort_by_key(|job| job.accepted.job_id);
        jobs
    }

    /// How many jobs have not ended.
    pub(super) fn running_count(&self) -> usize {
        let inner = self.lock();
        inner.jobs.values().filter(|job| !job.has_ended()).count()
    }

    /// Number of slots that jobs of other orchestrators than this one occupy.
    pub(super) fn foreign_slot_count(&self, orchestrator: Option<&OrchestratorId>) -> usize {
        let inner = self.lock();
        let others = inner
            .jobs
            .values()
            .filter(|job| !job.belongs_to(orchestrator) && job.has_slot());
        others.count()
    }

    /// Number of jobs of this orchestrator that wait for the pull of their image, and occupy no slot.
    pub(super) fn pulling_count(&self, orchestrator: Option<&OrchestratorId>) -> usize {
        let inner = self.lock();
        let pulling = inner
            .jobs
            .values()
            .filter(|job| job.belongs_to(orchestrator) && job.is_pulling());
        pulling.count()
    }

    /// Refuses a new job whose image is not here while as many wait for theirs as there are slots: each
    /// holds a place in memory, and most of them a podman.
    pub(super) fn check_pull_limit(&self, run: &RunJob) -> Result<(), Problem> {
        let inner = self.lock();
        let pulling = inner.jobs.values().filter(|job| job.is_pulling());
        if inner.jobs.contains_key(&run.job_id) || pulling.count() < self.max_concurrency {
            return Ok(());
        }
        let detail = "as many jobs as this worker has slots wait for images that are being pulled; try again when one of them is there";
        Err(Problem::new(ProblemKind::PullsFull, detail).retry_after(PULLS_FULL_RETRY_SECONDS))
    }

    /// Forgets a job as [`forget`](Self::forget) does, where it belongs to `owner`.
    pub(super) fn forget_owned(
        &self,
        owner: Option<&OrchestratorId>,
        id: JobId,
        attempt: Option<u32>,
    ) -> Result<(), Problem> {
        let known = self.lock().jobs.get(&id).cloned();
        if known.is_some_and(|job| !job.belongs_to(owner)) {
            return Err(Problem::not_found("job"));
        }
        self.forget(id, attempt)
    }

    /// Forgets a job that has ended, where it is of this attempt if any is named; it leaves a tombstone. An
    /// attempt that is not known leaves one, too: its request may still be under way.
    pub(super) fn forget(&self, id: JobId, attempt: Option<u32>) -> Result<(), Problem> {
        let mut inner = self.lock();
        let Some(job) = inner.jobs.get(&id).cloned() else {
            let highest_attempt = inner.tombstones.highest_attempt(id);
            return match attempt {
                Some(attempt) if highest_attempt < Some(attempt) => {
                    inner.insert_tombstone(id, attempt)
                }
                _ => highest_attempt
                    .map(drop)
                    .ok_or_else(|| Problem::not_found("job")),
            };
        };
        job.check_attempt(attempt)?;
        if !job.has_ended() {
            return Err(Problem::new(
                ProblemKind::Conflict,
                "the job still runs; cancel it first, or wait for its end",
            ));
        }
        // In this order: a job that is gone and not highest_attempt could be run again.
        inner.insert_tombstone(id, job.accepted.attempt)?;
        inner.jobs.remove(&id);
        // Its directory goes with the last who holds it, and not while everybody waits for the ledger.
        drop(inner);
        job.spool.remove_on_drop();
        Ok(())
    }

    /// Asks every job to end.
    pub(super) fn cancel_all(&self) {
        for job in self.list() {
            job.cancel.send_replace(true);
        }
    }

    /// Jobs that have ended and are too many to be kept, the oldest first.
    pub(super) fn ended_surplus(&self) -> Vec<JobId> {
        let ended: Vec<_> = self
            .list()
            .into_iter()
            .filter(|job| job.has_ended())
            .collect();
        let surplus = ended.len().saturating_sub(MAX_ENDED_JOBS);
        ended[..surplus]
            .iter()
            .map(|job| job.accepted.job_id)
            .collect()
    }
}

impl Inner {
    fn insert_tombstone(&mut self, id: JobId, attempt: u32) -> Result<(), Problem> {
        self.tombstones.insert(id, attempt).map_err(|error| {
            tracing::error!(job = %id, %error, "a job can't be forgotten");
            storage_error(&error)
        })
    }

    /// The job that a request of `owner` is about, where it needs no start; an error where it may have none.
    fn find_known(
        &self,
        owner: Option<&OrchestratorId>,
        run: &RunJob,
    ) -> Result<Option<Arc<Job>>, Problem> {
        let highest_attempt = self.tombstones.highest_attempt(run.job_id);
        if highest_attempt.is_some_and(|attempt| run.attempt <= attempt) {
            return Err(Problem::new(
                ProblemKind::JobAlreadyFinished,
                "this attempt has ended and its result was fetched; create a new job to run it again",
            ));
        }
        let Some(known) = self.jobs.get(&run.job_id) else {
            return Ok(None);
        };
        if !known.belongs_to(owner) {
            return Err(Problem::new(
                ProblemKind::Conflict,
                "this job id belongs to a job of another orchestrator; use a new id for new work",
            ));
        }
        let AcceptedJob {
            task_id,
            attempt,
            spec_sha256,
            ..
        } = &known.accepted;
        if *task_id != run.task_id || *spec_sha256 != spec_digest(&run.sandbox) {
            return Err(Problem::new(
                ProblemKind::Conflict,
                "this job id is known with another task_id or another sandbox; use a new id for new work",
            ));
        }
        if run.attempt < *attempt {
            let detail = format!(
                "attempt {} of this job is over; attempt {attempt} is current",
                run.attempt
            );
            return Err(Problem::new(ProblemKind::Conflict, detail));
        }
        Ok((run.attempt == *attempt).then(|| Arc::clone(known)))
    }
}

/// By this a sandbox is the same as another.
fn spec_digest(spec: &SandboxSpec) -> String {
    // Nothing in it can fail to be JSON, and its maps are in order.
    sha256_hex(serde_json::to_string(spec).unwrap_or_default())
}

fn storage_error(error: &io::Error) -> Problem {
    Problem::new(
        ProblemKind::InsufficientStorage,
        format!(
            "this node can't write down what it is told ({error}); make room in its --jobs-dir"
        ),
    )
}
