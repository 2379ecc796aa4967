//! Annotations and labels of images: some are instructions to podman, to a runtime or to cynode, and images with
//! those are refused.
//!
//! Podman passes an image's annotations to the runtime, and some runtimes obey them (`run.oci.handler`,
//! `org.systemd.property.…`). An image's labels become the container's, and a node recognizes its own containers by
//! their labels. No flag turns any of this off.
//!
//! An image's id doesn't cover its annotations: a later pull of the same content with another manifest replaces them.
//! So an answer is valid only while podman's image index has the same [stamp](IndexStamp). A shim whose index has
//! changed since checks the annotations of its [container](Engine::container_fault) before it runs the command.

use super::{Engine, EngineError, snapshots::NODE_LABEL};
use crate::api::snapshots::is_snapshot;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

const INSPECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before podman is asked again for an image that it reports as missing.
const MISSING_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Prefixes of annotations that some runtime obeys: crun and krun, runc and youki, CRIU, systemd, Kata, gVisor,
/// NVIDIA's, and those that read Kubernetes' annotations.
const RUNTIME_ANNOTATIONS: [&str; 15] = [
    "run.oci.",
    "krun.",
    "io.crun.",
    "io.youki.",
    "module.wasm.",
    "org.criu.",
    "org.systemd.property.",
    "io.kubernetes.",
    "io.katacontainers.",
    "dev.gvisor.",
    "com.github.containers.",
    "cdi.k8s.io/",
    "nvidia.cdi.k8s.io/",
    "nvidia.com/",
    "com.nvidia.",
];
/// Prefixes of annotations that podman and its hooks obey. Podman itself adds some to every container.
const PODMAN_ANNOTATIONS: [&str; 4] = [
    "io.podman.",
    "io.containers.",
    "io.container.",
    "io.kubernetes.cri-o.",
];
/// Prefix of our own labels.
const OWN_PREFIX: &str = "io.cynode.";

/// Version of podman's image index: inode, size and time of change of its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IndexStamp(u64, u64, i64, i64);

/// An image that is present.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Id of the image.
    pub id: String,
    /// Reason in its metadata why no sandbox may run it.
    pub(super) fault: Option<String>,
    /// Image index of this answer; `None` where it could not be read.
    pub stamp: Option<IndexStamp>,
}

#[derive(Deserialize)]
struct Metadata {
    id: String,
    annotations: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

impl Metadata {
    const FORMAT: &str = r#"--format={"id":{{json .ID}},"annotations":{{json .Annotations}},"labels":{{json .Labels}}}"#;

    /// Reason why no sandbox may run the image by this name.
    fn fault(&self, image: &str) -> Option<String> {
        let annotations = self.annotations.iter().flat_map(BTreeMap::keys);
        let mut labels = self.labels.iter().flat_map(BTreeMap::keys);
        let is_instruction = |name: &&String| {
            has_prefix(name, &RUNTIME_ANNOTATIONS) || has_prefix(name, &PODMAN_ANNOTATIONS)
        };
        if let Some(name) = annotations.clone().find(is_instruction) {
            return Some(annotation_fault(name));
        }
        let name = annotations
            .chain(labels.clone())
            .find(|name| name.starts_with(OWN_PREFIX));
        if let Some(name) = name {
            return Some(format!(
                "it has the label or annotation {name:?}, by which cynode recognizes its own containers"
            ));
        }
        // Files of one user, which another name would show to all.
        let is_of_snapshot = labels.any(|name| name == NODE_LABEL);
        (is_of_snapshot && !is_snapshot(image)).then(|| {
            format!(
                "it has the label {NODE_LABEL:?} of a user's snapshot, and only that user may name it"
            )
        })
    }
}

fn has_prefix(name: &str, families: &[&str]) -> bool {
    families.iter().any(|family| name.starts_with(family))
}

fn annotation_fault(name: &str) -> String {
    format!("it has the annotation {name:?}, which podman or a container runtime may obey")
}

impl Engine {
    /// File of podman's image index. Every pull, tag or removal by any process replaces it.
    fn index(&self) -> PathBuf {
        let info = self.info();
        let directory = format!("{}-images", info.graph_driver);
        info.graph_root.join(directory).join("images.json")
    }

    /// Current version of the image index; `None` where it can't be read.
    pub async fn index_stamp(&self) -> Option<IndexStamp> {
        let file = tokio::fs::metadata(self.index()).await.ok()?;
        Some(IndexStamp(
            file.ino(),
            file.size(),
            file.mtime(),
            file.mtime_nsec(),
        ))
    }

    /// Reads the metadata of an image by name or id; `None` where it is missing.
    pub(super) async fn inspect_image(
        &self,
        image: &str,
    ) -> Result<Option<ResolvedImage>, EngineError> {
        // Read before podman does: a change in between makes the answer outdated, not wrong.
        let stamp = self.index_stamp().await;
        let metadata: Option<Metadata> = self.inspect_image_as(Metadata::FORMAT, image).await?;
        Ok(metadata.map(|metadata| ResolvedImage {
            fault: metadata.fault(image),
            id: metadata.id,
            stamp,
        }))
    }

    /// Inspects an image with a format that prints JSON; `None` where it is missing. While another image is being
    /// removed, podman reports every image as missing, so it is asked twice.
    pub(super) async fn inspect_image_as<T: DeserializeOwned>(
        &self,
        format: &str,
        image: &str,
    ) -> Result<Option<T>, EngineError> {
        let inspect = ["image", "inspect", format, image];
        let mut answer = self.inspect_json(&inspect).await;
        if is_missing(&answer) {
            tokio::time::sleep(MISSING_RETRY_DELAY).await;
            answer = self.inspect_json(&inspect).await;
        }
        if is_missing(&answer) {
            return Ok(None);
        }
        answer.map(Some)
    }

    /// Reason in a container's annotations why nothing may run in it. Podman adds annotations of its own, so only those
    /// for a runtime count.
    pub async fn container_fault(&self, name: &str) -> Result<Option<String>, EngineError> {
        let format = "--format={{json .Config.Annotations}}";
        let inspect = ["container", "inspect", format, name];
        let annotations: Option<BTreeMap<String, String>> = self.inspect_json(&inspect).await?;
        let mut names = annotations.iter().flat_map(BTreeMap::keys);
        Ok(names
            .find(|name| {
                has_prefix(name, &RUNTIME_ANNOTATIONS) && !has_prefix(name, &PODMAN_ANNOTATIONS)
            })
            .map(|name| annotation_fault(name)))
    }

    async fn inspect_json<T: DeserializeOwned>(&self, call: &[&str]) -> Result<T, EngineError> {
        let answer = self.call(call, INSPECT_TIMEOUT).await?;
        serde_json::from_str(&answer).map_err(|error| EngineError::UnexpectedOutput {
            call: call[..2].join(" "),
            reason: error.to_string(),
        })
    }
}

/// Whether podman has reported an image as missing.
fn is_missing<T>(answer: &Result<T, EngineError>) -> bool {
    let messages = ["no such image", "image not known", "failed to find image"];
    matches!(answer, Err(EngineError::Failed { message, .. }) if messages.iter().any(|known| message.contains(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(annotations: &[&str], labels: &[&str]) -> Option<String> {
        let map = |names: &[&str]| {
            let pairs = names
                .iter()
                .map(|&name| (name.to_owned(), "x".to_owned()))
                .collect();
            Some(pairs)
        };
        let metadata = Metadata {
            id: String::new(),
            annotations: map(annotations),
            labels: map(labels),
        };
        metadata.fault("localhost/tool:1")
    }

    #[test]
    fn image_of_snapshot_has_no_other_name() {
        let metadata = Metadata {
            id: String::new(),
            annotations: None,
            labels: Some(BTreeMap::from([(NODE_LABEL.to_owned(), "x".to_owned())])),
        };
        let other = metadata.fault("localhost/tool:1");
        assert!(other.is_some_and(|fault| fault.contains(NODE_LABEL)));
        assert_eq!(metadata.fault("localhost/cynode-snapshots/u:a"), None);
    }

    #[test]
    fn describing_annotations_pass() {
        let names = [
            "org.opencontainers.image.base.digest",
            "com.docker.official-images.bashbrew.arch",
            "com.example.team",
            "maintainer",
            "run.ocix",
        ];
        let labels = ["maintainer", "io.buildah.version", "io.kubernetes.x"];
        assert_eq!(fault(&names, &labels), None);
    }

    #[test]
    fn image_instructions_are_refused() {
        for family in RUNTIME_ANNOTATIONS
            .iter()
            .chain(&PODMAN_ANNOTATIONS)
            .chain(&[OWN_PREFIX])
        {
            let name = format!("{family}x");
            assert!(fault(&["a", &name], &[]).is_some_and(|fault| fault.contains(&name)));
        }
        let label = "io.cynode.node";
        assert!(fault(&[], &[label]).is_some_and(|fault| fault.contains(label)));
    }
}
