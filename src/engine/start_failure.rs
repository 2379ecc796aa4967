//! Blame for a sandbox that podman refuses to start: the image, or podman itself.
//!
//! Podman has only messages for this, in many wordings, and much depends on it: an image that can't run is never tried
//! again, while a temporary failure of podman is. So the meaning of a message decides nothing. It is the image's fault
//! when all of this holds:
//!
//! - a sandbox that differs only in its image starts: the same podman, the same workspace, an empty root
//!   ([`Engine::probe_without_image`]);
//! - podman can mount its copy of the image, so that no layer is broken on this node alone;
//! - the image is refused again after that, for [the same reason](is_same_failure).
//!
//! A lock, a name in use or a full disk fail one of these. Where podman times out or is killed, nothing was refused, and
//! there is no one to blame.

use super::{Engine, EngineError, call, probe::ProbeEnv, probe_container::run_probe};
use std::{path::Path, time::Duration};

const MOUNT_TIMEOUT: Duration = Duration::from_secs(30);
/// Fewest digits of a hexadecimal number that counts as an id.
const MIN_ID_DIGITS: usize = 12;

impl Engine {
    /// Checks podman: runs a sandbox without the image. `probe_env` is the job's own.
    pub async fn probe_without_image(
        &self,
        probe_env: ProbeEnv<'_>,
        workspace: &Path,
    ) -> Result<(), EngineError> {
        run_probe(self, probe_env, Some(workspace)).await
    }

    /// Checks podman's copy of an image: mounts it without a sandbox. A caller that drops this future has to call
    /// [`unmount_image`](Self::unmount_image).
    pub async fn check_image_mount(&self, image_id: &str) -> Result<(), EngineError> {
        self.mount_image(image_id).await?;
        self.unmount_image(image_id).await
    }

    /// Unmounts an image.
    pub async fn unmount_image(&self, image_id: &str) -> Result<(), EngineError> {
        self.image_call(&["unmount", image_id]).await.map(drop)
    }

    /// Mounts an image without a sandbox and returns its mount point.
    pub(super) async fn mount_image(&self, id: &str) -> Result<String, EngineError> {
        let mounted = self.image_call(&["mount", id]).await;
        if matches!(mounted, Err(EngineError::TimedOut { .. })) {
            // It may be mounted all the same.
            self.unmount_image(id).await?;
        }
        mounted
    }

    async fn image_call(&self, arguments: &[&str]) -> Result<String, EngineError> {
        let mut line = vec!["image"];
        line.extend(arguments);
        let program = self.program.path().to_string_lossy();
        if self.info.rootless {
            // Without root, mounting needs a user namespace; podman's own keeps the mount until the unmount.
            line.splice(0..0, ["unshare", &program]);
        }
        // Not as one of the short calls: a job that can't run must not delay those that can.
        call(&self.program, &line, MOUNT_TIMEOUT, |_| ()).await
    }
}

/// Whether two messages of podman give the same reason. Ids and numbers, which differ between attempts, and lines of
/// podman's log don't count.
pub fn is_same_failure(first: &str, second: &str) -> bool {
    let [first, second] = [first, second].map(|message| mask_ids(&strip_log_lines(message)));
    first == second
}

/// A message without lines of podman's log, which have a time and may be missing.
fn strip_log_lines(message: &str) -> String {
    let lines = message.lines().filter(|line| !line.starts_with("time="));
    lines.collect::<Vec<_>>().join("\n")
}

/// A message with `#` in place of each id and number. Words end at the first character that is neither a letter nor a digit.
fn mask_ids(message: &str) -> String {
    let is_id = |word: &str| {
        word.len() >= MIN_ID_DIGITS && word.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    let parts = message.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    let masked = parts.map(|part| {
        let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_number = !word.is_empty() && word.bytes().all(|digit| digit.is_ascii_digit());
        if is_number || is_id(word) {
            format!("#{}", &part[word.len()..])
        } else {
            part.to_owned()
        }
    });
    masked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_match_despite_ids_and_numbers() {
        let refused = |id: &str, fd: u32| {
            format!(
                "runc: mount /x:/workspace (via /proc/self/fd/{fd}), {id}/merged: not a directory"
            )
        };
        let ids = [
            "6132e0d805ff24a9768b093988ddaf49",
            "bb44e5314b866e8489e8211c1b359097",
        ];
        assert!(is_same_failure(&refused(ids[0], 6), &refused(ids[1], 7)));
        assert!(is_same_failure("no user", "no user"));
        assert!(!is_same_failure("no user", "no group"));
        assert!(!is_same_failure("faced", "decade"));
        let warned = "time=\"2026-11-29T04:55:27Z\" level=warning msg=\"x\"\nError: no user";
        assert!(is_same_failure(warned, "Error: no user"));
        assert!(is_same_failure(warned, &warned.replace("27Z", "28Z")));
    }
}
