//! Scripts that are too long for an argument.
//!
//! The kernel takes no argument beyond 128 KiB, and a script may have twice that. So `/bin/sh -c SCRIPT` with a long
//! script becomes a shell that reads it from a file without a name: `/bin/sh -c '. /proc/self/fd/N'`. The script doesn't
//! notice: `$0` and `$#` are the same, and `exit` ends the shell.

use std::{
    ffi::{CStr, OsStr, OsString},
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
};

/// First words of a command whose next and last argument is a script.
const SHELL_PREFIX: [&str; 2] = ["/bin/sh", "-c"];
/// Longest argument that the kernel takes, in bytes without the NUL (execve(2), MAX_ARG_STRLEN).
const MAX_ARGUMENT_BYTES: usize = 128 * 1024 - 1;
const FILE_NAME: &CStr = c"script";
/// Lowest descriptor of the file, above those that scripts redirect by number.
const MIN_DESCRIPTOR: RawFd = 100;

/// Command that reads its script from a file, which has to stay open until the command is started.
pub(super) struct ScriptInFile {
    pub(super) command: [OsString; 3],
    _file: OwnedFd,
}

/// Command to run in place of this one; `None` where the kernel takes it as it is.
pub(super) fn via_file(command: &[OsString]) -> io::Result<Option<ScriptInFile>> {
    let [shell, option, script] = command else {
        return Ok(None);
    };
    let is_shell = [shell, option].map(|word| word.as_os_str()) == SHELL_PREFIX.map(OsStr::new);
    if !is_shell || script.len() <= MAX_ARGUMENT_BYTES {
        return Ok(None);
    }
    let mut file = File::from(memory_file()?);
    file.write_all(script.as_bytes())?;
    let file = inheritable(&file)?;
    let source = format!(". /proc/self/fd/{}", file.as_raw_fd());
    Ok(Some(ScriptInFile {
        command: [shell.clone(), option.clone(), source.into()],
        _file: file,
    }))
}

/// File in memory alone. It is never executed itself, which some hosts require to be declared, and kernels before 6.3
/// don't know.
fn memory_file() -> io::Result<OwnedFd> {
    for flags in [libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL, libc::MFD_CLOEXEC] {
        // SAFETY: the name ends with a NUL, and outlives the call.
        let file = unsafe { libc::memfd_create(FILE_NAME.as_ptr(), flags) };
        if file >= 0 {
            // SAFETY: it was opened just now, and nothing else uses it.
            return Ok(unsafe { OwnedFd::from_raw_fd(file) });
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Err(io::ErrorKind::Unsupported.into())
}

/// Copy of a file's descriptor that the command inherits.
fn inheritable(file: &File) -> io::Result<OwnedFd> {
    // SAFETY: plain system call without pointers, on a descriptor that is open.
    let copy = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, MIN_DESCRIPTOR) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was made just now, and nothing else uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(shell: &str, option: &str, length: usize) -> Vec<OsString> {
        vec![shell.into(), option.into(), "x".repeat(length).into()]
    }

    #[test]
    fn only_long_script_becomes_file() {
        let long = MAX_ARGUMENT_BYTES + 1;
        for (command, is_file) in [
            (command("/bin/sh", "-c", long), true),
            (command("/bin/sh", "-c", long - 1), false),
            (command("/bin/bash", "-c", long), false),
            (command("/bin/sh", "-x", long), false),
            (vec!["true".into()], false),
        ] {
            assert_eq!(via_file(&command).unwrap().is_some(), is_file);
        }
    }
}
