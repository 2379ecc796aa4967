//! Shared state of the role, in groups: what every handler and background task works on.
//!
//! | group | holds |
//! |---|---|
//! | [`AppState`] | settings, the database, identity, metrics, shutdown |
//! | [`Jobs`] | jobs under way: their attempts, their watchers, the scheduler's wake-up |
//! | [`Nodes`] | facts on nodes that only this process knows: answers, backoff, instances, slots |
//!
//! The database is the only durable part. Everything in [`Jobs`] and [`Nodes`] starts empty and is rebuilt
//! from it, and from the nodes, after a restart.

use super::{
    Settings, active_jobs::ActiveJobs, liveness::Liveness, logs::LogLimits, metrics::Metrics,
    node_address::HttpClients, node_backoff::NodeBackoff, reconciler::NodeReconciler,
    slots::SlotLimits, task_watch::TaskWatches,
};
use crate::{
    api::NodeId,
    background::BackgroundTasks,
    data_dir::PathAnchors,
    http::server::Shutdown,
    identity::Identity,
    instances::Instances,
    store::{StorageFault, Store},
};
use std::{io, path::Path};
use tokio::sync::Notify;

/// State that all parts of the role share.
pub(crate) struct AppState {
    pub(super) settings: Settings,
    pub(super) store: Store,
    pub(super) identity: Identity,
    pub(super) jobs: Jobs,
    pub(super) nodes: Nodes,
    pub(super) log_limits: LogLimits,
    pub(super) metrics: Metrics,
    pub(super) shutdown: Shutdown,
    /// Id of this process, new at each start: nodes tell by it that two processes call as one orchestrator.
    pub(super) instance_id: String,
    /// Paths at which the database and the lock have to stay.
    pub(super) anchors: PathAnchors,
}

/// Jobs under way.
///
/// An attempt is registered in `active` before its node hears of it, and stays there until its end is
/// stored. `watches` says nothing that the database doesn't say, only sooner.
#[derive(Default)]
pub(super) struct Jobs {
    /// Attempts that this process follows, by job.
    pub(super) active: ActiveJobs,
    /// State changes of tasks, for those who wait for them.
    pub(super) watches: TaskWatches,
    /// Tasks that follow the attempts in `active`.
    pub(super) background: BackgroundTasks,
    /// Wakes the scheduler: after a task was stored, a slot became free, or a node became ready.
    pub(super) wake: Notify,
}

/// Facts on nodes that only this process knows. What a node reported is in the database.
pub(super) struct Nodes {
    /// HTTP clients that call nodes, by where those may be.
    pub(super) clients: HttpClients,
    /// Limits of jobs per node and in all.
    pub(super) slots: SlotLimits,
    /// Answers of nodes whose reports are late.
    pub(super) liveness: Liveness,
    /// Processes that call as nodes, to notice two with one identity.
    pub(super) instances: Instances<NodeId>,
    /// Nodes that refused a job lately.
    pub(super) backoff: NodeBackoff,
    /// Nodes that may keep jobs which are over.
    pub(super) reconciler: NodeReconciler,
}

impl Nodes {
    fn new(settings: &Settings) -> Self {
        Self {
            clients: HttpClients::new(settings),
            slots: SlotLimits::new(settings.max_jobs_per_node),
            liveness: Liveness::default(),
            instances: Instances::default(),
            backoff: NodeBackoff::default(),
            reconciler: NodeReconciler::default(),
        }
    }
}

impl AppState {
    pub(super) fn new(
        settings: Settings,
        store: Store,
        identity: Identity,
        data_paths: [&Path; 2],
        shutdown: Shutdown,
    ) -> io::Result<Self> {
        Ok(Self {
            nodes: Nodes::new(&settings),
            settings,
            store,
            identity,
            jobs: Jobs::default(),
            log_limits: LogLimits::default(),
            metrics: Metrics::default(),
            shutdown,
            instance_id: uuid::Uuid::new_v4().to_string(),
            anchors: PathAnchors::open(data_paths)?,
        })
    }

    /// What keeps new work from being taken: a data directory that is no more where it was, or the database.
    pub(super) fn storage_fault(&self) -> Option<StorageFault> {
        if self.anchors.verify().is_err() {
            self.store.record_fault(StorageFault::Misplaced);
        }
        self.store.storage_fault()
    }
}
