//! Artifacts of an attempt that has ended, fetched from its node before the end is stored.
//!
//! The node keeps them until it is told to forget the attempt, which happens only after the end is stored, with the
//! artifacts, in one commit. So a restart of this process fetches them again. A cut connection is resumed where it
//! broke off.
//!
//! A job that has ended is never run again for its artifacts. A node that sends nothing, or almost nothing, has
//! [`TIMEOUT_MARGIN`] to come back, and a store that is full has [`MAX_WAIT_FOR_ROOM`] to become less full; then the end
//! is stored without what is missing. Where the node has lost a file, the end is stored at once, without that file. The
//! result says what is missing and why; also where the files go beyond the [share](ResultShare) of their user in a store
//! that is nearly full.
//!
//! Once the job is canceled a silent node has [`CANCELED_MARGIN`], and a full store no time. A cancel that is forced, as
//! the second one is, ends the retrieval.

mod copy;
mod error;
mod list;
mod record;

pub(super) use record::Retrieved;

use super::{
    expiry::TIMEOUT_MARGIN,
    outcome::AttemptOutcome,
    request::{Start, connect},
    turns::Turn,
};
use crate::{
    api::{jobs::JobArtifact, size::ByteSize},
    contents::{Expected, StoredContent},
    orchestrator::{
        AppState,
        active_jobs::{Cancellation, JobHandle},
        artifacts::ResultShare,
        node_client::{self, NodeClient},
    },
    store::RunningJob,
    wait,
};
use error::TryError;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use parking_lot::Mutex;
use record::{Fetched, record};
use std::{
    future::pending,
    io,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// Beginning of the keys of artifacts that have not arrived whole.
pub(in crate::orchestrator) const ARTIFACTS_PREFIX: &str = "job-";
/// Artifacts of one job that are fetched at the same time.
const MAX_CONCURRENT: usize = 4;
/// Time for which a job waits for room in the store, with all its artifacts together.
const MAX_WAIT_FOR_ROOM: Duration = Duration::from_mins(10);
/// Silence of the node after which its artifacts are given up where the job is canceled.
const CANCELED_MARGIN: Duration = Duration::from_secs(30);

/// Fetches the artifacts of an outcome, unless the job is about to run again anyway.
pub(super) async fn retrieve(
    state: &AppState,
    job: &RunningJob,
    outcome: &mut AttemptOutcome,
    handle: &JobHandle,
) -> Retrieved {
    let may_retry = job.may_retry() && !handle.is_cancel_requested();
    let is_end = outcome.is_final() || !may_retry;
    let AttemptOutcome::Ended(last) = outcome else {
        // Of an earlier process, perhaps; what a node has not started has no artifacts.
        if is_end && matches!(outcome, AttemptOutcome::Lost(_)) {
            discard_parts(state, job).await;
        }
        return Retrieved::default();
    };
    if last.result.artifacts.is_empty() || !is_end {
        return Retrieved::default();
    }
    let share = ResultShare::of(state, job.task_id).await;
    let retrieval = Retrieval::new(state, job, handle, share);
    let fetched = AssertUnwindSafe(retrieval.fetch_all(&last.result.artifacts)).catch_unwind();
    let fetched = fetched.await.unwrap_or_else(|_| {
        tracing::error!(
            "fetching artifacts panicked; the message of the panic is in the log above"
        );
        let failed = || Err("internal error of the orchestrator; see its log".to_owned());
        last.result.artifacts.iter().map(|_| failed()).collect()
    });
    let is_whole = fetched.iter().all(Result::is_ok);
    let mut retrieved = record(last, fetched);
    retrieved.share = Some(retrieval.share);
    if !is_whole || job.attempt > 1 {
        discard_parts(state, job).await;
    }
    retrieved
}

/// Removes what has arrived of artifacts that will not be stored, also of earlier attempts.
async fn discard_parts(state: &AppState, job: &RunningJob) {
    let (store, prefix) = (
        state.contents.clone(),
        format!("{ARTIFACTS_PREFIX}{}-", job.id),
    );
    let discarded = spawn_blocking(move || store.discard_all(&prefix)).await;
    if let Err(error) = discarded.map_err(io::Error::from).flatten() {
        tracing::warn!(%error, "parts of artifacts not removed; they are when they are old");
    }
}

struct Retrieval<'a> {
    state: &'a AppState,
    job: &'a RunningJob,
    handle: &'a JobHandle,
    share: ResultShare,
    /// Client of the node, once it is known where that is.
    client: tokio::sync::Mutex<Option<NodeClient<'a>>>,
    /// Number of times that the node has sent as much as is to be expected.
    progress: AtomicU64,
    /// Progress at which the node was given up.
    given_up_at: Mutex<Option<u64>>,
    /// Time since which the store has been full, at least for one artifact.
    full_since: OnceLock<Instant>,
    /// Whether a user has ended the retrieval.
    stopped: watch::Sender<bool>,
}

impl<'a> Retrieval<'a> {
    fn new(
        state: &'a AppState,
        job: &'a RunningJob,
        handle: &'a JobHandle,
        share: ResultShare,
    ) -> Self {
        Self {
            state,
            job,
            handle,
            share,
            client: tokio::sync::Mutex::default(),
            progress: AtomicU64::new(0),
            given_up_at: Mutex::new(None),
            full_since: OnceLock::new(),
            stopped: watch::Sender::new(false),
        }
    }

    /// Fetches all artifacts of a result, in its order, until a user ends that.
    async fn fetch_all(&self, artifacts: &[JobArtifact]) -> Vec<Fetched> {
        let objections = list::check(self.state, self.job, artifacts).await;
        let mut fetches = Vec::with_capacity(artifacts.len());
        for (n, (artifact, objection)) in artifacts.iter().zip(objections).enumerate() {
            fetches.push(self.fetch(n, artifact.size_bytes, objection).boxed());
        }
        let fetches = stream::iter(fetches).buffered(MAX_CONCURRENT);
        let mut fetched = pin!(fetches.collect());
        tokio::select! {
            // First, since a fetch that finds the task canceled would end with a reason of its own.
            biased;
            () = self.stop_requested() => {}
            fetched = &mut fetched => return fetched,
        }
        self.stopped.send_replace(true);
        fetched.await
    }

    /// Waits until a user forces the end. That of the command may have been forced before, which does not count.
    async fn stop_requested(&self) {
        let mut cancellation = self.handle.cancellation();
        let is_forced = |request: &Cancellation| *request == Cancellation::Forced;
        if is_forced(&cancellation.borrow_and_update())
            || wait::until(&mut cancellation, is_forced).await.is_err()
        {
            pending().await
        }
    }

    async fn fetch(&self, n: usize, size: u64, objection: Option<String>) -> Fetched {
        if let Some(objection) = objection {
            return Err(objection);
        }
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            biased;
            _ = wait::until(&mut stopped, |stopped| *stopped) => {
                Err("the task was canceled while its artifacts were fetched".to_owned())
            }
            fetched = self.fetch_whole(n, size) => fetched,
        }
    }

    /// Fetches one artifact; goes on where an earlier try, also one of an earlier process, broke off.
    async fn fetch_whole(&self, n: usize, size: u64) -> Fetched {
        self.share.take(self.state, size).await?;
        let key = format!("{ARTIFACTS_PREFIX}{}-{}-{n}", self.job.id, self.job.attempt);
        let mut backoff = node_client::retry_backoff();
        // Time for which the node was asked without progress of any artifact, without the waits for other transfers.
        let (mut silence, mut progress) = (Duration::ZERO, self.progress());
        loop {
            if self.is_given_up() {
                return Err("the node did not answer any more".to_owned());
            }
            let turn = self.state.jobs.turns.take(self.job.node_id).await;
            let began = Instant::now();
            let fetched = self.try_fetch(n, size, &key, &turn).await;
            drop(turn);
            let error = match fetched {
                Ok(stored) => {
                    self.record_progress();
                    return Ok(stored);
                }
                Err(error) => error,
            };
            tracing::debug!(n, %error, "artifact not fetched");
            let before = std::mem::replace(&mut progress, self.progress());
            if progress != before {
                silence = Duration::ZERO;
                backoff.reset();
            }
            let pause = backoff.next_delay();
            match error {
                TryError::Paused => continue,
                TryError::Missing(reason) => return Err(reason),
                TryError::NoRoom(reason) => {
                    let waited = self.full_since.get_or_init(Instant::now).elapsed();
                    if waited >= MAX_WAIT_FOR_ROOM || self.handle.is_cancel_requested() {
                        return Err(reason);
                    }
                }
                // It says nothing about the node.
                TryError::Local(_) => {}
                TryError::Node(_) => {
                    silence += began.elapsed() + pause;
                    // It may be elsewhere by now.
                    self.client.lock().await.take();
                }
            }
            let margin = match self.handle.is_cancel_requested() {
                true => CANCELED_MARGIN,
                false => TIMEOUT_MARGIN,
            };
            if silence >= margin {
                *self.given_up_at.lock() = Some(progress);
            }
            sleep(pause).await;
        }
    }

    fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    fn record_progress(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the node was given up and has sent nothing since.
    fn is_given_up(&self) -> bool {
        *self.given_up_at.lock() == Some(self.progress())
    }

    /// Client of the node, which all artifacts share.
    async fn client(&self) -> Result<NodeClient<'a>, TryError> {
        let mut known = self.client.lock().await;
        if let Some(client) = &*known {
            return Ok(client.clone());
        }
        let client = connect(self.state, self.job, Start::Attach).await?;
        Ok(known.insert(client).clone())
    }

    async fn try_fetch(
        &self,
        n: usize,
        size: u64,
        key: &str,
        turn: &Turn,
    ) -> Result<StoredContent, TryError> {
        let store = &self.state.contents;
        if let Some(quota) = store.limits().quota.filter(|quota| size > *quota) {
            let reason = format!(
                "the orchestrator has no room: it stores at most {}",
                ByteSize(quota)
            );
            return Err(TryError::Missing(reason));
        }
        let (known, name) = (store.clone(), key.to_owned());
        let offset = spawn_blocking(move || known.partial_size(&name)).await;
        let offset = offset.map_err(io::Error::from).flatten()?;
        let expected = Expected {
            sha256: None,
            size: Some(size),
        };
        let mut upload = store.resume(key, offset, expected).await?;
        if offset < size {
            let attempt = (self.job.id, self.job.attempt);
            let client = self.client().await?;
            let mut bytes = client.open_artifact(attempt, n, offset).await?;
            if offset > 0 && !bytes.is_part() {
                return Err(TryError::Missing(
                    "its node can't resume a transfer".to_owned(),
                ));
            }
            let copied = self.copy(&mut bytes, &mut upload, turn).await;
            let is_whole = upload.size() == size;
            if copied.is_err() || !is_whole {
                // The break says more than a failure to keep the bytes before it.
                let paused = upload.pause().await;
                copied?;
                paused?;
                return Err(TryError::Node("the answer ended early".to_owned()));
            }
        }
        Ok(upload.finish().await?)
    }
}
