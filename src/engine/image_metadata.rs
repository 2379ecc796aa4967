//! What an image orders by its annotations and labels, and which images are refused for it.
//!
//! Podman hands an image's annotations to the runtime, and some runtimes take orders by them (`run.oci.handler`,
//! `org.systemd.property.…`). An image's labels become the container's, and by its labels a node knows what is
//! its own. No flag turns any of this off.
//!
//! Annotations are no part of what an id stands for: a later pull of the same content with another manifest
//! replaces them. So an answer holds only as long as podman's image index has the same [stamp](IndexStamp), and a
//! shim whose index has changed since asks what its [container got](Engine::container_fault), before it lets
//! the command run.

use super::{Engine, EngineError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

const INSPECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before podman is asked again for an image that it said to be missing.
const MISSING_RETRY_DELAY: Duration = Duration::from_millis(200);
/// How the annotations begin that some runtime obeys: crun and krun, runc and youki, CRIU, systemd, Kata, gVisor,
/// NVIDIA's, and those that take Kubernetes' words.
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
/// How those begin that podman and its hooks obey, and of which podman gives each container some itself.
const PODMAN_ANNOTATIONS: [&str; 4] = [
    "io.podman.",
    "io.containers.",
    "io.container.",
    "io.kubernetes.cri-o.",
];
/// How all names of ours begin.
const OWN_PREFIX: &str = "io.cynode.";

/// Which content podman's image index has: inode, size, time of change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IndexStamp(u64, u64, i64, i64);

/// An image that is here.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Its id.
    pub id: String,
    /// Why no sandbox may be started from it, if what it orders is a reason.
    pub(super) fault: Option<String>,
    /// The image index that says so; `None` where there was none to be read.
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

    fn fault(&self) -> Option<String> {
        let annotations = self.annotations.iter().flat_map(BTreeMap::keys);
        let labels = self.labels.iter().flat_map(BTreeMap::keys);
        let is_instruction = |name: &&String| {
            has_prefix(name, &RUNTIME_ANNOTATIONS) || has_prefix(name, &PODMAN_ANNOTATIONS)
        };
        if let Some(name) = annotations.clone().find(is_instruction) {
            return Some(annotation_fault(name));
        }
        let name = annotations
            .chain(labels)
            .find(|name| name.starts_with(OWN_PREFIX))?;
        Some(format!(
            "it has the label or annotation {name:?}, by which cynode knows its own containers"
        ))
    }
}

fn has_prefix(name: &str, families: &[&str]) -> bool {
    families.iter().any(|family| name.starts_with(family))
}

fn annotation_fault(name: &str) -> String {
    format!("it has the annotation {name:?}, which podman or a container runtime may obey")
}

impl Engine {
    /// Podman's image index. Any pull, tag or removal by anybody replaces that file.
    fn index(&self) -> PathBuf {
        let info = self.info();
        let directory = format!("{}-images", info.graph_driver);
        info.graph_root.join(directory).join("images.json")
    }

    /// Which content the image index has now; `None` where it can't be read.
    pub fn index_stamp(&self) -> Option<IndexStamp> {
        let file = std::fs::metadata(self.index()).ok()?;
        Some(IndexStamp(
            file.ino(),
            file.size(),
            file.mtime(),
            file.mtime_nsec(),
        ))
    }

    /// Looks at the image that podman knows by this name.
    pub(super) async fn inspect_image(
        &self,
        image: &str,
    ) -> Result<Option<ResolvedImage>, EngineError> {
        // Taken before podman looks: a change in between makes the answer useless, not wrong.
        let stamp = self.index_stamp();
        let metadata: Option<Metadata> = self.inspect_image_as(Metadata::FORMAT, image).await?;
        Ok(metadata.map(|metadata| ResolvedImage {
            fault: metadata.fault(),
            id: metadata.id,
            stamp,
        }))
    }

    /// What podman says of an image in this format, which makes JSON; `None` where there is none of that name.
    /// While another image is being removed podman says so of any, so it is asked twice.
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

    /// Why nothing may run in a container that was made from an image, if what the image ordered when it was made
    /// is a reason. Podman's own annotations are among its, so only those for a runtime count.
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

/// Whether podman has answered that there is no such image.
fn is_missing<T>(answer: &Result<T, EngineError>) -> bool {
    let says = ["no such image", "image not known", "failed to find image"];
    matches!(answer, Err(EngineError::Failed { message, .. }) if says.iter().any(|said| message.contains(said)))
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
        metadata.fault()
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
