//! Removal of containers that no job of this node uses any more.
//!
//! Podman leaves some behind when it hangs or is killed. Those of other nodes on the same host bear another
//! [label](labels::NODE), and stay.

use super::recovery::Recovered;
use crate::{
    engine::{Engine, EngineError, labels, probe::PROBE_NAME_PREFIX},
    spool::Spool,
};
use futures_util::future::join_all;
use std::{collections::HashSet, fs, io, path::Path, time::Duration};
use tokio::task::spawn_blocking;

/// Time in which podman has to list containers.
const LIST_TIMEOUT: Duration = Duration::from_mins(1);
/// Filter for containers that are older than any probe that runs.
const OLD_PROBE_FILTER: &str = "--filter=until=5m";

/// Removes, at the start, sandboxes without a live shim.
pub(super) async fn remove_orphans_at_start(
    engine: &Engine,
    node_uuid: &str,
    recovered: &Recovered,
) -> Result<(), EngineError> {
    let in_use = |name: &str| recovered.containers.contains(name);
    remove_all_but(in_use, list_sandboxes(engine, node_uuid).await?, engine).await;
    Ok(())
}

/// Removes sandboxes of jobs that have ended, while others run.
pub(super) async fn remove_orphans(
    engine: &Engine,
    node_uuid: &str,
    jobs_dir: &Path,
) -> Result<(), EngineError> {
    // In this order: a job that starts meanwhile is not among them.
    let sandboxes = list_sandboxes(engine, node_uuid).await?;
    let jobs_dir = jobs_dir.to_owned();
    let in_use = spawn_blocking(move || containers_in_use(&jobs_dir)).await;
    let in_use = in_use.map_err(io::Error::from).flatten()?;
    // A probe may be under way, but not for so long.
    let old = list_sandboxes_with(engine, node_uuid, &[OLD_PROBE_FILTER]).await?;
    let is_probing =
        |name: &str| name.starts_with(PROBE_NAME_PREFIX) && !old.iter().any(|old| old == name);
    let in_use = |name: &str| is_probing(name) || in_use.contains(name);
    remove_all_but(in_use, sandboxes, engine).await;
    Ok(())
}

/// Names of the containers of all jobs that have not ended, whether they exist yet or not.
pub(super) fn containers_in_use(jobs_dir: &Path) -> io::Result<HashSet<String>> {
    let mut names = HashSet::new();
    for entry in fs::read_dir(jobs_dir)? {
        let spool = Spool::at(entry?.path());
        // The container of an unreadable job may be in use.
        if !matches!(spool.result(), Ok(Some(_))) {
            names.extend(spool.container_name());
        }
    }
    Ok(names)
}

/// Names of all sandboxes with the label of this node. Its model server has that label, too, and is none.
async fn list_sandboxes(engine: &Engine, node_uuid: &str) -> Result<Vec<String>, EngineError> {
    list_sandboxes_with(engine, node_uuid, &[]).await
}

async fn list_sandboxes_with(
    engine: &Engine,
    node_uuid: &str,
    filters: &[&str],
) -> Result<Vec<String>, EngineError> {
    let ours = format!("--filter=label={}={node_uuid}", labels::NODE);
    let sandboxes = format!("--filter=label={}", labels::JOB);
    let list = ["ps", "--all", "--format={{.Names}}", &ours, &sandboxes];
    let list = [&list[..], filters].concat();
    let names = engine.call(&list, LIST_TIMEOUT).await?;
    Ok(names.lines().map(str::to_owned).collect())
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
