//! Recovery, at the start, of the jobs that an earlier process accepted.
//!
//! Each directory of `jobs_dir` is one attempt. Of a job with several attempts the highest counts; lower ones, and
//! those with a tombstone, are canceled and removed. An attempt without a result is resumed
//! ([`JobStart::Adopted`]), and so is one that has left its workspace behind.

use super::{home::WorkerHome, job::JobStart, ledger::Job, tombstones::Tombstones};
use crate::{
    engine::Engine,
    sandbox::{StopReason, StopRequest, shim::ShimHandle},
    spool::Spool,
};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::spawn_blocking;

/// Time in which the shim of a job that was never accepted has to end it.
const SHIM_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Jobs of an earlier process.
#[derive(Default)]
pub(super) struct Recovered {
    /// The current attempt of each job.
    pub(super) jobs: Vec<Arc<Job>>,
    /// Attempts that are resumed, superseded ones among them.
    pub(super) unfinished: Vec<(Arc<Job>, JobStart)>,
    /// Names of containers that belong to a live shim, or may do so.
    pub(super) containers: HashSet<String>,
    /// Directories of no job that could not be removed.
    pub(super) unremovable: Vec<PathBuf>,
}

/// Content of one directory of `jobs_dir`.
enum SpoolEntry {
    /// An accepted attempt.
    Job {
        job: Arc<Job>,
        container: Option<String>,
        has_workspace: bool,
    },
    /// An attempt whose acceptance was never completed, so that no caller knows of it.
    Unaccepted(Spool),
    /// Such as of a later release: left alone, with its container.
    Unreadable { container: Option<String> },
}

/// Recovers all jobs, and removes directories that belong to none.
pub(super) async fn recover_jobs(engine: &Engine, home: &WorkerHome) -> io::Result<Recovered> {
    let jobs_dir = home.jobs_dir.clone();
    let entries = spawn_blocking(move || read_jobs_dir(&jobs_dir)).await;
    let entries = entries.map_err(io::Error::from).flatten()?;
    let (mut recovered, mut jobs) = (Recovered::default(), Vec::new());
    for entry in entries {
        match entry {
            SpoolEntry::Job {
                job,
                container,
                has_workspace,
            } => {
                recovered.adopt(&job, container, has_workspace).await;
                jobs.push(job);
            }
            SpoolEntry::Unaccepted(spool) => {
                stop_unknown_shim(&spool).await;
                let path = spool.path();
                if let Err(error) = engine.remove_tree(home.init.path(), path).await {
                    tracing::warn!(path = %path.display(), error, "orphaned job directory not removed; retrying");
                    recovered.unremovable.push(path.to_owned());
                }
            }
            SpoolEntry::Unreadable { container } => recovered.containers.extend(container),
        }
    }
    let superseded;
    (recovered.jobs, superseded) = select_current(jobs, &home.tombstones.1);
    for job in superseded {
        job.cancel(Duration::ZERO);
        job.remove_on_drop();
    }
    Ok(recovered)
}

fn read_jobs_dir(jobs_dir: &Path) -> io::Result<Vec<SpoolEntry>> {
    let entries = fs::read_dir(jobs_dir)?;
    entries.map(|entry| Ok(read_spool(entry?.path()))).collect()
}

fn read_spool(path: PathBuf) -> SpoolEntry {
    let spool = Spool::at(path);
    let accepted = match spool.accepted() {
        Ok(Some(accepted)) => accepted,
        Ok(None) => return SpoolEntry::Unaccepted(spool),
        Err(error) => {
            tracing::error!(path = %spool.path().display(), %error, "directory of a job unreadable; left alone");
            return SpoolEntry::Unreadable {
                container: spool.container_name(),
            };
        }
    };
    let result = spool.result().unwrap_or_else(|error| {
        tracing::error!(job = %accepted.job_id, %error, "result of a job unreadable");
        None
    });
    if result.is_some()
        && let Err(error) = spool.delete_request()
    {
        tracing::warn!(job = %accepted.job_id, %error, "request of an ended job not removed");
    }
    SpoolEntry::Job {
        container: spool.container_name(),
        has_workspace: spool.workspace().exists(),
        job: Arc::new(Job::new(
            accepted,
            spool,
            result.map(|last| last.result.status),
        )),
    }
}

/// Splits attempts into the current one of each job, and those that are superseded or have a tombstone.
fn select_current(jobs: Vec<Arc<Job>>, tombstones: &Tombstones) -> (Vec<Arc<Job>>, Vec<Arc<Job>>) {
    let (mut current, mut superseded) = (HashMap::new(), Vec::new());
    for job in jobs {
        let (id, attempt) = (job.accepted.job_id, job.accepted.attempt);
        let highest = current.get(&id).map(|job: &Arc<Job>| job.accepted.attempt);
        if highest.max(tombstones.highest_attempt(id)) >= Some(attempt) {
            superseded.push(job);
        } else {
            superseded.extend(current.insert(id, job));
        }
    }
    (current.into_values().collect(), superseded)
}

/// Stops the sandbox of a shim whose job was never accepted.
async fn stop_unknown_shim(spool: &Spool) {
    let Ok(Some(mut handle)) = ShimHandle::connect(spool.path()).await else {
        return;
    };
    handle.stop(StopRequest::within(StopReason::Canceled, Duration::ZERO));
    let gone = async { while handle.changed().await {} };
    if tokio::time::timeout(SHIM_STOP_TIMEOUT, gone).await.is_err() {
        tracing::warn!(path = %spool.path().display(), "orphaned shim does not end");
    }
}

impl Recovered {
    /// Resumes an attempt, unless it has ended and left nothing behind.
    async fn adopt(&mut self, job: &Arc<Job>, container: Option<String>, has_workspace: bool) {
        let shim = ShimHandle::connect(job.spool.path()).await;
        let shim = shim.unwrap_or_else(|error| {
            tracing::error!(job = %job.accepted.job_id, %error, "shim of a job not found");
            None
        });
        if shim.is_some() {
            self.containers.extend(container);
        } else if job.has_ended() && !has_workspace {
            return;
        }
        tracing::info!(
            job = %job.accepted.job_id,
            attempt = job.accepted.attempt,
            has_shim = shim.is_some(),
            "job of an earlier process resumed"
        );
        self.unfinished
            .push((Arc::clone(job), JobStart::Adopted(shim)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{JobId, time::Time},
        worker::ledger::tests::accepted,
    };

    #[test]
    fn highest_attempt_without_tombstone_counts() {
        let (one, two) = (JobId::new(), JobId::new());
        let mut tombstones = Tombstones::default();
        tombstones.insert(Time::now(), two, 2);
        let attempts = [(one, 1), (one, 3), (one, 2), (two, 1), (two, 2)];
        let job = |(id, attempt)| {
            let accepted = accepted(id, attempt);
            Arc::new(Job::new(accepted, Spool::at("/none".into()), None))
        };
        let (current, superseded) =
            select_current(attempts.map(job).into_iter().collect(), &tombstones);
        let attempts = |jobs: &[Arc<Job>]| {
            let attempts = jobs.iter();
            attempts
                .map(|job| (job.accepted.job_id, job.accepted.attempt))
                .collect::<HashSet<_>>()
        };
        assert_eq!(attempts(&current), HashSet::from([(one, 3)]));
        let rest = [(one, 1), (one, 2), (two, 1), (two, 2)];
        assert_eq!(attempts(&superseded), HashSet::from(rest));
    }
}
