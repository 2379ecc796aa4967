//! A disk of a few megabytes that a test may fill.

use super::cluster::Node;
use rustix::{io::Errno, process::geteuid};
use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
};
use tempfile::TempDir;

/// A small file system of its own; gone when dropped.
pub(crate) struct Disk {
    /// Where it is mounted.
    mount: TempDir,
}

impl Disk {
    /// One of so many KiB; none where this user may not mount any, and the test has nothing to say.
    pub(crate) fn of_kib(size: u32) -> Option<Self> {
        Self::mounted(&format!("size={size}k"))
    }

    /// One with so many inodes, too.
    pub(crate) fn of_kib_and_inodes(size: u32, inodes: u32) -> Option<Self> {
        Self::mounted(&format!("size={size}k,nr_inodes={inodes}"))
    }

    fn mounted(options: &str) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("not tried: only root may mount a disk");
            return None;
        }
        let mount = tempfile::tempdir().unwrap();
        let mut command = Command::new("mount");
        let command = command.args(["-t", "tmpfs", "-o", options, "tmpfs"]);
        assert!(command.arg(mount.path()).status().unwrap().success());
        Some(Self { mount })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.mount.path()
    }

    /// Has it hold the data directory of the orchestrator of a test.
    pub(crate) fn hold_orchestrator(&self, home: &Path) {
        symlink(self.path(), home.join("orchestrator")).unwrap();
    }

    /// A node with its state there, its jobs below `home`, and a reserve of 16 MiB.
    pub(crate) fn start_node(&self, home: &Path, control_url: &str) -> Node {
        let jobs = home.join("elsewhere");
        let jobs = jobs.to_str().unwrap();
        let flags = ["--jobs-dir", jobs, "--min-free-disk", "16MiB"];
        Node::start(self.path(), "box", control_url, &flags)
    }

    /// Takes all of its room but so many KiB.
    pub(crate) fn fill_but(&self, spared_kib: u64) {
        let mut file = File::create(self.path().join("filler")).unwrap();
        let piece = [7; 4096];
        let full = loop {
            if let Err(error) = file.write_all(&piece) {
                break error;
            }
        };
        assert_eq!(
            full.raw_os_error(),
            Some(Errno::NOSPC.raw_os_error()),
            "{full}"
        );
        let length = file.metadata().unwrap().len();
        file.set_len(length - spared_kib * 1024).unwrap();
    }

    /// Makes files until so many inodes are left.
    pub(crate) fn use_inodes_but(&self, spared: u64) {
        let directory = self.path().join("files");
        fs::create_dir(&directory).unwrap();
        for n in 0.. {
            if rustix::fs::statvfs(self.path()).unwrap().f_ffree <= spared {
                return;
            }
            File::create(directory.join(format!("{n}"))).unwrap();
        }
    }

    /// Gives that room back.
    pub(crate) fn free(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what a failed test left open must not keep it.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
    }
}
