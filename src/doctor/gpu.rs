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
use crate::engine::devices::visible_devices;
use std::{fs, path::Path};

const NAME: &str = "gpu";
/// Where podman looks for descriptions of devices by default.
const CDI_DIRS: [&str; 2] = [fix::CDI_DIR, "/var/run/cdi"];
/// How NVIDIA's are called in them.
const NVIDIA_KIND: &str = "nvidia.com/gpu";

/// Who made a GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Maker {
    Nvidia,
    Amd,
}

/// Whose GPUs this machine has, by the devices that their drivers make.
fn devices() -> Vec<Maker> {
    let any = |paths: &[&str]| paths.iter().any(|path| Path::new(path).exists());
    [
        (Maker::Nvidia, any(&["/dev/nvidiactl", "/dev/nvidia0"])),
        (Maker::Amd, any(&["/dev/kfd"])),
    ]
    .into_iter()
    .filter_map(|(maker, there)| there.then_some(maker))
    .collect()
}

/// What podman is told to hand in.
fn arguments(makers: &[Maker]) -> Vec<String> {
    makers
        .iter()
        .flat_map(|maker| match maker {
            Maker::Nvidia => &["--device=nvidia.com/gpu=all"][..],
            Maker::Amd => &["--device=/dev/kfd", "--device=/dev/dri"],
        })
        .map(|argument| (*argument).to_owned())
        .collect()
}

/// Looks for devices, then for them inside of a container.
pub(super) async fn check(podman: &Podman, scratch: Option<&Scratch>, fix: bool) -> Check {
    let makers = devices();
    if makers.is_empty() {
        return Check::ok(NAME, "none found; a model server would use the CPU");
    }
    let mut fixed = false;
    if makers.contains(&Maker::Nvidia) && !is_described(&CDI_DIRS) {
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
    let extra = arguments(&makers);
    let seen = visible_devices(engine, scratch.init(), scratch.dir(), &extra).await;
    let check = verdict(&makers, seen.map_err(|error| error.to_string()));
    if fixed && check.status == Status::Ok {
        check.fixed()
    } else {
        check
    }
}

fn told(makers: &[Maker]) -> String {
    let names: Vec<&str> = makers
        .iter()
        .map(|maker| match maker {
            Maker::Nvidia => "NVIDIA",
            Maker::Amd => "AMD",
        })
        .collect();
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

fn undescribed(makers: &[Maker]) -> Check {
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

fn verdict(makers: &[Maker], seen: Result<Vec<String>, String>) -> Check {
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
    fn podman_is_told_what_to_hand_in() {
        assert_eq!(arguments(&[Maker::Nvidia]), ["--device=nvidia.com/gpu=all"]);
        assert_eq!(
            arguments(&[Maker::Amd]),
            ["--device=/dev/kfd", "--device=/dev/dri"]
        );
    }

    #[test]
    fn one_device_inside_is_enough() {
        let both = [Maker::Nvidia, Maker::Amd];
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
            undescribed(&[Maker::Nvidia])
                .mend
                .unwrap()
                .contains("nvidia-ctk cdi generate")
        );
    }
}
