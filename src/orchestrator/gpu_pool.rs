//! Graphics processors of a node, counted: those that it reports, minus those of its running jobs. Pure.
//!
//! Which devices a job has that asked for a number of them is the node's choice. So such a job takes away a number,
//! and a job that names devices waits for those that the node reports as busy meanwhile.

use crate::api::{
    jobs::resources::GpuRequest,
    nodes::{CapabilityReport, GpuCounts},
};
use std::collections::{BTreeMap, BTreeSet};

/// Devices of a node, and how many of them are in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GpuPool {
    /// Ids of all devices that jobs can have.
    devices: BTreeSet<String>,
    /// Ids of those that have another name, by their vendor's id.
    by_vendor_id: BTreeMap<String, String>,
    /// Devices that the node reports as busy.
    reported_busy: BTreeSet<String>,
    /// Devices that jobs asked for by their ids.
    named: BTreeSet<String>,
    /// Number of devices that jobs asked for by a number.
    counted: usize,
}

impl GpuPool {
    /// Devices in a report; none where the node gives jobs no devices.
    pub(super) fn new(report: &CapabilityReport) -> Self {
        let devices = report
            .gpu
            .iter()
            .flat_map(|gpu| gpu.devices.iter().flatten());
        let ids = |is_wanted: fn(bool) -> bool| {
            let devices = devices.clone().filter(|device| is_wanted(device.busy));
            devices.filter_map(|device| device.id.clone()).collect()
        };
        let vendor_ids = devices.clone().filter_map(|device| {
            let vendor_id = device.device_id.clone()?;
            Some((vendor_id, device.id.clone()?))
        });
        Self {
            by_vendor_id: vendor_ids.collect(),
            devices: ids(|_| true),
            reported_busy: ids(|busy| busy),
            ..Self::default()
        }
    }

    /// Same, with the devices of these running jobs in use.
    pub(super) fn with_jobs<'a>(mut self, jobs: impl IntoIterator<Item = &'a GpuRequest>) -> Self {
        for request in jobs {
            self.take(request);
        }
        self
    }

    /// Number of devices.
    pub(super) fn total(&self) -> usize {
        self.devices.len()
    }

    /// Number of devices that no job has.
    pub(super) fn free(&self) -> usize {
        let in_use = self.named.len().saturating_add(self.counted);
        self.total().saturating_sub(in_use)
    }

    /// Numbers of devices for users; `None` where there is none.
    pub(super) fn counts(&self) -> Option<GpuCounts> {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (total, free) = (self.total(), self.free());
        (total > 0).then(|| GpuCounts {
            total: number(total),
            free: number(free),
            busy: number(total - free),
        })
    }

    /// Whether the node could give a job these devices while no other job runs.
    pub(super) fn could_serve(&self, request: &GpuRequest) -> bool {
        match request {
            GpuRequest::All => self.total() > 0,
            GpuRequest::Count(count) => self.total() >= *count as usize,
            GpuRequest::Ids(ids) => ids.iter().all(|id| self.resolve(id).is_some()),
        }
    }

    /// Whether these devices are free now.
    pub(super) fn has_free(&self, request: &GpuRequest) -> bool {
        self.could_serve(request)
            && match request {
                GpuRequest::All => self.free() == self.total(),
                GpuRequest::Count(count) => self.free() >= *count as usize,
                GpuRequest::Ids(ids) => {
                    let known: BTreeSet<_> = ids.iter().filter_map(|id| self.resolve(id)).collect();
                    self.free() >= known.len() && known.into_iter().all(|id| self.is_free(id))
                }
            }
    }

    /// Number of devices that have to become free for a job; 0 where it could have them now.
    pub(super) fn missing(&self, request: &GpuRequest) -> usize {
        match request {
            GpuRequest::All => self.total() - self.free(),
            GpuRequest::Count(count) => (*count as usize).saturating_sub(self.free()),
            GpuRequest::Ids(ids) => {
                let known: BTreeSet<_> = ids.iter().filter_map(|id| self.resolve(id)).collect();
                let few = known.len().saturating_sub(self.free());
                known
                    .into_iter()
                    .filter(|id| !self.is_free(id))
                    .count()
                    .max(few)
            }
        }
    }

    /// Id of the device that a job names by its id or its vendor's.
    fn resolve<'a>(&'a self, name: &str) -> Option<&'a str> {
        let device = self.devices.get(name);
        let device = device.or_else(|| self.by_vendor_id.get(name));
        device.map(String::as_str)
    }

    fn is_free(&self, id: &str) -> bool {
        !self.named.contains(id) && (self.counted == 0 || !self.reported_busy.contains(id))
    }

    /// Counts the devices of a job as in use.
    pub(super) fn take(&mut self, request: &GpuRequest) {
        match request {
            GpuRequest::All => self.named.clone_from(&self.devices),
            GpuRequest::Count(count) => self.counted = self.counted.saturating_add(*count as usize),
            // A device that is gone takes nothing away.
            GpuRequest::Ids(ids) => {
                let known = ids.iter().filter_map(|id| self.resolve(id));
                let known: Vec<_> = known.map(str::to_owned).collect();
                self.named.extend(known);
            }
        }
    }
}

/// Request in words, such as `2 GPUs`.
pub(super) fn describe(request: &GpuRequest) -> String {
    match request {
        GpuRequest::All => "all GPUs of a node".to_owned(),
        GpuRequest::Count(1) => "1 GPU".to_owned(),
        GpuRequest::Count(count) => format!("{count} GPUs"),
        GpuRequest::Ids(ids) if ids.len() == 1 => format!("GPU {}", ids[0]),
        GpuRequest::Ids(ids) => format!("GPUs {}", ids.join(", ")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Report of a node with this many devices, of which jobs have those.
    pub(in crate::orchestrator) fn report(count: usize, busy: &[usize]) -> CapabilityReport {
        let devices =
            (0..count).map(|n| serde_json::json!({"id": n.to_string(), "busy": busy.contains(&n)}));
        let report = serde_json::json!({
            "version": 1, "node": {"node_slug": "gpubox"},
            "gpu": {"devices": devices.collect::<Vec<_>>()}, "sandbox": {"features": ["gpus"]},
        });
        serde_json::from_value(report).unwrap()
    }

    pub(in crate::orchestrator) fn request() -> impl Strategy<Value = GpuRequest> {
        let ids = proptest::sample::subsequence(vec!["0", "1", "2", "3"], 1..4);
        prop_oneof![
            Just(GpuRequest::All),
            (1..4_u32).prop_map(GpuRequest::Count),
            ids.prop_map(|ids| GpuRequest::Ids(ids.into_iter().map(str::to_owned).collect())),
        ]
    }

    /// Devices that a node without any other choice left would give a job; `None` where it has too few free.
    fn give(free: &BTreeSet<usize>, total: usize, request: &GpuRequest) -> Option<BTreeSet<usize>> {
        let wanted: BTreeSet<usize> = match request {
            GpuRequest::All => (0..total).collect(),
            GpuRequest::Count(count) => free.iter().copied().take(*count as usize).collect(),
            GpuRequest::Ids(ids) => ids.iter().map(|id| id.parse().unwrap()).collect(),
        };
        let enough = match request {
            GpuRequest::Count(count) => wanted.len() == *count as usize,
            _ => !wanted.is_empty(),
        };
        (enough && wanted.is_subset(free)).then_some(wanted)
    }

    proptest! {
        /// Against a node that gives out its devices one by one and reports at once which are busy.
        #[test]
        fn pool_matches_devices_given_out(
            total in 0..4_usize,
            requests in proptest::collection::vec(request(), 0..6),
        ) {
            let mut free: BTreeSet<usize> = (0..total).collect();
            let mut running: Vec<GpuRequest> = Vec::new();
            for request in requests {
                let busy: Vec<_> = (0..total).filter(|n| !free.contains(n)).collect();
                let pool = GpuPool::new(&report(total, &busy)).with_jobs(&running);
                prop_assert_eq!(pool.free(), free.len());
                let given = give(&free, total, &request);
                prop_assert_eq!(pool.has_free(&request), given.is_some());
                prop_assert!(pool.could_serve(&request) || given.is_none());
                let idle = GpuPool::new(&report(total, &[]));
                prop_assert_eq!(pool.could_serve(&request), idle.has_free(&request));
                if let Some(given) = given {
                    free = &free - &given;
                    running.push(request);
                }
            }
        }
    }

    #[test]
    fn devices_without_id_are_not_for_jobs() {
        let mut report = report(2, &[]);
        report.gpu.as_mut().unwrap().devices.as_mut().unwrap()[0].id = None;
        let pool = GpuPool::new(&report);
        assert_eq!((pool.total(), pool.free()), (1, 1));
        assert!(!pool.has_free(&GpuRequest::Count(2)));
        assert!(!pool.has_free(&GpuRequest::Ids(vec!["0".to_owned()])));
        // More than the node has now: it restarted with fewer devices.
        let pool = pool.with_jobs(&[GpuRequest::Count(9), GpuRequest::All]);
        assert_eq!(pool.free(), 0);
    }

    #[test]
    fn device_has_two_names() {
        let mut report = report(2, &[]);
        let devices = report.gpu.as_mut().unwrap().devices.as_mut().unwrap();
        devices[1].device_id = Some("GPU-1f".to_owned());
        let ids = |ids: &[&str]| GpuRequest::Ids(ids.iter().map(|id| (*id).to_owned()).collect());
        let mut pool = GpuPool::new(&report);
        assert!(pool.has_free(&ids(&["GPU-1f", "0"])));
        assert!(!pool.could_serve(&ids(&["GPU-2a"])));
        pool.take(&ids(&["GPU-1f"]));
        assert_eq!(pool.free(), 1);
        assert!(!pool.has_free(&ids(&["1"])) && !pool.has_free(&ids(&["GPU-1f"])));
        assert!(pool.has_free(&ids(&["0"])));
        let missing = [ids(&["GPU-1f", "0"]), GpuRequest::All, GpuRequest::Count(1)];
        assert_eq!(missing.each_ref().map(|gpus| pool.missing(gpus)), [1, 1, 0]);
    }

    #[test]
    fn requests_are_described_in_words() {
        let ids = |ids: &[&str]| GpuRequest::Ids(ids.iter().map(|id| (*id).to_owned()).collect());
        let all = [
            GpuRequest::All,
            GpuRequest::Count(1),
            GpuRequest::Count(2),
            ids(&["0"]),
            ids(&["0", "3"]),
        ];
        let texts = [
            "all GPUs of a node",
            "1 GPU",
            "2 GPUs",
            "GPU 0",
            "GPUs 0, 3",
        ];
        assert_eq!(all.each_ref().map(describe), texts);
    }
}
