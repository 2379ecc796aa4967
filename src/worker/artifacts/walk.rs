//! Walk through a workspace: which files are collected, and why others are not. Nothing is changed here.

use crate::api::{
    jobs::{
        JobArtifact, SkippedArtifacts,
        artifacts::{MAX_ARTIFACT_PATHS_BYTES, MAX_ARTIFACTS},
        files::MAX_PATH_BYTES,
        patterns::Patterns,
    },
    size::ByteSize,
};
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, statat},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    io,
    os::fd::OwnedFd,
    path::Path,
};

/// Depth below which nothing is collected: each level holds a descriptor.
const MAX_DEPTH: usize = 128;
/// Entries after which the rest is not looked at.
const MAX_ENTRIES: u64 = 2_000_000;
/// Memory for names that are not looked at yet, of all levels together.
const MAX_NAMES_BYTES: usize = 8 << 20;
/// Memory that a name takes besides its bytes.
const NAME_OVERHEAD_BYTES: usize = 48;
/// Longest part of a name that a reason quotes, in bytes.
const MAX_QUOTED_BYTES: usize = 200;
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

/// Reason for which a file is not collected.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Skip {
    OverLimit(u64),
    TooMany,
    NotRegular,
    NotUtf8,
    TooDeep,
    TooManyEntries,
    Failed(String),
    InvalidPattern,
}

/// Files that are not collected, by reason: their number and the first one's path.
#[derive(Default)]
pub(super) struct Skips(BTreeMap<Skip, (u64, String)>);

impl Skips {
    pub(super) fn add(&mut self, skip: Skip, path: &[u8]) {
        let (count, _) = self.0.entry(skip).or_insert_with(|| (0, quoted(path)));
        *count += 1;
    }

    pub(super) fn add_invalid_patterns(&mut self, patterns: Vec<String>) {
        for pattern in patterns {
            self.add(Skip::InvalidPattern, pattern.as_bytes());
        }
    }

    /// What the result says.
    pub(super) fn summary(&self) -> Option<SkippedArtifacts> {
        let count = self.0.values().map(|(count, _)| count).sum();
        let reasons = self.0.iter().map(|(skip, (count, first))| match skip {
            Skip::OverLimit(limit) => format!(
                "{count} beyond the limit of {} in all (--artifact-limit), such as {first}",
                ByteSize(*limit)
            ),
            Skip::TooMany => format!("{count} beyond the limit of {MAX_ARTIFACTS} files and {MAX_ARTIFACT_PATHS_BYTES} bytes of paths, such as {first}; collect an archive instead"),
            Skip::NotRegular => format!("{count} not regular files (links, devices, sockets), such as {first}"),
            Skip::NotUtf8 => format!("{count} with names that are not UTF-8, such as {first}"),
            Skip::TooDeep => format!("{count} directories deeper than {MAX_DEPTH} levels or with paths that are too long, such as {first}"),
            Skip::TooManyEntries => format!("all that is left of {count} directories, because the workspace has too many entries, such as {first}; collect an archive instead"),
            Skip::Failed(error) => format!("{count} that could not be read or stored ({error}), such as {first}"),
            Skip::InvalidPattern => format!("{count} patterns that can't be read, such as {first}"),
        });
        let reasons: Vec<_> = reasons.collect();
        (count > 0)
            .then(|| SkippedArtifacts::new(count, format!("not collected: {}", reasons.join("; "))))
    }
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
    let mut levels = Vec::new();
    walk.enter(&mut levels, top, Vec::new())?;
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        walk.names_left += cost(&name);
        let path = [&level.prefix, name.as_bytes()].concat();
        if let Some(directory) = walk.look_at(level, &name, &path)? {
            walk.enter(&mut levels, directory, [&path, b"/".as_slice()].concat())?;
        }
    }
    Ok(walk.found)
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
            if name == c"." || name == c".." {
                continue;
            }
            path.truncate(prefix.len());
            path.extend_from_slice(name.to_bytes());
            if self.entries_left == 0 || room < cost(name) {
                self.found.skips.add(Skip::TooManyEntries, &path);
                break;
            }
            self.entries_left -= 1;
            let is_plain = entry.file_type() == FileType::RegularFile;
            if is_plain && !self.patterns.is_match(&path) {
                continue;
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
                self.take(path, u64::try_from(stat.st_size).unwrap_or(u64::MAX));
            }
            _ => self.found.skips.add(Skip::NotRegular, path),
        }
        Ok(None)
    }

    fn take(&mut self, path: &[u8], size_bytes: u64) {
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

fn quoted(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(&path[..path.len().min(MAX_QUOTED_BYTES)]);
    format!("\"{}\"", text.escape_debug())
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
