//! Log of an ended job, from its node to a file.
//!
//! Done before the end is stored, so that whoever sees the end sees the whole log; but a result never waits longer than
//! [`STORE_DELAY_LIMIT`] for its log. One that takes longer goes on beside, and the node keeps the job until it is done.

use super::{ArchiveWriter, LogArchive, writer::WriteError};
use crate::{
    api::{JobId, jobs::JobResult, nodes::features},
    background::spawn,
    backoff::Backoff,
    errors,
    http::{client::CallError, client_response::ByteStream},
    orchestrator::{
        AppState,
        node_client::{NodeCallError, SILENCE_TIMEOUT},
        task_watch::LogSource,
    },
    store::{RunningJob, StoreError},
};
use bytes::Bytes;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

/// Longest time for which the end of a job waits for its log.
const STORE_DELAY_LIMIT: Duration = Duration::from_secs(10);
/// Longest time for a log that is being fetched, after which the result's part is all that is kept: a node that sends a
/// byte now and then must not keep others waiting for ever.
const FETCH_LIMIT: Duration = Duration::from_hours(1);
/// Backoff between attempts, such as while the node restarts.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Attempts to fetch a log.
const MAX_TRIES: u32 = 8;
/// Logs that are fetched at the same time, each with about a megabyte of memory.
static FETCHES: Semaphore = Semaphore::const_new(8);

/// Failure to keep a log.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the store could not be read")]
    Store(#[from] StoreError),
    #[error("the node is not known any more")]
    NoNode,
    #[error("the node sends no logs")]
    Unsupported,
    #[error("the node could not be asked")]
    Node(#[from] NodeCallError),
    #[error("the log was cut off")]
    Cut(#[from] CallError),
    #[error("the node fell silent")]
    Silent,
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the disk")]
    Io(#[from] io::Error),
}

impl FetchError {
    /// Whether another try may succeed.
    fn is_transient(&self) -> bool {
        match self {
            Self::Store(_) | Self::Node(_) | Self::Cut(_) | Self::Silent => true,
            Self::Write(error) => matches!(error, WriteError::Incomplete),
            Self::NoNode | Self::Unsupported | Self::Io(_) => false,
        }
    }
}

/// Log that may still be on its way after the end of its job was stored.
pub(in crate::orchestrator) struct ArchiveTask(Option<JoinHandle<()>>);

impl ArchiveTask {
    /// Waits until the log is kept, or given up; only then may the node forget the job.
    pub(in crate::orchestrator) async fn finish(self) {
        if let Some(task) = self.0 {
            // A panic is logged where it happened.
            let _ = task.await;
        }
    }
}

/// Keeps the log of a job that ended with this result. Returns once it is kept or given up, or takes too long.
pub(in crate::orchestrator) async fn start(
    state: &Arc<AppState>,
    job: &RunningJob,
    result: &JobResult,
) -> ArchiveTask {
    let has_output = !result.stdout.is_empty() || !result.stderr.is_empty();
    if !(has_output || result.has_egress()) || state.log_archive.retention.quota == 0 {
        return ArchiveTask(None);
    }
    let shared = Arc::clone(state);
    let source = LogSource {
        node: job.node_id,
        job: job.id,
        attempt: job.attempt,
    };
    let mut task = spawn("archive_log", async move { keep(&shared, source).await });
    match timeout(STORE_DELAY_LIMIT, &mut task).await {
        Ok(_) => ArchiveTask(None),
        Err(_) => ArchiveTask(Some(task)),
    }
}

/// Keeps a log, or gives it up. The wait for other logs is not limited.
pub(super) async fn keep(state: &AppState, source: LogSource) {
    // Never closed.
    let _permit = FETCHES.acquire().await;
    let fetched = timeout(FETCH_LIMIT, fetch_with_retry(state, source)).await;
    let job = source.job;
    if fetched.is_err() {
        tracing::warn!(%job, "log not kept: it took too long; the result has a part of it");
    }
    // Its task may have been deleted meanwhile.
    match state.store.jobs_unknown(vec![job]).await {
        Ok(unknown) if unknown.is_empty() => {}
        Ok(unknown) => {
            let archive = Arc::clone(&state.log_archive);
            // A panic is logged where it happened.
            let _ = spawn_blocking(move || archive.remove(&unknown)).await;
        }
        Err(error) => {
            let error = errors::chain(&error);
            tracing::warn!(%job, error, "job of a kept log can't be looked up; the next start does");
        }
    }
}

async fn fetch_with_retry(state: &AppState, source: LogSource) {
    let job = source.job;
    let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
    for tries in 1.. {
        let error = match fetch(state, source).await {
            Ok(()) => return,
            Err(error) => error,
        };
        let reason = errors::chain(&error);
        if matches!(error, FetchError::Unsupported) {
            tracing::debug!(%job, reason, "log not kept; the result has a part of it");
            return;
        }
        if !error.is_transient() || tries == MAX_TRIES {
            tracing::warn!(%job, reason, "log not kept; the result has a part of it");
            return;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn fetch(state: &AppState, source: LogSource) -> Result<(), FetchError> {
    let LogSource { node, job, attempt } = source;
    let node = state.store.node_get(node).await?;
    let node = node.ok_or(FetchError::NoNode)?;
    let client = state.node_client(&node).ok_or(FetchError::NoNode)?;
    // An earlier release, or another implementation.
    if !node.capability.has_feature(features::LOG_ARCHIVE) {
        return Err(FetchError::Unsupported);
    }
    let chunks = match client.read_log(job, attempt).await {
        Ok(chunks) => chunks,
        // It was replaced by an earlier release, or has forgotten the job.
        Err(error) if error.kind.is_unsupported() => return Err(FetchError::Unsupported),
        Err(error) => return Err(error.into()),
    };
    // One chunk on its way while another one is written.
    let (sender, receiver) = mpsc::channel(1);
    let archive = Arc::clone(&state.log_archive);
    let written = spawn_blocking(move || write(&archive, job, attempt, receiver));
    let sent = send(chunks, sender).await;
    let written = written.await.map_err(io::Error::from)?;
    // The writer's error comes first: it stops the sender.
    match (written, sent) {
        (Err(WriteError::Incomplete) | Ok(()), Err(error)) => Err(error),
        (written, _) => Ok(written?),
    }
}

/// Hands the chunks to the writer, until one of the two ends.
async fn send(mut chunks: ByteStream, to: mpsc::Sender<Bytes>) -> Result<(), FetchError> {
    loop {
        let chunk = timeout(SILENCE_TIMEOUT, chunks.next()).await;
        let Some(chunk) = chunk.map_err(|_| FetchError::Silent)?? else {
            return Ok(());
        };
        if to.send(chunk).await.is_err() {
            return Ok(());
        }
    }
}

fn write(
    archive: &LogArchive,
    job: JobId,
    attempt: u32,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<(), WriteError> {
    const CHECK_BYTES: u64 = 4 * 1024 * 1024;
    let mut writer: ArchiveWriter = archive.writer(job, attempt)?;
    let (mut received, mut checked) = (0, 0);
    while let Some(chunk) = chunks.blocking_recv() {
        writer.write(&chunk)?;
        received += chunk.len() as u64;
        if received - checked > CHECK_BYTES {
            checked = received;
            archive.ensure_space()?;
        }
        // A node sends at most its --job-log-size; one that lies is bounded by this.
        if received > archive.retention.quota {
            return Err(io::Error::other("it is longer than --log-quota").into());
        }
    }
    let (size, replaced) = writer.finish()?;
    Ok(archive.add(size, replaced)?)
}
