//! Logs that are fetched late: an orchestrator that stops while a log is on its way has stored the end of its job.
//!
//! The node keeps such a job until the reconciler has it removed, which asks here before.

use super::{fetch::keep, reader::ReadError};
use crate::{
    api::{JobId, events::LogPart},
    background::spawn,
    orchestrator::{AppState, task_watch::LogSource},
};
use parking_lot::Mutex;
use std::{collections::HashMap, io, sync::Arc};
use tokio::task::spawn_blocking;

/// Logs that are fetched late.
#[derive(Default)]
pub(super) struct LateLogs(Mutex<HashMap<JobId, Progress>>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Fetching,
    /// The log is kept, or given up.
    Done,
}

impl LateLogs {
    /// Progress of a log, which is forgotten once it is done.
    fn take(&self, job: JobId) -> Option<Progress> {
        let mut logs = self.0.lock();
        let progress = logs.get(&job).copied()?;
        if progress == Progress::Done {
            logs.remove(&job);
        }
        Some(progress)
    }
}

/// Fetches the log of an ended job from its node in the background, unless it is kept. Returns whether nothing is left
/// to do: the log is kept, or was given up.
pub(in crate::orchestrator) async fn catch_up(state: &Arc<AppState>, source: LogSource) -> bool {
    let archive = &state.log_archive;
    if archive.retention.quota == 0 {
        return true;
    }
    if let Some(progress) = archive.late.take(source.job) {
        return progress == Progress::Done;
    }
    let (known, LogSource { job, attempt, .. }) = (Arc::clone(archive), source);
    let read = spawn_blocking(move || known.reader(job, attempt, LogPart::default(), 0)).await;
    match read
        .map_err(|error| ReadError::Io(io::Error::from(error)))
        .flatten()
    {
        Ok(Some(_)) => return true,
        Ok(None) => {}
        Err(error) => tracing::warn!(%job, %error, "kept log can't be read; fetched again"),
    }
    archive.late.0.lock().insert(job, Progress::Fetching);
    let shared = Arc::clone(state);
    spawn("archive_late_log", async move {
        keep(&shared, source).await;
        shared.log_archive.late.0.lock().insert(job, Progress::Done);
        shared.nodes.reconciler.mark_dirty(source.node);
    });
    false
}
