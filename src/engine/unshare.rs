//! Helpers of ours inside podman's user namespace: rootless, files of a job's users belong to subordinate ids, which only
//! a process in there can own.

use super::{Engine, EngineError, call};
use std::{io, path::Path, time::Duration};

impl Engine {
    /// Whether files of a job's users may belong to subordinate ids.
    pub fn is_rootless(&self) -> bool {
        self.info.rootless
    }

    /// Runs the helper `argument` of `init`, a copy of our binary, on `path` and returns what it prints. It may take
    /// long, so this is not one of the short calls.
    pub async fn unshare(
        &self,
        init: &Path,
        argument: &str,
        path: &Path,
        limit: Duration,
    ) -> Result<String, EngineError> {
        let (Some(init), Some(path)) = (init.to_str(), path.to_str()) else {
            let text = "a path of the data directory is not UTF-8; choose another --data-dir";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text).into());
        };
        let arguments = ["unshare", init, argument, path];
        call(&self.program, &arguments, limit, |_| ()).await
    }
}
