//! Decisions of the registry, and the ledger on a disk that hangs or is full.

use super::*;
use crate::{
    api::{TaskId, jobs::Outcome as JobOutcome},
    background::BackgroundTasks,
};
use futures_util::FutureExt as _;
use serde_json::json;
use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

mod model;

const SLOTS: usize = 2;
/// Time in which a call that needs no disk has to be answered, and after which a hung one is given up.
const LIMIT: Duration = Duration::from_secs(20);

fn run_of(job_id: JobId, attempt: u32) -> RunJob {
    let run = json!({
        "version": 1,
        "task_id": TaskId::new(),
        "job_id": job_id,
        "attempt": attempt,
        "sandbox": {"image": "localhost/x:latest", "command": ["true"]},
    });
    serde_json::from_value(run).unwrap()
}

/// An attempt of a job of a task of its own.
pub(in crate::worker) fn accepted(job_id: JobId, attempt: u32) -> AcceptedJob {
    AcceptedJob {
        task_id: TaskId::new(),
        job_id,
        attempt,
        image: "localhost/x:latest".to_owned(),
        spec_sha256: String::new(),
        accepted_at: Time::now(),
        orchestrator_id: None,
        gpus: Vec::new(),
        inference: false,
        egress: None,
        has_secrets: false,
    }
}

fn ledger_with(write_spool: WriteSpool) -> (TempDir, Arc<Ledger>) {
    let home = tempfile::tempdir().unwrap();
    let tombstones = TombstoneFile::open(home.path().join("tombstones"), LIMIT).unwrap();
    let ledger = Ledger::new(
        SLOTS,
        home.path().to_owned(),
        &[],
        tombstones,
        SharedGpus::default(),
    );
    let ledger = Ledger {
        write_spool,
        ..ledger
    };
    (home, Arc::new(ledger))
}

async fn admit(ledger: &Arc<Ledger>, run: &RunJob) -> Result<Admission, Problem> {
    let image = "localhost/x:latest".parse().unwrap();
    ledger.admit(None, run, &image).await
}

async fn accept(ledger: &Arc<Ledger>, run: &RunJob) -> Result<Arc<Job>, Problem> {
    match admit(ledger, run).await? {
        Admission::Known(job) => Ok(job),
        Admission::New(reservation) => {
            let committed = reservation.commit(run.sandbox.clone()).await;
            committed.map(|(job, _)| job)
        }
    }
}

/// A disk that hangs while this job is written, until it is released.
struct HungDisk {
    job: JobId,
    hangs: mpsc::UnboundedSender<()>,
    release: Mutex<std::sync::mpsc::Receiver<()>>,
}

static HUNG: OnceLock<HungDisk> = OnceLock::new();

fn hang(spool: &Spool, accepted: &AcceptedJob, spec: &SandboxSpec) -> io::Result<()> {
    if let Some(hung) = HUNG.get().filter(|hung| hung.job == accepted.job_id) {
        hung.hangs.send(()).unwrap();
        // Released in time only if the test continues meanwhile.
        let _ = hung.release.lock().recv_timeout(LIMIT);
    }
    spool.create(accepted, spec)
}

// On one thread: a write on the runtime's thread, or under the lock, would block all that follows.
#[tokio::test]
async fn hung_spool_blocks_only_its_job() {
    let (_home, ledger) = ledger_with(hang);
    let (running, hung) = (run_of(JobId::new(), 1), run_of(JobId::new(), 1));
    let running_job = accept(&ledger, &running).await.unwrap();
    let (hangs, mut hanging) = mpsc::unbounded_channel();
    let (release, released) = std::sync::mpsc::channel();
    let disk = HungDisk {
        job: hung.job_id,
        hangs,
        release: Mutex::new(released),
    };
    assert!(HUNG.set(disk).is_ok());
    let run = |run: RunJob| {
        let ledger = Arc::clone(&ledger);
        crate::background::spawn("accept", async move { accept(&ledger, &run).await })
    };
    let first = run(hung.clone());
    hanging.recv().await.unwrap();
    let again = run(hung.clone());

    let others = async {
        let found = ledger.get(None, running.job_id, Some(1)).await.unwrap();
        assert!(Arc::ptr_eq(&found, &running_job));
        found.cancel(Duration::MAX);
        let known = accept(&ledger, &running).await.unwrap();
        assert!(Arc::ptr_eq(&known, &running_job));
        assert_eq!(ledger.states(None).len(), 2, "one is being accepted");
        let full = accept(&ledger, &run_of(JobId::new(), 1)).await;
        let full = full.err().unwrap();
        assert_eq!(
            full.kind,
            ProblemKind::TooManyRequests,
            "its slot is in use"
        );
        running_job.set_outcome(JobOutcome::Canceled);
        let forgotten = ledger.forget(Requester::Gc, running.job_id, None);
        forgotten.await.unwrap();
        accept(&ledger, &run_of(JobId::new(), 1)).await.unwrap();
    };
    tokio::time::timeout(LIMIT, others).await.unwrap();
    assert!(!first.is_finished() && !again.is_finished());

    release.send(()).unwrap();
    let [first, again] = [first.await, again.await].map(|job| job.unwrap().unwrap());
    assert!(Arc::ptr_eq(&first, &again), "started once");
}

fn fail_once(spool: &Spool, accepted: &AcceptedJob, spec: &SandboxSpec) -> io::Result<()> {
    static WRITES: AtomicUsize = AtomicUsize::new(0);
    spool.create(accepted, spec)?;
    match WRITES.fetch_add(1, Ordering::SeqCst) {
        0 => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
}

#[tokio::test]
async fn failed_write_frees_id_and_slot() {
    let (home, ledger) = ledger_with(fail_once);
    let run = run_of(JobId::new(), 1);
    let Admission::New(reservation) = admit(&ledger, &run).await.unwrap() else {
        panic!("it is new");
    };
    let waiting = admit(&ledger, &run);
    let (failed, waited) = tokio::join!(reservation.commit(run.sandbox.clone()), waiting);
    let problem = failed.err().unwrap();
    assert_eq!(problem.kind, ProblemKind::InsufficientStorage);
    assert_eq!(waited.err().unwrap(), problem, "the answer of the first");
    let left = home.path().join(Spool::dir_name(run.job_id, 1));
    assert!(!left.exists());
    for _ in 0..SLOTS {
        accept(&ledger, &run_of(JobId::new(), 1)).await.unwrap();
    }
}

#[tokio::test]
async fn dropped_reservation_is_released() {
    let (_home, ledger) = ledger_with(Spool::create);
    let run = run_of(JobId::new(), 1);
    drop(admit(&ledger, &run).await.unwrap());
    accept(&ledger, &run).await.unwrap();
}

#[tokio::test]
async fn forgotten_job_is_gone_from_disk() {
    let (home, ledger) = ledger_with(Spool::create);
    let run = run_of(JobId::new(), 1);
    let job = accept(&ledger, &run).await.unwrap();
    let running = ledger.forget(Requester::Gc, run.job_id, None).await;
    assert_eq!(running.unwrap_err().kind, ProblemKind::Conflict);
    job.set_outcome(JobOutcome::Completed);
    let path = job.spool.path().to_owned();
    assert!(path.exists());
    drop(job);
    let forgotten = ledger.forget(Requester::Orchestrator(None), run.job_id, Some(1));
    forgotten.await.unwrap();
    assert!(!path.exists());
    let late = accept(&ledger, &run).await.err().unwrap();
    assert_eq!(late.kind, ProblemKind::JobAlreadyFinished);
    let file = home.path().join("tombstones");
    let (_, tombstones) = TombstoneFile::open(file, LIMIT).unwrap();
    assert_eq!(tombstones.highest_attempt(run.job_id), Some(1));
}

// On one thread: the caller leaves before the tombstone is written.
#[tokio::test]
async fn forgetting_goes_on_without_its_caller() {
    let (_home, ledger) = ledger_with(Spool::create);
    let run = run_of(JobId::new(), 1);
    let job = accept(&ledger, &run).await.unwrap();
    job.set_outcome(JobOutcome::Completed);
    let (tasks, shared) = (BackgroundTasks::default(), Arc::clone(&ledger));
    let forgotten = async move { shared.forget(Requester::Gc, run.job_id, None).await };
    let call = tasks.run_to_end("forget_job", forgotten);
    assert!(call.now_or_never().is_none(), "it takes a while");
    assert_eq!(tasks.idle(LIMIT).await, 0);
    assert!(ledger.jobs().is_empty());
    let late = accept(&ledger, &run).await.err().unwrap();
    assert_eq!(late.kind, ProblemKind::JobAlreadyFinished);
}

#[test]
fn ended_change_aborts_no_later_one() {
    let mut registry = Registry::new(SLOTS, &[], Tombstones::default(), SharedGpus::default());
    let id = JobId::new();
    let removal = registry.forget(Requester::Gc, id, Some(1));
    let Ok(Removal::Begun { change, attempt }) = removal else {
        panic!("its request may be under way");
    };
    registry.remove(change, attempt, Time::now());
    registry.admit(&accepted(id, 2), None).unwrap();
    registry.abort(change, Problem::internal());
    let lookup = registry.get(None, id, None);
    assert!(
        matches!(lookup, Ok(Lookup::Busy(_))),
        "it is being accepted"
    );
}

// On one thread: a write on the runtime's would hold up all that follows.
#[tokio::test]
async fn abandoned_log_write_ends_before_the_next() {
    let spool = Spool::at("/none".into());
    let job = Arc::new(Job::new(accepted(JobId::new(), 1), spool, None));
    let writes = Arc::new(Mutex::new(Vec::new()));
    let (release, released) = std::sync::mpsc::channel();
    let list = Arc::clone(&writes);
    let first = job.with_log(move |_| {
        let _ = released.recv_timeout(LIMIT);
        list.lock().push("first");
    });
    assert!(first.now_or_never().is_none(), "it hangs");
    let list = Arc::clone(&writes);
    let mut second = std::pin::pin!(job.with_log(move |_| list.lock().push("second")));
    let early = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
    assert!(early.is_err(), "two writers at once");
    release.send(()).unwrap();
    second.await.unwrap();
    assert_eq!(*writes.lock(), ["first", "second"]);
}

#[test]
fn shutdown_cancels_job_being_accepted() {
    let mut registry = Registry::new(SLOTS, &[], Tombstones::default(), SharedGpus::default());
    let wanted = accepted(JobId::new(), 1);
    let Ok(Decision::Begun { change, .. }) = registry.admit(&wanted, None) else {
        panic!("it is new");
    };
    registry.cancel_all(Duration::ZERO);
    let job = Arc::new(Job::new(wanted, Spool::at("/none".into()), None));
    registry.accept(change, &job);
    assert!(job.is_canceled());
}
