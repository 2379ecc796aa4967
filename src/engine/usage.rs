//! Disk usage of a running sandbox.
//!
//! The job is hostile and runs while it is measured. So nothing recurses and no link is followed; deleted files that a
//! process of the sandbox keeps open ([`deleted_open_files`]) count, too; a part that can't be measured in time counts as
//! unbounded, or a job would hide its files that way; and a part with files of unknown size says so, since programs
//! that hide nothing have some, too. Rootless, a job's files belong to subordinate ids and are measured inside podman's
//! user namespace.

use super::{
    Engine, EngineError, call,
    deleted_files::{DeletedFiles, deleted_open_files},
};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, stat, statat};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// First argument that makes the binary measure a sandbox, inside podman's user namespace.
pub const MEASURE_SANDBOX_ARGUMENT: &str = "__measure-sandbox";

/// Time limit of a call of podman.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Parts of a measurement.
const PARTS: u32 = 3;
/// Directories that are open at the same time.
const MAX_OPEN_DIRECTORIES: usize = 400;
/// Directories that are known and not yet read.
const MAX_PENDING_DIRECTORIES: usize = 1_000_000;
/// Entries of a directory between two checks of the deadline.
const CLOCK_CHECK_ENTRIES: usize = 256;
/// Unit of `st_blocks`, in bytes.
const BLOCK_BYTES: u64 = 512;

/// Parts of a sandbox to measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MeasureRequest {
    /// Directory of the attempt, with its workspace and its log, or only the workspace.
    spool: PathBuf,
    /// Upper directory of the container's overlay.
    upper: Option<PathBuf>,
    /// PID of its init on this host.
    init: Option<u32>,
    /// Time limit of each part, in milliseconds.
    walk_millis: u64,
}

/// Bytes and inodes in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of whole blocks.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
    /// Whether there may be more, in files of unknown size.
    #[serde(default)]
    pub is_partial: bool,
}

/// Disk usage of a sandbox, by filesystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxUsage {
    /// Usage of the filesystem of the jobs.
    pub jobs: Usage,
    /// Usage of the filesystem of podman's graph root.
    pub images: Usage,
}

impl Usage {
    /// Usage that could not be measured: larger than any other.
    const UNBOUNDED: Self = Self {
        bytes: u64::MAX,
        inodes: u64::MAX,
        is_partial: false,
    };

    /// The most that it may be.
    pub fn worst_case(self) -> Self {
        if self.is_partial {
            Self::UNBOUNDED
        } else {
            self
        }
    }

    fn add(&mut self, stat: &Stat) {
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.bytes = self
            .bytes
            .saturating_add(blocks.saturating_mul(BLOCK_BYTES));
        self.inodes = self.inodes.saturating_add(1);
    }
}

impl Engine {
    /// Measures the disk usage of a sandbox; `init` is a copy of our binary. Parts of the container that podman doesn't
    /// report are left out, and a part that takes longer than `walk_timeout` counts as unbounded.
    pub async fn measure(
        &self,
        init: &Path,
        spool: &Path,
        container: Option<&str>,
        walk_timeout: Duration,
    ) -> Result<SandboxUsage, EngineError> {
        let (upper, pid) = match container {
            Some(name) => tokio::join!(self.upper_dir(name), self.init_pid(name)),
            None => (Ok(None), None),
        };
        let sandbox = MeasureRequest {
            spool: spool.to_owned(),
            upper: upper.unwrap_or_default(),
            init: pid,
            walk_millis: walk_timeout.as_millis() as u64,
        };
        if !self.info.rootless {
            let measured = tokio::task::spawn_blocking(move || measure_sandbox(&sandbox));
            return Ok(measured.await.map_err(io::Error::from)?);
        }
        let request = serde_json::to_string(&sandbox).map_err(io::Error::from)?;
        let program = init.to_string_lossy();
        let arguments = ["unshare", &program, MEASURE_SANDBOX_ARGUMENT, &request];
        // It may take long, so this is not one of the short calls.
        let answer = call(
            &self.program,
            &arguments,
            CALL_TIMEOUT + walk_timeout * PARTS,
            |_| (),
        )
        .await?;
        serde_json::from_str(&answer).map_err(|error| EngineError::UnexpectedOutput {
            call: "unshare".to_owned(),
            reason: error.to_string(),
        })
    }

    /// PID of a sandbox's init on this host.
    pub async fn init_pid(&self, container: &str) -> Option<u32> {
        let inspect = ["container", "inspect", "--format={{.State.Pid}}", container];
        let answer = self.call(&inspect, CALL_TIMEOUT).await.ok()?;
        answer.trim().parse().ok().filter(|pid| *pid > 0)
    }
}

/// Measures a sandbox by a request in JSON, and returns the answer to print.
pub fn measure_from_argument(argument: &str) -> serde_json::Result<String> {
    let sandbox: MeasureRequest = serde_json::from_str(argument)?;
    serde_json::to_string(&measure_sandbox(&sandbox))
}

/// Measures a sandbox.
fn measure_sandbox(sandbox: &MeasureRequest) -> SandboxUsage {
    // Each part has a deadline of its own, so that a large one doesn't hide another.
    let timeout = Duration::from_millis(sandbox.walk_millis);
    let tree = |top: &Path| measure_tree(top, Instant::now() + timeout);
    let mut usage = SandboxUsage {
        jobs: tree(&sandbox.spool),
        images: sandbox.upper.as_deref().map(tree).unwrap_or_default(),
    };
    if let Some(init) = sandbox.init {
        add_deleted_files(&mut usage, sandbox, init);
    }
    usage
}

/// A directory, and its subdirectories that are not yet read.
type Frame = (OwnedFd, Vec<CString>);

/// Disk usage of a tree; unbounded where the deadline is exceeded. Entries that vanish in the meantime count
/// nothing.
fn measure_tree(top: &Path, deadline: Instant) -> Usage {
    let mut walk = Walk {
        usage: Usage::default(),
        linked: HashSet::new(),
        deadline,
        has_timed_out: false,
    };
    let mut frames: Vec<Frame> = Vec::new();
    let mut pending = 0;
    let mut next = open(CWD, top).ok();
    while let Some(directory) = next.take() {
        let inner = walk.read(&directory);
        pending += inner.len();
        frames.push((directory, inner));
        if pending > MAX_PENDING_DIRECTORIES || frames.len() > MAX_OPEN_DIRECTORIES {
            return Usage::UNBOUNDED;
        }
        while next.is_none() && !walk.check_deadline() {
            let Some((parent, names)) = frames.last_mut() else {
                break;
            };
            if let Some(name) = names.pop() {
                pending -= 1;
                next = open(&*parent, name.as_c_str()).ok();
            }
            // A chain of directories of any depth keeps one open at a time.
            if names.is_empty() {
                frames.pop();
            }
        }
    }
    if walk.has_timed_out {
        return Usage::UNBOUNDED;
    }
    walk.usage
}

/// One walk through a tree.
struct Walk {
    usage: Usage,
    /// Inodes with several names, which count once.
    linked: HashSet<u64>,
    deadline: Instant,
    /// Whether the deadline cut the walk short.
    has_timed_out: bool,
}

impl Walk {
    /// Checks the deadline. Returns true once it has passed.
    fn check_deadline(&mut self) -> bool {
        self.has_timed_out |= Instant::now() > self.deadline;
        self.has_timed_out
    }

    /// Counts the entries of a directory and returns its subdirectories.
    fn read(&mut self, directory: &OwnedFd) -> Vec<CString> {
        let mut inner = Vec::new();
        let Ok(entries) = Dir::read_from(directory) else {
            return inner;
        };
        for (number, entry) in entries.flatten().enumerate() {
            if number % CLOCK_CHECK_ENTRIES == 0 && self.check_deadline() {
                break;
            }
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory {
                inner.push(name.to_owned());
            }
            if is_directory || stat.st_nlink < 2 || self.linked.insert(stat.st_ino) {
                self.usage.add(&stat);
            }
        }
        inner
    }
}

/// Opens a directory, and nothing else.
fn open(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Adds deleted files that processes of the sandbox keep open.
fn add_deleted_files(usage: &mut SandboxUsage, sandbox: &MeasureRequest, init: u32) {
    let device = |path: &Path| Some(stat(path).ok()?.st_dev);
    let timeout = Duration::from_millis(sandbox.walk_millis);
    let found = deleted_open_files(init, Instant::now() + timeout);
    // Files on an overlay have its device, not that of the filesystem below.
    let overlay = device(Path::new(&format!("/proc/{init}/root")));
    let parts = [
        (&mut usage.jobs, device(&sandbox.spool)),
        (&mut usage.images, overlay),
    ];
    for (part, device) in parts {
        if let Some(device) = device {
            add_found(part, &found, device);
        }
    }
}

/// Adds the deleted files of one device.
fn add_found(part: &mut Usage, found: &DeletedFiles, device: u64) {
    if found.has_timed_out {
        *part = Usage::UNBOUNDED;
        return;
    }
    let files = found.files.iter().filter(|file| file.st_dev == device);
    files.for_each(|file| part.add(file));
    part.is_partial |= found.is_in_transit || found.unmeasured.contains(&device);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mkdirat;
    use std::{fs, os::unix::fs::symlink};

    fn measure(top: &Path) -> Usage {
        measure_tree(top, Instant::now() + Duration::from_mins(1))
    }

    #[test]
    fn usage_counts_files_once_follows_no_links() {
        let home = tempfile::tempdir().unwrap();
        let (tree, outside) = (home.path().join("tree"), home.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("large"), vec![7; 1 << 20]).unwrap();
        fs::write(tree.join("a/file"), vec![7; 1 << 16]).unwrap();
        fs::hard_link(tree.join("a/file"), tree.join("a/b/again")).unwrap();
        symlink(&outside, tree.join("a/b/link")).unwrap();
        let usage = measure(&tree);
        assert_eq!(usage.inodes, 4, "{usage:?}");
        assert!((1 << 16..1 << 19).contains(&usage.bytes), "{usage:?}");
        assert_eq!(measure(&home.path().join("missing")), Usage::default());
    }

    #[test]
    fn deep_tree_is_measured_or_counts_largest() {
        let home = tempfile::tempdir().unwrap();
        for (tree, teeth) in [("chain", false), ("comb", true)] {
            let tree = home.path().join(tree);
            fs::create_dir(&tree).unwrap();
            let mut at = open(CWD, &tree).unwrap();
            for _ in 0..1000 {
                for name in ["a", "b"].iter().take(1 + usize::from(teeth)) {
                    mkdirat(&at, *name, Mode::RWXU).unwrap();
                }
                at = open(&at, "a").unwrap();
            }
            let expected = if teeth { u64::MAX } else { 1000 };
            assert_eq!(measure(&tree).inodes, expected, "{}", tree.display());
            crate::engine::remove_tree(&tree).unwrap();
        }
    }

    #[test]
    fn files_of_unknown_size_leave_rest_known() {
        let known = Usage {
            bytes: 5,
            inodes: 1,
            is_partial: false,
        };
        let mut found = DeletedFiles::default();
        found.unmeasured.insert(7);
        let after = |found: &DeletedFiles, device| {
            let mut part = known;
            add_found(&mut part, found, device);
            part
        };
        assert_eq!(after(&found, 8), known);
        let partial = after(&found, 7);
        assert!(partial.is_partial && partial.bytes == 5);
        assert_eq!(partial.worst_case(), Usage::UNBOUNDED);
        found.is_in_transit = true;
        assert_eq!(after(&found, 8), partial, "it may be on any device");
        found.has_timed_out = true;
        assert_eq!(after(&found, 8), Usage::UNBOUNDED);
    }

    #[test]
    fn truncated_measurement_counts_as_largest() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("file"), "x").unwrap();
        assert_eq!(measure_tree(home.path(), Instant::now()), Usage::UNBOUNDED);
    }
}
