//! Input that is piped into a command whose sandbox can't be given any yet.
//!
//! Nothing is read, so nothing is taken from a shell loop or a later command that shares our stdin, and a
//! writer that never comes holds up nobody.

use super::print;
use rustix::{
    fs::{FileType, fstat, seek},
    io::ioctl_fionread,
};
use std::io::stdin;

/// Says once, on stderr, that what is piped in does not reach the sandbox.
#[derive(Default)]
pub(super) struct StdinWarning {
    said: bool,
}

impl StdinWarning {
    /// Looks whether there is input now: called when the task is there and once more at its end, since what
    /// writes into a pipe may be slower than we are.
    pub(super) fn check(&mut self) {
        if self.said || !has_input() {
            return;
        }
        self.said = true;
        print::note(
            "warning: input on stdin is not passed to the sandbox yet, whose own stdin is empty; put it into the \
             command, --env or a script (</dev/null silences this)",
        );
    }
}

/// Whether a pipe or socket holds bytes that nobody has read, or a file goes on after its position. A
/// terminal, /dev/null and a closed stdin have none, nor has a pipe whose writer wrote nothing.
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
