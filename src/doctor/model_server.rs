//! Whether the model server that answers is one that a node here may use: a container of another node's
//! is left alone, and the start fails.

use super::{Check, engine::PodmanFindings};
use crate::{engine::labels, node};
use std::{fs, path::Path};

/// The check of the model server's port, where somebody answers there, with whose container it is.
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
        format!("the container {name} belongs to {owner}"),
        "give the node here a port of its own with --inference-port, or remove that container if nobody needs it; for a node whose state is elsewhere, say --data-dir",
    )
}
