//! One attempt of a job that a worker accepted: its spool, its owner, and the calls that wait for it.

use crate::{
    api::{
        OrchestratorId, PAYLOAD_VERSION,
        events::ResultEvent,
        jobs::{JobArtifact, JobState, Outcome},
        problem::{Problem, ProblemKind},
    },
    sandbox::StopReason,
    spool::{AcceptedJob, Spool},
    wait,
    worker::{egress::Tally, notes::Notes},
};
use std::{
    io, mem,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{self, watch},
    task::spawn_blocking,
};

/// One attempt of a job.
pub(in crate::worker) struct Job {
    pub(in crate::worker) accepted: AcceptedJob,
    pub(in crate::worker) spool: Spool,
    /// Set once the job is canceled: the most time between TERM and KILL.
    cancel: watch::Sender<Option<Duration>>,
    /// Whether it is canceled because its node ends.
    is_closing: AtomicBool,
    /// Set once the node stops the job for what it takes of disk or memory.
    pub(in crate::worker) excess: watch::Sender<Option<StopReason>>,
    outcome: watch::Sender<Option<Outcome>>,
    changed: watch::Sender<()>,
    /// Held while this process writes to the log.
    log: Arc<sync::Mutex<()>>,
    /// Held while this process writes to the stdin.
    stdin: Arc<sync::Mutex<()>>,
    stdin_changed: watch::Sender<()>,
    has_started: AtomicBool,
    has_live_stdin: AtomicBool,
    is_pulling: AtomicBool,
    is_removed_on_drop: AtomicBool,
    /// Sums of what it did through the proxy.
    pub(in crate::worker) egress: Arc<Tally>,
    /// What is to be noted in its log while its shim writes that.
    pub(in crate::worker) notes: Notes,
    /// Artifacts of the result, once one was asked for: they are sent one by one.
    artifacts: sync::OnceCell<Vec<JobArtifact>>,
}

impl Job {
    pub(in crate::worker) fn new(
        accepted: AcceptedJob,
        spool: Spool,
        outcome: Option<Outcome>,
    ) -> Self {
        Self {
            accepted,
            spool,
            cancel: watch::Sender::new(None),
            is_closing: AtomicBool::new(false),
            excess: watch::Sender::new(None),
            outcome: watch::Sender::new(outcome),
            changed: watch::Sender::new(()),
            log: Arc::default(),
            stdin: Arc::default(),
            stdin_changed: watch::Sender::new(()),
            has_started: AtomicBool::new(false),
            has_live_stdin: AtomicBool::new(false),
            is_pulling: AtomicBool::new(false),
            is_removed_on_drop: AtomicBool::new(false),
            egress: Arc::default(),
            notes: Notes::default(),
            artifacts: sync::OnceCell::new(),
        }
    }

    /// Cancels the job. Its command has at most this time between TERM and KILL, and not more than its own grace; a later
    /// call can only shorten that.
    pub(in crate::worker) fn cancel(&self, max_grace: Duration) {
        self.cancel.send_modify(|now| {
            *now = Some(now.map_or(max_grace, |earlier| earlier.min(max_grace)));
        });
    }

    /// Cancels the job because its node ends, unless it is canceled already.
    pub(in crate::worker) fn close(&self, max_grace: Duration) {
        if !self.is_canceled() {
            self.is_closing.store(true, Ordering::SeqCst);
        }
        self.cancel(max_grace);
    }

    /// Whether the job is canceled because its node ends.
    pub(in crate::worker) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::SeqCst)
    }

    /// Whether the job has ended or is about to, so that its disk and memory are free soon. One that is canceled with a
    /// grace may take more of both until that is over.
    pub(in crate::worker) fn is_ending(&self) -> bool {
        let is_killed = self.cancel.borrow().is_some_and(|grace| grace.is_zero());
        self.has_ended() || is_killed || self.excess.borrow().is_some()
    }

    /// Whether the job is canceled.
    pub(in crate::worker) fn is_canceled(&self) -> bool {
        self.cancel.borrow().is_some()
    }

    /// Receiver of the cancel: the most time between TERM and KILL.
    pub(in crate::worker) fn cancellation(&self) -> watch::Receiver<Option<Duration>> {
        self.cancel.subscribe()
    }

    /// State of the job for its orchestrator.
    pub(in crate::worker) fn state(&self) -> JobState {
        let outcome = self.outcome.borrow().map(Outcome::as_str);
        state_of(&self.accepted, outcome.unwrap_or(JobState::RUNNING))
    }

    /// Whether this orchestrator may see, cancel and forget the job.
    pub(in crate::worker) fn belongs_to(&self, orchestrator: Option<&OrchestratorId>) -> bool {
        is_owned_by(&self.accepted, orchestrator)
    }

    /// Fails when a call names another attempt: what holds for one does not hold for another.
    pub(super) fn check_attempt(&self, attempt: Option<u32>) -> Result<(), Problem> {
        let current = self.accepted.attempt;
        match attempt {
            Some(attempt) if attempt != current => Err(Problem::new(
                ProblemKind::Conflict,
                format!(
                    "this node has attempt {current} of this job, not {attempt}; name that attempt, or none"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Sets whether the job waits for the pull of its image. Returns the value before.
    pub(in crate::worker) fn set_pulling(&self, is_pulling: bool) -> bool {
        self.is_pulling.swap(is_pulling, Ordering::SeqCst)
    }

    /// Whether the job waits for the pull of its image.
    pub(super) fn is_pulling(&self) -> bool {
        self.is_pulling.load(Ordering::SeqCst) && !self.has_ended()
    }

    /// Whether the job occupies a slot.
    pub(super) fn has_slot(&self) -> bool {
        !self.has_ended() && !self.is_pulling()
    }

    /// Whether there is a result.
    pub(in crate::worker) fn has_ended(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Whether the command is known to have started.
    pub(in crate::worker) fn has_started(&self) -> bool {
        self.has_started.load(Ordering::Acquire)
    }

    /// Records that the command has started.
    pub(in crate::worker) fn mark_started(&self) {
        self.has_started.store(true, Ordering::Release);
    }

    /// Whether a piece of live stdin was received.
    pub(in crate::worker) fn has_live_stdin(&self) -> bool {
        self.has_live_stdin.load(Ordering::Acquire)
    }

    /// Records that a piece of live stdin was received.
    pub(in crate::worker) fn mark_live_stdin(&self) {
        self.has_live_stdin.store(true, Ordering::Release);
    }

    /// Notifies the supervisor of the job that there is more stdin.
    pub(in crate::worker) fn notify_stdin(&self) {
        self.stdin_changed.send_replace(());
    }

    /// Notifications about more stdin.
    pub(in crate::worker) fn subscribe_stdin(&self) -> watch::Receiver<()> {
        self.stdin_changed.subscribe()
    }

    /// Wakes the readers of the job: there is more in its spool.
    pub(in crate::worker) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Notifications about more in the spool.
    pub(in crate::worker) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Publishes the outcome of the job, whose result is in the spool now.
    pub(in crate::worker) fn set_outcome(&self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
        self.notify();
    }

    /// Waits for the result.
    pub(in crate::worker) async fn wait_result(&self) -> Option<ResultEvent> {
        // The sender lives in `self`.
        let _ = wait::until(&mut self.outcome.subscribe(), Option::is_some).await;
        self.read_result().await
    }

    /// Uses the spool on a thread that may block.
    pub(in crate::worker) async fn with_spool<T: Send + 'static>(
        self: &Arc<Self>,
        operation: impl FnOnce(&Spool) -> T + Send + 'static,
    ) -> io::Result<T> {
        let job = Arc::clone(self);
        let done = spawn_blocking(move || operation(&job.spool)).await;
        done.map_err(io::Error::from)
    }

    /// Writes to the log on a thread that may block. A write whose caller has left ends before the next one begins.
    pub(in crate::worker) async fn with_log<T: Send + 'static>(
        self: &Arc<Self>,
        operation: impl FnOnce(&Spool) -> T + Send + 'static,
    ) -> io::Result<T> {
        self.with_lock(&self.log, operation).await
    }

    /// Writes to the stdin, in the same way.
    pub(in crate::worker) async fn with_stdin<T: Send + 'static>(
        self: &Arc<Self>,
        operation: impl FnOnce(&Spool) -> T + Send + 'static,
    ) -> io::Result<T> {
        self.with_lock(&self.stdin, operation).await
    }

    async fn with_lock<T: Send + 'static>(
        self: &Arc<Self>,
        lock: &Arc<sync::Mutex<()>>,
        operation: impl FnOnce(&Spool) -> T + Send + 'static,
    ) -> io::Result<T> {
        let guard = Arc::clone(lock).lock_owned().await;
        let write = move |spool: &Spool| {
            let _guard = guard;
            operation(spool)
        };
        self.with_spool(write).await
    }

    /// The result, once there is one. `None` also where it can't be read, which is logged.
    pub(in crate::worker) async fn read_result(&self) -> Option<ResultEvent> {
        let path = self.spool.path().to_owned();
        let read = spawn_blocking(move || Spool::at(path).result()).await;
        match read {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => {
                tracing::error!(job = %self.accepted.job_id, %error, "result of a job unreadable");
                None
            }
            Err(_) => None,
        }
    }

    /// Artifact of the result, by its place there.
    pub(in crate::worker) async fn artifact(&self, n: usize) -> Option<JobArtifact> {
        let read = || async { Ok(self.read_result().await.ok_or(())?.result.artifacts) };
        let artifacts: Result<_, ()> = self.artifacts.get_or_try_init(read).await;
        artifacts.ok()?.get(n).cloned()
    }

    /// Marks the directory for removal, once the last reference is dropped.
    pub(in crate::worker) fn remove_on_drop(&self) {
        self.spool.remove_on_drop();
        self.is_removed_on_drop.store(true, Ordering::Release);
    }

    /// Takes the spool out, which removes its directory when it is dropped and is to be removed.
    fn take_spool(&mut self) -> Spool {
        *self.is_removed_on_drop.get_mut() = false;
        mem::replace(&mut self.spool, Spool::at(PathBuf::new()))
    }

    /// Drops the job, and waits until its directory is gone where this was the last reference.
    pub(super) async fn release(self: Arc<Self>) {
        if let Some(mut job) = Arc::into_inner(self) {
            let spool = job.take_spool();
            // A panic is in the log; the next start removes the directory.
            let _ = spawn_blocking(move || drop(spool)).await;
        }
    }
}

impl Drop for Job {
    /// Leaves the removal of a directory to a thread that may block: the last reference may go anywhere.
    fn drop(&mut self) {
        if *self.is_removed_on_drop.get_mut() {
            let spool = self.take_spool();
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn_blocking(move || drop(spool));
            }
        }
    }
}

/// Whether a job belongs to this orchestrator. One without a known owner belongs to all.
pub(super) fn is_owned_by(job: &AcceptedJob, orchestrator: Option<&OrchestratorId>) -> bool {
    let owner = job.orchestrator_id.as_ref();
    owner.is_none() || owner == orchestrator
}

/// State of a job with this status.
pub(super) fn state_of(job: &AcceptedJob, status: &str) -> JobState {
    JobState {
        version: PAYLOAD_VERSION,
        task_id: job.task_id,
        job_id: job.job_id,
        attempt: job.attempt,
        status: status.to_owned(),
    }
}
