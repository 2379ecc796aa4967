//! Artifacts of an attempt that has ended, fetched from its node before the end is stored.
//!
//! The node keeps them until it is told to forget the attempt, which happens only after the end is stored, with the
//! artifacts, in one commit. So a restart of this process fetches them again. A cut connection is resumed where it
//! broke off.
//!
//! A node that is silent for a lease is treated as for any silence: the job gets another attempt, if it may have one.
//! Otherwise the node has [`TIMEOUT_MARGIN`] to come back; then the end is stored without what is missing. Where the
//! orchestrator has no room, or the node has lost a file, the end is stored at once, without that file. The result
//! says what is missing and why.

use super::{
    TIMEOUT_MARGIN,
    outcome::AttemptOutcome,
    request::{Start, connect},
};
use crate::{
    api::{events::ResultEvent, jobs::SkippedArtifacts},
    contents::{ContentError, Expected, PartialUpload, Pin, StoredContent},
    orchestrator::{
        AppState,
        active_jobs::JobHandle,
        node_client::{self, ArtifactBytes, NodeCallErrorKind},
    },
    store::{NewArtifact, RunningJob},
};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use parking_lot::Mutex;
use std::{collections::BTreeMap, time::Duration};
use tokio::{task::spawn_blocking, time::Instant};

/// Artifacts that are fetched at the same time.
const MAX_CONCURRENT: usize = 4;

/// Artifacts that are here, pinned until the end of the job refers to them.
#[derive(Default)]
pub(super) struct Retrieved {
    pub(super) artifacts: Vec<NewArtifact>,
    _pins: Vec<Pin>,
}

/// Failure to fetch an artifact.
enum FetchError {
    /// The artifact will not come.
    Missing(String),
    /// The node has not answered for too long.
    Silent,
}

/// Fetches the artifacts of an outcome, unless the job is about to run again anyway.
pub(super) async fn retrieve(
    state: &AppState,
    job: &RunningJob,
    outcome: AttemptOutcome,
    handle: &JobHandle,
) -> (AttemptOutcome, Retrieved) {
    let may_retry = job.may_retry() && !handle.is_cancel_requested();
    let is_end = outcome.is_final() || !may_retry;
    let AttemptOutcome::Ended(mut last) = outcome else {
        return (outcome, Retrieved::default());
    };
    if last.result.artifacts.is_empty() || !is_end {
        return (AttemptOutcome::Ended(last), Retrieved::default());
    }
    let patience = if may_retry {
        state.settings.lease.length
    } else {
        TIMEOUT_MARGIN
    };
    let retrieval = Retrieval {
        state,
        job,
        patience,
        last_contact: Mutex::new(Instant::now()),
    };
    match retrieval.fetch_all(&mut last, may_retry).await {
        Some(retrieved) => (AttemptOutcome::Ended(last), retrieved),
        None => {
            let reason = "its node did not answer any more before its artifacts were fetched";
            (AttemptOutcome::Lost(reason.into()), Retrieved::default())
        }
    }
}

struct Retrieval<'a> {
    state: &'a AppState,
    job: &'a RunningJob,
    /// Silence of the node after which it is given up.
    patience: Duration,
    last_contact: Mutex<Instant>,
}

impl Retrieval<'_> {
    /// Fetches all artifacts of a result, in which only those stay that are here. `None` where the node is silent and
    /// the job may run again.
    async fn fetch_all(&self, last: &mut ResultEvent, may_retry: bool) -> Option<Retrieved> {
        let artifacts = std::mem::take(&mut last.result.artifacts);
        let (mut retrieved, mut missing) = (Retrieved::default(), BTreeMap::new());
        let mut fetches = Vec::with_capacity(artifacts.len());
        for (n, artifact) in artifacts.iter().enumerate() {
            fetches.push(self.fetch(n, artifact.size_bytes).boxed());
        }
        let fetches = stream::iter(fetches).buffered(MAX_CONCURRENT);
        let fetched: Vec<_> = fetches.collect().await;
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
                Err(FetchError::Silent) if may_retry => return None,
                Err(FetchError::Silent) => {
                    let reason = "the node did not answer any more".to_owned();
                    missing
                        .entry(reason)
                        .or_insert_with(Vec::new)
                        .push(artifact.path);
                }
                Err(FetchError::Missing(reason)) => {
                    missing
                        .entry(reason)
                        .or_insert_with(Vec::new)
                        .push(artifact.path);
                }
            }
        }
        for (reason, paths) in missing {
            tracing::warn!(
                count = paths.len(),
                reason,
                "artifacts of a job are missing"
            );
            let skipped = SkippedArtifacts::new(
                paths.len() as u64,
                format!(
                    "not stored: {} ({reason}), such as {:?}",
                    paths.len(),
                    paths[0]
                ),
            );
            let before = last.result.artifacts_skipped.take();
            last.result.artifacts_skipped = Some(match before {
                Some(before) => before.and(skipped),
                None => skipped,
            });
        }
        Some(retrieved)
    }

    /// Fetches one artifact; goes on where an earlier try, also one of an earlier process, broke off.
    async fn fetch(&self, n: usize, size: u64) -> Result<StoredContent, FetchError> {
        let key = format!("job-{}-{}-{n}", self.job.id, self.job.attempt);
        let mut backoff = node_client::retry_backoff();
        loop {
            let before = *self.last_contact.lock();
            let reason = match self.try_fetch(n, size, &key).await {
                Ok(stored) => return Ok(stored),
                Err(TryError::Missing(reason)) => return Err(FetchError::Missing(reason)),
                Err(TryError::Transient(reason)) => reason,
            };
            tracing::debug!(n, reason, "artifact not fetched; retrying");
            let last = *self.last_contact.lock();
            if last.elapsed() >= self.patience {
                return Err(FetchError::Silent);
            }
            if last > before {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn try_fetch(&self, n: usize, size: u64, key: &str) -> Result<StoredContent, TryError> {
        let store = &self.state.contents;
        let (known, name) = (store.clone(), key.to_owned());
        let offset = spawn_blocking(move || known.partial_size(&name)).await;
        let offset = offset
            .map_err(std::io::Error::from)
            .flatten()
            .map_err(ContentError::from)?;
        let expected = Expected {
            sha256: None,
            size: Some(size),
        };
        let mut upload = store.resume(key, offset, expected).await?;
        if offset < size {
            let client = connect(self.state, self.job, Start::Attach).await;
            let client = client.map_err(|error| TryError::Transient(error.to_string()))?;
            let attempt = (self.job.id, self.job.attempt);
            let opened = client.open_artifact(attempt, n, offset).await;
            let mut bytes = opened.map_err(|error| match error.kind {
                NodeCallErrorKind::NotFound if error.is_own_answer => {
                    TryError::Missing("its node has lost it".to_owned())
                }
                _ => TryError::Transient(error.to_string()),
            })?;
            if offset > 0 && !bytes.is_part() {
                return Err(TryError::Missing(
                    "its node can't resume a transfer".to_owned(),
                ));
            }
            if let Err(error) = self.copy(&mut bytes, &mut upload).await {
                if matches!(error, TryError::Transient(_)) {
                    upload.pause().await?;
                }
                return Err(error);
            }
            if upload.size() < size {
                upload.pause().await?;
                return Err(TryError::Transient("the answer ended early".to_owned()));
            }
        }
        Ok(upload.finish().await?)
    }

    async fn copy(
        &self,
        bytes: &mut ArtifactBytes,
        upload: &mut PartialUpload,
    ) -> Result<(), TryError> {
        loop {
            let chunk = bytes.next().await;
            let chunk = chunk.map_err(|error| TryError::Transient(error.to_string()))?;
            *self.last_contact.lock() = Instant::now();
            match chunk {
                Some(chunk) => upload.write(&chunk).await?,
                None => return Ok(()),
            }
        }
    }
}

/// Failure of one try.
enum TryError {
    Missing(String),
    Transient(String),
}

impl From<ContentError> for TryError {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::Busy | ContentError::WrongOffset { .. } => {
                Self::Transient(error.to_string())
            }
            ContentError::QuotaExceeded { .. } | ContentError::DiskFull { .. } => {
                Self::Missing(format!("the orchestrator has no room: {error}"))
            }
            ContentError::WrongHash { .. } | ContentError::WrongSize { .. } => {
                Self::Missing("its node sent something else than it had announced".to_owned())
            }
            ContentError::Io(cause) => {
                tracing::error!(error = %cause, "artifact can't be stored");
                Self::Missing("the orchestrator can't store it; see its log".to_owned())
            }
        }
    }
}
