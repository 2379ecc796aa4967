//! Snapshots: a sandbox's workspace and the files that it changed in its image, kept on its node as a local image, by a
//! name. `image: "snapshot:NAME"` starts from one.
//!
//! A name belongs to a user. On its node a snapshot is the image `localhost/cynode-snapshots/<user id>:<name>`, which no
//! user can name directly.

use super::{
    UserId,
    image::ImageRef,
    nodes::{SLUG_PATTERN, check_slug},
    problem::Problem,
    time::Time,
};
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
    /// Handle of its user, where an admin made it of another user's sandbox or lists those of users. Only that user can
    /// start from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Space that it takes on its node, without its image, in bytes.
    pub size_bytes: u64,
    /// Time of the snapshot.
    pub created_at: Time,
}

/// Answer of `GET /v1/snapshots`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotList {
    /// Snapshots of the caller, by name; where an admin names users, theirs, by owner.
    pub snapshots: Vec<Snapshot>,
    /// Slugs of nodes that did not answer: snapshots there are not listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreachable_nodes: Vec<String>,
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

/// User and name of the snapshot that an image is; `None` of other images. The name may be invalid.
pub fn user_and_name(image: &str) -> Option<(UserId, &str)> {
    let (user, name) = image.strip_prefix(REPOSITORY)?.split_once(':')?;
    let id: UserId = user.parse().ok()?;
    // An id has other forms, which are no image of ours.
    (id.to_string() == user).then_some((id, name))
}

/// Whether an image in normal form is a snapshot of some user.
pub fn is_snapshot(image: &str) -> bool {
    image.starts_with(REPOSITORY)
}

impl ImageRef {
    /// Whether the image is a snapshot of some user.
    pub fn is_snapshot(&self) -> bool {
        is_snapshot(self.as_str())
    }
}

/// Value of the field `image` of a request, with the image of a user's snapshot in place of `snapshot:NAME`. What is not
/// valid otherwise is refused where images are parsed.
pub fn resolve_image(image: Option<String>, user: UserId) -> Result<Option<String>, Problem> {
    let Some(image) = image else { return Ok(None) };
    if let Some(name) = image.strip_prefix(PREFIX) {
        if check_slug("", name).is_err() {
            return Err(Problem::field(
                "/image",
                "has an invalid name of a snapshot: it must be 1 to 63 lower-case letters, digits and '-', starting with a \
                 letter or digit; list yours with: cynode sandbox snapshots",
            ));
        }
        return Ok(Some(image_of(user, name)));
    }
    if image
        .parse::<ImageRef>()
        .is_ok_and(|image| image.is_snapshot())
    {
        return Err(Problem::field(
            "/image",
            "must not name a snapshot by its image; write snapshot:NAME, and list yours with: cynode sandbox snapshots",
        ));
    }
    Ok(Some(image))
}

/// Image as its user writes it: a snapshot as `snapshot:NAME`, any other as it is.
pub fn shown_image(image: String) -> String {
    let rest = image.strip_prefix(REPOSITORY);
    match rest.and_then(|rest| rest.split_once(':')) {
        Some((_, name)) => format!("{PREFIX}{name}"),
        None => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_is_resolved_for_its_user() {
        let ann = UserId::new();
        let resolve = |image: &str| resolve_image(Some(image.to_owned()), ann);
        assert_eq!(resolve_image(None, ann), Ok(None));
        assert_eq!(resolve("alpine:3").unwrap().as_deref(), Some("alpine:3"));
        let image = resolve("snapshot:a-1").unwrap().unwrap();
        assert_eq!(image, image_of(ann, "a-1"));
        let parsed: ImageRef = image.parse().unwrap();
        assert_eq!(parsed.as_str(), image, "it is in normal form");
        assert!(parsed.is_snapshot() && parsed.is_local());
        assert_eq!(user_and_name(&image), Some((ann, "a-1")));
        let upper = image.replace(&ann.to_string(), &ann.to_string().to_uppercase());
        assert_eq!(user_and_name(&upper), None);
        assert_eq!(user_and_name("localhost/x:1"), None);
        assert_eq!(shown_image(image), "snapshot:a-1");
        assert_eq!(shown_image("localhost/x:1".to_owned()), "localhost/x:1");
    }

    #[test]
    fn image_of_snapshot_can_not_be_written() {
        let user = UserId::new();
        let own = image_of(user, "a");
        let digest = format!("{REPOSITORY}{user}@sha256:{}", "0".repeat(64));
        for image in [
            "snapshot:",
            "snapshot:A",
            "snapshot:a_b",
            "snapshot:a:b",
            &own,
            &digest,
        ] {
            let problem = resolve_image(Some(image.to_owned()), user).unwrap_err();
            assert_eq!(problem.errors[0].pointer, "#/image", "{image}");
            assert!(
                problem.detail.contains("cynode sandbox snapshots"),
                "{image}"
            );
        }
    }
}
