//! Jobs that this worker knows, and the rules by which one is started, replaced or forgotten.
//!
//! The job id makes everything idempotent: a known job is never started a second time, a
//! repeated request gets the answer of the first. The attempt fences: a higher one replaces
//! a lower, a lower is refused. A forgotten job leaves a [tombstone](super::tombstones).
//!
//! A job belongs to the orchestrator that sent it. Another one, to which the node has moved meanwhile,
//! neither sees, ends nor forgets it: it goes on, and its result stays for the first. A job without a
//! known owner belongs to all of them.
//!
//! **Memory and disk.** A job is on disk, in its [`Spool`], before a caller learns that it was accepted, and a
//! tombstone before a caller learns that its job is forgotten. So a worker that was killed knows all of it again
//! at its next start ([`super::recovery`]). The decisions are those of the [registry]; they are taken under a lock
//! that is held for microseconds. Files are written without it, off the runtime's threads, so that a disk that hangs
//! stops only the calls that need it:
//!
//! ```text
//! run     decide, reserve id and slot ──▶ write the spool ──▶ publish ──▶ start
//! forget  decide, reserve id ──▶ append the tombstone ──▶ remove from memory ──▶ remove the directory
//! ```
//!
//! A write that fails frees the reservation. A crash in between leaves a directory without `job.json`, which the next
//! start removes, or a change whose caller got no answer and asks again.

mod job;
mod registry;
#[cfg(test)]
pub(super) mod tests;

pub(super) use job::Job;
pub(super) use registry::Requester;

use super::{
    gpus::SharedGpus,
    tombstones::{TombstoneFile, Tombstones},
};
use crate::{
    api::{
        JobId, OrchestratorId,
        image::ImageRef,
        jobs::{JobState, RunJob, SandboxSpec},
        problem::{Problem, ProblemKind},
        time::Time,
    },
    digest::sha256_hex,
    engine::gpus::PassedGpu,
    spool::{AcceptedJob, Spool},
    wait,
};
use parking_lot::{Mutex, MutexGuard};
use registry::{ChangeId, Decision, Lookup, Outcome, Registry, Removal};
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use tokio::task::spawn_blocking;

/// Write of a new job to disk.
type WriteSpool = fn(&Spool, &AcceptedJob, &SandboxSpec) -> io::Result<()>;

/// Answer to a request to run a job.
pub(super) enum Admission {
    /// The job is new, and waits to be written down.
    New(Reservation),
    /// The job runs, or has run.
    Known(Arc<Job>),
}

/// Jobs of a worker.
pub(super) struct Ledger {
    jobs_dir: PathBuf,
    registry: Mutex<Registry>,
    /// Held from the append of a tombstone until the registry has it, so that a compaction loses none.
    tombstones: Arc<tokio::sync::Mutex<TombstoneFile>>,
    write_spool: WriteSpool,
}

/// Id and slot of a job that is being accepted. Both are free again when it is dropped before
/// [`commit`](Self::commit) has succeeded.
pub(super) struct Reservation {
    change: Change,
    accepted: Box<AcceptedJob>,
}

/// A change of one job that has begun in the registry; aborted when dropped.
struct Change {
    ledger: Arc<Ledger>,
    id: ChangeId,
    /// Answer to calls that wait for the change, should it be aborted; `None` once it is complete.
    failure: Option<Problem>,
}

impl Ledger {
    /// A ledger with the jobs and tombstones of an earlier process.
    pub(super) fn new(
        max_concurrency: usize,
        jobs_dir: PathBuf,
        jobs: &[Arc<Job>],
        (file, tombstones): (TombstoneFile, Tombstones),
        gpus: SharedGpus,
    ) -> Self {
        Self {
            jobs_dir,
            registry: Mutex::new(Registry::new(max_concurrency, jobs, tombstones, gpus)),
            tombstones: Arc::new(file.into()),
            write_spool: Spool::create,
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock()
    }

    /// Decides on a request of `owner` to run a job; waits while another change of the same job is under way.
    /// A request that is the same as the one under way gets the answer of that one.
    pub(super) async fn admit(
        self: &Arc<Self>,
        owner: Option<OrchestratorId>,
        run: &RunJob,
        image: &ImageRef,
    ) -> Result<Admission, Problem> {
        let mut accepted = AcceptedJob {
            task_id: run.task_id,
            job_id: run.job_id,
            attempt: run.attempt,
            image: image.to_string(),
            spec_sha256: spec_digest(&run.sandbox),
            accepted_at: Time::now(),
            orchestrator_id: owner,
            gpus: Vec::new(),
            inference: run.sandbox.use_inference == Some(true),
            egress: run.sandbox.egress.clone(),
            has_secrets: !run.sandbox.secrets.is_empty(),
        };
        loop {
            let admission = self
                .registry()
                .admit(&accepted, run.sandbox.gpus.as_ref())?;
            match admission {
                Decision::Known(job) => return Ok(Admission::Known(job)),
                Decision::Begun { change: id, gpus } => {
                    accepted.gpus = gpus;
                    let change = Change::begun(self, id);
                    let accepted = Box::new(accepted);
                    return Ok(Admission::New(Reservation { change, accepted }));
                }
                Decision::Busy { outcome, is_same } => {
                    let ended = ended(outcome).await;
                    if is_same {
                        ended?;
                    }
                }
            }
        }
    }

    /// The job of an id, where it belongs to `owner` and is of this attempt if any is named; waits while a change
    /// of it is under way.
    pub(super) async fn get(
        &self,
        owner: Option<&OrchestratorId>,
        id: JobId,
        attempt: Option<u32>,
    ) -> Result<Arc<Job>, Problem> {
        loop {
            let lookup = self.registry().get(owner, id, attempt)?;
            match lookup {
                Lookup::Found(job) => return Ok(job),
                // The next lookup shows how it ended.
                Lookup::Busy(outcome) => drop(ended(outcome).await),
            }
        }
    }

    /// Forgets a job that has ended, where it is of this attempt if any is named; it leaves a tombstone. An
    /// attempt that is not known leaves one, too: its request may still be under way. Must run to its end: a
    /// tombstone without a caller that removes the job would leave one in memory that the next start forgets.
    pub(super) async fn forget(
        self: &Arc<Self>,
        requester: Requester<'_>,
        id: JobId,
        attempt: Option<u32>,
    ) -> Result<(), Problem> {
        let (change, attempt) = loop {
            let removal = self.registry().forget(requester, id, attempt)?;
            match removal {
                Removal::Done => return Ok(()),
                Removal::Begun { change, attempt } => break (change, attempt),
                Removal::Busy(outcome) => drop(ended(outcome).await),
            }
        };
        let change = Change::begun(self, change);
        if let Some(job) = self.write_tombstone(change, attempt).await? {
            job.release().await;
        }
        Ok(())
    }

    /// Writes a tombstone, and then removes the job, which is returned, from the registry. In this order: a job that
    /// is gone and has no tombstone could be run again.
    async fn write_tombstone(
        &self,
        mut change: Change,
        attempt: u32,
    ) -> Result<Option<Arc<Job>>, Problem> {
        let id = change.id.job;
        let mut file = Arc::clone(&self.tombstones).lock_owned().await;
        let now = Time::now();
        let appended = spawn_blocking(move || file.append(now, id, attempt).map(|()| file));
        let appended = appended.await.map_err(io::Error::from).flatten();
        let mut file = appended.map_err(|error| {
            tracing::error!(job = %id, %error, "tombstone not written; job stays known");
            let problem = storage_error(&error);
            change.failure = Some(problem.clone());
            problem
        })?;
        let forgotten = self.registry().remove(change.id, attempt, now);
        // Before the compaction, which may take long and be interrupted.
        change.failure = None;
        if file.is_oversized() {
            let text = self.registry().tombstones().to_text();
            let compacted = spawn_blocking(move || file.compact(&text)).await;
            if let Err(error) = compacted.map_err(io::Error::from).flatten() {
                tracing::warn!(%error, "list of forgotten jobs not compacted");
            }
        }
        Ok(forgotten)
    }

    /// States of all jobs of `owner`, in the order of their ids.
    pub(super) fn states(&self, owner: Option<&OrchestratorId>) -> Vec<JobState> {
        self.registry().states(owner)
    }

    /// All jobs, in the order of their ids.
    pub(super) fn jobs(&self) -> Vec<Arc<Job>> {
        self.registry().jobs()
    }

    /// Jobs that have ended and are too many to be kept, the oldest first.
    pub(super) fn ended_surplus(&self) -> Vec<JobId> {
        self.registry().ended_surplus()
    }

    /// Number of jobs that have not ended.
    pub(super) fn running_count(&self) -> usize {
        self.registry().running_count()
    }

    /// Number of slots that jobs of other orchestrators than this one occupy.
    pub(super) fn foreign_slot_count(&self, owner: Option<&OrchestratorId>) -> usize {
        self.registry().foreign_slot_count(owner)
    }

    /// Number of jobs of this orchestrator that wait for the pull of their image, and occupy no slot.
    pub(super) fn pulling_count(&self, owner: Option<&OrchestratorId>) -> usize {
        self.registry().pulling_count(owner)
    }

    /// Refuses a new job whose image has to be pulled while as many jobs wait for theirs as there are slots.
    pub(super) fn check_pull_limit(&self, run: &RunJob) -> Result<(), Problem> {
        self.registry().check_pull_limit(run.job_id)
    }

    /// Graphics processors that jobs can have, each with whether one has it now.
    pub(super) fn gpus(&self) -> Vec<(PassedGpu, bool)> {
        self.registry().gpus()
    }

    /// Cancels every job, also those that are being accepted, with at most this time between TERM and KILL.
    pub(super) fn cancel_all(&self, max_grace: Duration) {
        self.registry().cancel_all(max_grace);
    }
}

impl Reservation {
    /// Gives id and slot back; `problem` is the answer to the same requests that wait.
    pub(super) fn reject(mut self, problem: &Problem) {
        self.change.failure = Some(problem.clone());
    }

    /// Writes the job to disk, and publishes it. Must run to its end: a write without a caller that publishes it
    /// would leave a job on disk that the next start runs.
    pub(super) async fn commit(
        self,
        spec: SandboxSpec,
    ) -> Result<(Arc<Job>, SandboxSpec), Problem> {
        let Self {
            mut change,
            accepted,
        } = self;
        let ledger = Arc::clone(&change.ledger);
        let name = Spool::dir_name(accepted.job_id, accepted.attempt);
        let (path, write) = (ledger.jobs_dir.join(name), ledger.write_spool);
        let written = spawn_blocking(move || {
            let spool = Spool::at(path);
            match write(&spool, &accepted, &spec) {
                Ok(()) => Ok((Job::new(*accepted, spool, None), spec)),
                Err(error) => {
                    spool.remove_on_drop();
                    Err(error)
                }
            }
        });
        let written = written.await.map_err(io::Error::from).flatten();
        let (job, spec) = written.map_err(|error| {
            tracing::error!(job = %change.id.job, %error, "job not written to disk; refused");
            let problem = storage_error(&error);
            change.failure = Some(problem.clone());
            problem
        })?;
        let job = Arc::new(job);
        let replaced = ledger.registry().accept(change.id, &job);
        change.failure = None;
        drop(replaced);
        Ok((job, spec))
    }
}

impl Change {
    fn begun(ledger: &Arc<Ledger>, id: ChangeId) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            id,
            failure: Some(Problem::internal()),
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if let Some(problem) = self.failure.take() {
            self.ledger.registry().abort(self.id, problem);
        }
    }
}

/// Waits for the end of a change.
async fn ended(mut outcome: Outcome) -> Result<(), Problem> {
    let ended = wait::until(&mut outcome, Option::is_some).await;
    // The sender is dropped only behind an outcome.
    ended
        .ok()
        .flatten()
        .unwrap_or_else(|| Err(Problem::internal()))
}

/// Digest of a sandbox, by which a repeated request is recognized.
fn spec_digest(spec: &SandboxSpec) -> String {
    // Its maps are sorted, and nothing in it can fail to be JSON.
    sha256_hex(serde_json::to_string(spec).unwrap_or_default())
}

fn storage_error(error: &io::Error) -> Problem {
    Problem::new(
        ProblemKind::InsufficientStorage,
        format!(
            "this node can't write to its disk ({error}); check, and free space on, the filesystems of its --jobs-dir and --data-dir"
        ),
    )
}
