//! A podman that keeps images and containers in a place of the test's own.

use super::{image, image::IMAGE, podman_host::PodmanHost};
use std::{
    path::Path,
    process::{Command, Stdio},
};

/// A podman with a graph root of its own, in which the plain image is.
pub(crate) struct OwnStorage {
    // Its engine lies there.
    _host: PodmanHost,
    engine: String,
}

impl OwnStorage {
    /// With its graph root in `place`.
    pub(crate) fn at(place: &Path) -> Self {
        image::ready();
        let host = PodmanHost::new();
        let script = format!(
            "exec podman --root {}/graph --runroot HOME/run \"$@\"",
            place.display()
        );
        let engine = host.engine(&script);
        let storage = Self {
            _host: host,
            engine,
        };
        let mut saved = Command::new("podman")
            .args(["save", IMAGE])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let loaded = Command::new(&storage.engine)
            .args(["load", "--quiet"])
            .stdin(saved.stdout.take().unwrap())
            .output()
            .unwrap();
        assert!(
            saved.wait().unwrap().success() && loaded.status.success(),
            "{loaded:?}"
        );
        storage
    }

    /// Value for `--engine`.
    pub(crate) fn engine(&self) -> &str {
        &self.engine
    }
}
