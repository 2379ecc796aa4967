//! Names of the images of `localhost/`, which are in no registry: a node reports them, so that jobs that need another
//! one go elsewhere.
//!
//! A listing takes podman some 50 ms, so it is repeated only when the image index has changed; and much longer while
//! podman is busy, so a report waits for it only a moment, and has the list before otherwise. Podman computes the size
//! of each image that it lists, so it lists no others. Snapshots of sandboxes are not among them: the worker knows its own,
//! without a delay.

use super::{Images, image_metadata::IndexStamp};
use crate::{
    api::{image::ImageRef, snapshots::is_snapshot},
    background,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// Filter of podman for the images of `localhost/`.
const FILTER: &str = "--filter=reference=localhost/*";
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait of a report for a new list.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a listing that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum number of names, so that a report stays small; with more there is no list.
const MAX_NAMES: usize = 64;
/// Longest name, in bytes; with a longer one there is no list.
const MAX_NAME_BYTES: usize = 256;

/// Names of images, and the listing that is under way.
#[derive(Default)]
pub(super) struct LocalNames {
    /// Names as of one version of the image index.
    known: Option<(IndexStamp, Vec<String>)>,
    is_listing: bool,
    failed_at: Option<Instant>,
}

impl LocalNames {
    /// Whether the names are to be listed for this version of the index now.
    fn is_due(&self, stamp: IndexStamp) -> bool {
        let is_known = self
            .known
            .as_ref()
            .is_some_and(|(known, _)| *known == stamp);
        let has_failed = self
            .failed_at
            .is_some_and(|at| at.elapsed() < RETRY_INTERVAL);
        !is_known && !has_failed && !self.is_listing
    }

    fn names(&self) -> Option<Vec<String>> {
        complete(&self.known.as_ref()?.1)
    }
}

impl Images {
    /// Names of images of `localhost/` that are no snapshots; `None` where podman can't tell them, or where there are too
    /// many or too long ones to say that others are missing.
    pub async fn local_names(self: &Arc<Self>) -> Option<Vec<String>> {
        let stamp = self.engine.index_stamp().await?;
        let is_due = {
            let mut local = self.local.lock();
            let is_due = local.is_due(stamp);
            local.is_listing |= is_due;
            is_due
        };
        if is_due {
            let images = Arc::clone(self);
            let listing = background::spawn("local_images", async move {
                images.list_local(stamp).await;
            });
            // It goes on, for the next report.
            let _ = timeout(REPORT_TIMEOUT, listing).await;
        }
        self.local.lock().names()
    }

    async fn list_local(&self, stamp: IndexStamp) {
        let call = ["images", "--format={{.Repository}}:{{.Tag}}", FILTER];
        let listed = self.engine.call(&call, LIST_TIMEOUT).await;
        let listed = listed.inspect_err(|error| {
            tracing::debug!(%error, "images can't be listed");
        });
        let failed_at = listed.is_err().then(Instant::now);
        *self.local.lock() = LocalNames {
            known: listed.ok().map(|listed| (stamp, local_names(&listed))),
            is_listing: false,
            failed_at,
        };
    }
}

/// Error for an image of `localhost/` that is missing.
pub(super) fn missing(image: &ImageRef) -> String {
    match image.as_str().rsplit_once(':') {
        Some((_, name)) if image.is_snapshot() => format!(
            "snapshot {name} is not on this node; it was removed, or made on another node: list them with cynode sandbox snapshots"
        ),
        _ => format!(
            "{image} is not on this node, and localhost/ images are in no registry; build it on the node"
        ),
    }
}

/// The names, unless some of them are missing or too long.
fn complete(names: &[String]) -> Option<Vec<String>> {
    let is_short = |name: &String| name.len() <= MAX_NAME_BYTES;
    (names.len() <= MAX_NAMES && names.iter().all(is_short)).then(|| names.to_vec())
}

/// Names of `localhost/` in podman's list, without snapshots: one more than the maximum at most.
fn local_names(listed: &str) -> Vec<String> {
    let names = listed.lines().map(str::trim);
    let is_local = |name: &&str| {
        name.starts_with("localhost/") && !name.ends_with(":<none>") && !is_snapshot(name)
    };
    let mut names: Vec<String> = names.filter(is_local).map(str::to_owned).collect();
    names.sort_unstable();
    names.truncate(MAX_NAMES + 1);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_local_images_are_listed() {
        let long = format!("localhost/{}:1", "x".repeat(MAX_NAME_BYTES));
        let listed = "localhost/b:latest\ndocker.io/library/alpine:3\nlocalhost/a:1\nlocalhost/c:<none>\n\
             <none>:<none>\nlocalhost.example/x:1\nlocalhost/cynode-snapshots/u:s\n";
        let names = local_names(listed);
        assert_eq!(names, ["localhost/a:1", "localhost/b:latest"]);
        assert_eq!(complete(&names), Some(names));
        assert_eq!(complete(&local_names(&format!("{listed}{long}\n"))), None);
        let many: String = (0..100).map(|n| format!("localhost/x:{n}\n")).collect();
        assert_eq!(complete(&local_names(&many)), None);
    }
}
