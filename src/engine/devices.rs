//! GPU devices of the host that a container can open, found by running one.
//!
//! Both halves live here: [`visible_devices`] outside, and [`list_gpu_devices`], which our own binary runs
//! inside. No image is needed.

use super::{
    Engine, EngineError,
    container::{entrypoint_arg, sandbox_args},
    probe::PROBE_NAME_PREFIX,
    probe_container::{make_root, remove_root},
};
use std::{fs, path::Path, time::Duration};

/// First argument that makes the binary list devices, inside a container.
pub const LIST_DEVICES_ARGUMENT: &str = "__list-devices";

const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Devices that a container with `extra` arguments, such as `--device=…`, can open. `init` is a static copy of our
/// binary, `scratch` a directory for the container's root.
pub async fn visible_devices(
    engine: &Engine,
    init: &Path,
    scratch: &Path,
    extra: &[&str],
) -> Result<Vec<String>, EngineError> {
    let root = make_root(scratch.join("devices")).await?;
    let name = format!("{PROBE_NAME_PREFIX}{}", uuid::Uuid::new_v4());
    let mut list = sandbox_args(engine, &name, init)?;
    // This init has no socket whose end would end it.
    list.push(format!("--timeout={}", LIST_TIMEOUT.as_secs()));
    list.extend(extra.iter().map(|&argument| argument.to_owned()));
    list.push(entrypoint_arg(LIST_DEVICES_ARGUMENT));
    list.extend(["--rootfs".to_owned(), root.display().to_string()]);
    let arguments: Vec<&str> = list.iter().map(String::as_str).collect();
    let answer = engine.call(&arguments, LIST_TIMEOUT).await;
    remove_root(root).await;
    Ok(answer?.lines().map(str::to_owned).collect())
}

/// Paths of all GPU devices that this process can open, one per line.
pub fn list_gpu_devices() -> String {
    let below = |directory: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut paths: Vec<String> = below("/dev")
        .into_iter()
        .chain(below("/dev/dri"))
        .filter_map(|path| path.into_os_string().into_string().ok())
        .filter(|path| is_gpu(path) && is_openable(Path::new(path)))
        .collect();
    paths.sort();
    paths.iter().map(|path| format!("{path}\n")).collect()
}

fn is_gpu(path: &str) -> bool {
    path.starts_with("/dev/nvidia") || path == "/dev/kfd" || path.starts_with("/dev/dri/")
}

/// Opens as a driver's library does, for reading and writing, which fails for a directory.
fn is_openable(path: &Path) -> bool {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gpus_are_listed() {
        for path in [
            "/dev/nvidia0",
            "/dev/nvidiactl",
            "/dev/kfd",
            "/dev/dri/renderD128",
        ] {
            assert!(is_gpu(path), "{path}");
        }
        for path in ["/dev/null", "/dev/kfd2", "/dev/dri", "/dev/snd"] {
            assert!(!is_gpu(path), "{path}");
        }
        assert!(!list_gpu_devices().contains("/dev/null"));
    }
}
