//! Terminals of execs: init holds the controlling end, and two threads carry the bytes between it and the pipes that
//! came with the request.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
};

/// Path of the multiplexer of the sandbox's own terminals.
const MULTIPLEXER: &str = "/dev/ptmx";
/// Stack of a relay, which needs little more than the buffer of a copy.
const RELAY_STACK_BYTES: usize = 128 * 1024;

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// Controlling end of a terminal.
pub(super) struct Terminal {
    controller: File,
}

impl Terminal {
    /// New terminal of this size, and the end for a command.
    pub(super) fn open(size: Size) -> io::Result<(Self, OwnedFd)> {
        let controller = File::options().read(true).write(true).open(MULTIPLEXER)?;
        let fd = controller.as_raw_fd();
        let unlocked: libc::c_int = 0;
        // SAFETY: the number outlives the call, which reads it.
        if unsafe { libc::ioctl(fd, libc::TIOCSPTLCK, &raw const unlocked) } == -1 {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: plain system call. No path is looked up: a job may have changed those below /dev.
        let end = unsafe { libc::ioctl(fd, libc::TIOCGPTPEER, flags) };
        if end == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was opened just now, and nothing else uses it.
        let end = unsafe { OwnedFd::from_raw_fd(end) };
        let terminal = Self { controller };
        terminal.resize(size)?;
        Ok((terminal, end))
    }

    /// Changes the size; the kernel notifies the programs in the foreground.
    pub(super) fn resize(&self, size: Size) -> io::Result<()> {
        let size = libc::winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the size outlives the call, which reads it.
        match unsafe {
            libc::ioctl(
                self.controller.as_raw_fd(),
                libc::TIOCSWINSZ,
                &raw const size,
            )
        } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Carries bytes both ways, each on a thread of its own. What the terminal prints ends when no process has it open any
    /// more; what it reads ends with the pipe, or with the terminal.
    pub(super) fn relay(&self, stdin: OwnedFd, output: OwnedFd) -> io::Result<()> {
        let (mut read, mut write) = (self.controller.try_clone()?, self.controller.try_clone()?);
        let (mut stdin, mut output) = (File::from(stdin), File::from(output));
        let builder = || thread::Builder::new().stack_size(RELAY_STACK_BYTES);
        // An error is the end: a terminal without programs, or a reader that is gone.
        builder().spawn(move || io::copy(&mut read, &mut output))?;
        builder().spawn(move || io::copy(&mut stdin, &mut write))?;
        Ok(())
    }
}

/// Makes a terminal, as descriptor 0, that of the calling process's session; safe between fork and exec.
pub(super) fn take_control() -> io::Result<()> {
    // SAFETY: plain system call without pointers.
    match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
