//! Cache of parsed capability reports.
//!
//! The scheduler reads every node at every turn, and a report is some kilobytes of JSON. So a parsed report
//! is kept until the node sends one with another hash.

use super::StoreError;
use crate::api::{NodeId, nodes::CapabilityReport};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// Last report of each node, and its hash.
type Map = HashMap<NodeId, (String, Arc<CapabilityReport>)>;

#[derive(Clone, Default)]
pub(super) struct ReportCache(Arc<Mutex<Map>>);

impl ReportCache {
    /// Report of this hash; `parse` is called where the hash differs from that of the cached report.
    pub(super) fn get_or_parse(
        &self,
        node: NodeId,
        sha256: &str,
        parse: impl FnOnce() -> Result<CapabilityReport, StoreError>,
    ) -> Result<Arc<CapabilityReport>, StoreError> {
        let mut map = self.0.lock();
        if let Some((known, report)) = map.get(&node)
            && known == sha256
        {
            return Ok(Arc::clone(report));
        }
        let report = Arc::new(parse()?);
        map.insert(node, (sha256.to_owned(), Arc::clone(&report)));
        Ok(report)
    }

    /// Removes the report of a node that was deleted.
    pub(super) fn remove(&self, node: NodeId) {
        self.0.lock().remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_parsed_once_per_hash() {
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
