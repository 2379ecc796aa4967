//! What a worker measures of itself.

use super::disk::Disk;
use crate::{
    api::jobs::Outcome,
    http::{
        metrics::{Base, Requests, add},
        response::Reply,
    },
};
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

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

    /// All of it, with the number of jobs that run now and the room that there is.
    pub(super) fn render(&self, running: usize, disk: &Disk) -> Reply {
        let momentary = Registry::new();
        let help = "Jobs that were taken and have not ended.";
        let jobs = add(
            &momentary,
            IntGauge::new("cynode_worker_jobs_running", help),
        );
        jobs.set(i64::try_from(running).unwrap_or(i64::MAX));
        add_space(&momentary, disk);
        self.base.render(&momentary)
    }
}

/// Room of each place; none of one that can't be asked, and no inodes where their number has no limit.
fn add_space(registry: &Registry, disk: &Disk) {
    let gauge = |name, help| {
        let gauge = IntGaugeVec::new(Opts::new(name, help), &["place"]);
        add(registry, gauge)
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
    for place in disk.places() {
        let Ok(space) = place.space() else { continue };
        let label = [place.purpose.as_str()];
        bytes
            .with_label_values(&label)
            .set(number(space.bytes.free));
        if let Some(amount) = space.inodes {
            inodes.with_label_values(&label).set(number(amount.free));
        }
    }
}
