//! Warning about input that is piped into a command whose stdin is empty, since it was not asked for.
//!
//! The input is not read: a shell loop or a later command may share this stdin, and its writer may never
//! write.

use super::print;
use rustix::{
    fs::{FileType, fstat, seek},
    io::ioctl_fionread,
};
use std::io::stdin;

/// Warning on stderr, once, that piped input does not reach the sandbox.
#[derive(Default)]
pub(super) struct StdinWarning {
    is_shown: bool,
}

impl StdinWarning {
    /// Warning that is never shown where the input is passed on.
    pub(super) fn unless(is_passed_on: bool) -> Self {
        Self {
            is_shown: is_passed_on,
        }
    }

    /// Shows the warning if there is input now. To be called when the task is created and again at its end,
    /// since the writer of a pipe may be slow.
    pub(super) fn warn_if_input(&mut self) {
        if self.is_shown || !has_input() {
            return;
        }
        self.is_shown = true;
        print::note(
            "warning: input on stdin is not passed to the sandbox; pass it with cynode run -i (</dev/null silences this)",
        );
    }
}

/// Whether a pipe or socket holds unread bytes, or a file continues after its position. A terminal, /dev/null
/// and a closed stdin have no input, nor has a pipe into which nothing was written.
fn has_input() -> bool {
    let Ok(stat) = fstat(stdin()) else {
        return false;
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo | FileType::Socket => ioctl_fionread(stdin()).is_ok_and(|bytes| bytes > 0),
        FileType::RegularFile => {
            let position = seek(stdin(), rustix::fs::SeekFrom::Current(0));
            let size = u64::try_from(stat.st_size).unwrap_or_default();
            position.is_ok_and(|position| position < size)
        }
        _ => false,
    }
}
