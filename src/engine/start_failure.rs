//! Whose fault it is that podman refuses to start a sandbox: the image's, or podman's own.
//!
//! Podman has only words for it, in many wordings, and they decide much: an image that can't run is never
//! tried again, a podman with a bad moment is. So nothing is read out of the words. It is the image's fault
//! when all of this holds:
//!
//! - a sandbox that differs in nothing but the image starts: the same podman, the same workspace, an empty
//!   root ([`Engine::probe_without_image`]);
//! - what is stored of the image can be mounted, so that no layer is broken on this node alone;
//! - the image is refused a second time, after that, for [the same reason](is_same_failure).
//!
//! A lock that was taken, a name in use or a full disk fail one of these. Where podman takes too long or is
//! killed, the question isn't asked: nothing was refused.

use super::{
    Engine, EngineError, call,
    probe::{self, ProbeEnv},
};
use std::{path::Path, time::Duration};

const MOUNT_TIMEOUT: Duration = Duration::from_secs(30);
/// From so many digits on, a hexadecimal number is some id.
const MIN_ID_DIGITS: usize = 12;

impl Engine {
    /// Whether podman is well: runs a sandbox without the image. `probe_env` is the job's own.
    pub async fn probe_without_image(
        &self,
        probe_env: ProbeEnv<'_>,
        workspace: &Path,
    ) -> Result<(), EngineError> {
        probe::run_probe(self, probe_env, Some(workspace)).await
    }

    /// Whether what podman stores of the image is well: mounts the image without a sandbox. Where this is not
    /// awaited to its end, [`unmount_image`](Self::unmount_image) has to follow.
    pub async fn check_image_mount(&self, image_id: &str) -> Result<(), EngineError> {
        self.mount_image(image_id).await?;
        self.unmount_image(image_id).await
    }

    /// Takes back what [`check_image_mount`](Self::check_image_mount) has mounted.
    pub async fn unmount_image(&self, image_id: &str) -> Result<(), EngineError> {
        self.image_call(&["unmount", image_id]).await.map(drop)
    }

    /// Mounts an image without a sandbox; where.
    pub(super) async fn mount_image(&self, id: &str) -> Result<String, EngineError> {
        let mounted = self.image_call(&["mount", id]).await;
        if matches!(mounted, Err(EngineError::TimedOut { .. })) {
            // It may have come to pass all the same.
            self.unmount_image(id).await?;
        }
        mounted
    }

    async fn image_call(&self, arguments: &[&str]) -> Result<String, EngineError> {
        let mut line = vec!["image"];
        line.extend(arguments);
        let program = self.program.path().to_string_lossy();
        if self.info.rootless {
            // Without root, only a user namespace lets us mount; podman's own holds the mount until the end.
            line.splice(0..0, ["unshare", &program]);
        }
        // Not as one of the short calls: a job that can't run holds up none of those that can.
        call(&self.program, &line, MOUNT_TIMEOUT, |_| ()).await
    }
}

/// Whether podman says the same twice, apart from ids and numbers, which differ from one try to the next, and
/// from what it logs besides.
pub fn is_same_failure(first: &str, second: &str) -> bool {
    let [first, second] = [first, second].map(|words| mask_ids(&strip_log_lines(words)));
    first == second
}

/// Without the lines of podman's log, which bear a time and may come or not.
fn strip_log_lines(words: &str) -> String {
    let lines = words.lines().filter(|line| !line.starts_with("time="));
    lines.collect::<Vec<_>>().join("\n")
}

/// With a `#` for each id and number. Words are cut where neither letter nor digit stands.
fn mask_ids(words: &str) -> String {
    let is_id = |word: &str| {
        word.len() >= MIN_ID_DIGITS && word.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    let cut = words.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    let blurred = cut.map(|part| {
        let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_number = !word.is_empty() && word.bytes().all(|digit| digit.is_ascii_digit());
        if is_number || is_id(word) {
            format!("#{}", &part[word.len()..])
        } else {
            part.to_owned()
        }
    });
    blurred.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_numbers_make_no_other_reason() {
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
