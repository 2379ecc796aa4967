//! Whether this machine has GPUs, and whether a container gets to see them.
//!
//! None of it keeps a node from running sandboxes; it decides whether a model server is quick or slow.
//! So nothing here is worse than a warning.

use super::{
    Check, Status,
    engine::Podman,
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
/// Where podman looks for descriptions of devices by default.
const CDI_DIRS: [&str; 2] = [fix::CDI_DIR, "/var/run/cdi"];
/// How NVIDIA's are called in them.
const NVIDIA_KIND: &str = "nvidia.com/gpu";

/// Looks for devices, then for them inside of a container.
pub(super) async fn check(podman: &Podman, scratch: Option<&Scratch>, fix: bool) -> Check {
    let devices = gpu::look().await;
    let makers = gpu::usable(&devices);
    if makers.is_empty() {
        let found = if devices.is_empty() {
            "none found"
        } else {
            "AMD found, without a driver for computing (/dev/kfd)"
        };
        return Check::ok(NAME, format!("{found}; a model server would use the CPU"));
    }
    let mut fixed = false;
    if makers.contains(&Vendor::Nvidia) && !is_described(&CDI_DIRS) {
        let tool = in_path("nvidia-ctk").filter(|_| rustix::process::geteuid().is_root());
        if let (true, Some(tool)) = (fix, tool) {
            fixed = fix::describe_gpus(&tool).await && is_described(&CDI_DIRS);
        }
        if !fixed {
            return undescribed(&makers);
        }
    }
    let (Some(engine), Some(scratch)) = (podman.engine(), scratch) else {
        return Check::warn(
            NAME,
            format!("{}; no container runs to see them", told(&makers)),
            "mend sandbox first",
        );
    };
    let rootless = podman.rootless();
    let extra: Vec<&str> = makers
        .iter()
        .flat_map(|maker| maker.arguments(rootless))
        .copied()
        .collect();
    let seen = visible_devices(engine, scratch.init(), scratch.dir(), &extra).await;
    let check = verdict(&makers, seen.map_err(|error| error.to_string()));
    if fixed && check.status == Status::Ok {
        check.fixed()
    } else {
        check
    }
}

fn told(makers: &[Vendor]) -> String {
    let names: Vec<&str> = makers.iter().map(|maker| maker.name()).collect();
    format!("{} found", names.join(" and "))
}

/// Whether podman knows what `nvidia.com/gpu` is.
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

fn undescribed(makers: &[Vendor]) -> Check {
    Check::warn(
        NAME,
        format!(
            "{}; podman can't hand it in: nothing in {} describes {NVIDIA_KIND}",
            told(makers),
            CDI_DIRS.join(" or ")
        ),
        format!(
            "install NVIDIA's container toolkit, then as root: nvidia-ctk cdi generate --output={CDI_FILE}\n\
             (cynode doctor --fix does the latter)"
        ),
    )
}

fn verdict(makers: &[Vendor], seen: Result<Vec<String>, String>) -> Check {
    let told = told(makers);
    match seen {
        Ok(seen) if !seen.is_empty() => {
            Check::ok(NAME, format!("{told}; a container sees {}", seen.join(" ")))
        }
        Ok(_) => Check::warn(
            NAME,
            format!("{told}; a container can open none of its devices"),
            "see who may open them on the host (ls -l /dev/nvidia* /dev/kfd /dev/dri), and that cynode's user is one of them: usermod --append --groups video,render NAME",
        ),
        Err(error) => Check::warn(
            NAME,
            format!("{told}; handing it to a container failed: {error}"),
            format!(
                "after a change of the driver, describe it anew, as root: nvidia-ctk cdi generate --output={CDI_FILE}; else put right what podman says above"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_inside_is_enough() {
        let both = [Vendor::Nvidia, Vendor::Amd];
        let check = verdict(&both, Ok(vec!["/dev/nvidia0".to_owned()]));
        assert_eq!(
            check.detail,
            "NVIDIA and AMD found; a container sees /dev/nvidia0"
        );
        assert_eq!(verdict(&both, Ok(Vec::new())).status, Status::Warn);
        let check = verdict(&both, Err("its own words".to_owned()));
        assert!(check.detail.ends_with("its own words"));
        assert_eq!(check.status, Status::Warn);
    }

    #[test]
    fn a_description_is_known_by_its_kind() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().to_str().unwrap();
        assert!(!is_described(&[directory, "/nothing/here"]));
        fs::write(home.path().join("other.yaml"), "kind: example.com/net\n").unwrap();
        fs::write(home.path().join("notes.txt"), "nvidia.com/gpu").unwrap();
        assert!(!is_described(&[directory]));
        fs::write(home.path().join("n.yaml"), "kind: nvidia.com/gpu\n").unwrap();
        assert!(is_described(&["/nothing/here", directory]));
        assert!(
            undescribed(&[Vendor::Nvidia])
                .mend
                .unwrap()
                .contains("nvidia-ctk cdi generate")
        );
    }
}
