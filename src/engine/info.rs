//! Podman's description of itself and of this host.

use super::{EngineError, Program, call};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

const INFO_TIMEOUT: Duration = Duration::from_secs(30);

/// Podman's description of itself, as far as cynode needs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodmanInfo {
    /// Version of podman.
    pub version: String,
    /// Whether podman runs without root.
    pub rootless: bool,
    /// Directory of images and containers.
    pub graph_root: PathBuf,
    /// Storage driver, such as `overlay`.
    pub graph_driver: String,
    /// OCI runtime that podman uses by default.
    pub default_runtime: String,
    /// `v1` or `v2`; empty where podman doesn't report it.
    pub cgroup_version: String,
    /// `systemd` or `cgroupfs`; empty where podman doesn't report it.
    pub cgroup_manager: String,
}

/// Version of podman. This needs nothing of the host, so that it works where everything else fails.
pub async fn podman_version(program: &Program) -> Result<String, EngineError> {
    let answer = call(program, &["--version"], INFO_TIMEOUT, |_| ()).await?;
    let version = answer.split_whitespace().last();
    Ok(version.unwrap_or_default().to_owned())
}

/// Asks podman for its description.
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
    let inspect = || call(program, &["info", "--format=json"], INFO_TIMEOUT, |_| ());
    let answer = match inspect().await {
        // Podman sometimes waits for its own locks; a second call mostly gets them.
        Err(EngineError::TimedOut { .. }) => inspect().await?,
        answer => answer?,
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
