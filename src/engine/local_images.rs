//! Names of the images of `localhost/`, which are in no registry: a node reports them, so that jobs that need another
//! one go elsewhere.
//!
//! A listing takes podman some 50 ms, so it is repeated only when the image index has changed.

use super::{Images, image_metadata::IndexStamp};
use std::time::Duration;

const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of names, so that a report stays small; others are left out.
const MAX_NAMES: usize = 64;
/// Longest name, in bytes; longer ones are left out.
const MAX_NAME_BYTES: usize = 256;

/// Names as of one version of the image index.
#[derive(Default)]
pub(super) struct LocalNames(Option<(IndexStamp, Vec<String>)>);

impl Images {
    /// Names of images of `localhost/`; `None` where podman can't tell them now, or where there are too many to say that
    /// others are missing.
    pub async fn local_names(&self) -> Option<Vec<String>> {
        let stamp = self.engine.index_stamp().await?;
        if let LocalNames(Some((known, names))) = &*self.local.lock()
            && *known == stamp
        {
            return complete(names);
        }
        let format = "--format={{.Repository}}:{{.Tag}}";
        let listed = self.engine.call(&["images", format], LIST_TIMEOUT).await;
        let names = match listed {
            Ok(listed) => local_names(&listed),
            Err(error) => {
                tracing::debug!(%error, "images can't be listed");
                return None;
            }
        };
        let answer = complete(&names);
        *self.local.lock() = LocalNames(Some((stamp, names)));
        answer
    }
}

fn complete(names: &[String]) -> Option<Vec<String>> {
    (names.len() <= MAX_NAMES).then(|| names.to_vec())
}

/// Names of `localhost/` in podman's list, one more than the maximum at most.
fn local_names(listed: &str) -> Vec<String> {
    let names = listed.lines().map(str::trim);
    let is_local = |name: &&str| name.starts_with("localhost/") && !name.ends_with(":<none>");
    let mut names: Vec<String> = names
        .filter(is_local)
        .filter(|name| name.len() <= MAX_NAME_BYTES)
        .take(MAX_NAMES + 1)
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_local_images_are_listed() {
        let long = format!("localhost/{}:1", "x".repeat(MAX_NAME_BYTES));
        let listed = format!(
            "localhost/b:latest\ndocker.io/library/alpine:3\nlocalhost/a:1\nlocalhost/c:<none>\n\
             <none>:<none>\nlocalhost.example/x:1\n{long}\n"
        );
        let names = local_names(&listed);
        assert_eq!(names, ["localhost/a:1", "localhost/b:latest"]);
        assert_eq!(complete(&names), Some(names));
        let many: String = (0..100).map(|n| format!("localhost/x:{n}\n")).collect();
        assert_eq!(complete(&local_names(&many)), None);
    }
}
