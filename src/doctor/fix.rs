//! All that doctor may change, and only with `--fix`: it says so on stderr before, and looks again
//! after. Nothing here installs, removes or overwrites anything.

use super::{Check, Status, host::DataDirState};
use crate::{client::print::note, data_dir::make_private_dir, node::gpu::generate_cdi};
use std::{fs, path::Path};

/// Where podman looks for a description of devices, and where an administrator puts one.
pub(super) const CDI_DIR: &str = "/etc/cdi";
/// How NVIDIA's own tool calls its description.
pub(super) const CDI_FILE: &str = "/etc/cdi/nvidia.yaml";

/// Checks the data directory, makes it when it is missing, closes it when it is open.
pub(super) fn data_dir(path: &Path) -> Check {
    let found = DataDirState::look(path);
    let what = match found {
        DataDirState::Missing => "make",
        DataDirState::Ours(mode) if mode & 0o077 != 0 => "close",
        _ => return found.verdict(path),
    };
    note(&format!("fix: {what} {}, mode 0700", path.display()));
    if let Err(error) = make_private_dir(path) {
        note(&format!("fix: that failed: {error}"));
    }
    let check = DataDirState::look(path).verdict(path);
    let mended = path.exists() && check.status == Status::Ok;
    if mended { check.fixed() } else { check }
}

/// Has NVIDIA's own tool describe the GPUs to podman; whether it did. Only for root, and only where no
/// description is.
pub(super) async fn describe_gpus(tool: &Path) -> bool {
    note(&format!(
        "fix: {} cdi generate --output={CDI_FILE}",
        tool.display()
    ));
    let failed = |reason: String| {
        note(&format!("fix: that failed: {reason}"));
        false
    };
    if let Err(error) = fs::create_dir_all(CDI_DIR) {
        return failed(error.to_string());
    }
    match generate_cdi(tool, CDI_FILE.as_ref()).await {
        Ok(()) => true,
        Err(reason) => failed(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn data_directory_is_created_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state");
        assert!(data_dir(&path).fixed, "made");
        let again = data_dir(&path);
        assert_eq!((again.status, again.fixed), (Status::Ok, false));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let closed = data_dir(&path);
        assert_eq!((closed.status, closed.fixed), (Status::Ok, true));
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let check = data_dir(&file);
        assert_eq!((check.status, check.fixed), (Status::Fail, false));
    }
}
