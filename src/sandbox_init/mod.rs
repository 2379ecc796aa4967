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
//!      ──── run, with pipes ─▶ another command beside it: [execs]
//!      ◀─── out of memory, where the kernel killed a process for that
//!      ◀─── ended: exited, killed or not started
//!      ──── kill, or end of file ─▶ init kills all
//! ```
//!
//! A sandbox that stays has no command at first, and runs others until it is killed. Every command but the first has a
//! [keeper], which ends what it has left; the first needs none, since all ends with it.
//!
//! Guarantees for the shim:
//! - The end of the first is reported only after every process of the sandbox but init is dead. All that was ever printed is in
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

pub mod authority;
mod channel;
mod command;
mod control;
mod execs;
mod keeper;
pub mod listeners;
mod oom;
mod script;
pub mod seccomp;
mod terminal;
pub mod view;
pub mod wire;

use channel::Channel;
use command::Leader;
use control::Requests;
use execs::Execs;
use std::{
    io::{self, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    process::{Stdio, exit},
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
/// Number of descriptors that podman hands through to every init, from 3 on; one more for [`listeners`].
pub const DESCRIPTORS: i32 = 3;

/// Process id of the command, for the signal handler; 0 while there is none.
static COMMAND: AtomicI32 = AtomicI32::new(0);
/// Whether all processes are to be killed.
static ENDING: AtomicBool = AtomicBool::new(false);
/// Whether a sandbox without a command of its own is to end as soon as it runs nothing.
static TERMINATING: AtomicBool = AtomicBool::new(false);

/// Sender of reports, which several threads share.
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
    let mut channel = Channel::new(take_descriptor(CONTROL)?);
    let output = [take_descriptor(STDOUT)?, take_descriptor(STDERR)?];
    let reporter = Reporter(Mutex::new(channel.sender()?));
    if let Some(refusal) = check_isolation(&mut channel)? {
        return reporter.send(ExecNumber::SANDBOX, &Report::Refused(refusal));
    }
    let upper = view::upper_directory().unwrap_or_default().into_bytes();
    reporter.send(ExecNumber::SANDBOX, &Report::Ready { upper })?;
    let Some((first, spec)) = receive_exec(&mut channel, &reporter)? else {
        return Ok(());
    };
    // Before the command, which could take their addresses.
    let opened = listeners::open(&spec)
        .map_err(|error| io::Error::other(format!("no listener for models or the proxy: {error}")));
    let opened = opened.and_then(|()| authority::place(&spec.authority));
    forward_signals();
    let reporter = Arc::new(reporter);
    let execs = Arc::new(Execs::new(Arc::clone(&reporter)));
    // The threads begin before the command, which could use up all processes that are allowed.
    let (sender, stdin) = if spec.has_stdin {
        let (sender, stdin) = control::open_stdin(first, &reporter)?;
        (Some(sender), stdin.into())
    } else {
        (None, Stdio::null())
    };
    Requests::new((first, spec.command.is_empty()), sender, &execs, &reporter).serve(channel);
    let kills_before = oom::kills();
    let end = match opened {
        Ok(()) if spec.command.is_empty() => stay(first, &execs, &reporter)?,
        opened => run_first(first, (&spec, stdin, output), opened, &execs, &reporter)?,
    };
    execs.report_killed()?;
    if oom::kills() > kills_before {
        reporter.send(ExecNumber::SANDBOX, &Report::OomKilled)?;
    }
    reporter.send(first, &Report::Ended(end))
}

/// Runs the first command, with which the sandbox ends; its end.
fn run_first(
    first: ExecNumber,
    (spec, stdin, [stdout, stderr]): (&ExecSpec, Stdio, [OwnedFd; 2]),
    opened: io::Result<()>,
    execs: &Execs,
    reporter: &Reporter,
) -> io::Result<ExecEnd> {
    let mut errors = std::fs::File::from(stderr.try_clone()?);
    let started = match opened {
        Ok(()) => {
            let streams = [stdin, stdout.into(), stderr.into()];
            command::start(spec, streams, Leader::Command)?
        }
        Err(error) => Err(error),
    };
    let pid = match started {
        Ok(pid) => pid,
        Err(error) => {
            let end = command::not_started(&mut errors, spec, &error);
            reporter.send(first, &Report::Started)?;
            return Ok(end);
        }
    };
    drop(errors);
    COMMAND.store(pid, Ordering::SeqCst);
    reporter.send(first, &Report::Started)?;
    if ENDING.load(Ordering::SeqCst) {
        kill_all();
    }
    let status = loop {
        let ended = next_ended()?.ok_or(io::ErrorKind::NotFound)?;
        let status = execs.reap(ended)?;
        if ended == pid {
            break status;
        }
    };
    // No signal is for it from now on: the number may become another process's.
    COMMAND.store(0, Ordering::SeqCst);
    kill_and_reap_all();
    Ok(command::end_of(status))
}

/// Keeps a sandbox without a command of its own, until it is killed, or has been asked to end and runs nothing.
fn stay(first: ExecNumber, execs: &Execs, reporter: &Reporter) -> io::Result<ExecEnd> {
    reporter.send(first, &Report::Started)?;
    let is_ending = || ENDING.load(Ordering::SeqCst);
    let is_over = || is_ending() || TERMINATING.load(Ordering::SeqCst);
    while !(is_ending() || is_over() && execs.is_empty()) {
        match next_ended()? {
            Some(ended) => {
                execs.reap(ended)?;
            }
            None => execs.wait_for_start(is_over),
        }
    }
    kill_and_reap_all();
    Ok(ExecEnd::Killed(libc::SIGKILL))
}

/// Reason for which nothing must be done here.
fn check_isolation(control: &mut impl io::Read) -> io::Result<Option<InitRefusal>> {
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
    control: &mut Channel,
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

/// Waits until a child has ended, which stays to be reaped; `None` where there is no child.
fn next_ended() -> io::Result<Option<libc::pid_t>> {
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let flags = libc::WEXITED | libc::WNOWAIT;
        // SAFETY: `info` outlives the call, and zeros are a valid value of it.
        let (result, pid) = unsafe {
            let result = libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags);
            (result, info.assume_init_ref().si_pid())
        };
        if result == 0 {
            return Ok(Some(pid));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECHILD) => return Ok(None),
            Some(libc::EINTR) => {}
            _ => return Err(error),
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
