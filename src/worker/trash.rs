//! Trees that ended jobs left behind, removed in the background.
//!
//! There are two kinds. The upper directory of a sandbox ([`Engine::detach_upper`]) is always removed here, so that
//! no call waits for it: its job has ended, its slot is free, and podman knows nothing of it. A workspace comes here
//! only when the shim could not remove it. A tree that can't be removed is tried again in every round of
//! [`gc`](super::gc) and at every start; until then `/readyz`, the node's reports and the log name it.

use super::{disk_guard::LiveJob, ledger::Job, orphans::containers_in_use};
use crate::{engine::Engine, wait};
use futures_util::{StreamExt as _, stream};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    watch,
};

/// Number of trees that are removed at the same time, so that a large one delays no other.
const MAX_CONCURRENT_REMOVALS: usize = 4;
/// Number of trees that are named in a report.
const MAX_NAMED_TREES: usize = 8;

/// Trees that are to be removed.
pub(super) struct Trash {
    engine: Engine,
    /// Copy of our binary.
    init: PathBuf,
    trees: Mutex<BTreeMap<PathBuf, Tree>>,
    queue: UnboundedSender<PathBuf>,
    /// Number of trees that are queued, those that are being removed among them.
    queued: watch::Sender<usize>,
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
    pub(super) fn new(engine: Engine, init: PathBuf) -> (Self, RemovalQueue) {
        let (queue, removals) = unbounded_channel();
        let trash = Self {
            engine,
            init,
            trees: Mutex::default(),
            queue,
            queued: watch::Sender::new(0),
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
        self.enqueue(path);
    }

    fn enqueue(&self, path: PathBuf) {
        self.queued.send_modify(|count| *count += 1);
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
            self.enqueue(path.clone());
        }
    }

    /// Waits until no tree is queued, at most for `limit`. Returns the number of trees that are.
    pub(super) async fn idle(&self, limit: Duration) -> usize {
        let mut queued = self.queued.subscribe();
        let idle = wait::until(&mut queued, |count| *count == 0);
        // The sender lives in `self`, so this can only time out.
        let _ = tokio::time::timeout(limit, idle).await;
        *self.queued.borrow()
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
        let removed = self.engine.remove_tree(&self.init, &path).await;
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
        self.queued.send_modify(|count| *count -= 1);
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
    use std::fs;

    const LIMIT: Duration = Duration::from_secs(30);

    fn trash() -> (Trash, RemovalQueue) {
        let engine = json!({
            "program": {"path": "/bin/false", "settings": null},
            "info": {
                "version": "",
                "rootless": false,
                "graph_root": "/none",
                "graph_driver": "",
                "default_runtime": "",
                "cgroup_version": "",
                "cgroup_manager": "",
            },
            "runtime_config": {"runtime": null, "ulimits": []},
        });
        Trash::new(serde_json::from_value(engine).unwrap(), "/none".into())
    }

    #[tokio::test]
    async fn idle_trash_has_tried_every_tree() {
        let dir = tempfile::tempdir().unwrap();
        let trees =
            ["one", "two", "three", "four", "five", "six"].map(|name| dir.path().join(name));
        let (trash, queue) = trash();
        for tree in &trees {
            fs::create_dir_all(tree.join("a/b")).unwrap();
            trash.add(tree.clone(), None);
        }
        let stuck = dir.path().join("file");
        fs::write(&stuck, "not a tree").unwrap();
        trash.add(stuck, None);
        assert_eq!(trash.idle(Duration::ZERO).await, trees.len() + 1);
        let removals = async {
            assert_eq!(trash.idle(LIMIT).await, 0);
            assert!(!trees.iter().any(|tree| tree.exists()));
            assert_eq!(trash.warnings().len(), 1);
            trash.retry();
            assert_eq!(trash.idle(LIMIT).await, 0, "it is tried once");
        };
        tokio::select! {
            () = trash.run(queue) => panic!("the queue is open"),
            () = removals => {}
        }
    }

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
        assert_eq!(jobs.count(), 1, "the job has ended, and its trees remain");
        drop(workspace);
        assert_eq!(jobs.count(), 1);
        upper.fail("mounted".to_owned());
        assert_eq!(jobs.count(), 0, "no removal is pending");
    }
}
