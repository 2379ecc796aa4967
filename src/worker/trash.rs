//! Trees that ended jobs left behind, removed in the background.
//!
//! There are two kinds. The upper directory of a sandbox ([`Engine::detach_upper`]) is always removed here, so that
//! no call waits for it: its job has ended, its slot is free, and podman knows nothing of it. A workspace comes here
//! only when the shim could not remove it. A tree that can't be removed is tried again in every round of
//! [`gc`](super::gc) and at every start; until then `/readyz`, the node's reports and the log name it.

use super::{disk_guard::LiveJob, init_copy::InitCopy, ledger::Job, orphans::containers_in_use};
use crate::engine::Engine;
use futures_util::{StreamExt as _, stream};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Number of trees that are removed at the same time, so that a large one delays no other.
const MAX_CONCURRENT_REMOVALS: usize = 4;
/// Number of trees that are named in a report.
const MAX_NAMED_TREES: usize = 8;

/// Trees that are to be removed.
pub(super) struct Trash {
    engine: Engine,
    init: InitCopy,
    trees: Mutex<BTreeMap<PathBuf, Tree>>,
    queue: UnboundedSender<PathBuf>,
}

/// Paths that [`Trash::run`] removes.
pub(super) type RemovalQueue = UnboundedReceiver<PathBuf>;

/// One tree.
struct Tree {
    /// Job whose directory stays until the tree is gone.
    _job: Option<Arc<Job>>,
    /// Entry of the job, whose space counts as returning until the removal fails.
    live: Option<Arc<LiveJob>>,
    /// Whether it is being removed, or waits for it.
    is_queued: bool,
    /// Reason for which it could not be removed.
    failure: Option<String>,
}

impl Tree {
    fn of(live: Option<&Arc<LiveJob>>) -> Self {
        Self {
            _job: live.map(|live| Arc::clone(&live.job)),
            live: live.cloned(),
            is_queued: true,
            failure: None,
        }
    }

    /// Records that it could not be removed.
    fn fail(&mut self, reason: String) {
        self.is_queued = false;
        self.failure = Some(reason);
        self.live = None;
    }
}

impl Trash {
    /// An empty trash, and the queue that [`run`](Self::run) is to work off.
    pub(super) fn new(engine: Engine, init: InitCopy) -> (Self, RemovalQueue) {
        let (queue, removals) = unbounded_channel();
        let trash = Self {
            engine,
            init,
            trees: Mutex::default(),
            queue,
        };
        (trash, removals)
    }

    fn trees(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Tree>> {
        self.trees.lock()
    }

    /// Adds a tree. The directory of its job stays until the tree is gone.
    pub(super) fn add(&self, path: PathBuf, live: Option<&Arc<LiveJob>>) {
        let mut trees = self.trees();
        if trees.contains_key(&path) {
            return;
        }
        trees.insert(path.clone(), Tree::of(live));
        // The queue lives as long as the worker.
        let _ = self.queue.send(path);
    }

    /// Adds the upper directories whose containers belong to no job that runs. Reads the disk.
    pub(super) fn add_uppers(&self, jobs_dir: &Path) -> io::Result<()> {
        // In this order: a job that starts meanwhile has none yet.
        let uppers = self.engine.detached_uppers()?;
        let in_use = containers_in_use(jobs_dir)?;
        for (container, path) in uppers {
            if !in_use.contains(&container) {
                self.add(path, None);
            }
        }
        Ok(())
    }

    /// Queues the trees again that could not be removed.
    pub(super) fn retry(&self) {
        let mut trees = self.trees();
        for (path, tree) in trees.iter_mut().filter(|(_, tree)| !tree.is_queued) {
            tree.is_queued = true;
            let _ = self.queue.send(path.clone());
        }
    }

    /// Trees that could not be removed, and advice what to do.
    pub(super) fn warnings(&self) -> Vec<String> {
        let trees = self.trees();
        let mut stuck = trees
            .iter()
            .filter_map(|(path, tree)| Some((path, tree.failure.as_ref()?)));
        let named = stuck.by_ref().take(MAX_NAMED_TREES);
        let mut warnings: Vec<_> = named.map(|(path, reason)| warning(path, reason)).collect();
        let more = stuck.count();
        if more > 0 {
            warnings.push(format!(
                "{more} more directories of ended jobs can't be removed; the node's log names them"
            ));
        }
        warnings
    }

    /// Removes the trees of a queue, for as long as the worker lives.
    pub(super) async fn run(&self, queue: RemovalQueue) {
        let paths = stream::unfold(queue, async |mut queue| {
            let path = queue.recv().await?;
            Some((path, queue))
        });
        let removals = paths.for_each_concurrent(MAX_CONCURRENT_REMOVALS, |path| self.remove(path));
        removals.await;
    }

    async fn remove(&self, path: PathBuf) {
        let removed = self.engine.remove_tree(self.init.path(), &path).await;
        let mut trees = self.trees();
        let gone = match removed {
            Ok(()) => trees.remove(&path),
            Err(error) => {
                if let Some(tree) = trees.get_mut(&path) {
                    if tree.failure.is_none() {
                        tracing::warn!(path = %path.display(), error, "directory of an ended job not removed; retrying");
                    }
                    tree.fail(error);
                }
                None
            }
        };
        drop(trees);
        // Without the lock: the directory of its job may go with it.
        drop(gone);
    }
}

fn warning(path: &Path, reason: &str) -> String {
    let path = path.display();
    format!(
        "{path}, left by an ended job, can't be removed ({reason}); look for mounts and attributes with findmnt and lsattr, or remove it as root; the node tries again every ten minutes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{spool::Spool, worker::disk_guard::LiveJobs};
    use serde_json::json;

    #[test]
    fn space_returns_while_trees_are_removed() {
        let accepted = json!({
            "task_id": "01a22660-6f24-77f8-92cd-eb2128634ef9",
            "job_id": "01a22660-6f24-77f8-92cd-eb22bd9d8465",
            "attempt": 1,
            "image": "localhost/x:latest",
            "spec_sha256": "",
            "accepted_at": "2026-01-01T00:00:00.000Z",
        });
        let accepted = serde_json::from_value(accepted).unwrap();
        let job = Arc::new(Job::new(accepted, Spool::at(PathBuf::from("/none")), None));
        let jobs = LiveJobs::default();
        let live = jobs.register(&job);
        let (workspace, mut upper) = (Tree::of(Some(&live)), Tree::of(Some(&live)));
        drop(live);
        assert_eq!(jobs.count(), 1, "it has ended, and its trees are there");
        drop(workspace);
        assert_eq!(jobs.count(), 1);
        upper.fail("mounted".to_owned());
        assert_eq!(jobs.count(), 0, "nothing will go");
    }
}
