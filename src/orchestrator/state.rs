//! Shared state of the role, in groups.
//!
//! | group | holds |
//! |---|---|
//! | [`AppState`] | settings, store, contents, kept logs, identity, use of models, limits, metrics, shutdown |
//! | [`Jobs`] | jobs under way: followed attempts, watches of tasks, the scheduler's wake-up |
//! | [`Nodes`] | facts on nodes that only this process knows: contacts, reachability, instances, backoff, slots |
//!
//! The store is the only durable part. [`Jobs`] and [`Nodes`] start empty and are rebuilt from the store and
//! from the nodes after a restart; nothing may depend on them to be right, only to be fast.

use super::{
    Settings,
    active_jobs::ActiveJobs,
    artifacts::ResultShares,
    contents_gc::ContentsGc,
    dispatch::Turns,
    encryption::Encryption,
    inference::{ModelLists, ModelQueue},
    liveness::Liveness,
    logs::{LogLimits, archive::LogArchive},
    metrics::Metrics,
    no_room::NoRoom,
    node_address::HttpClients,
    node_backoff::NodeBackoff,
    reachability::Reachability,
    reconciler::NodeReconciler,
    sandboxes::{PassLimits, SnapshotClaims},
    sends::Sends,
    slots::SlotLimits,
    task_watch::TaskWatches,
    tunnels::Tunnels,
    usage::UsageRecorder,
};
use crate::{
    api::NodeId,
    background::BackgroundTasks,
    contents::ContentStore,
    data_dir::PathAnchors,
    http::server::Shutdown,
    identity::Identity,
    instances::Instances,
    store::{StorageFault, Store},
};
use std::{io, path::Path, sync::Arc};
use tokio::sync::Notify;

/// State that all parts of the role share.
pub(crate) struct AppState {
    pub(super) settings: Settings,
    pub(super) store: Store,
    pub(super) identity: Identity,
    /// Files of tasks, and artifacts.
    pub(super) contents: ContentStore,
    pub(super) contents_gc: ContentsGc,
    pub(super) jobs: Jobs,
    pub(super) nodes: Nodes,
    /// Requests to models that are to be written.
    pub(super) usage: UsageRecorder,
    /// Calls of models, under way and waiting.
    pub(super) models: Arc<ModelQueue>,
    /// Lists of models that callers share.
    pub(super) model_lists: ModelLists,
    pub(super) log_limits: LogLimits,
    /// Calls that pass to sandboxes.
    pub(super) pass_limits: PassLimits,
    /// Snapshots that are being made.
    pub(super) snapshot_claims: SnapshotClaims,
    pub(super) log_archive: Arc<LogArchive>,
    pub(super) metrics: Metrics,
    /// Encryption of the listeners.
    pub(super) encryption: Encryption,
    pub(super) shutdown: Shutdown,
    /// Id of this process, new at each start. Nodes detect by it that two processes use one data directory.
    pub(super) instance_id: String,
    /// Paths at which the database and the lock have to stay.
    pub(super) anchors: PathAnchors,
}

/// Jobs under way.
///
/// An attempt is in `active` from before its node gets it until its end is stored, and a task of
/// `background` follows it for as long. A final state in `watches` is published after it is stored.
#[derive(Default)]
pub(super) struct Jobs {
    /// Attempts that this process follows, by job.
    pub(super) active: ActiveJobs,
    /// Current states of tasks, for log readers and cancels that wait for a change.
    pub(super) watches: TaskWatches,
    /// Background tasks that follow the attempts in `active`.
    pub(super) background: BackgroundTasks,
    /// Nodes that had no room for the files of a job lately.
    pub(super) no_room: Arc<NoRoom>,
    /// Contents on their way to nodes.
    pub(super) sends: Sends,
    /// Artifacts that are fetched from nodes.
    pub(super) turns: Turns,
    /// Room that they take in the shares of their users.
    pub(super) result_shares: ResultShares,
    /// Wakes the scheduler. To be notified after each commit that may let a job start: a new task, a free
    /// slot, a node that became ready.
    pub(super) wake: Notify,
}

/// Facts on nodes that only this process knows. Reports of nodes are in the store.
///
/// `reachability`, `backoff` and `instances` may only keep a node from getting jobs; a job is given to a node only by a
/// write that checks the store.
pub(super) struct Nodes {
    /// HTTP clients for Worker APIs, by the network in which those may be.
    pub(super) clients: HttpClients,
    /// Tunnels that nodes have opened.
    pub(super) tunnels: Tunnels,
    /// Limits of jobs per node and in total.
    pub(super) slots: SlotLimits,
    /// Answers of nodes whose reports are late.
    pub(super) liveness: Liveness,
    /// Results of the probes of the addresses that nodes reported.
    pub(super) reachability: Reachability,
    /// Processes that call as nodes, to detect two with one identity.
    pub(super) instances: Instances<NodeId>,
    /// Nodes that refused a job lately.
    pub(super) backoff: NodeBackoff,
    /// Nodes that may still keep jobs which are over.
    pub(super) reconciler: NodeReconciler,
}

impl Nodes {
    fn new(settings: &Settings) -> Self {
        Self {
            clients: HttpClients::new(settings),
            tunnels: Tunnels::default(),
            slots: SlotLimits::new(settings.max_jobs_per_node),
            liveness: Liveness::default(),
            reachability: Reachability::default(),
            instances: Instances::default(),
            backoff: NodeBackoff::default(),
            reconciler: NodeReconciler::default(),
        }
    }
}

impl AppState {
    /// State of a start, over an open store. Fails where the `data_paths` can't be watched.
    pub(super) fn new(
        settings: Settings,
        store: Store,
        identity: Identity,
        (contents, logs): (ContentStore, LogArchive),
        encryption: Encryption,
        data_paths: [&Path; 2],
        shutdown: Shutdown,
    ) -> io::Result<Self> {
        Ok(Self {
            nodes: Nodes::new(&settings),
            models: Arc::new(ModelQueue::new(
                settings.models.concurrency,
                settings.models.queue,
            )),
            model_lists: ModelLists::default(),
            settings,
            store,
            identity,
            contents,
            contents_gc: ContentsGc::default(),
            jobs: Jobs::default(),
            usage: UsageRecorder::default(),
            log_limits: LogLimits::default(),
            pass_limits: PassLimits::default(),
            snapshot_claims: SnapshotClaims::default(),
            log_archive: Arc::new(logs),
            metrics: Metrics::default(),
            encryption,
            shutdown,
            instance_id: uuid::Uuid::new_v4().to_string(),
            anchors: PathAnchors::open(data_paths)?,
        })
    }

    /// Fault that keeps new work from being accepted: of the database, or of a data directory that was moved.
    pub(super) fn storage_fault(&self) -> Option<StorageFault> {
        if self.anchors.verify().is_err() {
            self.store.record_fault(StorageFault::Misplaced);
        }
        self.store.storage_fault()
    }
}
