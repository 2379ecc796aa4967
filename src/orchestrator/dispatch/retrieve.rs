//! Artifacts of an attempt that has ended, fetched from its node before the end is stored.
//!
//! The node keeps them until it is told to forget the attempt, which happens only after the end is stored, with the
//! artifacts, in one commit. So a restart of this process fetches them again. A cut connection is resumed where it
//! broke off.
//!
//! A job that has ended is never run again for its artifacts. A node that sends nothing has [`TIMEOUT_MARGIN`] to come
//! back, and a store that is full has [`MAX_WAIT_FOR_ROOM`] to become less full; then the end is stored without what is
//! missing. Where the node has lost a file, the end is stored at once, without that file. The result says what is
//! missing and why.

use super::{
    TIMEOUT_MARGIN,
    outcome::{AttemptError, AttemptOutcome},
    request::{Start, connect},
};
use crate::{
    api::{
        events::ResultEvent,
        jobs::{JobArtifact, SkippedArtifacts},
        size::ByteSize,
    },
    contents::{ContentError, Expected, PartialUpload, Pin, StoredContent},
    orchestrator::{
        AppState,
        active_jobs::JobHandle,
        node_client::{self, ArtifactBytes, NodeCallError, NodeCallErrorKind},
    },
    store::{NewArtifact, RunningJob},
};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    io,
    panic::AssertUnwindSafe,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// Artifacts of one job that are fetched at the same time.
const MAX_CONCURRENT: usize = 4;
/// Artifacts of all jobs that are fetched at the same time, each with two blocks of a mebibyte.
static TRANSFERS: Semaphore = Semaphore::const_new(8);
/// Time for which a job waits for room in the store, with all its artifacts together.
const MAX_WAIT_FOR_ROOM: Duration = Duration::from_mins(10);

/// Artifacts that are here, pinned until the end of the job refers to them.
#[derive(Default)]
pub(super) struct Retrieved {
    pub(super) artifacts: Vec<NewArtifact>,
    _pins: Vec<Pin>,
}

/// Artifact, or the reason why it is missing.
type Fetched = Result<StoredContent, String>;

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
    let retrieval = Retrieval {
        state,
        job,
        received: AtomicU64::new(0),
        given_up_at: Mutex::new(None),
        full_since: OnceLock::new(),
    };
    let fetched = AssertUnwindSafe(retrieval.fetch_all(&last.result.artifacts)).catch_unwind();
    let fetched = fetched.await.unwrap_or_else(|_| {
        tracing::error!(
            "fetching artifacts panicked; the message of the panic is in the log above"
        );
        let failed = || Err("internal error of the orchestrator; see its log".to_owned());
        last.result.artifacts.iter().map(|_| failed()).collect()
    });
    let is_whole = fetched.iter().all(Result::is_ok);
    let retrieved = record(last, fetched);
    if !is_whole || job.attempt > 1 {
        discard_parts(state, job).await;
    }
    retrieved
}

/// Removes what has arrived of artifacts that will not be stored, also of earlier attempts.
async fn discard_parts(state: &AppState, job: &RunningJob) {
    let (store, prefix) = (state.contents.clone(), format!("job-{}-", job.id));
    let discarded = spawn_blocking(move || store.discard_all(&prefix)).await;
    if let Err(error) = discarded.map_err(io::Error::from).flatten() {
        tracing::warn!(%error, "parts of artifacts not removed; they are when they are old");
    }
}

/// Leaves those artifacts in a result that are here, and says why the others are not.
fn record(last: &mut ResultEvent, fetched: Vec<Fetched>) -> Retrieved {
    let mut retrieved = Retrieved::default();
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let artifacts = std::mem::take(&mut last.result.artifacts);
    for (artifact, fetched) in artifacts.into_iter().zip(fetched) {
        match fetched {
            Ok(StoredContent { content, pin }) => {
                retrieved.artifacts.push(NewArtifact {
                    name: artifact.path.clone(),
                    content,
                });
                retrieved._pins.push(pin);
                last.result.artifacts.push(artifact);
            }
            Err(reason) => missing.entry(reason).or_default().push(artifact.path),
        }
    }
    for (reason, paths) in missing {
        let count = paths.len();
        tracing::warn!(count, reason, "artifacts of a job are missing");
        let skipped = SkippedArtifacts::new(
            count as u64,
            format!("not stored: {count} ({reason}), such as {:?}", paths[0]),
        );
        let before = last.result.artifacts_skipped.take();
        last.result.artifacts_skipped = Some(match before {
            Some(before) => before.and(skipped),
            None => skipped,
        });
    }
    retrieved
}

struct Retrieval<'a> {
    state: &'a AppState,
    job: &'a RunningJob,
    /// Chunks that the node has sent.
    received: AtomicU64,
    /// Number of chunks at which the node was given up.
    given_up_at: Mutex<Option<u64>>,
    /// Time since which the store has been full, at least for one artifact.
    full_since: OnceLock<Instant>,
}

impl Retrieval<'_> {
    /// Fetches all artifacts of a result, in its order.
    async fn fetch_all(&self, artifacts: &[JobArtifact]) -> Vec<Fetched> {
        let mut fetches = Vec::with_capacity(artifacts.len());
        for (n, artifact) in artifacts.iter().enumerate() {
            fetches.push(self.fetch(n, artifact.size_bytes).boxed());
        }
        let fetches = stream::iter(fetches).buffered(MAX_CONCURRENT);
        fetches.collect().await
    }

    /// Fetches one artifact; goes on where an earlier try, also one of an earlier process, broke off.
    async fn fetch(&self, n: usize, size: u64) -> Fetched {
        let key = format!("job-{}-{}-{n}", self.job.id, self.job.attempt);
        let mut backoff = node_client::retry_backoff();
        // Time for which the node was asked without a chunk of any artifact, without the waits for other transfers.
        let (mut silence, mut received) = (Duration::ZERO, self.received());
        loop {
            if self.is_given_up() {
                return Err("the node did not answer any more".to_owned());
            }
            // Never closed.
            let permit = TRANSFERS.acquire().await;
            let began = Instant::now();
            let fetched = self.try_fetch(n, size, &key).await;
            drop(permit);
            let error = match fetched {
                Ok(stored) => return Ok(stored),
                Err(error) => error,
            };
            tracing::debug!(n, %error, "artifact not fetched");
            let before = std::mem::replace(&mut received, self.received());
            if received != before {
                silence = Duration::ZERO;
                backoff.reset();
            }
            let pause = backoff.next_delay();
            match error {
                TryError::Missing(reason) => return Err(reason),
                TryError::NoRoom(reason) => {
                    if self.full_since.get_or_init(Instant::now).elapsed() >= MAX_WAIT_FOR_ROOM {
                        return Err(reason);
                    }
                }
                // It says nothing about the node.
                TryError::Local(_) => {}
                TryError::Node(_) => silence += began.elapsed() + pause,
            }
            if silence >= TIMEOUT_MARGIN {
                *self.given_up_at.lock() = Some(received);
            }
            sleep(pause).await;
        }
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether the node was given up and has sent nothing since.
    fn is_given_up(&self) -> bool {
        *self.given_up_at.lock() == Some(self.received())
    }

    async fn try_fetch(&self, n: usize, size: u64, key: &str) -> Result<StoredContent, TryError> {
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
            let client = connect(self.state, self.job, Start::Attach).await?;
            let attempt = (self.job.id, self.job.attempt);
            let mut bytes = client.open_artifact(attempt, n, offset).await?;
            if offset > 0 && !bytes.is_part() {
                return Err(TryError::Missing(
                    "its node can't resume a transfer".to_owned(),
                ));
            }
            let copied = self.copy(&mut bytes, &mut upload).await;
            let is_whole = upload.size() == size;
            if copied.is_err() || !is_whole {
                // What broke off says more than what keeps its bytes from the disk.
                let paused = upload.pause().await;
                copied?;
                paused?;
                return Err(TryError::Node("the answer ended early".to_owned()));
            }
        }
        Ok(upload.finish().await?)
    }

    async fn copy(
        &self,
        bytes: &mut ArtifactBytes,
        upload: &mut PartialUpload,
    ) -> Result<(), TryError> {
        while let Some(chunk) = bytes.next().await? {
            self.received.fetch_add(1, Ordering::Relaxed);
            upload.write(&chunk).await?;
        }
        Ok(())
    }
}

/// Failure of one try.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
enum TryError {
    /// The artifact will not come.
    #[error("{0}")]
    Missing(String),
    /// The store is full at the moment.
    #[error("{0}")]
    NoRoom(String),
    /// The orchestrator could not ask, or store; the next try may do.
    #[error("{0}")]
    Local(String),
    /// The node sent nothing, or broke off.
    #[error("{0}")]
    Node(String),
}

impl From<AttemptError> for TryError {
    fn from(error: AttemptError) -> Self {
        let reason = error.reason.to_string();
        match error.outcome {
            Some(_) => Self::Missing(reason),
            None if error.store_error.is_some() => Self::Local(reason),
            None => Self::Node(reason),
        }
    }
}

impl From<NodeCallError> for TryError {
    fn from(error: NodeCallError) -> Self {
        use NodeCallErrorKind::{Conflict, NotFound};
        match error.kind {
            NotFound | Conflict if error.is_own_answer => {
                Self::Missing("its node has lost it".to_owned())
            }
            _ => Self::Node(error.to_string()),
        }
    }
}

impl From<io::Error> for TryError {
    fn from(error: io::Error) -> Self {
        Self::from(ContentError::from(error))
    }
}

impl From<ContentError> for TryError {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::Busy | ContentError::WrongOffset { .. } => Self::Local(error.to_string()),
            ContentError::QuotaExceeded { .. } | ContentError::DiskFull { .. } => {
                Self::NoRoom(format!("the orchestrator has no room: {error}"))
            }
            ContentError::WrongHash { .. } | ContentError::WrongSize { .. } => {
                Self::Missing("its node sent something else than it had announced".to_owned())
            }
            // Such as too many open files: it passes, or else the time of a full disk does.
            ContentError::Io(cause) => {
                tracing::warn!(error = %cause, "artifact can't be stored; retrying");
                Self::NoRoom("the orchestrator can't store it; see its log".to_owned())
            }
        }
    }
}
