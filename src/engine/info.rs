//! What podman says of itself.

use super::{EngineError, Program, call};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

const INFO_TIMEOUT: Duration = Duration::from_secs(30);

/// What podman says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodmanInfo {
    /// Its version.
    pub version: String,
    /// Whether it runs without root.
    pub rootless: bool,
    /// Where it keeps images and containers.
    pub graph_root: PathBuf,
    /// Its storage driver, such as `overlay`.
    pub graph_driver: String,
    /// The runtime that it takes by itself.
    pub default_runtime: String,
    /// `v1` or `v2`; empty where podman doesn't say.
    pub cgroup_version: String,
    /// Who makes cgroups: `systemd` or `cgroupfs`; empty where podman doesn't say.
    pub cgroup_manager: String,
}

/// What podman calls its version. Needs nothing of the host, so it also works where nothing else does.
pub async fn podman_version(program: &Program) -> Result<String, EngineError> {
    let answer = call(program, &["--version"], INFO_TIMEOUT, |_| ()).await?;
    Ok(answer
        .split_whitespace()
        .last()
        .unwrap_or_default()
        .to_owned())
}

/// What podman says of itself.
pub async fn podman_info(program: &Program) -> Result<PodmanInfo, EngineError> {
    #[derive(Deserialize)]
    struct Info {
        host: Host,
        store: Storage,
        version: Version,
    }
    #[derive(Deserialize)]
    struct Host {
        security: Security,
        #[serde(rename = "ociRuntime")]
        oci_runtime: Runtime,
        #[serde(rename = "cgroupVersion", default)]
        cgroup_version: String,
        #[serde(rename = "cgroupManager", default)]
        cgroup_manager: String,
    }
    #[derive(Deserialize)]
    struct Security {
        rootless: bool,
    }
    #[derive(Deserialize)]
    struct Runtime {
        name: String,
    }
    #[derive(Deserialize)]
    struct Storage {
        #[serde(rename = "graphRoot")]
        graph_root: PathBuf,
        #[serde(rename = "graphDriverName")]
        graph_driver: String,
    }
    #[derive(Deserialize)]
    struct Version {
        #[serde(rename = "Version")]
        version: String,
    }
    let ask = || call(program, &["info", "--format=json"], INFO_TIMEOUT, |_| ());
    let answer = match ask().await {
        // Podman waits for its own locks now and then; the second time it mostly has them.
        Err(EngineError::TimedOut { .. }) => ask().await?,
        answered => answered?,
    };
    let info: Info =
        serde_json::from_str(&answer).map_err(|error| EngineError::UnexpectedOutput {
            call: "info".to_owned(),
            reason: error.to_string(),
        })?;
    Ok(PodmanInfo {
        version: info.version.version,
        rootless: info.host.security.rootless,
        graph_root: info.store.graph_root,
        graph_driver: info.store.graph_driver,
        default_runtime: info.host.oci_runtime.name,
        cgroup_version: info.host.cgroup_version,
        cgroup_manager: info.host.cgroup_manager,
    })
}
