//! Walk through a workspace: which files are collected, and why others are not. Nothing is changed here.

use super::skips::{Skip, Skips};
use crate::api::jobs::{
    JobArtifact,
    artifacts::{ARTIFACTS_DIRECTORY as ARTIFACTS, MAX_ARTIFACT_PATHS_BYTES, MAX_ARTIFACTS},
    files::MAX_PATH_BYTES,
    patterns::Patterns,
};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2,
        statat,
    },
    io::Errno,
};
use std::{
    ffi::{CStr, CString},
    io,
    os::fd::OwnedFd,
    path::Path,
};

/// Depth below which nothing is collected: each level holds a descriptor.
pub(super) const MAX_DEPTH: usize = 128;
/// Entries after which the rest is not looked at.
const MAX_ENTRIES: u64 = 2_000_000;
/// Memory for names that are not looked at yet, of all levels together.
const MAX_NAMES_BYTES: usize = 8 << 20;
/// Memory that a name takes besides its bytes.
const NAME_OVERHEAD_BYTES: usize = 48;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Files to collect, in the order of their paths.
#[derive(Default)]
pub(super) struct Found {
    pub(super) artifacts: Vec<JobArtifact>,
    pub(super) skips: Skips,
}

/// A directory that is being read.
struct Level {
    directory: OwnedFd,
    /// Its path, with a slash at the end unless it is the top.
    prefix: Vec<u8>,
    /// Names that are not looked at yet, the last one first.
    names: Vec<CString>,
}

/// Limits of a walk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most bytes of all files.
    bytes: u64,
    /// Memory for names that are not looked at yet.
    names_bytes: usize,
}

impl Limits {
    /// Limits for at most so many bytes of files.
    pub(super) fn of_bytes(bytes: u64) -> Self {
        Self {
            bytes,
            names_bytes: MAX_NAMES_BYTES,
        }
    }
}

/// How a walk meets files that it may not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Denial {
    /// It fails: who may do everything has another try.
    IsError,
    /// It does without them.
    IsSkipped,
}

impl Denial {
    /// Whether this error is one of the whole.
    pub(super) fn ends(self, error: &io::Error) -> bool {
        self == Self::IsError && error.kind() == io::ErrorKind::PermissionDenied
    }
}

/// Finds the files of a workspace that are to be collected. One that is gone has none.
pub(super) fn find(
    workspace: &Path,
    patterns: &Patterns,
    limits: Limits,
    denial: Denial,
) -> io::Result<Found> {
    let top = match openat(CWD, workspace, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Found::default()),
        opened => opened?,
    };
    let mut walk = Walk {
        patterns,
        denial,
        limit: limits.bytes,
        left: limits.bytes,
        paths_left: MAX_ARTIFACT_PATHS_BYTES,
        entries_left: MAX_ENTRIES,
        names_left: limits.names_bytes,
        device: fstat(&top)?.st_dev,
        found: Found::default(),
    };
    // First, so that nothing else in the workspace takes its share of the limits.
    let always = walk.always(&top)?;
    walk.go(always)?;
    let mut levels = Vec::new();
    walk.enter(&mut levels, top, Vec::new())?;
    walk.go(levels)?;
    let mut found = walk.found;
    let order = |a: &JobArtifact, b: &JobArtifact| a.path.split('/').cmp(b.path.split('/'));
    found.artifacts.sort_by(order);
    Ok(found)
}

struct Walk<'a> {
    patterns: &'a Patterns,
    denial: Denial,
    limit: u64,
    left: u64,
    paths_left: usize,
    entries_left: u64,
    names_left: usize,
    device: u64,
    found: Found,
}

impl Walk<'_> {
    /// Level with the directory that is always collected alone, where there is one.
    fn always(&mut self, top: &OwnedFd) -> io::Result<Vec<Level>> {
        let mut names = Vec::new();
        let found = statat(top, ARTIFACTS, AtFlags::SYMLINK_NOFOLLOW);
        if !matches!(found, Err(Errno::NOENT)) {
            let name = CString::new(ARTIFACTS)?;
            self.names_left = self.names_left.saturating_sub(cost(&name));
            names.push(name);
        }
        Ok(vec![Level {
            directory: top.try_clone()?,
            prefix: Vec::new(),
            names,
        }])
    }

    /// Looks at all names of these levels, and at all that is below.
    fn go(&mut self, mut levels: Vec<Level>) -> io::Result<()> {
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            self.names_left += cost(&name);
            let path = [&level.prefix, name.as_bytes()].concat();
            if let Some(directory) = self.look_at(level, &name, &path)? {
                self.enter(&mut levels, directory, [&path, b"/".as_slice()].concat())?;
            }
        }
        Ok(())
    }

    fn enter(
        &mut self,
        levels: &mut Vec<Level>,
        directory: OwnedFd,
        prefix: Vec<u8>,
    ) -> io::Result<()> {
        if levels.len() >= MAX_DEPTH || prefix.len() > MAX_PATH_BYTES {
            self.found.skips.add(Skip::TooDeep, &prefix);
            return Ok(());
        }
        match self.names(&directory, &prefix) {
            Ok(names) => levels.push(Level {
                directory,
                prefix,
                names,
            }),
            Err(error) => self.skip_failed(error, &prefix)?,
        }
        Ok(())
    }

    /// Skips an entry that can't be read, unless that is an error of the whole.
    fn skip_failed(&mut self, error: Errno, path: &[u8]) -> io::Result<()> {
        let error = error.into();
        if self.denial.ends(&error) {
            return Err(error);
        }
        self.found.skips.add(Skip::Failed(error.to_string()), path);
        Ok(())
    }

    /// Names in a directory that may be of interest, the last one first. The rest is skipped where there are more than
    /// are looked at, or than there is memory for.
    fn names(&mut self, directory: &OwnedFd, prefix: &[u8]) -> rustix::io::Result<Vec<CString>> {
        let (mut names, mut room) = (Vec::new(), self.names_left);
        let mut path = prefix.to_owned();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_done = prefix.is_empty() && name.to_bytes() == ARTIFACTS.as_bytes();
            if name == c"." || name == c".." || is_done {
                continue;
            }
            path.truncate(prefix.len());
            path.extend_from_slice(name.to_bytes());
            if self.entries_left == 0 {
                self.found.skips.add(Skip::TooManyEntries, &path);
                break;
            }
            self.entries_left -= 1;
            let may_be_directory =
                matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            let is_of_interest = self.patterns.is_match(&path)
                || may_be_directory && self.patterns.may_match_below(&path);
            if !is_of_interest {
                continue;
            }
            if room < cost(name) {
                self.found.skips.add(Skip::TooManyEntries, &path);
                break;
            }
            room -= cost(name);
            names.push(name.to_owned());
        }
        self.names_left = room;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }

    /// Takes a file, or opens a directory that is to be entered.
    fn look_at(
        &mut self,
        level: &Level,
        name: &CString,
        path: &[u8],
    ) -> io::Result<Option<OwnedFd>> {
        let stat = match statat(&level.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => return self.skip_failed(error, path).map(|()| None),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if self.patterns.may_match_below(path) => {
                return match open_directory(&level.directory, name) {
                    Ok(directory) => Ok(Some(directory)),
                    Err(error) => self.skip_failed(error, path).map(|()| None),
                };
            }
            FileType::Directory => {}
            _ if !self.patterns.is_match(path) => {}
            FileType::RegularFile if stat.st_dev == self.device => {
                self.take(path, &stat);
            }
            _ => self.found.skips.add(Skip::NotRegular, path),
        }
        Ok(None)
    }

    fn take(&mut self, path: &[u8], stat: &Stat) {
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        let Ok(text) = std::str::from_utf8(path) else {
            return self.found.skips.add(Skip::NotUtf8, path);
        };
        if path.len() > MAX_PATH_BYTES {
            return self.found.skips.add(Skip::TooDeep, path);
        }
        if size_bytes > self.left {
            return self.found.skips.add(Skip::OverLimit(self.limit), path);
        }
        if self.found.artifacts.len() >= MAX_ARTIFACTS || path.len() > self.paths_left {
            return self.found.skips.add(Skip::TooMany, path);
        }
        self.left -= size_bytes;
        self.paths_left -= path.len();
        self.found.artifacts.push(JobArtifact {
            path: text.to_owned(),
            size_bytes,
            executable: Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR),
        });
    }
}

/// Opens a directory of the same file system, without following a link.
pub(super) fn open_directory(at: &OwnedFd, path: &CString) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(at, path, DIRECTORY, Mode::empty(), resolve) {
        // Kernels before 5.6, and filters of containers, don't have it.
        Err(Errno::NOSYS | Errno::PERM) => open_by_parts(at, path),
        opened => opened,
    }
}

/// Same as [`open_directory`], one component after the other.
fn open_by_parts(at: &OwnedFd, path: &CString) -> rustix::io::Result<OwnedFd> {
    let device = fstat(at)?.st_dev;
    let mut directory = None;
    for name in path.as_bytes().split(|byte| *byte == b'/') {
        if name == b".." {
            return Err(Errno::XDEV);
        }
        let opened = openat(
            directory.as_ref().unwrap_or(at),
            name,
            DIRECTORY,
            Mode::empty(),
        )?;
        if fstat(&opened)?.st_dev != device {
            return Err(Errno::XDEV);
        }
        directory = Some(opened);
    }
    directory.ok_or(Errno::NOENT)
}

/// Memory that a name takes.
fn cost(name: &CStr) -> usize {
    name.to_bytes().len() + NAME_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn names_of_all_levels_share_memory() {
        let top = tempfile::tempdir().unwrap();
        let mut directory = top.path().to_owned();
        for _ in 0..3 {
            directory.push("deep");
            fs::create_dir(&directory).unwrap();
        }
        for level in directory.ancestors().take(4) {
            for n in 0..20 {
                fs::write(level.join(format!("x{n}")), "").unwrap();
                fs::write(level.join(format!("other{n}")), "").unwrap();
            }
        }
        let (patterns, _) = Patterns::new(&["**/x*".to_owned()]);
        let room = 50 * (NAME_OVERHEAD_BYTES + 3);
        let found = find_within(top.path(), &patterns, room);
        let taken = found.artifacts.len();
        assert!((20..80).contains(&taken), "{taken}");
        let reason = found.skips.summary().unwrap().reason;
        assert!(reason.contains("too many entries"), "{reason}");
        assert_eq!(
            find_within(top.path(), &patterns, 2 * room).artifacts.len(),
            80
        );
    }

    #[test]
    fn artifacts_come_before_other_names() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("artifacts")).unwrap();
        fs::write(top.path().join("artifacts/x"), "").unwrap();
        for n in 0..100 {
            fs::create_dir(top.path().join(format!("a{n}"))).unwrap();
            symlink("nowhere", top.path().join(format!("link{n}"))).unwrap();
        }
        fs::write(top.path().join("a.out"), "").unwrap();
        let room = 2 * (NAME_OVERHEAD_BYTES + 10);
        let (patterns, _) = Patterns::new(&["a.out".to_owned()]);
        let found = find_within(top.path(), &patterns, room);
        let paths = found.artifacts.iter().map(|one| one.path.as_str());
        assert_eq!(paths.collect::<Vec<_>>(), ["a.out", "artifacts/x"]);
        assert_eq!(found.skips.summary(), None);
        let (all, _) = Patterns::new(&["**".to_owned()]);
        let found = find_within(top.path(), &all, room);
        let mut paths = found.artifacts.iter().map(|one| one.path.as_str());
        assert!(paths.any(|path| path == "artifacts/x"), "without the rest");
    }

    fn find_within(top: &Path, patterns: &Patterns, names_left: usize) -> Found {
        let limits = Limits {
            bytes: u64::MAX,
            names_bytes: names_left,
        };
        find(top, patterns, limits, Denial::IsError).unwrap()
    }

    #[test]
    fn directories_open_by_parts_without_links() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a/b")).unwrap();
        symlink("a", top.path().join("link")).unwrap();
        let at = openat(CWD, top.path(), DIRECTORY, Mode::empty()).unwrap();
        let open = |path: &CStr| open_by_parts(&at, &path.to_owned()).map(drop);
        assert_eq!(open(c"a/b"), Ok(()));
        assert_eq!(open(c"link/b"), Err(Errno::NOTDIR));
        assert_eq!(open(c"a/../.."), Err(Errno::XDEV));
    }
}
