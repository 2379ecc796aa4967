//! Whether a node could run a job, by its report, and an index that finds such nodes. Inference and free devices are
//! left out, since they come and go too often.

use crate::{
    api::{NodeId, nodes::CapabilityReport, snapshots::is_snapshot},
    orchestrator::gpu_pool::GpuPool,
    store::Placement,
};
use std::collections::HashMap;

/// Key of nodes with graphics processors for jobs. No label has a colon.
const GPUS_KEY: &str = "feature:gpus";

/// Whether a node with this report meets all requirements that do not change while it runs.
pub(super) fn could_serve(id: NodeId, report: &CapabilityReport, placement: &Placement) -> bool {
    let labels = report.node.labels.as_deref().unwrap_or_default();
    let is_named = |slug: &str| slug == report.node.node_slug;
    !placement.excluded_nodes().contains(&id)
        && placement.node().is_none_or(is_named)
        && placement
            .labels()
            .iter()
            .all(|label| labels.contains(label))
        && placement
            .features()
            .iter()
            .all(|feature| report.has_feature(feature))
        && placement
            .snapshot()
            .is_none_or(|image| report.has_local_image(image))
        && placement
            .gpus()
            .is_none_or(|gpus| GpuPool::new(report).could_serve(gpus))
}

/// Whether two reports say the same about all that [`could_serve`] asks for.
pub(super) fn serve_alike(a: &CapabilityReport, b: &CapabilityReport) -> bool {
    let labels = |report: &CapabilityReport| report.node.labels.clone().unwrap_or_default();
    let devices = |report: &CapabilityReport| -> Vec<[Option<String>; 2]> {
        let devices = report
            .gpu
            .iter()
            .flat_map(|gpu| gpu.devices.iter().flatten());
        devices
            .map(|device| [device.id.clone(), device.device_id.clone()])
            .collect()
    };
    a.node.node_slug == b.node.node_slug
        && labels(a) == labels(b)
        && a.features() == b.features()
        && devices(a) == devices(b)
        && snapshots(a).eq(snapshots(b))
}

/// Images of the snapshots that a node names.
fn snapshots(report: &CapabilityReport) -> impl Iterator<Item = &String> {
    let images = report.local_images().unwrap_or_default().iter();
    images.filter(|image| is_snapshot(image))
}

/// Positions of nodes by what is rare among them: their labels, their slugs, their snapshots, and graphics processors.
#[derive(Debug, Default)]
pub(super) struct RareTraits(HashMap<String, Vec<usize>>);

impl RareTraits {
    pub(super) fn new<'a>(reports: impl IntoIterator<Item = &'a CapabilityReport>) -> Self {
        let mut nodes: HashMap<String, Vec<usize>> = HashMap::new();
        for (n, report) in reports.into_iter().enumerate() {
            let mut keys = report.node.labels.clone().unwrap_or_default();
            keys.push(slug_key(&report.node.node_slug));
            keys.extend(snapshots(report).map(|image| snapshot_key(image)));
            let mut devices = report
                .gpu
                .iter()
                .flat_map(|gpu| gpu.devices.iter().flatten());
            if devices.any(|device| device.id.is_some()) {
                keys.push(GPUS_KEY.to_owned());
            }
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                nodes.entry(key).or_default().push(n);
            }
        }
        Self(nodes)
    }

    /// Nodes with the rarest of the traits that a placement requires; `None` where it requires none of them. So a
    /// label that no node has costs nothing.
    pub(super) fn with_rarest(&self, placement: &Placement) -> Option<&[usize]> {
        let slug = placement.node().map(slug_key);
        let snapshot = placement.snapshot().map(snapshot_key);
        let gpus = placement.gpus().map(|_| GPUS_KEY);
        let keys = placement.labels().iter().map(String::as_str);
        let keys = keys
            .chain(slug.as_deref())
            .chain(snapshot.as_deref())
            .chain(gpus);
        let nodes = keys.map(|key| self.0.get(key).map_or(&[][..], Vec::as_slice));
        nodes.min_by_key(|nodes| nodes.len())
    }
}

fn slug_key(slug: &str) -> String {
    format!("node:{slug}")
}

fn snapshot_key(image: &str) -> String {
    format!("snapshot:{image}")
}
