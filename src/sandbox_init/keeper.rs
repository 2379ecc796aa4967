//! Keeper of an exec: the process between init and a command, which knows what the command has started.
//!
//! ```text
//! init (PID 1) ──▶ keeper ──▶ command ──▶ …
//! ```
//!
//! All that a command starts stays below its keeper, also what it has orphaned: the keeper is a subreaper (prctl(2)). So
//! when the command has ended, the keeper kills the rest of its tree and nothing else, and ends as the command did:
//! with its exit code, or by its signal.
//!
//! The keeper is a fork of init that executes nothing. Between the fork and its end it makes system calls only, since
//! other threads of init may have held any lock. It is not dumpable, as init is not, and blocks all signals but three: the one
//! of ended children, and those of [`request_signal`], by which init has it send a signal to the command. Since the keeper
//! alone reaps the command, that signal never reaches a process that has got its number.
//!
//! A command may kill its keeper, since both have one user. Its tree falls to init then and lives until the sandbox ends,
//! and the exec counts as killed. That harms only the user of the sandbox.

use std::{io, mem::MaybeUninit, ptr};

/// Longest time for which a keeper kills what a command has left, in rounds of [`SWEEP_PAUSE_MS`].
const MAX_SWEEPS: u32 = 500;
const SWEEP_PAUSE_MS: libc::c_int = 10;

/// Signal by which init asks a keeper to send another one, whose number comes with it.
fn request() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Signal by which init asks for KILL where that one can't be queued.
const KILL_REQUEST: libc::c_int = libc::SIGUSR1;

/// Has a keeper send a signal to the process group of its command, unless that has ended.
pub(super) fn request_signal(keeper: libc::pid_t, signal: i32) {
    let value = libc::sigval {
        sival_ptr: ptr::without_provenance_mut(signal.cast_unsigned() as usize),
    };
    // SAFETY: plain system calls; the keeper takes the pointer for the number that it is, and was not reaped yet.
    unsafe {
        let queued = libc::sigqueue(keeper, request(), value);
        if queued == -1 && signal == libc::SIGKILL {
            // The command has used up what its user may queue; a standard signal is never refused.
            libc::kill(keeper, KILL_REQUEST);
        }
        // The command may have stopped it.
        libc::kill(keeper, libc::SIGCONT);
    }
}

/// Splits the calling process, a fork of init, into a keeper, which never returns, and its child, which is to become the
/// command. Only async-signal-safe calls.
pub(super) fn split(is_detached: bool) -> io::Result<()> {
    let mut blocked = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: system calls on sets that outlive them; `before` is written before it is read.
    unsafe {
        if libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) == -1 {
            return Err(io::Error::last_os_error());
        }
        // Before the fork, so that no end is missed.
        libc::sigfillset(blocked.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, blocked.as_ptr(), before.as_mut_ptr());
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
                Ok(())
            }
            command => keep(command, is_detached),
        }
    }
}

/// Waits for the end of the command, ends what it has left, and ends as it did.
fn keep(command: libc::pid_t, is_detached: bool) -> ! {
    close_all();
    let status = wait_for(command);
    if !is_detached {
        sweep();
    }
    end_as(status)
}

/// Closes every descriptor: the command's streams end with it, and the parent sees that it was executed.
fn close_all() {
    // SAFETY: plain system calls; this process uses no descriptor any more.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) == -1 {
            // Linux before 5.9.
            for fd in 0..libc::sysconf(libc::_SC_OPEN_MAX).clamp(0, 1 << 16) {
                libc::close(fd as libc::c_int);
            }
        }
    }
}

/// Reaps until the command has ended, and passes signals on to its group; its wait status.
fn wait_for(command: libc::pid_t) -> libc::c_int {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            0 => {}
            -1 => return 0,
            ended if ended == command => return status,
            _ => continue,
        }
        let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
        let mut wanted = MaybeUninit::uninit();
        // SAFETY: system calls on values that outlive them; `info` is read only where it was written.
        unsafe {
            libc::sigemptyset(wanted.as_mut_ptr());
            libc::sigaddset(wanted.as_mut_ptr(), libc::SIGCHLD);
            libc::sigaddset(wanted.as_mut_ptr(), request());
            libc::sigaddset(wanted.as_mut_ptr(), KILL_REQUEST);
            let received = libc::sigwaitinfo(wanted.as_ptr(), info.as_mut_ptr());
            // The command is its group's first, and has not been reaped.
            if received == request() {
                let signal = info.assume_init().si_value().sival_ptr.addr();
                libc::kill(-command, signal as libc::c_int);
            } else if received == KILL_REQUEST {
                libc::kill(-command, libc::SIGKILL);
            }
        }
    }
}

/// Kills what is left below this process until nothing is. An orphan becomes its child, and goes in the next round.
fn sweep() {
    for _ in 0..MAX_SWEEPS {
        loop {
            // SAFETY: a null status pointer is allowed.
            match unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) } {
                -1 => return,
                0 => break,
                _ => {}
            }
        }
        kill_children();
        // SAFETY: plain system call without pointers to read; any end of a child makes the next round come sooner.
        unsafe {
            let mut wanted = MaybeUninit::uninit();
            libc::sigemptyset(wanted.as_mut_ptr());
            libc::sigaddset(wanted.as_mut_ptr(), libc::SIGCHLD);
            let pause = libc::timespec {
                tv_sec: 0,
                tv_nsec: libc::c_long::from(SWEEP_PAUSE_MS) * 1_000_000,
            };
            libc::sigtimedwait(wanted.as_ptr(), ptr::null_mut(), &raw const pause);
        }
    }
}

/// Kills the children of this process, as far as one read lists them.
fn kill_children() {
    let mut list = [0_u8; 4096];
    // SAFETY: system calls on a path that ends with a NUL and a buffer that outlives them.
    let length = unsafe {
        let file = libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY);
        if file == -1 {
            return;
        }
        let length = libc::read(file, list.as_mut_ptr().cast(), list.len());
        libc::close(file);
        length
    };
    let Some(list) = usize::try_from(length)
        .ok()
        .and_then(|length| list.get(..length))
    else {
        return;
    };
    let mut pid: libc::pid_t = 0;
    for byte in list {
        match byte {
            b'0'..=b'9' => pid = pid.saturating_mul(10).saturating_add((byte - b'0').into()),
            // A number is followed by a space; one that the read has cut is not.
            _ if pid > 1 => {
                // SAFETY: plain system call. The child is not reaped yet, so the number is its own.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                pid = 0;
            }
            _ => pid = 0,
        }
    }
}

/// Ends this process with the wait status of the command.
fn end_as(status: libc::c_int) -> ! {
    // SAFETY: system calls on a set that outlives them.
    unsafe {
        if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            let mut all = MaybeUninit::uninit();
            libc::signal(signal, libc::SIG_DFL);
            libc::sigemptyset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut());
            libc::kill(libc::getpid(), signal);
            libc::_exit(128 + signal)
        }
        libc::_exit(libc::WEXITSTATUS(status))
    }
}
