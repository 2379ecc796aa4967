//! Removal of containers that no job of this node uses any more.
//!
//! Podman leaves some behind when it hangs or is killed. Those of other nodes on the same host bear another
//! [label](crate::engine::labels::NODE), and stay.

use super::recovery::Recovered;
use crate::{
    engine::{Engine, EngineError},
    spool::Spool,
};
use futures_util::future::join_all;
use std::{collections::HashSet, fs, io, path::Path};
use tokio::task::spawn_blocking;

/// Removes, at the start, sandboxes without a live shim.
pub(super) async fn remove_orphans_at_start(
    engine: &Engine,
    node_uuid: &str,
    recovered: &Recovered,
) -> Result<(), EngineError> {
    let in_use = |name: &str| recovered.containers.contains(name);
    remove_all_but(in_use, engine.sandbox_list(node_uuid).await?, engine).await;
    Ok(())
}

/// Removes sandboxes of jobs that have ended, while others run.
pub(super) async fn remove_orphans(
    engine: &Engine,
    node_uuid: &str,
    jobs_dir: &Path,
) -> Result<(), EngineError> {
    // In this order: a job that starts meanwhile is not among them.
    let sandboxes = engine.sandbox_list_without_probes(node_uuid).await?;
    let jobs_dir = jobs_dir.to_owned();
    let in_use = spawn_blocking(move || containers_in_use(&jobs_dir)).await;
    let in_use = in_use.map_err(io::Error::from).flatten()?;
    let in_use = |name: &str| in_use.contains(name);
    remove_all_but(in_use, sandboxes, engine).await;
    Ok(())
}

/// Names of the containers of all jobs that have not ended, whether they exist yet or not, and of warm sandboxes.
pub(super) fn containers_in_use(jobs_dir: &Path) -> io::Result<HashSet<String>> {
    let mut names = HashSet::new();
    // Twice: a job that takes a warm sandbox meanwhile may have been read before it, and the sandbox's directory after.
    let entries = fs::read_dir(jobs_dir)?.chain(fs::read_dir(jobs_dir)?);
    for entry in entries {
        let spool = Spool::at(entry?.path());
        // The container of an unreadable job may be in use.
        if !matches!(spool.result(), Ok(Some(_))) {
            names.extend(spool.container_name());
        }
    }
    Ok(names)
}

/// Removes containers at the same time, so that one that can't be removed delays no other.
async fn remove_all_but(in_use: impl Fn(&str) -> bool, names: Vec<String>, engine: &Engine) {
    let orphans = names.iter().filter(|name| !in_use(name));
    let removals = orphans.map(|name| {
        tracing::warn!(name, "removing a container that belongs to no job");
        engine.remove_container(name)
    });
    join_all(removals).await;
}
