//! What a start does with jobs that an earlier process accepted.

use super::{job::JobStart, ledger::Job, tombstones::Tombstones};
use crate::{
    api::{JobId, jobs::Outcome},
    engine::{Engine, EngineError},
    sandbox::shim::{ShimHandle, StopRequest},
    spool::Spool,
};
use futures_util::future::join_all;
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long a shim of no known job may take to end it.
const SHIM_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// What was recovered.
#[derive(Default)]
pub(super) struct Recovered {
    /// Jobs that are known.
    pub(super) jobs: Vec<Arc<Job>>,
    /// Those that go on, or are to.
    pub(super) unfinished: Vec<(Arc<Job>, JobStart)>,
    /// Containers that belong to a shim that lives.
    containers: HashSet<String>,
    /// Directories of no job that could not be removed.
    pub(super) unremovable: Vec<PathBuf>,
}

/// Reads all of `jobs_dir`; what belongs to no job is removed.
pub(super) async fn recover_jobs(
    engine: &Engine,
    init: &Path,
    jobs_dir: &Path,
    tombstones: &Tombstones,
) -> io::Result<Recovered> {
    let (mut recovered, mut latest) = (Recovered::default(), HashMap::<JobId, Arc<Job>>::new());
    for entry in fs::read_dir(jobs_dir)? {
        let path = entry?.path();
        let spool = Spool::at(path.clone());
        let accepted = match spool.accepted() {
            Ok(Some(accepted)) => accepted,
            Ok(None) => {
                stop_unknown_shim(&spool).await;
                if let Err(error) = engine.remove_tree(init, &path).await {
                    tracing::warn!(path = %path.display(), error, "a directory of no job can't be removed yet");
                    recovered.unremovable.push(path);
                }
                continue;
            }
            Err(error) => {
                // A later release may have written it: it is not for us to touch.
                tracing::error!(path = %path.display(), %error, "a job's directory can't be read and is left alone");
                recovered.containers.extend(spool.container_name());
                continue;
            }
        };
        let ended = spool.result().unwrap_or_else(|error| {
            tracing::error!(job = %accepted.job_id, %error, "a result can't be read");
            None
        });
        let ended = ended.map(|last| last.result.status);
        if ended.is_some()
            && let Err(error) = spool.delete_request()
        {
            tracing::warn!(job = %accepted.job_id, %error, "a request that is over can't be removed");
        }
        let is_buried = tombstones
            .highest_attempt(accepted.job_id)
            .is_some_and(|attempt| attempt >= accepted.attempt);
        let job = Arc::new(Job::new(accepted, spool, ended));
        recovered.adopt(&job, ended);
        if is_buried {
            discard(&job);
        } else if let Some(other) = latest.insert(job.accepted.job_id, Arc::clone(&job)) {
            let (kept, replaced) = if other.accepted.attempt > job.accepted.attempt {
                (other, job)
            } else {
                (job, other)
            };
            discard(&replaced);
            latest.insert(kept.accepted.job_id, kept);
        }
    }
    recovered.jobs = latest.into_values().collect();
    Ok(recovered)
}

/// Has a shim end of which nobody knows what it runs.
async fn stop_unknown_shim(spool: &Spool) {
    let Ok(Some(mut handle)) = ShimHandle::connect(spool) else {
        return;
    };
    handle.stop(StopRequest::Cancel).await;
    let gone = async { while handle.changed().await {} };
    if tokio::time::timeout(SHIM_STOP_TIMEOUT, gone).await.is_err() {
        tracing::warn!(path = %spool.path().display(), "a shim of no known job doesn't end");
    }
}

/// A job that nobody asks for any more.
fn discard(job: &Job) {
    job.cancel.send_replace(true);
    job.spool.remove_on_drop();
}

impl Recovered {
    fn adopt(&mut self, job: &Arc<Job>, ended: Option<Outcome>) {
        let handle = ShimHandle::connect(&job.spool).unwrap_or_else(|error| {
            tracing::error!(job = %job.accepted.job_id, %error, "a job's shim can't be looked for");
            None
        });
        if handle.is_some() {
            self.containers.extend(job.spool.container_name());
        } else if ended.is_some() && !job.spool.workspace().exists() {
            return;
        }
        tracing::info!(job = %job.accepted.job_id, attempt = job.accepted.attempt, lives = handle.is_some(), "a job of an earlier process is taken up");
        self.unfinished
            .push((Arc::clone(job), JobStart::Adopted(handle)));
    }

    /// Removes sandboxes that belong to no shim that lives.
    pub(super) async fn remove_orphans(
        &self,
        engine: &Engine,
        node_uuid: &str,
    ) -> Result<(), EngineError> {
        let in_use = |name: &str| self.containers.contains(name);
        remove_all_but(in_use, engine.sandbox_list(node_uuid).await?, engine).await;
        Ok(())
    }
}

/// Removes what a podman that hung has left of jobs that have ended, while others run.
pub(super) async fn remove_orphans(
    engine: &Engine,
    node_uuid: &str,
    jobs_dir: &Path,
) -> Result<(), EngineError> {
    // In this order: a job that begins meanwhile is not among them.
    let sandboxes = engine.sandbox_list_without_probes(node_uuid).await?;
    let in_use = containers_in_use(jobs_dir)?;
    let in_use = |name: &str| in_use.contains(name);
    remove_all_but(in_use, sandboxes, engine).await;
    Ok(())
}

/// The names of the containers of all jobs that have not ended, whether they exist yet or not.
pub(super) fn containers_in_use(jobs_dir: &Path) -> io::Result<HashSet<String>> {
    let mut names = HashSet::new();
    for entry in fs::read_dir(jobs_dir)? {
        let spool = Spool::at(entry?.path());
        // One that can't be read may be anybody's.
        if !matches!(spool.result(), Ok(Some(_))) {
            names.extend(spool.container_name());
        }
    }
    Ok(names)
}

/// All at a time, so that those which can't be removed hold up no other.
async fn remove_all_but(in_use: impl Fn(&str) -> bool, names: Vec<String>, engine: &Engine) {
    let left = names.iter().filter(|name| !in_use(name));
    let removals = left.map(|name| {
        tracing::warn!(name, "a container that no job waits for is removed");
        engine.remove_container(name)
    });
    join_all(removals).await;
}
