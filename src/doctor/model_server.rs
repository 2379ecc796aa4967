//! Owner of a running model server: a node does not use the container of another node, and fails to start its own.

use super::{Check, engine::PodmanFindings};
use crate::{engine::labels, node};
use std::{fs, path::Path};

/// Refines the check of the model server's port by the owner of its container.
pub(super) async fn check_owner(
    check: Check,
    port: u16,
    podman: &PodmanFindings,
    data_dir: &Path,
) -> Check {
    let Some(engine) = podman.engine() else {
        return check;
    };
    let name = node::container_name(port);
    let Ok(Some(found)) = engine.service_find(&name).await else {
        return check;
    };
    let ours = fs::read_to_string(data_dir.join("worker/node-uuid")).unwrap_or_default();
    if found.label(labels::NODE) == ours.trim() {
        return check;
    }
    let owner = node::container_owner(&found);
    Check::fail(
        check.name,
        format!("the container {name} belongs to {owner}; nodes here can't run a model server"),
        "choose another port with --inference-port, or remove that container if it is not needed; if it belongs to a node with another data directory, name that with --data-dir",
    )
}
