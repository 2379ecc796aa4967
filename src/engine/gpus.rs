//! Graphics processors that a container can be given, found by running one with them.
//!
//! NVIDIA's devices go through podman's own CDI: their description has libraries to mount and hooks to run, which
//! podman's flags can't say. AMD's are device files.

use super::{Engine, EngineError, devices::visible_devices};
use std::path::Path;

/// Vendors.
pub const NVIDIA: &str = "nvidia";
/// See [`NVIDIA`].
pub const AMD: &str = "amd";
/// Variables that name the devices of a container, by vendor.
const NVIDIA_VARIABLE: &str = "NVIDIA_VISIBLE_DEVICES";
const AMD_VARIABLE: &str = "HIP_VISIBLE_DEVICES";
/// Argument without which SELinux denies devices of the host to containers with a label.
const NO_LABEL_ARG: &str = "--security-opt=label=disable";
/// Argument for devices that belong to groups of the user.
const KEEP_GROUPS_ARG: &str = "--group-add=keep-groups";

/// Graphics processor, and how it might be passed to a container.
#[derive(Clone, Debug)]
pub struct GpuCandidate {
    /// Id that is unique on this host.
    pub id: String,
    /// Id by its vendor, by which it is known, too.
    pub uuid: Option<String>,
    /// Vendor: `nvidia` or `amd`.
    pub vendor: &'static str,
    /// Position in the list of all devices of this host.
    pub device: usize,
    /// Podman's arguments, the preferred ones first.
    pub variants: Vec<Vec<String>>,
}

/// Graphics processor that podman can pass to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedGpu {
    /// Id that is unique on this host.
    pub id: String,
    /// Id by its vendor.
    pub uuid: Option<String>,
    /// Vendor.
    pub vendor: &'static str,
    /// Position in the list of all devices of this host.
    pub device: usize,
    /// Podman's arguments.
    pub args: Vec<String>,
}

impl PassedGpu {
    /// Whether the device has this id, or is known by it, too.
    pub fn is_called(&self, id: &str) -> bool {
        self.id == id || self.uuid.as_deref() == Some(id)
    }
}

/// Arguments of podman that give a container these devices.
pub fn container_args(gpus: &[PassedGpu], rootless: bool) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    // Cards of AMD have a device file in common.
    for arg in gpus.iter().flat_map(|gpu| &gpu.args) {
        if !list.contains(arg) {
            list.push(arg.clone());
        }
    }
    if rootless && gpus.iter().any(|gpu| gpu.vendor == AMD) {
        list.push(KEEP_GROUPS_ARG.to_owned());
    }
    if !list.is_empty() {
        list.push(NO_LABEL_ARG.to_owned());
    }
    list
}

/// Variables that tell programs in a container which devices it has.
pub fn variables(gpus: &[PassedGpu]) -> Vec<(String, String)> {
    let of = |vendor| gpus.iter().filter(move |gpu| gpu.vendor == vendor);
    let nvidia: Vec<&str> = of(NVIDIA).map(|gpu| gpu.id.as_str()).collect();
    // AMD's runtime counts those that it can open.
    let amd: Vec<String> = (0..of(AMD).count()).map(|n| n.to_string()).collect();
    let variables = [
        (NVIDIA_VARIABLE, nvidia.join(",")),
        (AMD_VARIABLE, amd.join(",")),
    ];
    let given = variables.into_iter().filter(|(_, value)| !value.is_empty());
    given
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Finds the devices that podman can pass to a container. `init` is a static copy of our binary, `scratch` a directory
/// for the container's root. A device that can't be passed is logged.
pub async fn probe_gpus(
    engine: &Engine,
    init: &Path,
    scratch: &Path,
    candidates: Vec<GpuCandidate>,
) -> Vec<PassedGpu> {
    let with = |candidate: &GpuCandidate, args: &[String]| PassedGpu {
        id: candidate.id.clone(),
        uuid: candidate.uuid.clone(),
        vendor: candidate.vendor,
        device: candidate.device,
        args: args.to_vec(),
    };
    let preferred = candidates
        .iter()
        .filter_map(|candidate| Some(with(candidate, candidate.variants.first()?)));
    let preferred: Vec<PassedGpu> = preferred.collect();
    if preferred.is_empty() || try_pass(engine, init, scratch, &preferred).await.is_ok() {
        return preferred;
    }
    let mut passed = Vec::new();
    for candidate in &candidates {
        let mut failure = None;
        for args in &candidate.variants {
            let gpu = with(candidate, args);
            match try_pass(engine, init, scratch, std::slice::from_ref(&gpu)).await {
                Ok(()) => {
                    failure = None;
                    passed.push(gpu);
                    break;
                }
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            tracing::warn!(gpu = candidate.id, vendor = candidate.vendor, %error, "GPU can't be passed to a container; jobs don't get it; see: cynode doctor");
        }
    }
    passed
}

/// Runs a container with these devices.
async fn try_pass(
    engine: &Engine,
    init: &Path,
    scratch: &Path,
    gpus: &[PassedGpu],
) -> Result<(), EngineError> {
    let args = container_args(gpus, engine.info().rootless);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    visible_devices(engine, init, scratch, &args)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(id: &str, vendor: &'static str, args: &[&str]) -> PassedGpu {
        PassedGpu {
            id: id.to_owned(),
            uuid: None,
            vendor,
            device: 0,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
        }
    }

    #[test]
    fn shared_device_file_is_passed_once() {
        let cards = ["128", "129"].map(|n| {
            let render = format!("--device=/dev/dri/renderD{n}");
            gpu(n, AMD, &["--device=/dev/kfd", &render])
        });
        let expected = [
            "--device=/dev/kfd",
            "--device=/dev/dri/renderD128",
            "--device=/dev/dri/renderD129",
            NO_LABEL_ARG,
        ];
        assert_eq!(container_args(&cards, false), expected);
        assert!(container_args(&cards, true).contains(&KEEP_GROUPS_ARG.to_owned()));
        assert!(container_args(&[], true).is_empty());
    }

    #[test]
    fn variables_name_devices_by_vendor() {
        let gpus = [
            gpu("1", NVIDIA, &[]),
            gpu("amd-3", AMD, &[]),
            gpu("4", NVIDIA, &[]),
        ];
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = [pair(NVIDIA_VARIABLE, "1,4"), pair(AMD_VARIABLE, "0")];
        assert_eq!(variables(&gpus), expected);
        assert_eq!(variables(&gpus[..1]), [pair(NVIDIA_VARIABLE, "1")]);
        assert!(variables(&[]).is_empty());
    }
}
