//! GPUs of this machine, and whether a container can use them.
//!
//! Sandboxes don't need them; they decide whether a model server is fast or slow. So nothing here is worse than a
//! warning.

use super::{
    Check, Status,
    engine::PodmanFindings,
    fix::{self, CDI_FILE},
    host::in_path,
    scratch::Scratch,
};
use crate::{
    engine::devices::visible_devices,
    node::gpu::{self, Vendor},
};
use std::fs;

const NAME: &str = "gpu";
/// Directories of device descriptions that podman reads by default.
const CDI_DIRS: [&str; 2] = [fix::CDI_DIR, "/var/run/cdi"];
/// Kind of NVIDIA's GPUs in them.
const NVIDIA_KIND: &str = "nvidia.com/gpu";

/// Checks for GPUs on the host, then in a container.
pub(super) async fn check(podman: &PodmanFindings, scratch: Option<&Scratch>, fix: bool) -> Check {
    let devices = gpu::detect().await;
    // A node's model server gets the GPUs of the first vendor, too.
    let Some(&maker) = gpu::usable_vendors(&devices).first() else {
        let found = if devices.is_empty() {
            "no GPU found"
        } else {
            "AMD GPU found, but no driver for computing (/dev/kfd)"
        };
        return Check::ok(NAME, format!("{found}; a model server would use the CPU"));
    };
    let mut fixed = false;
    if maker == Vendor::Nvidia && !is_described(&CDI_DIRS) {
        let tool = in_path("nvidia-ctk").filter(|_| rustix::process::geteuid().is_root());
        if let (true, Some(tool)) = (fix, tool) {
            fixed = fix::describe_gpus(&tool).await && is_described(&CDI_DIRS);
        }
        if !fixed {
            return undescribed();
        }
    }
    let (Some(engine), Some(scratch)) = (podman.engine(), scratch) else {
        return Check::warn(
            NAME,
            format!(
                "{} found; no container runs to see it",
                maker.display_name()
            ),
            "first fix what sandbox reports",
        );
    };
    let extra = maker.podman_args(podman.rootless());
    let seen = visible_devices(engine, scratch.init(), scratch.dir(), extra).await;
    let check = verdict(maker, seen.map_err(|error| error.to_string()));
    if fixed && check.status == Status::Ok {
        check.fixed()
    } else {
        check
    }
}

/// Whether a description of `nvidia.com/gpu` exists.
fn is_described(directories: &[&str]) -> bool {
    directories
        .iter()
        .flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| {
            let kind = path.extension().and_then(|kind| kind.to_str());
            matches!(kind, Some("yaml" | "yml" | "json"))
        })
        .any(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(NVIDIA_KIND)))
}

fn undescribed() -> Check {
    Check::warn(
        NAME,
        format!(
            "{} GPU found, but podman can't pass it to a container: no file in {} describes {NVIDIA_KIND}",
            Vendor::Nvidia.display_name(),
            CDI_DIRS.join(" or ")
        ),
        format!(
            "install NVIDIA's container toolkit, then run as root: nvidia-ctk cdi generate --output={CDI_FILE}\n\
             (cynode doctor --fix runs that command)"
        ),
    )
}

fn verdict(maker: Vendor, seen: Result<Vec<String>, String>) -> Check {
    let name = maker.display_name();
    match seen {
        Ok(seen) if maker.is_usable_with(&seen) => Check::ok(
            NAME,
            format!("{name} GPU found; a container can open {}", seen.join(" ")),
        ),
        Ok(_) => Check::warn(
            NAME,
            format!("{name} GPU found, but a container can't open the devices for computing"),
            "let cynode's user open them (ls -l /dev/nvidia* /dev/kfd /dev/dri shows their groups): usermod --append --groups video,render NAME",
        ),
        Err(error) => Check::warn(
            NAME,
            format!("{name} GPU found, but passing it to a container failed: {error}"),
            format!(
                "after a driver update, run as root: nvidia-ctk cdi generate --output={CDI_FILE}; otherwise correct what podman reports above"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_devices_suffice_for_compute() {
        let seen = || vec!["/dev/nvidia0".to_owned()];
        let check = verdict(Vendor::Nvidia, Ok(seen()));
        assert_eq!(
            check.detail,
            "NVIDIA GPU found; a container can open /dev/nvidia0"
        );
        assert_eq!(verdict(Vendor::Nvidia, Ok(Vec::new())).status, Status::Warn);
        assert_eq!(verdict(Vendor::Amd, Ok(seen())).status, Status::Warn);
        let check = verdict(Vendor::Amd, Err("its own message".to_owned()));
        assert!(check.detail.ends_with("its own message"));
        assert_eq!(check.status, Status::Warn);
    }

    #[test]
    fn description_is_found_by_kind() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().to_str().unwrap();
        assert!(!is_described(&[directory, "/nothing/here"]));
        fs::write(home.path().join("other.yaml"), "kind: example.com/net\n").unwrap();
        fs::write(home.path().join("notes.txt"), "nvidia.com/gpu").unwrap();
        assert!(!is_described(&[directory]));
        fs::write(home.path().join("n.yaml"), "kind: nvidia.com/gpu\n").unwrap();
        assert!(is_described(&["/nothing/here", directory]));
        assert!(
            undescribed()
                .fix
                .unwrap()
                .contains("nvidia-ctk cdi generate")
        );
    }
}
