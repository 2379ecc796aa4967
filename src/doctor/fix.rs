//! Changes that doctor makes with `--fix`. Each is announced on stderr and checked afterwards. None installs, removes or
//! overwrites anything.

use super::{Check, Status, host::DataDirState};
use crate::{data_dir::make_private_dir, node::gpu::generate_cdi, terminal::print_note};
use std::{fs, path::Path};

/// Directory of device descriptions (CDI) of an administrator, which podman reads.
pub(super) const CDI_DIR: &str = "/etc/cdi";
/// File that NVIDIA's tool writes by convention.
pub(super) const CDI_FILE: &str = "/etc/cdi/nvidia.yaml";

/// Checks the data directory, creates a missing one, and closes one that is open to other users.
pub(super) fn data_dir(path: &Path) -> Check {
    let found = DataDirState::look(path);
    let what = match found {
        DataDirState::Missing => "create",
        DataDirState::Ours(mode) if mode & 0o077 != 0 => "restrict",
        _ => return found.verdict(path),
    };
    print_note(&format!("fix: {what} {} (mode 0700)", path.display()));
    if let Err(error) = make_private_dir(path) {
        print_note(&format!("fix failed: {error}"));
    }
    let check = DataDirState::look(path).verdict(path);
    let is_fixed = path.exists() && check.status == Status::Ok;
    if is_fixed { check.fixed() } else { check }
}

/// Describes the GPUs to podman with NVIDIA's tool. Returns whether that succeeded. Only for root, and only where no
/// description exists.
pub(super) async fn describe_gpus(tool: &Path) -> bool {
    print_note(&format!(
        "fix: {} cdi generate --output={CDI_FILE}",
        tool.display()
    ));
    let failed = |reason: String| {
        print_note(&format!("fix failed: {reason}"));
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
