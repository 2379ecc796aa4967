//! Images that an admin pushes to a node: as an OCI archive, which is an artifact first and a content of the node then.

use super::{ArtifactId, jobs::files::ContentHash};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Longest time for a node to load an archive.
pub const LOAD_LIMIT: Duration = Duration::from_mins(30);

/// Body of `POST /v1/nodes/{slug}/images`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PushImage {
    /// Artifact of yours: an OCI archive of one image, as `podman save --format oci-archive` makes it.
    pub artifact_id: ArtifactId,
}

/// Answer of `POST /v1/nodes/{slug}/images`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PushedImages {
    /// Names of the images that the node has now.
    pub images: Vec<String>,
}

/// Body of `POST /v1/worker/images:load`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadImages {
    /// Payload version, 1.
    pub version: u64,
    /// Content of the node that is the archive.
    pub sha256: ContentHash,
}

/// Answer of `POST /v1/worker/images:load`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadedImages {
    /// Payload version, 1.
    pub version: u64,
    /// Names of the images that were loaded.
    pub images: Vec<String>,
}
