//! Images of the hostile command (`tests/attack`), as root and as a plain user of the image.

use super::image::provide;
use cynode::digest::sha256_hex;
use std::{
    env, fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::OnceLock,
};

const ROOT_IMAGE: &str = "localhost/cynode-test-attack:latest";
const USER_IMAGE: &str = "localhost/cynode-test-attack-user:latest";

/// The images, made once per process.
pub(crate) fn images() -> [&'static str; 2] {
    static READY: OnceLock<()> = OnceLock::new();
    READY.get_or_init(|| {
        let path = binary();
        let binary = fs::read(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; run `make it`", path.display()));
        let root = tempfile::tempdir().unwrap();
        let executable = fs::Permissions::from_mode(0o755);
        for (name, bytes) in [
            ("attack", binary.as_slice()),
            ("busybox", &fs::read("/bin/busybox").unwrap()),
        ] {
            fs::write(root.path().join(name), bytes).unwrap();
            fs::set_permissions(root.path().join(name), executable.clone()).unwrap();
        }
        for (directory, mode) in [("bin", 0o755), ("tmp", 0o1777)] {
            let directory = root.path().join(directory);
            fs::create_dir(&directory).unwrap();
            fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("/busybox", root.path().join("bin/cat")).unwrap();
        fs::set_permissions(root.path(), executable).unwrap();
        let label = sha256_hex(&binary);
        provide(root.path(), ROOT_IMAGE, &[], &label);
        provide(root.path(), USER_IMAGE, &["USER 1000"], &label);
    });
    [ROOT_IMAGE, USER_IMAGE]
}

/// The program, which cargo puts beside the directory of the test's own executable.
fn binary() -> PathBuf {
    let own = env::current_exe().unwrap();
    let profile = own.parent().and_then(Path::parent).unwrap();
    let examples = env::var_os("CYNODE_TEST_EXAMPLES").map(PathBuf::from);
    examples
        .unwrap_or_else(|| profile.join("examples"))
        .join("attack")
}
