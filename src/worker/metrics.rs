//! What a worker measures of itself.

use crate::{
    api::jobs::Outcome,
    http::{
        metrics::{Base, Requests, add},
        response::Reply,
    },
};
use prometheus::{IntCounterVec, IntGauge, Registry};

pub(super) struct Metrics {
    base: Base,
    jobs: IntCounterVec,
}

impl Default for Metrics {
    fn default() -> Self {
        let base = Base::default();
        let jobs = base.count_by_status(
            "cynode_worker_jobs_total",
            "Jobs that ended since this process started, by the status of their result.",
            Outcome::ALL.map(Outcome::as_str),
        );
        Self { base, jobs }
    }
}

impl Metrics {
    pub(super) fn requests(&self) -> Requests {
        self.base.requests("worker")
    }

    /// A job has got its result.
    pub(super) fn job_ended(&self, status: Outcome) {
        self.jobs.with_label_values(&[status.as_str()]).inc();
    }

    /// All of it, with the number of jobs that run now.
    pub(super) fn render(&self, running: usize) -> Reply {
        let momentary = Registry::new();
        let help = "Jobs that were taken and have not ended.";
        let jobs = add(
            &momentary,
            IntGauge::new("cynode_worker_jobs_running", help),
        );
        jobs.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.base.render(&momentary)
    }
}
