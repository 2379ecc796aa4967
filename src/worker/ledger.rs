//! Which jobs this worker knows, and who may start, replace or forget one.
//!
//! The job id makes everything idempotent: a known job is never started a second time, a
//! repeated request gets what the first one got. The attempt fences: a higher one replaces
//! a lower, a lower is refused. A forgotten job leaves a tombstone, so that a request that
//! was long under way can't bring it back to life.
//!
//! The ledger is in memory: when the worker ends, so do its sandboxes, and a later start
//! begins with an empty one.

use super::output::JobLog;
use crate::api::{
    JobId, TaskId,
    image::ImageRef,
    jobs::{JobState, RunJob, SandboxSpec},
    problem::{Kind, Problem},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// Results that are kept although nobody fetched them; the oldest go first.
const UNFETCHED: usize = 1000;
/// Tombstones that are kept; the oldest go first.
const TOMBSTONES: usize = 100_000;

/// One attempt of a job.
pub(super) struct Job {
    pub(super) task_id: TaskId,
    pub(super) job_id: JobId,
    pub(super) attempt: u32,
    pub(super) spec: SandboxSpec,
    pub(super) image: ImageRef,
    pub(super) log: Arc<JobLog>,
    pub(super) cancel: watch::Sender<bool>,
}

impl Job {
    pub(super) fn state(&self) -> JobState {
        let ended = self.log.result().map(|result| result.status.as_str());
        JobState {
            version: crate::api::PAYLOAD_VERSION,
            task_id: self.task_id,
            job_id: self.job_id,
            attempt: self.attempt,
            status: ended.unwrap_or("running").to_owned(),
        }
    }

    fn has_ended(&self) -> bool {
        self.log.has_ended()
    }
}

/// What becomes of a request to run.
pub(super) enum Admission {
    /// It is new; start it.
    New(Arc<Job>),
    /// It runs, or has run.
    Known(Arc<Job>),
}

#[derive(Default)]
struct Inner {
    jobs: HashMap<JobId, Arc<Job>>,
    /// Jobs in the order of arrival, to find the oldest results.
    order: VecDeque<JobId>,
    tombstones: HashMap<JobId, u32>,
    tombstone_order: VecDeque<JobId>,
}

/// The jobs of a worker.
pub(super) struct Ledger {
    max_concurrency: usize,
    inner: Mutex<Inner>,
}

impl Ledger {
    pub(super) fn new(max_concurrency: usize) -> Self {
        Self {
            max_concurrency,
            inner: Mutex::default(),
        }
    }

    /// Lets a request in, or says why not.
    pub(super) fn admit(&self, run: RunJob, image: ImageRef) -> Result<Admission, Problem> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner
            .tombstones
            .get(&run.job_id)
            .is_some_and(|attempt| run.attempt <= *attempt)
        {
            return Err(Problem::new(
                Kind::JobAlreadyFinished,
                "this attempt has ended and its result was fetched; create a new job to run it again",
            ));
        }
        let known = inner.jobs.get(&run.job_id).cloned();
        if let Some(known) = &known {
            if known.task_id != run.task_id || known.spec != run.sandbox {
                return Err(Problem::new(
                    Kind::Conflict,
                    "this job id is known with another task_id or another sandbox; use a new id for new work",
                ));
            }
            if run.attempt < known.attempt {
                let detail = format!(
                    "attempt {} of this job is over; attempt {} is current",
                    run.attempt, known.attempt
                );
                return Err(Problem::new(Kind::Conflict, detail));
            }
            if run.attempt == known.attempt {
                return Ok(Admission::Known(Arc::clone(known)));
            }
        }
        let others = inner
            .jobs
            .values()
            .filter(|job| job.job_id != run.job_id && !job.has_ended())
            .count();
        if others >= self.max_concurrency {
            let problem = Problem::new(
                Kind::TooManyRequests,
                format!(
                    "all {} slots of this worker are taken; try again when a job has ended",
                    self.max_concurrency
                ),
            );
            return Err(problem.retry_after(1));
        }
        if let Some(replaced) = known {
            replaced.cancel.send_replace(true);
        }
        let job = Arc::new(Job {
            task_id: run.task_id,
            job_id: run.job_id,
            attempt: run.attempt,
            spec: run.sandbox,
            image,
            log: Arc::new(JobLog::new(run.attempt)),
            cancel: watch::Sender::new(false),
        });
        inner.keep(&job);
        Ok(Admission::New(job))
    }

    /// A job that is known.
    pub(super) fn get(&self, id: JobId) -> Result<Arc<Job>, Problem> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .jobs
            .get(&id)
            .cloned()
            .ok_or_else(|| Problem::not_found("job"))
    }

    /// All jobs, in the order of their ids.
    pub(super) fn list(&self) -> Vec<Arc<Job>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut jobs: Vec<_> = inner.jobs.values().cloned().collect();
        jobs.sort_by_key(|job| job.job_id);
        jobs
    }

    /// How many jobs have not ended.
    pub(super) fn running(&self) -> usize {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let running = inner.jobs.values().filter(|job| !job.has_ended());
        running.count()
    }

    /// Forgets a job that has ended; it leaves a tombstone.
    pub(super) fn forget(&self, id: JobId) -> Result<(), Problem> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(job) = inner.jobs.get(&id).cloned() else {
            return if inner.tombstones.contains_key(&id) {
                Ok(())
            } else {
                Err(Problem::not_found("job"))
            };
        };
        if !job.has_ended() {
            return Err(Problem::new(
                Kind::Conflict,
                "the job still runs; cancel it first, or wait for its end",
            ));
        }
        inner.jobs.remove(&id);
        inner.bury(id, job.attempt);
        Ok(())
    }

    /// Asks every job to end.
    pub(super) fn cancel_all(&self) {
        for job in self.list() {
            job.cancel.send_replace(true);
        }
    }
}

impl Inner {
    fn keep(&mut self, job: &Arc<Job>) {
        self.jobs.insert(job.job_id, Arc::clone(job));
        self.order.push_back(job.job_id);
        // One look per arrival keeps up with any number of them.
        if self.jobs.len() > UNFETCHED
            && let Some(oldest) = self.order.pop_front()
        {
            match self.jobs.get(&oldest) {
                Some(old) if old.has_ended() => {
                    tracing::warn!(job = %oldest, "a result that nobody fetched is dropped, the ledger is full");
                    self.jobs.remove(&oldest);
                }
                Some(_) => self.order.push_back(oldest),
                None => {}
            }
        }
        if self.order.len() > 4 * UNFETCHED {
            let jobs = &self.jobs;
            self.order.retain(|id| jobs.contains_key(id));
        }
    }

    fn bury(&mut self, id: JobId, attempt: u32) {
        if self.tombstones.insert(id, attempt).is_none() {
            self.tombstone_order.push_back(id);
        }
        if self.tombstone_order.len() > TOMBSTONES
            && let Some(oldest) = self.tombstone_order.pop_front()
        {
            self.tombstones.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        PAYLOAD_VERSION,
        jobs::{JobResult, Outcome, Truncated},
        time::Time,
    };

    fn request(job_id: JobId, task_id: TaskId, attempt: u32) -> RunJob {
        let sandbox = SandboxSpec {
            image: "a".to_owned(),
            command: vec!["x".to_owned()],
            env: None,
            timeout_seconds: None,
            network_policy: None,
            use_inference: None,
        };
        RunJob {
            version: PAYLOAD_VERSION,
            task_id,
            job_id,
            attempt,
            sandbox,
        }
    }

    fn end(job: &Job) {
        job.log.finish(|_, _| JobResult {
            version: PAYLOAD_VERSION,
            task_id: job.task_id,
            job_id: job.job_id,
            attempt: job.attempt,
            status: Outcome::Completed,
            exit_code: Some(0),
            stdout: String::new(),
            stderr: String::new(),
            started_at: Time::now(),
            ended_at: Time::now(),
            truncated: Truncated::default(),
            effective: None,
            error: None,
        });
    }

    fn admit(ledger: &Ledger, run: RunJob) -> Result<(bool, Arc<Job>), Kind> {
        match ledger.admit(run, "a".parse().unwrap()) {
            Ok(Admission::New(job)) => Ok((true, job)),
            Ok(Admission::Known(job)) => Ok((false, job)),
            Err(problem) => Err(problem.kind),
        }
    }

    #[test]
    fn one_id_is_one_run_and_attempts_fence() {
        let ledger = Ledger::new(1);
        let (job, task) = (JobId::new(), TaskId::new());
        let (new, first) = admit(&ledger, request(job, task, 1)).unwrap();
        assert!(new);
        assert!(!admit(&ledger, request(job, task, 1)).unwrap().0);
        assert_eq!(
            admit(&ledger, request(job, TaskId::new(), 1)).err(),
            Some(Kind::Conflict)
        );
        let mut other = request(job, task, 1);
        other.sandbox.command.push("y".to_owned());
        assert_eq!(admit(&ledger, other).err(), Some(Kind::Conflict));
        assert_eq!(
            admit(&ledger, request(JobId::new(), task, 1)).err(),
            Some(Kind::TooManyRequests)
        );
        // A higher attempt of the same job takes its place, in its slot.
        let (new, second) = admit(&ledger, request(job, task, 2)).unwrap();
        assert!(new && *first.cancel.borrow());
        assert_eq!(
            admit(&ledger, request(job, task, 1)).err(),
            Some(Kind::Conflict)
        );
        assert_eq!(ledger.forget(job).unwrap_err().kind, Kind::Conflict);
        end(&second);
        assert!(!admit(&ledger, request(job, task, 2)).unwrap().0);
        ledger.forget(job).unwrap();
        ledger.forget(job).unwrap();
        assert_eq!(
            admit(&ledger, request(job, task, 2)).err(),
            Some(Kind::JobAlreadyFinished)
        );
        assert_eq!(ledger.get(job).err().map(|p| p.kind), Some(Kind::NotFound));
        assert!(admit(&ledger, request(job, task, 3)).unwrap().0);
        assert_eq!(
            ledger.forget(JobId::new()).unwrap_err().kind,
            Kind::NotFound
        );
    }

    #[test]
    fn what_nobody_fetches_is_bounded() {
        let ledger = Ledger::new(1);
        for _ in 0..UNFETCHED + 50 {
            let (_, job) = admit(&ledger, request(JobId::new(), TaskId::new(), 1)).unwrap();
            end(&job);
        }
        assert_eq!(ledger.list().len(), UNFETCHED);
    }
}
