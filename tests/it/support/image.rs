//! Images for sandboxes: busybox and its links, imported once into the local podman.

use cynode::digest::sha256_hex;
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
};

/// A plain busybox image.
pub(crate) const IMAGE: &str = "localhost/cynode-test:latest";
/// The same with `USER 1000`.
pub(crate) const USER_IMAGE: &str = "localhost/cynode-test-user:latest";
/// The same with an entrypoint that fails.
pub(crate) const ENTRYPOINT_IMAGE: &str = "localhost/cynode-test-entrypoint:latest";
/// The same with `ENV GREETING=hi` and a PATH of its own.
pub(crate) const ENV_IMAGE: &str = "localhost/cynode-test-env:latest";

/// The same with a `USER` that it doesn't have.
pub(crate) const NO_USER_IMAGE: &str = "localhost/cynode-test-no-user:latest";

/// Raise it when the recipe below changes, so that images of an earlier one are replaced.
const RECIPE: &str = "1";
const BUSYBOX: &str = "/bin/busybox";
const MEND: &str = "run `make setup`, or: apt-get install podman runc busybox-static";

/// Makes sure that all images are there; the work is done once per process.
pub(crate) fn ready() {
    static READY: OnceLock<()> = OnceLock::new();
    READY.get_or_init(|| {
        let busybox =
            fs::read(BUSYBOX).unwrap_or_else(|error| panic!("{BUSYBOX}: {error}; {MEND}"));
        let label = sha256_hex([busybox.as_slice(), RECIPE.as_bytes()].concat());
        let root = tempfile::tempdir().unwrap();
        lay_out(root.path());
        let variants: [(&str, &[&str]); 5] = [
            (IMAGE, &[]),
            (USER_IMAGE, &["USER 1000"]),
            (NO_USER_IMAGE, &["USER nobody-knows-them"]),
            (ENTRYPOINT_IMAGE, &["ENTRYPOINT [\"/bin/false\"]"]),
            (ENV_IMAGE, &["ENV GREETING=hi", "ENV PATH=/opt/tools:/bin"]),
        ];
        for (name, changes) in variants {
            provide(root.path(), name, changes, &label);
        }
    });
}

/// Runs podman to its end: what it printed, or what it complained of.
pub(crate) fn podman(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("podman")
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("podman can't be started: {error}; {MEND}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// Writes the root file system of the images.
fn lay_out(root: &Path) {
    for dir in ["bin", "etc", "tmp", "opt/tools"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    let applets = Command::new(BUSYBOX).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets)
        .unwrap()
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    symlink("/bin/busybox", root.join("opt/tools/echo")).unwrap();
    fs::write(root.join("etc/not-executable"), "x").unwrap();
    let accounts = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    fs::write(root.join("etc/passwd"), accounts).unwrap();
}

/// Makes an image of a root file system and what `changes` say, unless there is one of the same
/// label, which stands for all that goes into it.
pub(crate) fn provide(root: &Path, name: &str, changes: &[&str], label: &str) {
    let is_there = podman(&["image", "inspect", "--format={{.Labels.recipe}}", name])
        .is_ok_and(|found| found.trim() == label);
    if !is_there {
        import(root, name, changes, label);
    }
}

/// Makes an image for one test from the root file system of the others, after `change` has had its way with
/// it. It goes with the answer.
pub(crate) fn odd(change: impl FnOnce(&Path), changes: &[&str]) -> OddImage {
    let root = tempfile::tempdir().unwrap();
    lay_out(root.path());
    change(root.path());
    let name = format!("localhost/cynode-test-odd:{}", super::uuid());
    import(root.path(), &name, changes, "odd");
    OddImage(name)
}

/// Makes an image for one test as a Containerfile of one line says. It goes with the answer.
pub(crate) fn built(containerfile: &str, more: &[&str]) -> OddImage {
    let context = tempfile::tempdir().unwrap();
    fs::write(context.path().join("Containerfile"), containerfile).unwrap();
    let name = format!("localhost/cynode-test-odd:{}", super::uuid());
    let fixed = ["build", "--quiet", "--pull=never", "--tag", &name];
    let place = [context.path().to_str().unwrap()];
    podman(&[&fixed, more, &place].concat()).unwrap();
    OddImage(name)
}

/// An image of one test, by its name.
pub(crate) struct OddImage(pub(crate) String);

impl Drop for OddImage {
    fn drop(&mut self) {
        // An image that is still in use stays, which harms no other test.
        let _ = podman(&["image", "rm", "--force", &self.0]);
    }
}

/// Writes the root file system of the images into an archive.
pub(crate) fn archive(path: &Path) {
    let root = tempfile::tempdir().unwrap();
    lay_out(root.path());
    let mut tar = tar(root.path());
    let written = tar.arg("--file").arg(path).status();
    assert!(written.unwrap().success(), "tar failed");
}

/// A tar that packs a root file system; its options may go on.
fn tar(root: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--owner=0", "--group=0", "--directory"])
        .arg(root)
        .arg(".");
    tar
}

fn import(root: &Path, name: &str, changes: &[&str], label: &str) {
    let mut tar = tar(root).stdout(Stdio::piped()).spawn().unwrap();
    let label = format!("LABEL recipe={label}");
    let changes = changes
        .iter()
        .copied()
        .chain([label.as_str()])
        .flat_map(|change| ["--change", change]);
    let imported = Command::new("podman")
        .args(["import", "--quiet"])
        .args(changes)
        .args(["-", name])
        .stdin(tar.stdout.take().unwrap())
        .output()
        .unwrap_or_else(|error| panic!("podman can't be started: {error}; {MEND}"));
    assert!(tar.wait().unwrap().success(), "tar failed");
    assert!(
        imported.status.success(),
        "podman import: {}",
        String::from_utf8_lossy(&imported.stderr)
    );
}
