//! Owner of placed files in a workspace that has its user already. Podman gives a new workspace to the user of the image.

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, openat, openat2,
    },
    io::Errno,
    process::{getegid, geteuid},
};
use std::{io, path::Path};

/// Flags to open a directory: never through a link, and nothing else.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Gives everything in a workspace to this user and group. No link is followed.
pub(in crate::worker) fn give_to(workspace: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    if (user, group) == (geteuid().as_raw(), getegid().as_raw()) {
        return Ok(());
    }
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    let root = openat(CWD, workspace, DIRECTORY, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    // Paths and not descriptors: a tree may be deeper than their number.
    let mut directories = vec![b".".to_vec()];
    while let Some(path) = directories.pop() {
        let directory = openat2(&root, path.as_slice(), DIRECTORY, Mode::empty(), beneath)?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match chownat(&directory, name, user, group, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                done => done?,
            }
            if is_directory(&directory, &entry)? {
                directories.push([path.as_slice(), b"/", name.to_bytes()].concat());
            }
        }
    }
    Ok(())
}

fn is_directory(at: &impl std::os::fd::AsFd, entry: &rustix::fs::DirEntry) -> io::Result<bool> {
    // Some file systems don't store the type in the directory.
    let kind = match entry.file_type() {
        FileType::Unknown => {
            let stat = rustix::fs::statat(at, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            FileType::from_raw_mode(stat.st_mode)
        }
        kind => kind,
    };
    Ok(kind == FileType::Directory)
}
