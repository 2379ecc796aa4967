//! Snapshots of sandboxes as images.
//!
//! A running sandbox's upper directory is not in podman's storage (see `upper`), so that `podman commit` of it would
//! find nothing. So a container that never starts is made of the same image, what the sandbox wrote is copied into its
//! layer ([`Engine::copy_tree`]), and that container is committed. It is called by the node's UUID: one is made at a
//! time, and what a crash leaves of it is found by that name. It bears none of our labels, which the image would get,
//! too.
//!
//! An image has the node's UUID as a label, by which those without a name are found. The label is no `io.cynode.…`:
//! images with those are refused, and containers are recognized by them.

use super::{Engine, EngineError, call, container::base_args};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// Label of the images of snapshots: the node.
pub(super) const NODE_LABEL: &str = "cynode.snapshot";
/// Label of them: bytes of their layers, those of earlier snapshots among them.
const BYTES_LABEL: &str = "cynode.snapshot-bytes";
const CREATE_TIMEOUT: Duration = Duration::from_mins(2);
const COMMIT_TIMEOUT: Duration = Duration::from_mins(30);
const REMOVE_TIMEOUT: Duration = Duration::from_mins(5);
const SHORT_TIMEOUT: Duration = Duration::from_secs(30);
/// Length of the id of an image, in hexadecimal digits.
const ID_DIGITS: usize = 64;
/// Command of an image that has none, without which podman makes no container. No sandbox runs it.
const UNUSED_COMMAND: &str = "true";

/// Image of a snapshot of this node, by one of its names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotImage {
    /// Id.
    pub id: String,
    /// Name; `None` where it has none.
    pub name: Option<String>,
    /// Bytes of its layers, those of earlier snapshots among them.
    pub layer_bytes: u64,
}

#[derive(Deserialize)]
struct Labels {
    labels: Option<BTreeMap<String, String>>,
}

impl Labels {
    const FORMAT: &str = r#"--format={"labels":{{json .Labels}}}"#;

    /// Whether the image is a snapshot of this node.
    fn is_of(&self, node_uuid: &str) -> bool {
        let node = self.labels.as_ref().and_then(|all| all.get(NODE_LABEL));
        node.is_some_and(|node| node == node_uuid)
    }

    /// Bytes of the layers of a node's snapshots in this image.
    fn layer_bytes(&self, node_uuid: &str) -> u64 {
        let Some(labels) = &self.labels else { return 0 };
        if !self.is_of(node_uuid) {
            return 0;
        }
        let bytes = labels.get(BYTES_LABEL).and_then(|text| text.parse().ok());
        bytes.unwrap_or(0)
    }
}

impl Engine {
    /// Id of the image that a container was made of.
    pub async fn container_image(&self, container: &str) -> Result<String, EngineError> {
        let inspect = ["container", "inspect", "--format={{.Image}}", container];
        let answer = self.call(&inspect, SHORT_TIMEOUT).await?;
        image_id("container inspect", &answer)
    }

    /// Bytes of the layers of this node's snapshots in an image: 0 for any other image.
    pub async fn snapshot_layer_bytes(
        &self,
        node_uuid: &str,
        image: &str,
    ) -> Result<u64, EngineError> {
        let found: Option<Labels> = self.inspect_image_as(Labels::FORMAT, image).await?;
        Ok(found.map_or(0, |labels| labels.layer_bytes(node_uuid)))
    }

    /// Whether there is an image of this name that is a snapshot of this node.
    pub async fn has_snapshot(&self, node_uuid: &str, image: &str) -> Result<bool, EngineError> {
        let found: Option<Labels> = self.inspect_image_as(Labels::FORMAT, image).await?;
        Ok(found.is_some_and(|labels| labels.is_of(node_uuid)))
    }

    /// Makes the container that is committed, of an image by its id. Returns the directory of its layer; `None` where
    /// podman's storage driver has none.
    pub async fn begin_snapshot(
        &self,
        node_uuid: &str,
        image: &str,
    ) -> Result<Option<PathBuf>, EngineError> {
        self.discard_snapshot_container(node_uuid).await;
        let name = container_name(node_uuid);
        let mut arguments = create_args(self, &name);
        arguments.push(image.to_owned());
        let mut created = self.create(&arguments).await;
        if created.as_ref().is_err_and(has_no_command) {
            arguments.push(UNUSED_COMMAND.to_owned());
            created = self.create(&arguments).await;
        }
        created?;
        self.upper_dir(&name).await
    }

    async fn create(&self, arguments: &[String]) -> Result<(), EngineError> {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        self.call(&arguments, CREATE_TIMEOUT).await.map(drop)
    }

    /// Makes an image without a name of the container that was begun. Its layers of snapshots have so many bytes in all;
    /// podman's temporary files are in `temp_dir`. Returns the image's id.
    pub async fn commit_snapshot(
        &self,
        node_uuid: &str,
        layer_bytes: u64,
        temp_dir: &Path,
    ) -> Result<String, EngineError> {
        let name = container_name(node_uuid);
        let node = format!("--change=LABEL {NODE_LABEL}={node_uuid}");
        let bytes = format!("--change=LABEL {BYTES_LABEL}={layer_bytes}");
        // It does not run, so there is nothing to pause.
        let arguments = ["commit", "--pause=false", "--quiet", &node, &bytes, &name];
        let program = self.program_in(temp_dir);
        // It may take long, so this is not one of the short calls.
        let answer = call(&program, &arguments, COMMIT_TIMEOUT, |_| ()).await?;
        image_id("commit", &answer)
    }

    /// Removes the container that is committed, where there is one. Returns whether nothing of it is left.
    pub async fn discard_snapshot_container(&self, node_uuid: &str) -> bool {
        self.remove_container(&container_name(node_uuid)).await
    }

    /// Id of the image of this name; `None` where there is none.
    pub async fn snapshot_image_id(&self, image: &str) -> Result<Option<String>, EngineError> {
        let found = self.inspect_image(image).await?;
        Ok(found.map(|found| found.id))
    }

    /// Gives an image a name, which another one loses.
    pub async fn tag_image(&self, id: &str, name: &str) -> Result<(), EngineError> {
        let tag = ["tag", id, name];
        self.call(&tag, SHORT_TIMEOUT).await.map(drop)
    }

    /// Removes the name of an image, and the image with its last one; or an image without a name, by its id. One that
    /// doesn't exist counts as removed. Fails while a container uses it.
    pub async fn remove_snapshot_image(&self, image: &str) -> Result<(), EngineError> {
        let remove = ["rmi", image];
        match self.call(&remove, REMOVE_TIMEOUT).await {
            Err(EngineError::Failed { message, .. }) if is_unknown(&message) => {}
            removed => return removed.map(drop),
        }
        // Podman says so of every image while it removes another one.
        if self.snapshot_image_id(image).await?.is_none() {
            return Ok(());
        }
        self.call(&remove, REMOVE_TIMEOUT).await.map(drop)
    }

    /// This node's snapshots, once for each of their names.
    pub async fn snapshot_images(
        &self,
        node_uuid: &str,
    ) -> Result<Vec<SnapshotImage>, EngineError> {
        self.list_snapshots(node_uuid, &[]).await
    }

    /// This node's snapshots that have no name, and from which no other image began.
    pub async fn nameless_snapshots(
        &self,
        node_uuid: &str,
    ) -> Result<Vec<SnapshotImage>, EngineError> {
        let nameless = ["--filter=dangling=true"];
        self.list_snapshots(node_uuid, &nameless).await
    }

    async fn list_snapshots(
        &self,
        node_uuid: &str,
        filters: &[&str],
    ) -> Result<Vec<SnapshotImage>, EngineError> {
        let label = format!("--filter=label={NODE_LABEL}={node_uuid}");
        let format = format!(
            r#"--format={{{{.ID}}}} {{{{.Repository}}}}:{{{{.Tag}}}} {{{{index .Labels "{BYTES_LABEL}"}}}}"#
        );
        let list = ["images", "--no-trunc", &format, &label];
        let listed = self
            .call(&[&list[..], filters].concat(), SHORT_TIMEOUT)
            .await?;
        Ok(listed.lines().filter_map(snapshot_image).collect())
    }
}

/// Image in a line of podman's list.
fn snapshot_image(line: &str) -> Option<SnapshotImage> {
    let mut fields = line.split_whitespace();
    let id = without_algorithm(fields.next()?);
    let name = fields.next()?;
    let bytes = fields.next().and_then(|bytes| bytes.parse().ok());
    is_id(id).then(|| SnapshotImage {
        id: id.to_owned(),
        name: (!name.contains("<none>")).then(|| name.to_owned()),
        layer_bytes: bytes.unwrap_or(0),
    })
}

/// Whether podman did not remove an image because a container uses it.
pub fn is_image_in_use(error: &EngineError) -> bool {
    let messages = ["in use by", "image used by"];
    matches!(error, EngineError::Failed { message, .. } if messages.iter().any(|known| message.contains(known)))
}

fn is_unknown(message: &str) -> bool {
    let messages = ["no such image", "image not known"];
    messages.iter().any(|known| message.contains(known))
}

fn has_no_command(error: &EngineError) -> bool {
    matches!(error, EngineError::Failed { message, .. } if message.contains("no command or entrypoint"))
}

/// Name of the container that is committed.
fn container_name(node_uuid: &str) -> String {
    format!("cynode-snapshot-{node_uuid}")
}

/// Arguments of the container that is committed, without its image. It has no command, variables or user of ours: the
/// image would get those.
fn create_args(engine: &Engine, name: &str) -> Vec<String> {
    let mut list = base_args(engine);
    for argument in &mut list {
        if argument == "run" {
            "create".clone_into(argument);
        }
    }
    let own = ["--network=none", "--http-proxy=false"];
    list.extend(own.map(str::to_owned));
    list.push(format!("--name={name}"));
    list
}

/// Id of an image in podman's output.
fn image_id(call: &str, answer: &str) -> Result<String, EngineError> {
    let last = answer.trim().lines().last().unwrap_or_default();
    let id = without_algorithm(last);
    if is_id(id) {
        return Ok(id.to_owned());
    }
    Err(EngineError::UnexpectedOutput {
        call: call.to_owned(),
        reason: "it is not the id of an image".to_owned(),
    })
}

fn without_algorithm(id: &str) -> &str {
    let id = id.trim();
    id.strip_prefix("sha256:").unwrap_or(id)
}

fn is_id(id: &str) -> bool {
    id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_id_is_read_from_output() {
        let id = "0123456789abcdef".repeat(4);
        for answer in [
            format!("{id}\n"),
            format!("sha256:{id}"),
            format!("warning\n{id}\n"),
        ] {
            assert_eq!(image_id("commit", &answer).unwrap(), id);
        }
        let others = [String::new(), format!("{id}/../x"), "g".repeat(64)];
        for answer in others {
            assert!(image_id("commit", &answer).is_err(), "{answer}");
        }
    }

    #[test]
    fn only_own_snapshots_count_their_layers() {
        let labels = |text: &str| serde_json::from_str::<Labels>(text).unwrap();
        let own =
            labels(r#"{"labels": {"cynode.snapshot": "a", "cynode.snapshot-bytes": "4096"}}"#);
        assert_eq!(own.layer_bytes("a"), 4096);
        assert_eq!(own.layer_bytes("b"), 0);
        assert!(own.is_of("a") && !own.is_of("b"));
        assert_eq!(labels(r#"{"labels": null}"#).layer_bytes("a"), 0);
    }

    #[test]
    fn list_of_snapshots_is_read() {
        let id = "0123456789abcdef".repeat(4);
        let image = |name: Option<&str>, layer_bytes| SnapshotImage {
            id: id.clone(),
            name: name.map(str::to_owned),
            layer_bytes,
        };
        let named = format!("sha256:{id} localhost/cynode-snapshots/u:a 4096");
        let name = Some("localhost/cynode-snapshots/u:a");
        assert_eq!(snapshot_image(&named), Some(image(name, 4096)));
        let nameless = format!("sha256:{id} <none>:<none> ");
        assert_eq!(snapshot_image(&nameless), Some(image(None, 0)));
        for other in ["", "abc localhost/x:1 5", &id] {
            assert_eq!(snapshot_image(other), None, "{other}");
        }
    }

    #[test]
    fn image_in_use_is_recognized() {
        let failed = |message: &str| EngineError::Failed {
            call: "rmi".to_owned(),
            message: message.to_owned(),
        };
        assert!(is_image_in_use(&failed(
            "image used by 3c0: image is in use by a container: consider listing external containers"
        )));
        assert!(!is_image_in_use(&failed("x: image not known")));
    }
}
