//! Start of a command in the sandbox: its arguments, environment, directory and streams, and the filter of its calls.

use super::{
    GPU_HOOK_VARIABLE, WORKSPACE, is_dir, keeper, listeners, script, seccomp, terminal,
    wire::{ExecEnd, ExecSpec},
};
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Process that init starts for a command.
#[derive(Clone, Copy)]
pub(super) enum Leader {
    /// The command itself: the first one, with which all others end.
    Command,
    /// A [keeper], of which the command is the child.
    Keeper {
        has_terminal: bool,
        is_detached: bool,
    },
}

/// Starts a command; the id of the process that was started, or the error with which the system refused it. Fails
/// where init itself can't go on.
pub(super) fn start(
    spec: &ExecSpec,
    [stdin, stdout, stderr]: [Stdio; 3],
    leader: Leader,
) -> io::Result<Result<libc::pid_t, io::Error>> {
    let from_file = script::via_file(&spec.command)?;
    let command_line = from_file
        .as_ref()
        .map_or(&spec.command[..], |script| &script.command);
    let (program, arguments) = command_line
        .split_first()
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        // Set for hooks of the host, and not for the command.
        .env_remove(GPU_HOOK_VARIABLE)
        .envs(
            spec.env
                .iter()
                .map(|(name, value)| (name, listeners::beside_images(name, value))),
        )
        .current_dir(directory(spec))
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    let filter = seccomp::filter(&own_threads()?);
    // SAFETY: between fork and exec there are only system calls, and what they need exists already.
    unsafe {
        command.pre_exec(move || {
            let mut has_terminal = false;
            if let Leader::Keeper {
                has_terminal: wanted,
                is_detached,
            } = leader
            {
                keeper::split(is_detached)?;
                has_terminal = wanted;
            }
            // Out of init's session: a command in its process group could change what holds for the group.
            if libc::setsid() == -1 {
                return Err(io::Error::last_os_error());
            }
            if has_terminal {
                terminal::take_control()?;
            }
            seccomp::apply(&filter)
        });
    }
    Ok(command.spawn().map(|child| child.id().cast_signed()))
}

fn directory(spec: &ExecSpec) -> PathBuf {
    Path::new(WORKSPACE).join(&spec.cwd)
}

/// Ids of all threads of init, which a command must not reach.
fn own_threads() -> io::Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc/self/task")?;
    let id = |entry: io::Result<std::fs::DirEntry>| {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        id.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    entries.map(id).collect()
}

/// End of a command by its wait status.
pub(super) fn end_of(status: libc::c_int) -> ExecEnd {
    if libc::WIFSIGNALED(status) {
        ExecEnd::Killed(libc::WTERMSIG(status))
    } else {
        ExecEnd::Exited(libc::WEXITSTATUS(status))
    }
}

/// End of a command whose program could not be started. Says in its stderr, as a shell would, what is wrong.
pub(super) fn not_started(errors: &mut File, spec: &ExecSpec, error: &io::Error) -> ExecEnd {
    let directory = directory(spec);
    let is_misplaced = directory.to_str().is_some_and(|path| !is_dir(path));
    let (end, reason) = match error.raw_os_error() {
        Some(_) if is_misplaced && !spec.cwd.is_empty() => (
            ExecEnd::Exited(126),
            "there is no such directory".to_owned(),
        ),
        Some(libc::ENOENT | libc::ENOTDIR) => {
            (ExecEnd::Exited(127), "not found in the image".to_owned())
        }
        Some(
            libc::E2BIG | libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::ELOOP | libc::ETXTBSY,
        ) => (ExecEnd::Exited(126), error.to_string()),
        errno => (ExecEnd::NotStarted(errno.unwrap_or(0)), error.to_string()),
    };
    let subject = match end {
        ExecEnd::Exited(126) if is_misplaced => Some(directory.as_os_str()),
        _ => spec.command.first().map(|program| -> &OsStr { program }),
    };
    if let Some(subject) = subject {
        // When the shim doesn't read, the report fails too.
        let _ = writeln!(errors, "cynode: {}: {reason}", subject.display());
    }
    end
}
