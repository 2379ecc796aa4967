//! Cache of parsed capability reports.
//!
//! Nodes are read again at every change, and a report is some kilobytes of JSON. So a parsed report
//! is kept until the node sends one with another hash.

use super::{Node, StoreError};
use crate::api::{NodeId, nodes::CapabilityReport};
use parking_lot::Mutex;
use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    sync::Arc,
};

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

    /// Removes the reports of nodes that were deleted, given all nodes. Done at every list and not at the deletion,
    /// whose caller may be gone before the commit, and which an earlier read may outlast.
    pub(super) fn retain<N: Borrow<Node>>(&self, nodes: &[N]) {
        let mut map = self.0.lock();
        if map.len() > nodes.len() {
            let known: HashSet<_> = nodes.iter().map(|node| node.borrow().id).collect();
            map.retain(|node, _| known.contains(node));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
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
        reports.retain::<Node>(&[]);
        assert_eq!(cores("b", 4), 4);
    }
}
