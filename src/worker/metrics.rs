//! Metrics of a worker.

use super::{disk::StorageArea, egress::EgressMetrics};
use crate::{
    api::jobs::Outcome,
    disk_space::DiskSpace,
    http::{
        metrics::{MetricsRegistry, RequestMetrics, register},
        response::Reply,
    },
};
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Metrics of a worker.
pub(super) struct Metrics {
    base: MetricsRegistry,
    jobs: IntCounterVec,
    /// Sandboxes that jobs got, by how they were started.
    pub(super) starts: IntCounterVec,
    /// Requests and bytes of jobs through the proxy.
    pub(super) egress: EgressMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let base = MetricsRegistry::default();
        let jobs = base.status_counter(
            "cynode_worker_jobs_total",
            "Jobs that ended since this process started, by the status of their result.",
            Outcome::ALL.iter().copied().map(Outcome::as_str),
        );
        let starts = Opts::new(
            "cynode_worker_sandbox_starts_total",
            "Sandboxes that jobs got since this process started: warm ones were started before there was a job.",
        );
        let starts = base.register(IntCounterVec::new(starts, &["start"]));
        for start in ["warm", "cold"] {
            starts.with_label_values(&[start]);
        }
        let egress = EgressMetrics::new(&base);
        Self {
            base,
            jobs,
            starts,
            egress,
        }
    }
}

impl Metrics {
    pub(super) fn requests(&self) -> RequestMetrics {
        self.base.requests("worker")
    }

    /// Request metrics of the model API in sandboxes.
    pub(super) fn sandbox_requests(&self) -> RequestMetrics {
        self.base.requests("sandbox")
    }

    /// Counts a job that has a result now.
    pub(super) fn job_ended(&self, status: Outcome) {
        self.jobs.with_label_values(&[status.as_str()]).inc();
    }

    /// Text of all metrics, with the numbers of running jobs, of graphics processors for jobs and of those in use, of warm
    /// sandboxes, of snapshots and of their bytes, and the free space of now.
    pub(super) fn render(
        &self,
        running: usize,
        [gpus, busy_gpus]: [usize; 2],
        warm: usize,
        (snapshots, snapshot_bytes): (usize, u64),
        spaces: &[(StorageArea, DiskSpace)],
    ) -> Reply {
        let snapshot = Registry::new();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        for (name, help, value) in [
            (
                "cynode_worker_jobs_running",
                "Jobs that were taken and have not ended.",
                count(running),
            ),
            (
                "cynode_worker_sandboxes_warm",
                "Sandboxes that wait for jobs.",
                count(warm),
            ),
            (
                "cynode_worker_snapshots",
                "Snapshots of sandboxes.",
                count(snapshots),
            ),
            (
                "cynode_worker_snapshot_bytes",
                "Bytes that snapshots of sandboxes take.",
                i64::try_from(snapshot_bytes).unwrap_or(i64::MAX),
            ),
            ("cynode_gpus", "GPUs that jobs can have.", count(gpus)),
            (
                "cynode_gpus_busy",
                "GPUs that jobs have now.",
                count(busy_gpus),
            ),
        ] {
            let gauge = register(&snapshot, IntGauge::new(name, help));
            gauge.set(value);
        }
        add_space(&snapshot, spaces);
        self.base.render(&snapshot)
    }
}

/// Adds the free space of each area, and its inodes where their number is limited.
fn add_space(registry: &Registry, spaces: &[(StorageArea, DiskSpace)]) {
    let gauge = |name, help| {
        let gauge = IntGaugeVec::new(Opts::new(name, help), &["place"]);
        register(registry, gauge)
    };
    let bytes = gauge(
        "cynode_worker_disk_free_bytes",
        "Bytes free on the filesystem of jobs, images or state.",
    );
    let inodes = gauge(
        "cynode_worker_disk_free_inodes",
        "Inodes free there, where their number is limited.",
    );
    let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
    for (area, space) in spaces {
        let label = [area.as_str()];
        bytes
            .with_label_values(&label)
            .set(number(space.bytes.free));
        if let Some(amount) = space.inodes {
            inodes.with_label_values(&label).set(number(amount.free));
        }
    }
}
