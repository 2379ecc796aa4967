//! End of a process: an exit code for scripts, and two lines for a person.

use crate::errors;
use std::{error::Error, fmt::Display, io};

/// Exit codes (contract, section 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// 2: wrong command line.
    Usage,
    /// 3: not logged in, or not allowed.
    NotAllowed,
    /// 4: not found.
    NotFound,
    /// 5: not possible in the present state.
    Conflict,
    /// 6: refused as invalid.
    Invalid,
    /// 7: server unreachable.
    Unreachable,
    /// 8: internal error.
    Internal,
    /// Any other: exit code of a job, or the code for the way it ended.
    Code(u8),
}

impl Exit {
    /// Number of the exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::NotAllowed => 3,
            Self::NotFound => 4,
            Self::Conflict => 5,
            Self::Invalid => 6,
            Self::Unreachable => 7,
            Self::Internal => 8,
            Self::Code(code) => code,
        }
    }
}

/// Failure with which a process ends.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub exit: Exit,
    /// Failure and next step; empty when everything was printed already.
    pub message: String,
}

impl Failure {
    /// A failure with this code and text.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// An internal error.
    pub fn internal(error: impl Display) -> Self {
        Self::new(Exit::Internal, error.to_string())
    }

    /// A code without a text, for a job that has printed its own.
    pub fn silent(code: u8) -> Self {
        Self::new(Exit::Code(code), "")
    }

    /// An error with all its causes.
    pub fn chain(exit: Exit, error: &dyn Error) -> Self {
        Self::new(exit, errors::chain(error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::internal(error)
    }
}
