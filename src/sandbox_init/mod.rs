//! PID 1 inside a sandbox: starts the command, reaps, and tells how it ended.
//!
//! Our own static binary, mounted read-only into every sandbox and started as its
//! entrypoint. Podman's argument list and environment never hold the command: it comes
//! over a socket that the shim opened, and so does the answer go back.
//!
//! ```text
//! shim ──── greeting ─ socket (3) ─▶                         init
//!      ◀─── Ready with the root's upper directory, or InitRefusal and the end
//!      ──── request ───────▶
//!      ◀─── Started ───────
//!      ◀─── pipes (4, 5) ── the command's stdout and stderr
//!      ◀─── Exited / Killed / NotStarted
//!      ──── a byte, or end of file ─▶ kill everything
//! ```
//!
//! What the shim can rely on:
//! - The last report is sent only after every process of the sandbox but init is dead. All
//!   that was ever printed is in the pipes then, also when somebody else still holds them open.
//! - When the shim dies, the socket closes and the sandbox ends. None is left behind.
//!
//! Init ends all processes that it can see, and as root it may do so with any. So it does nothing at all
//! unless it is alone: PID 1 of a PID namespace that isn't the node's. In its own PID namespace it always
//! is PID 1, and in the node's it never is, not even when the node itself is PID 1 of a container: that
//! number is taken then. The node's greeting names its namespace besides, so that no runtime's
//! arithmetic of process ids has to be trusted; nothing else is done before it was read.
//!
//! What the job can't do: it never holds the socket (close-on-exec), and can't take it from
//! `/proc/1/fd` or by ptrace, since init is not dumpable and the job has no capabilities. So it
//! can't forge its own end.
//!
//! std and libc only; no allocation that a job controls but the request itself.

#![cfg(target_os = "linux")]
#![allow(
    unsafe_code,
    reason = "PID 1 speaks to the kernel; each use says why it is sound"
)]

mod script;
pub mod seccomp;
pub mod view;
pub mod wire;

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Command, Stdio, exit},
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};
use view::View;
use wire::{ExecSpec, Hello, InitRefusal, InitRequest, Report};

/// The argument by which the binary knows that it is init.
pub const ARGUMENT: &str = "__sandbox-init";
/// Where init stands inside a sandbox.
pub const PATH: &str = "/.cynode-init";
/// The working directory inside a sandbox.
pub const WORKSPACE: &str = "/workspace";

const CONTROL: RawFd = 3;
const STDOUT: RawFd = 4;
const STDERR: RawFd = 5;
/// How many descriptors podman is to hand through, from 3 on.
pub const DESCRIPTORS: i32 = 3;

/// The command's process id, for the signal handler; 0 while there is none.
static COMMAND: AtomicI32 = AtomicI32::new(0);
/// Set once everything is to be killed.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Runs as init and never returns. Trouble that the node can't be told shows as exit code 70.
pub fn main() -> ! {
    let done = run();
    exit(if done.is_ok() { 0 } else { 70 })
}

fn run() -> io::Result<()> {
    // SAFETY: plain system call without pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    let mut control = UnixStream::from(take_descriptor(CONTROL)?);
    let (stdout, stderr) = (take_descriptor(STDOUT)?, take_descriptor(STDERR)?);
    if let Some(unfit) = check_isolation(&mut control)? {
        return control.write_all(&Report::Refused(unfit).encode());
    }
    let upper = view::upper_directory().unwrap_or_default();
    let length = u16::try_from(upper.len()).map_err(io::Error::other)?;
    control.write_all(&Report::Ready(length).encode())?;
    control.write_all(upper.as_bytes())?;
    let request = receive_exec(&mut control)?;
    forward_signals();
    // Before the command, which could use up all that is allowed of processes.
    kill_on_request(control.try_clone()?);

    let from_file = script::via_file(&request.command)?;
    let command_line = from_file
        .as_ref()
        .map_or(&request.command[..], |script| &script.command);
    let (program, arguments) = command_line
        .split_first()
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut error_output = std::fs::File::from(stderr.try_clone()?);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(request.env.iter().map(|(name, value)| (name, value)))
        .current_dir(WORKSPACE)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr);
    let filter = seccomp::filter(&own_threads()?);
    // SAFETY: between fork and exec there are only system calls, and what they need exists already.
    unsafe {
        command.pre_exec(move || {
            // Out of init's session: a command in its process group could change what holds for the group.
            if libc::setsid() == -1 {
                return Err(io::Error::last_os_error());
            }
            seccomp::apply(&filter)
        });
    }
    let spawned = command.spawn();
    // It holds copies of the pipes.
    drop(command);
    let child = match spawned {
        Ok(child) => child,
        Err(error) => return report_not_started(&mut control, &mut error_output, program, &error),
    };
    drop(error_output);
    let pid = child.id().cast_signed();
    COMMAND.store(pid, Ordering::SeqCst);
    control.write_all(&Report::Started.encode())?;

    if ENDING.load(Ordering::SeqCst) {
        kill_all();
    }
    let status = wait_for(pid)?;
    kill_and_reap_all();
    let report = if libc::WIFSIGNALED(status) {
        Report::Killed(libc::WTERMSIG(status))
    } else {
        Report::Exited(libc::WEXITSTATUS(status))
    };
    control.write_all(&report.encode())
}

/// The ids of all threads of init, which a command must not reach.
fn own_threads() -> io::Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc/self/task")?;
    let id = |entry: io::Result<std::fs::DirEntry>| {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        id.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    entries.map(id).collect()
}

/// Why nothing must be done here.
fn check_isolation(control: &mut UnixStream) -> io::Result<Option<InitRefusal>> {
    if std::process::id() != 1 {
        return Ok(Some(InitRefusal::SharedNamespace));
    }
    let greeting = Hello::read(control)?;
    if view::pid_namespace()? == greeting.pid_namespace {
        return Ok(Some(InitRefusal::SharedNamespace));
    }
    // A runtime follows an image's links when it mounts. Whatever such a link points to is hidden then.
    let is_in_place = is_dir(WORKSPACE) && !std::fs::symlink_metadata(PATH)?.is_symlink();
    Ok((!is_in_place).then_some(InitRefusal::PathIsLink))
}

/// Whether there is a directory, and not a link to one.
fn is_dir(path: &str) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// What is to be run; before, what is asked about the sandbox is answered.
fn receive_exec(control: &mut UnixStream) -> io::Result<ExecSpec> {
    loop {
        match InitRequest::read(control)? {
            InitRequest::Run(request) => return Ok(request),
            InitRequest::Inspect => {
                let view = View::capture().encode();
                let length = u32::try_from(view.len()).map_err(io::Error::other)?;
                control.write_all(&length.to_le_bytes())?;
                control.write_all(view.as_bytes())?;
            }
        }
    }
}

/// Kills everything on order: any byte is one, and so is the end of the one who could give it.
fn kill_on_request(mut orders: UnixStream) {
    std::thread::spawn(move || {
        let _ = orders.read(&mut [0]);
        ENDING.store(true, Ordering::SeqCst);
        kill_all();
    });
}

/// Says in the job's stderr, as a shell would, what is wrong with the program.
fn report_not_started(
    control: &mut UnixStream,
    error_output: &mut std::fs::File,
    program: &std::ffi::OsStr,
    error: &io::Error,
) -> io::Result<()> {
    let report = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Report::Exited(127),
        Some(
            libc::E2BIG | libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::ELOOP | libc::ETXTBSY,
        ) => Report::Exited(126),
        errno => Report::NotStarted(errno.unwrap_or(0)),
    };
    let reason = if report == Report::Exited(127) {
        "not found in the image".to_owned()
    } else {
        error.to_string()
    };
    // When the node doesn't read, the report below fails too.
    let _ = writeln!(error_output, "cynode: {}: {reason}", program.display());
    control.write_all(&Report::Started.encode())?;
    control.write_all(&report.encode())
}

/// Takes over a descriptor that was handed through, and keeps it from the command.
fn take_descriptor(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain system call without pointers; a descriptor that isn't open gives an error.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nobody else in this process knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Signals that reach PID 1 go on to the command; without a handler the kernel would drop them.
fn forward_signals() {
    extern "C" fn forward(signal: libc::c_int) {
        let pid = COMMAND.load(Ordering::SeqCst);
        if pid > 0 {
            // SAFETY: kill is async-signal-safe.
            unsafe { libc::kill(pid, signal) };
        }
    }
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ] {
        // SAFETY: the handler only loads an atomic and calls kill; exec resets it in the command.
        unsafe { libc::signal(signal, forward as *const () as libc::sighandler_t) };
    }
}

/// Reaps whoever ends until the command does; its wait status.
fn wait_for(pid: libc::pid_t) -> io::Result<libc::c_int> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if ended == pid {
            return Ok(status);
        }
        if ended == -1 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return Err(io::Error::last_os_error());
        }
    }
}

/// Everybody in the sandbox but init.
fn kill_all() {
    // SAFETY: plain system call; -1 is all of this PID namespace but the caller, which is its init: `check_isolation`
    // has seen to that.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Kills and reaps until nobody is left.
fn kill_and_reap_all() {
    loop {
        kill_all();
        // SAFETY: a null status pointer is allowed.
        let ended = unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
        if ended == -1 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}
