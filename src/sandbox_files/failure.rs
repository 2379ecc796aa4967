//! Problems of file operations, in the words of the caller, who knows the sandbox and not the system's error numbers.

use crate::{
    api::problem::{Problem, ProblemKind},
    archive::quoted,
    disk_space::DiskSpace,
};
use rustix::io::Errno;
use std::{
    fs::FileType,
    io,
    os::unix::{ffi::OsStrExt as _, fs::FileTypeExt as _},
    path::Path,
};

/// Path for a text.
pub(super) fn name(path: &Path) -> String {
    quoted(path.as_os_str().as_bytes())
}

/// Problem of an operation on a path.
pub(super) fn problem(path: &Path, error: &io::Error) -> Problem {
    let name = name(path);
    let (kind, detail) = match errno(error) {
        Some(Errno::NOENT) => (
            ProblemKind::NotFound,
            format!("there is no {name} in the sandbox; check the path, or list its directory"),
        ),
        Some(Errno::ACCESS | Errno::PERM) => (
            ProblemKind::Forbidden,
            format!(
                "the user of the sandbox has no permission for {name}; change its mode, or use another path"
            ),
        ),
        Some(Errno::ROFS) => (
            ProblemKind::Forbidden,
            format!("{name} is on a read-only file system; write to /workspace or /tmp"),
        ),
        Some(Errno::NOTDIR) => (
            ProblemKind::Conflict,
            format!("a part of {name} is a file and not a directory; use another path"),
        ),
        Some(Errno::ISDIR) => (
            ProblemKind::Conflict,
            format!("{name} is a directory; use another path"),
        ),
        Some(Errno::NOTEMPTY) => (
            ProblemKind::Conflict,
            format!("{name} is a directory that is not empty; delete it with recursive=true"),
        ),
        Some(Errno::EXIST) => (
            ProblemKind::Conflict,
            format!("{name} exists already; use another path, or delete it first"),
        ),
        Some(Errno::BUSY) => (
            ProblemKind::Conflict,
            format!("{name} is a mount point or in use; use another path"),
        ),
        Some(Errno::LOOP) => (
            ProblemKind::Conflict,
            format!("{name} leads through too many links; check where they point to"),
        ),
        Some(Errno::NAMETOOLONG) => (
            ProblemKind::InvalidRequest,
            format!(
                "{name} or a part of it is longer than the file system allows; use a shorter path"
            ),
        ),
        Some(Errno::INVAL | Errno::ILSEQ) => (
            ProblemKind::InvalidRequest,
            format!("the file system does not allow this for {name}; use another path"),
        ),
        _ if is_no_room(error) => return no_room(path, None),
        Some(Errno::NXIO | Errno::NODEV | Errno::AGAIN | Errno::TXTBSY) => (
            ProblemKind::Conflict,
            format!("{name} can't be used at present: {error}; try again, or use another path"),
        ),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => (
            ProblemKind::SandboxFailed,
            format!(
                "the sandbox has too little memory or too many open files for {name}; end some of its commands and try again"
            ),
        ),
        _ => (
            ProblemKind::SandboxFailed,
            format!("{name}: {error}; try again, or use another path"),
        ),
    };
    Problem::new(kind, detail)
}

/// Whether a file system had no room.
pub(super) fn is_no_room(error: &io::Error) -> bool {
    matches!(
        errno(error),
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG)
    )
}

/// The system's error. One that names the path of a temporary file has only its kind.
fn errno(error: &io::Error) -> Option<Errno> {
    let of_kind = || match error.kind() {
        io::ErrorKind::PermissionDenied => Some(Errno::ACCESS),
        io::ErrorKind::NotFound => Some(Errno::NOENT),
        io::ErrorKind::NotADirectory => Some(Errno::NOTDIR),
        io::ErrorKind::ReadOnlyFilesystem => Some(Errno::ROFS),
        io::ErrorKind::StorageFull => Some(Errno::NOSPC),
        io::ErrorKind::QuotaExceeded => Some(Errno::DQUOT),
        io::ErrorKind::FileTooLarge => Some(Errno::FBIG),
        io::ErrorKind::OutOfMemory => Some(Errno::NOMEM),
        _ => None,
    };
    let known = error.raw_os_error().map(Errno::from_raw_os_error);
    known.or_else(of_kind)
}

/// Problem of a file system without room: how much is used, and how much is needed where that is known.
pub(super) fn no_room(path: &Path, needed: Option<u64>) -> Problem {
    let space = path.ancestors().find_map(|path| DiskSpace::at(path).ok());
    let needed = needed.map_or(String::new(), |bytes| {
        format!(", and {} are needed", mebibytes(bytes))
    });
    let state = match space {
        Some(DiskSpace {
            inodes: Some(inodes),
            ..
        }) if inodes.free == 0 => format!("all of its {} files are in use", inodes.total),
        Some(space) => {
            let used = space.bytes.total.saturating_sub(space.bytes.free);
            let [used, total] = [used, space.bytes.total].map(mebibytes);
            format!("{used} of its {total} are in use{needed}")
        }
        None => format!("its space is used up{needed}"),
    };
    let name = name(path);
    Problem::new(
        ProblemKind::InsufficientStorage,
        format!(
            "the file system of {name} has no room: {state}; delete files, or use a sandbox with more space"
        ),
    )
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Fails for anything but a regular file: reading or replacing it would block, or do more than that.
pub(super) fn check_regular(path: &Path, file_type: FileType) -> Result<(), Problem> {
    if file_type.is_file() {
        return Ok(());
    }
    let name = name(path);
    let detail = if file_type.is_dir() {
        format!(
            "{name} is a directory; list it with files:list, or read and write all of it with archive"
        )
    } else {
        let kind = kind_text(file_type);
        format!("{name} is a {kind}; only regular files can be read and written")
    };
    Err(Problem::new(ProblemKind::Conflict, detail))
}

fn kind_text(file_type: FileType) -> &'static str {
    if file_type.is_fifo() {
        "FIFO"
    } else if file_type.is_socket() {
        "socket"
    } else if file_type.is_symlink() {
        "link"
    } else {
        "device"
    }
}
