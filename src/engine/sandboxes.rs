//! Sandboxes of a node in podman: their names, and the end of one from outside.

use super::{Engine, EngineError, labels, orphans, probe::PROBE_NAME_PREFIX};
use std::time::Duration;

const LIST_TIMEOUT: Duration = Duration::from_mins(1);
const REMOVAL_TIMEOUT: Duration = Duration::from_mins(1);
const MAX_REMOVAL_ATTEMPTS: u32 = 3;
const REMOVAL_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Filter for containers that are older than any probe gets.
const OLD_PROBE_FILTER: &str = "--filter=until=5m";

impl Engine {
    /// Names of all sandboxes of a node, probes among them. A model server bears the node's label and no job's: it
    /// is not listed.
    pub async fn sandbox_list(&self, node_uuid: &str) -> Result<Vec<String>, EngineError> {
        self.sandbox_list_with(node_uuid, &[]).await
    }

    /// Names of all sandboxes of a node, without probes that may still be running.
    pub async fn sandbox_list_without_probes(
        &self,
        node_uuid: &str,
    ) -> Result<Vec<String>, EngineError> {
        let mut names = self.sandbox_list(node_uuid).await?;
        let old = self.sandbox_list_with(node_uuid, &[OLD_PROBE_FILTER]);
        let old = old.await?;
        names.retain(|name| !name.starts_with(PROBE_NAME_PREFIX) || old.contains(name));
        Ok(names)
    }

    async fn sandbox_list_with(
        &self,
        node_uuid: &str,
        filters: &[&str],
    ) -> Result<Vec<String>, EngineError> {
        let of_node = format!("--filter=label={}={node_uuid}", labels::NODE);
        let with_job = format!("--filter=label={}", labels::JOB);
        let list = ["ps", "--all", "--format={{.Names}}", &of_node, &with_job];
        let names = self.call(&[&list, filters].concat(), LIST_TIMEOUT).await?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Kills a sandbox that does not end by itself.
    pub async fn kill_container(&self, name: &str, limit: Duration) -> Result<(), EngineError> {
        let kill = ["kill", "--signal=KILL", name];
        self.call(&kill, limit).await.map(drop)
    }

    /// Removes a container in any state, and its unnamed volumes. Returns whether nothing of it is left; a container
    /// that doesn't exist counts as removed. Otherwise [`Engine::wait_for_unremoved_container`] resolves, for the
    /// collection of orphans.
    pub async fn remove_container(&self, name: &str) -> bool {
        orphans::end_client(name).await;
        let is_removed = self.try_remove_container(name).await;
        let is_removed = orphans::remove(name).await && is_removed;
        if !is_removed {
            self.report_unremoved_container();
        }
        is_removed
    }

    async fn try_remove_container(&self, name: &str) -> bool {
        let arguments = ["rm", "--force", "--ignore", "--volumes", "--time=0", name];
        for remaining in (0..MAX_REMOVAL_ATTEMPTS).rev() {
            match self.call(&arguments, REMOVAL_TIMEOUT).await {
                Ok(_) => return true,
                // Conmon removes a container that ends, too, and then one of the two fails.
                Err(EngineError::Failed { .. }) if remaining > 0 => {
                    tokio::time::sleep(REMOVAL_RETRY_DELAY).await;
                }
                Err(error) => {
                    tracing::warn!(container = name, %error, "container could not be removed; retrying later");
                    break;
                }
            }
        }
        false
    }
}
