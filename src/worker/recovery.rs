//! What a start does with jobs that an earlier process accepted.

use super::{job::Entry, ledger::Job, tombstones::Tombstones};
use crate::{
    api::{JobId, jobs::Outcome},
    engine::{Engine, EngineError, labels},
    shim::Link,
    spool::Spool,
};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
    sync::Arc,
    time::Duration,
};

const SWEEP_LIMIT: Duration = Duration::from_mins(1);
/// How long a shim of no known job may take to end it.
const END_LIMIT: Duration = Duration::from_secs(30);

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    /// Jobs that are known.
    pub(super) jobs: Vec<Arc<Job>>,
    /// Those that go on, or are to.
    pub(super) open: Vec<(Arc<Job>, Entry)>,
    /// Containers that belong to a shim that lives.
    containers: HashSet<String>,
}

/// Reads all of `jobs_dir`; what belongs to no job is removed.
pub(super) async fn find(
    engine: &Engine,
    init: &Path,
    jobs_dir: &Path,
    tombstones: &Tombstones,
) -> io::Result<Found> {
    let (mut found, mut latest) = (Found::default(), HashMap::<JobId, Arc<Job>>::new());
    for entry in fs::read_dir(jobs_dir)? {
        let path = entry?.path();
        let spool = Spool::at(path.clone());
        let accepted = match spool.accepted() {
            Ok(Some(accepted)) => accepted,
            Ok(None) => {
                end_unknown(&spool).await;
                engine.remove_tree(init, &path).await;
                continue;
            }
            Err(error) => {
                // A later release may have written it: it is not for us to touch.
                tracing::error!(path = %path.display(), %error, "a job's directory can't be read and is left alone");
                found.containers.extend(spool.container());
                continue;
            }
        };
        let ended = spool.result().unwrap_or_else(|error| {
            tracing::error!(job = %accepted.job_id, %error, "a result can't be read");
            None
        });
        let ended = ended.map(|last| last.result.status);
        if ended.is_some()
            && let Err(error) = spool.forget_request()
        {
            tracing::warn!(job = %accepted.job_id, %error, "a request that is over can't be removed");
        }
        let is_buried = tombstones
            .attempt(accepted.job_id)
            .is_some_and(|attempt| attempt >= accepted.attempt);
        let job = Arc::new(Job::new(accepted, spool, ended));
        found.take_up(&job, ended);
        if is_buried {
            dismiss(&job);
        } else if let Some(other) = latest.insert(job.accepted.job_id, Arc::clone(&job)) {
            let (kept, replaced) = if other.accepted.attempt > job.accepted.attempt {
                (other, job)
            } else {
                (job, other)
            };
            dismiss(&replaced);
            latest.insert(kept.accepted.job_id, kept);
        }
    }
    found.jobs = latest.into_values().collect();
    Ok(found)
}

/// Has a shim end of which nobody knows what it runs.
async fn end_unknown(spool: &Spool) {
    let Ok(Some(mut link)) = Link::find(spool) else {
        return;
    };
    link.end().await;
    let gone = async { while link.news().await {} };
    if tokio::time::timeout(END_LIMIT, gone).await.is_err() {
        tracing::warn!(path = %spool.path().display(), "a shim of no known job doesn't end");
    }
}

/// A job that nobody asks for any more.
fn dismiss(job: &Job) {
    job.cancel.send_replace(true);
    job.spool.doom();
}

impl Found {
    fn take_up(&mut self, job: &Arc<Job>, ended: Option<Outcome>) {
        let link = Link::find(&job.spool).unwrap_or_else(|error| {
            tracing::error!(job = %job.accepted.job_id, %error, "a job's shim can't be looked for");
            None
        });
        if link.is_some() {
            self.containers.extend(job.spool.container());
        } else if ended.is_some() && !job.spool.workspace().exists() {
            return;
        }
        tracing::info!(job = %job.accepted.job_id, attempt = job.accepted.attempt, lives = link.is_some(), "a job of an earlier process is taken up");
        self.open.push((Arc::clone(job), Entry::Adopt(link)));
    }

    /// Removes sandboxes that bear our label and belong to no shim that lives.
    pub(super) async fn sweep(&self, engine: &Engine, node_uuid: &str) -> Result<(), EngineError> {
        let ours = format!("--filter=label={}={node_uuid}", labels::NODE);
        // A model server is ours, too, and is none of this.
        let sandboxes = format!("--filter=label={}", labels::JOB);
        let list = ["ps", "--all", "--format={{.Names}}", &ours, &sandboxes];
        let names = engine.call(&list, SWEEP_LIMIT).await?;
        for name in names
            .lines()
            .filter(|name| !self.containers.contains(*name))
        {
            tracing::warn!(name, "a container of an earlier process is removed");
            engine.remove_container(name).await;
        }
        Ok(())
    }
}
