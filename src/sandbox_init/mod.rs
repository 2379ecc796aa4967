//! PID 1 inside a sandbox: starts the command, reaps, and reports how it ended.
//!
//! Init is our own static binary, mounted read-only into every sandbox and started as its entrypoint. Podman's
//! argument list and environment never hold the command: it comes over a socket that the shim opened, and the reports
//! go back the same way ([`wire`]).
//!
//! ```text
//! shim ──── hello ──── socket (3) ─▶                         init
//!      ◀─── ready, with the root's upper directory; or refused, and the end
//!      ──── run ───────────▶
//!      ◀─── started ───────
//!      ◀─── pipes (4, 5) ── the command's stdout and stderr
//!      ──── stdin ─────────▶ into a pipe of init's; reports what it took
//!      ──── signal ────────▶ to the command's process group
//!      ◀─── out of memory, where the kernel killed a process for that
//!      ◀─── ended: exited, killed or not started
//!      ──── kill, or end of file ─▶ init kills all
//! ```
//!
//! Guarantees for the shim:
//! - The end is reported only after every process of the sandbox but init is dead. All that was ever printed is in
//!   the pipes then, also when a process outside of the sandbox still holds them open.
//! - When the shim dies, the socket closes and the sandbox ends. None is left behind.
//!
//! Init kills every process that it can see, and as root it may kill any. So it does nothing at all unless it is PID 1
//! of a PID namespace that isn't the node's. In its own PID namespace it always is PID 1, and in the node's it never
//! is, not even when the node itself is PID 1 of a container: that number is taken then. The hello names the node's
//! namespace besides, so that no runtime's arithmetic of process ids has to be trusted; nothing else is done before it
//! was read.
//!
//! A job can't forge its own end: it never holds the socket (close-on-exec), and can't take it from `/proc/1/fd` or
//! by ptrace, since init is not dumpable and the job has no capabilities.
//!
//! std and libc only; a job controls no allocation of init's but that of the request itself.

#![cfg(target_os = "linux")]
#![allow(
    unsafe_code,
    reason = "PID 1 speaks to the kernel; each use says why it is sound"
)]

mod control;
pub mod inference;
mod oom;
mod script;
pub mod seccomp;
pub mod view;
pub mod wire;

use std::{
    io::{self, Write as _},
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Command, Stdio, exit},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
};
use view::View;
use wire::{ExecEnd, ExecNumber, ExecSpec, Hello, InitRefusal, InitRequest, Report};

/// Argument by which the binary knows that it is init.
pub const ARGUMENT: &str = "__sandbox-init";
/// Path of init inside a sandbox.
pub const PATH: &str = "/.cynode-init";
/// Variable that says which devices NVIDIA's hook passes to a container. Every container has it, so that no image can
/// ask for some; a command has it only where its job says so.
pub const GPU_HOOK_VARIABLE: &str = "NVIDIA_VISIBLE_DEVICES";
/// Working directory inside a sandbox.
pub const WORKSPACE: &str = "/workspace";

const CONTROL: RawFd = 3;
const STDOUT: RawFd = 4;
const STDERR: RawFd = 5;
/// Number of descriptors that podman hands through to every init, from 3 on; one more for [`inference`].
pub const DESCRIPTORS: i32 = 3;

/// Process id of the command, for the signal handler; 0 while there is none.
static COMMAND: AtomicI32 = AtomicI32::new(0);
/// Whether all processes are to be killed.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Sender of reports, which two threads share.
struct Reporter(Mutex<UnixStream>);

impl Reporter {
    fn send(&self, exec: ExecNumber, report: &Report) -> io::Result<()> {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        socket.write_all(&report.encode(exec))
    }
}

/// Runs as init and never returns. A failure that can't be reported shows as exit code 70.
pub fn main() -> ! {
    let done = run();
    exit(if done.is_ok() { 0 } else { 70 })
}

fn run() -> io::Result<()> {
    // SAFETY: plain system call without pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    let mut control = UnixStream::from(take_descriptor(CONTROL)?);
    let (stdout, stderr) = (take_descriptor(STDOUT)?, take_descriptor(STDERR)?);
    let reporter = Reporter(Mutex::new(control.try_clone()?));
    if let Some(refusal) = check_isolation(&mut control)? {
        return reporter.send(ExecNumber::SANDBOX, &Report::Refused(refusal));
    }
    let upper = view::upper_directory().unwrap_or_default().into_bytes();
    reporter.send(ExecNumber::SANDBOX, &Report::Ready { upper })?;
    let Some((exec, spec)) = receive_exec(&mut control, &reporter)? else {
        return Ok(());
    };
    // Before the command, which could take their addresses.
    let opened = if spec.has_inference {
        inference::open()
    } else {
        Ok(())
    };
    forward_signals();
    let reporter = Arc::new(reporter);
    // The threads begin before the command, which could use up all processes that are allowed.
    let (sender, stdin) = if spec.has_stdin {
        let (sender, stdin) = control::open_stdin(exec, &reporter)?;
        (Some(sender), stdin.into())
    } else {
        (None, Stdio::null())
    };
    control::serve(control, exec, sender, Arc::clone(&reporter));
    let kills_before = oom::kills();
    let mut error_output = std::fs::File::from(stderr.try_clone()?);
    let started = match opened {
        Ok(()) => start(&spec, [stdin, stdout.into(), stderr.into()])?,
        Err(error) => Err(io::Error::other(format!(
            "no listener for calls of models: {error}"
        ))),
    };
    let end = match started {
        Ok(pid) => {
            drop(error_output);
            COMMAND.store(pid, Ordering::SeqCst);
            reporter.send(exec, &Report::Started)?;
            if ENDING.load(Ordering::SeqCst) {
                kill_all();
            }
            let status = wait_for(pid)?;
            // No signal is for it from now on: the number may become another process's.
            COMMAND.store(0, Ordering::SeqCst);
            kill_and_reap_all();
            end_of(status)
        }
        Err(error) => {
            let end = not_started(&mut error_output, &spec, &error);
            reporter.send(exec, &Report::Started)?;
            end
        }
    };
    if oom::kills() > kills_before {
        reporter.send(ExecNumber::SANDBOX, &Report::OomKilled)?;
    }
    reporter.send(exec, &Report::Ended(end))
}

/// Starts the command; its process id, or the error with which the system refused it.
fn start(
    spec: &ExecSpec,
    [stdin, stdout, stderr]: [Stdio; 3],
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
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .current_dir(WORKSPACE)
        .stdin(stdin)
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
    Ok(command.spawn().map(|child| child.id().cast_signed()))
}

fn end_of(status: libc::c_int) -> ExecEnd {
    if libc::WIFSIGNALED(status) {
        ExecEnd::Killed(libc::WTERMSIG(status))
    } else {
        ExecEnd::Exited(libc::WEXITSTATUS(status))
    }
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

/// Reason for which nothing must be done here.
fn check_isolation(control: &mut UnixStream) -> io::Result<Option<InitRefusal>> {
    if std::process::id() != 1 {
        return Ok(Some(InitRefusal::SharedNamespace));
    }
    let hello = Hello::read(control)?;
    if view::pid_namespace()? == hello.pid_namespace {
        return Ok(Some(InitRefusal::SharedNamespace));
    }
    if hello.version != wire::VERSION {
        return Ok(Some(InitRefusal::UnsupportedVersion));
    }
    // A runtime follows an image's links when it mounts, and hides what they point to.
    let is_in_place = is_dir(WORKSPACE) && !std::fs::symlink_metadata(PATH)?.is_symlink();
    Ok((!is_in_place).then_some(InitRefusal::PathIsLink))
}

/// Whether there is a directory, and not a link to one.
fn is_dir(path: &str) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// Waits for a command to run, and answers requests before it; `None` where init is to end without one.
fn receive_exec(
    control: &mut UnixStream,
    reporter: &Reporter,
) -> io::Result<Option<(ExecNumber, ExecSpec)>> {
    loop {
        match InitRequest::read(control)? {
            (exec, InitRequest::Run(spec)) => return Ok(Some((exec, spec))),
            (_, InitRequest::Kill) => return Ok(None),
            (exec, InitRequest::Inspect) => {
                let view = View::capture().encode().into_bytes();
                reporter.send(exec, &Report::View(view))?;
            }
            // Without a command there is none to feed or to signal.
            (exec, other) => {
                reporter.send(exec, &Report::Unsupported(other.kind()))?;
            }
        }
    }
}

/// End of a command whose program could not be started. Says in its stderr, as a shell would, what is wrong.
fn not_started(error_output: &mut std::fs::File, spec: &ExecSpec, error: &io::Error) -> ExecEnd {
    let (end, reason) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => {
            (ExecEnd::Exited(127), "not found in the image".to_owned())
        }
        Some(
            libc::E2BIG | libc::EACCES | libc::ENOEXEC | libc::EISDIR | libc::ELOOP | libc::ETXTBSY,
        ) => (ExecEnd::Exited(126), error.to_string()),
        errno => (ExecEnd::NotStarted(errno.unwrap_or(0)), error.to_string()),
    };
    let program = spec.command.first().map(|program| program.display());
    if let Some(program) = program {
        // When the shim doesn't read, the report fails too.
        let _ = writeln!(error_output, "cynode: {program}: {reason}");
    }
    end
}

/// Takes over a descriptor that was handed through, and keeps it from the command.
fn take_descriptor(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain system call without pointers; a descriptor that isn't open gives an error.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nothing else in this process uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forwards signals that reach PID 1 to the command; without a handler the kernel would drop them.
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

/// Reaps processes until the command has ended; its wait status.
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

/// Kills every process of the sandbox but init.
fn kill_all() {
    // SAFETY: plain system call; -1 is all of this PID namespace but the caller, which is its init, as
    // `check_isolation` has found.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Kills and reaps until no process is left.
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
