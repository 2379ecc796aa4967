//! Directory tree in which entries are made by their relative paths. No link leads out of it.

use rustix::{
    fd::AsFd,
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT,
        fchmod, futimens, linkat, mkdirat, openat, openat2, statat, symlinkat, unlinkat,
    },
    io::Errno,
};
use std::{fs::File, io, mem, os::fd::OwnedFd, path::Path};

/// Longest path that the kernel takes, with the NUL at its end.
const MAX_PATH_BYTES: usize = 4096;
/// Longest component of a path, in bytes.
const MAX_NAME_BYTES: usize = 255;
/// Mode of a directory that no entry describes.
const DIRECTORY_MODE: u32 = 0o755;
/// Memory for directories whose modes are set at the end.
const MAX_DELAYED_BYTES: usize = 8 << 20;
/// Memory that such a directory takes besides the bytes of its path.
const DELAYED_OVERHEAD_BYTES: usize = 64;
/// Flags to open a directory: never through a link, and nothing else.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Links to directories, in the path of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Links {
    /// None is followed.
    Refused,
    /// Those that stay in the tree are followed, where the kernel can tell.
    Beneath,
}

/// Path in a tree: relative, without empty parts, `.` and `..`. Empty for the tree itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RelativePath(Vec<u8>);

/// Reads a path. Fails where it leads out of the tree, or can't be a path.
pub(crate) fn normalize(path: &[u8]) -> Result<RelativePath, &'static str> {
    if path.starts_with(b"/") {
        return Err("its path must be relative, and begins with /");
    }
    let mut normal = Vec::with_capacity(path.len());
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err("its path must not contain .."),
            _ if part.contains(&0) => return Err("its path must not contain a NUL character"),
            _ if part.len() > MAX_NAME_BYTES => {
                return Err("a part of its path is longer than 255 bytes");
            }
            _ => {}
        }
        if !normal.is_empty() {
            normal.push(b'/');
        }
        normal.extend_from_slice(part);
    }
    if normal.len() >= MAX_PATH_BYTES {
        return Err("its path is longer than 4095 bytes");
    }
    Ok(RelativePath(normal))
}

impl RelativePath {
    /// Whether this is the tree itself.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Path of the directory, and the name in it.
    fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&self.0[..at], &self.0[at + 1..]),
            None => (&[], &self.0),
        }
    }
}

/// Directory tree that is being filled. Entries of archives come by directory, so the last directory stays open.
pub(crate) struct Tree {
    root: OwnedFd,
    links: Links,
    current: (Vec<u8>, OwnedFd),
    /// Longest path in this tree.
    max_path_bytes: usize,
    /// Directories that were made on the way to others.
    made: u64,
    /// Modes that would keep a user who is not root from filling the directory.
    delayed: Vec<(RelativePath, u32)>,
    /// Memory that these take.
    delayed_bytes: usize,
}

impl Tree {
    /// Opens the directory at `path`. Whole paths in it stay short enough to be given to others, also where they see
    /// it at `seen_at`.
    pub(crate) fn open(path: &Path, seen_at: &str, links: Links) -> io::Result<Self> {
        let root = openat(CWD, path, DIRECTORY, Mode::empty())?;
        let above = path.as_os_str().len().max(seen_at.len()) + 1;
        Self::at(root, links, MAX_PATH_BYTES.saturating_sub(above + 1))
    }

    fn at(root: OwnedFd, links: Links, max_path_bytes: usize) -> io::Result<Self> {
        Ok(Self {
            links,
            current: (Vec::new(), root.try_clone()?),
            max_path_bytes,
            made: 0,
            root,
            delayed: Vec::new(),
            delayed_bytes: 0,
        })
    }

    /// Tree of a directory in this one, which is made where it is missing.
    pub(crate) fn subtree(&self, path: &RelativePath) -> io::Result<Self> {
        self.check_length(path)?;
        let mut made = 0;
        let root = open_or_make(&self.root, &path.0, self.links, &mut made)?;
        let max_path_bytes = self.max_path_bytes.saturating_sub(path.0.len() + 1);
        let mut tree = Self::at(root, self.links, max_path_bytes)?;
        tree.made = made;
        Ok(tree)
    }

    /// Number of directories that were made on the way to others since the last call.
    pub(crate) fn take_made(&mut self) -> u64 {
        mem::take(&mut self.made)
    }

    fn check_length(&self, path: &RelativePath) -> io::Result<()> {
        if path.0.len() > self.max_path_bytes {
            return Err(Errno::NAMETOOLONG.into());
        }
        Ok(())
    }

    /// Directory of an entry, which is made where it is missing.
    fn directory(&mut self, path: &[u8]) -> io::Result<&OwnedFd> {
        if self.current.0 != path {
            let directory = open_or_make(&self.root, path, self.links, &mut self.made)?;
            self.current = (path.to_owned(), directory);
        }
        Ok(&self.current.1)
    }

    /// Makes an empty file, in place of one that is there.
    pub(crate) fn create_file(&mut self, path: &RelativePath) -> io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let private = Mode::RUSR | Mode::WUSR;
        self.replace(path, |directory, name| {
            openat(directory, name, flags, private)
        })
        .map(File::from)
    }

    /// Removes a file or a link.
    pub(crate) fn remove_file(&mut self, path: &RelativePath) -> io::Result<()> {
        let (parent, name) = path.split();
        let directory = self.directory(parent)?;
        Ok(unlinkat(directory, name, AtFlags::empty())?)
    }

    /// Makes a symbolic link, in place of a file that is there. Its target may be anything: only the job follows it,
    /// inside its sandbox.
    pub(crate) fn create_symlink(&mut self, path: &RelativePath, target: &[u8]) -> io::Result<()> {
        self.replace(path, |directory, name| symlinkat(target, directory, name))
    }

    /// Makes another name for a regular file of the tree.
    pub(crate) fn create_link(&mut self, path: &RelativePath, to: &RelativePath) -> io::Result<()> {
        let (parent, target) = to.split();
        let parent = open_beneath(&self.root, parent, self.links)?;
        let found = statat(&parent, target, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(Errno::ISDIR.into());
        }
        if path == to {
            return Ok(());
        }
        self.replace(path, |directory, name| {
            linkat(&parent, target, directory, name, AtFlags::empty())
        })
    }

    /// Makes a directory, or gives the one that is there this mode.
    pub(crate) fn create_directory(&mut self, path: &RelativePath, mode: u32) -> io::Result<()> {
        self.check_length(path)?;
        let directory = self.directory(&path.0)?;
        if path.is_root() {
            return Ok(());
        }
        if mode & 0o700 == 0o700 {
            return set_mode(directory, mode);
        }
        self.delay_mode(path, mode)
    }

    fn delay_mode(&mut self, path: &RelativePath, mode: u32) -> io::Result<()> {
        if let Some((last, last_mode)) = self.delayed.last_mut()
            && last == path
        {
            *last_mode = mode;
            return Ok(());
        }
        self.delayed_bytes += path.0.len() + DELAYED_OVERHEAD_BYTES;
        if self.delayed_bytes > MAX_DELAYED_BYTES {
            return Err(io::Error::other(
                "too many directories without access for their owner",
            ));
        }
        self.delayed.push((path.clone(), mode));
        Ok(())
    }

    /// Sets the modes of directories that had to stay accessible.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        // The deepest first, as long as those above can be entered.
        for (path, mode) in self.delayed.drain(..).rev() {
            match open_beneath(&self.root, &path.0, self.links) {
                Ok(directory) => set_mode(&directory, mode)?,
                // Set already, by a later entry for the same directory or one above.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes an entry. Where there is another of that name, it goes first, unless it is a directory.
    fn replace<T>(
        &mut self,
        path: &RelativePath,
        make: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let (parent, name) = path.split();
        if name.is_empty() {
            return Err(Errno::ISDIR.into());
        }
        self.check_length(path)?;
        let directory = self.directory(parent)?;
        match make(directory, name) {
            Err(Errno::EXIST) => {
                unlinkat(directory, name, AtFlags::empty())?;
                Ok(make(directory, name)?)
            }
            made => Ok(made?),
        }
    }
}

/// Opens a directory of a tree. No link leads out of it.
fn open_beneath(root: &OwnedFd, path: &[u8], links: Links) -> io::Result<OwnedFd> {
    if path.is_empty() {
        return root.try_clone();
    }
    let (mut flags, mut resolve) = (
        DIRECTORY,
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    );
    match links {
        Links::Refused => resolve |= ResolveFlags::NO_SYMLINKS,
        Links::Beneath => flags -= OFlags::NOFOLLOW,
    }
    match openat2(root, path, flags, Mode::empty(), resolve) {
        // Kernels before 5.6, and filters of containers, don't have it.
        Err(Errno::NOSYS | Errno::PERM) => walk(root, path, None),
        opened => Ok(opened?),
    }
}

fn open_or_make(root: &OwnedFd, path: &[u8], links: Links, made: &mut u64) -> io::Result<OwnedFd> {
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match open_beneath(root, path, links) {
        Err(error) if is_missing(&error) && links == Links::Beneath => {
            // The part that is there may lead through links; what is made has none.
            let ends = path.iter().enumerate().rev();
            let ends = ends.filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
            for end in ends {
                match open_beneath(root, &path[..end], links) {
                    Err(error) if is_missing(&error) => {}
                    above => return walk(&above?, &path[end + 1..], Some(made)),
                }
            }
            walk(root, path, Some(made))
        }
        Err(error) if is_missing(&error) => walk(root, path, Some(made)),
        opened => opened,
    }
}

/// Opens a directory one component after the other, without following a link. Where those that it makes are counted, it
/// makes missing ones.
fn walk(root: &OwnedFd, path: &[u8], mut made: Option<&mut u64>) -> io::Result<OwnedFd> {
    let mut directory = root.try_clone()?;
    for name in path.split(|byte| *byte == b'/') {
        directory = match (
            openat(&directory, name, DIRECTORY, Mode::empty()),
            &mut made,
        ) {
            (Err(Errno::NOENT), Some(made)) => {
                mkdirat(&directory, name, Mode::RWXU)?;
                **made += 1;
                let new = openat(&directory, name, DIRECTORY, Mode::empty())?;
                // The umask must not narrow it.
                set_mode(&new, DIRECTORY_MODE)?;
                new
            }
            (opened, _) => opened?,
        };
    }
    Ok(directory)
}

/// Gives a file or a directory these permission bits, and none that change whom it runs as.
pub(crate) fn set_mode(of: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(fchmod(of, Mode::from_raw_mode(mode & 0o777))?)
}

/// Sets the time of the last change, in seconds since 1970.
pub(crate) fn set_modified(file: &File, seconds: i64) -> io::Result<()> {
    let omitted = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let times = Timestamps {
        last_access: omitted,
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
    };
    Ok(futimens(file, &times)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delayed_modes_take_bounded_memory() {
        let home = tempfile::tempdir().unwrap();
        let mut tree = Tree::open(home.path(), "", Links::Refused).unwrap();
        let path = |n: usize| normalize(format!("{n}/{}", "a/".repeat(2000)).as_bytes()).unwrap();
        for mode in 0..10_000 {
            tree.delay_mode(&path(0), mode).unwrap();
        }
        assert_eq!(tree.delayed, [(path(0), 9_999)], "the last mode counts");
        let refused = (1..10_000).find(|n| tree.delay_mode(&path(*n), 0o500).is_err());
        let most = MAX_DELAYED_BYTES / 4000;
        assert!(
            refused.is_some_and(|n| n <= most && n > most / 2),
            "{refused:?}"
        );
    }
}
