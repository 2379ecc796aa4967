//! Features of a worker's sandboxes.

use crate::{
    api::nodes::features,
    engine::{
        Engine,
        limits::{LimitKind, LimitSupport, probe_limits},
    },
};
use std::path::Path;

/// Features of every sandbox: files in and results out.
const FILES: [&str; 2] = [features::FILES, features::ARTIFACTS];
/// Features of single limits; that of all of them is `limits`.
const LIMITS: [(Option<LimitKind>, &str); 4] = [
    (Some(LimitKind::Cpus), features::LIMIT_CPUS),
    (Some(LimitKind::Memory), features::LIMIT_MEMORY),
    (Some(LimitKind::Pids), features::LIMIT_PIDS),
    (None, features::LIMIT_SHM_SIZE),
];

/// Features of sandboxes on a host with these limits, and with devices for jobs and snapshots or not.
pub(super) fn names(limits: &LimitSupport, has_gpus: bool, has_snapshots: bool) -> Vec<String> {
    let single = LIMITS.into_iter();
    let single = single.filter(|(kind, _)| kind.is_none_or(|kind| limits.has(kind)));
    let all = limits.faults().next().is_none().then_some(features::LIMITS);
    let gpus = has_gpus.then_some(features::GPUS);
    let names = single.map(|(_, feature)| feature);
    let snapshots = has_snapshots.then_some(features::SNAPSHOTS);
    let names = names.chain(FILES).chain(all).chain(gpus).chain(snapshots);
    names.map(str::to_owned).collect()
}

/// Finds the limits that this host can enforce; a job that asks for another is refused.
pub(super) async fn find_limits(engine: &Engine, init: &Path, scratch: &Path) -> LimitSupport {
    let support = probe_limits(engine, init, scratch).await;
    for (kind, reason) in support.faults() {
        tracing::warn!(
            limit = kind.as_str(),
            reason,
            "limit can't be enforced; jobs with it are refused"
        );
    }
    support
}
