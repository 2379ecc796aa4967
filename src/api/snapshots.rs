//! Snapshots: a sandbox's workspace and the files that it changed in its image, kept on its node as a local image, by a
//! name. `image: "snapshot:NAME"` starts from one.
//!
//! A name belongs to a user. On its node a snapshot is the image `localhost/cynode-snapshots/<user id>:<name>`, which no
//! user can name directly.

use super::{UserId, image::ImageRef, nodes::SLUG_PATTERN, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What precedes the name of a snapshot in the field `image`.
pub const PREFIX: &str = "snapshot:";
/// What precedes the user's id in the image of a snapshot.
const REPOSITORY: &str = "localhost/cynode-snapshots/";

/// Body of `POST /v1/sandboxes/{id}/snapshot`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CreateSnapshot {
    /// Name of the snapshot: lower-case letters, digits and `-`. One that the user has already is replaced.
    #[schemars(regex(pattern = SLUG_PATTERN))]
    pub name: String,
}

/// Snapshot, as users see it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    /// Name.
    pub name: String,
    /// What to give as `image`: `snapshot:` and the name.
    pub image: String,
    /// Slug of the node that has it. Only this node runs it.
    pub node_slug: String,
    /// Space that it takes on its node, without its image, in bytes.
    pub size_bytes: u64,
    /// Time of the snapshot.
    pub created_at: Time,
}

/// Body of `POST /v1/worker/sessions/{id}/snapshot`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SaveSnapshot {
    /// Image that the snapshot becomes.
    pub image: String,
}

/// Snapshot on its node: answer of that call, and an entry of `GET /v1/worker/snapshots`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredSnapshot {
    /// Image that the snapshot is.
    pub image: String,
    /// Id of that image.
    pub image_id: String,
    /// Space that it takes, without the image that it began from, in bytes.
    pub size_bytes: u64,
    /// Time of the snapshot.
    pub created_at: Time,
}

/// Answer of `GET /v1/worker/snapshots`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StoredSnapshots {
    /// All snapshots of the node, in no order.
    pub snapshots: Vec<StoredSnapshot>,
}

/// Image of the snapshot of this name, which is valid, of a user.
pub fn image_of(user: UserId, name: &str) -> String {
    format!("{REPOSITORY}{user}:{name}")
}

/// Name of a snapshot, where its image is one of this user.
pub fn name_in(image: &str, user: UserId) -> Option<&str> {
    let (owner, name) = image.strip_prefix(REPOSITORY)?.split_once(':')?;
    (owner == user.to_string()).then_some(name)
}

impl ImageRef {
    /// Whether the image is a snapshot of some user.
    pub fn is_snapshot(&self) -> bool {
        self.as_str().starts_with(REPOSITORY)
    }
}
