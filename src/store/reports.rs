//! ReportCache of nodes that were read before.
//!
//! The scheduler looks at every node at every turn, and a report is some kilobytes of JSON. So one that
//! was read is kept until its node sends another: its hash tells.

use super::StoreError;
use crate::api::{NodeId, nodes::CapabilityReport};
use parking_lot::{Mutex, MutexGuard};
use std::{collections::HashMap, sync::Arc};

/// The last report of each node, and its hash.
type Map = HashMap<NodeId, (String, Arc<CapabilityReport>)>;

#[derive(Clone, Default)]
pub(super) struct ReportCache(Arc<Mutex<Map>>);

impl ReportCache {
    fn map(&self) -> MutexGuard<'_, Map> {
        self.0.lock()
    }

    /// The report of this hash; `read` reads it where it is another than the last time.
    pub(super) fn get_or_parse(
        &self,
        node: NodeId,
        sha256: &str,
        read: impl FnOnce() -> Result<CapabilityReport, StoreError>,
    ) -> Result<Arc<CapabilityReport>, StoreError> {
        let mut map = self.map();
        if let Some((known, report)) = map.get(&node)
            && known == sha256
        {
            return Ok(Arc::clone(report));
        }
        let report = Arc::new(read()?);
        map.insert(node, (sha256.to_owned(), Arc::clone(&report)));
        Ok(report)
    }

    /// The node is gone.
    pub(super) fn remove(&self, node: NodeId) {
        self.map().remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_cache_reads_each_report_once() {
        let (reports, node) = (ReportCache::default(), NodeId::new());
        let report = |cores: u32| {
            let report = serde_json::json!({
                "version": 1, "reported_at": "2026-01-01T00:00:00Z", "node": {"node_slug": "box"},
                "platform": {"os": "linux", "arch": "amd64"}, "compute": {"cpu_cores": cores, "ram_mb": 1},
            });
            Ok(serde_json::from_value(report)?)
        };
        let cores = |sha256, cores| {
            let report = reports.get_or_parse(node, sha256, || report(cores));
            report.unwrap().compute.cpu_cores
        };
        assert_eq!([cores("a", 1), cores("a", 2), cores("b", 3)], [1, 1, 3]);
        reports.remove(node);
        assert_eq!(cores("b", 4), 4);
    }
}
