//! Metrics of the orchestrator; both listeners serve the same.
//!
//! Counters and histograms start at zero with the process, and are updated right after a commit. Gauges of
//! jobs and nodes are read from the store for each answer: they can't drift, and a store that fails is a
//! failed answer rather than a zero.

use super::{
    AppState,
    inference::{ModelMetrics, ModelQueue},
};
use crate::{
    api::{
        nodes::{Inference, NodeStatus, NodeView},
        tasks::TaskStatus,
    },
    http::{
        metrics::{MetricsRegistry, RequestMetrics, register},
        request::Request,
        response::Reply,
    },
    store::JobCounts,
};
use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use std::{sync::Arc, time::Duration};

/// Label of tasks and sandboxes that were created.
const CREATED_LABEL: &str = "created";
/// Label of sandboxes that have ended.
const ENDED_LABEL: &str = "ended";

/// Upper bounds of the buckets of dispatch latency: from a free slot to a night in the queue.
const LATENCY_BUCKETS_SECONDS: [f64; 14] = [
    0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 600.0, 3600.0, 36000.0,
];

pub(super) struct Metrics {
    base: MetricsRegistry,
    tasks: IntCounterVec,
    sandboxes: IntCounterVec,
    dispatch: Histogram,
    pub(super) models: ModelMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let base = MetricsRegistry::default();
        let ends = TaskStatus::ALL.iter().copied().filter(|end| end.is_final());
        let tasks = base.status_counter(
            "cynode_tasks_total",
            "Tasks created, completed, failed and canceled since this process started.",
            ends.map(TaskStatus::as_str).chain([CREATED_LABEL]),
        );
        let sandboxes = base.status_counter(
            "cynode_sandboxes_total",
            "Sandboxes created and ended since this process started.",
            [CREATED_LABEL, ENDED_LABEL],
        );
        let dispatch = HistogramOpts::new(
            "cynode_dispatch_latency_seconds",
            "Seconds from when an attempt could start to when it was assigned to a node.",
        );
        let dispatch = dispatch.buckets(LATENCY_BUCKETS_SECONDS.to_vec());
        Self {
            dispatch: base.register(Histogram::with_opts(dispatch)),
            models: ModelMetrics::new(&base),
            tasks,
            sandboxes,
            base,
        }
    }
}

impl Metrics {
    pub(super) fn requests(&self, listener: &'static str) -> RequestMetrics {
        self.base.requests(listener)
    }

    /// Counts a task that was stored.
    pub(super) fn record_created(&self) {
        self.tasks.with_label_values(&[CREATED_LABEL]).inc();
    }

    /// Counts the end of a task; a return to the queue does not count.
    pub(super) fn record_transition(&self, to: TaskStatus) {
        if to.is_final() {
            self.tasks.with_label_values(&[to.as_str()]).inc();
        }
    }

    /// Counts a sandbox that was stored.
    pub(super) fn record_sandbox_created(&self) {
        self.sandboxes.with_label_values(&[CREATED_LABEL]).inc();
    }

    /// Counts the end of a sandbox.
    pub(super) fn record_sandbox_ended(&self) {
        self.sandboxes.with_label_values(&[ENDED_LABEL]).inc();
    }

    /// Records how long a job had waited when it was assigned to a node.
    pub(super) fn record_dispatch(&self, waited: Duration) {
        self.dispatch.observe(waited.as_secs_f64());
    }
}

/// `GET /metrics`.
pub(super) async fn get(state: Arc<AppState>, _: Request) -> Reply {
    let nodes = state.node_views().await?;
    let counts = state.store.job_counts().await;
    let counts = counts?;
    let gauges = current_gauges(counts, &nodes);
    add_model_calls(&gauges, &state.models, &nodes);
    let tunnels = IntGauge::new(
        "cynode_node_tunnels_connected",
        "Nodes whose tunnel is connected.",
    );
    let connected = i64::try_from(state.nodes.tunnels.connected()).unwrap_or(i64::MAX);
    register(&gauges, tunnels).set(connected);
    if let Some(tls) = state.encryption.certificate() {
        let expiry = IntGauge::new(
            "cynode_tls_certificate_expiry_timestamp_seconds",
            "Unix time at which the certificate of the encrypted listeners expires; a certificate of the orchestrator's own is renewed 30 days before.",
        );
        register(&gauges, expiry).set(tls.expiry().as_second());
    }
    state.metrics.base.render(&gauges)
}

/// Adds gauges of calls of models: those that wait, and those under way at nodes that serve models.
fn add_model_calls(registry: &Registry, queue: &ModelQueue, nodes: &[NodeView]) {
    let (waiting, in_flight) = queue.counts();
    let queued = IntGauge::new(
        "cynode_inference_queued",
        "Requests for models that wait for a node.",
    );
    let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
    register(registry, queued).set(waiting);
    let running = Opts::new(
        "cynode_inference_running",
        "Requests for models that a node has.",
    );
    let running = register(registry, IntGaugeVec::new(running, &["node"]));
    for node in nodes {
        let is_serving = node.inference.as_ref().is_some_and(Inference::is_serving);
        let calls = in_flight.get(&node.node_slug).copied();
        if is_serving || calls.is_some() {
            let gauge = running.with_label_values(&[&node.node_slug]);
            gauge.set(calls.unwrap_or(0).into());
        }
    }
}

/// Gauges of jobs and nodes at present.
fn current_gauges(counts: JobCounts, nodes: &[NodeView]) -> Registry {
    let registry = Registry::new();
    let jobs =
        |name, help, count: u32| register(&registry, IntGauge::new(name, help)).set(count.into());
    jobs(
        "cynode_jobs_running",
        "Jobs assigned to nodes.",
        counts.running,
    );
    jobs(
        "cynode_jobs_queued",
        "Jobs waiting for a node, including those between two attempts.",
        counts.queued,
    );
    jobs(
        "cynode_sandboxes",
        "Sandboxes that have not ended, queued ones included.",
        counts.sandboxes,
    );
    let gauge =
        |name, help, label| register(&registry, IntGaugeVec::new(Opts::new(name, help), &[label]));
    let up = gauge(
        "cynode_node_up",
        "1 while a registered node is in contact, ready for jobs or not; 0 when it is offline, after 30 seconds without contact.",
        "node",
    );
    let by_status = gauge(
        "cynode_nodes",
        "Registered nodes by status: ready, not_ready, draining or offline.",
        "status",
    );
    for status in NodeStatus::ALL {
        by_status.with_label_values(&[status.as_str()]);
    }
    for node in nodes {
        let is_up = node.status != NodeStatus::Offline;
        up.with_label_values(&[&node.node_slug]).set(is_up.into());
        by_status.with_label_values(&[node.status.as_str()]).inc();
    }
    registry
}
