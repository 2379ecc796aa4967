//! How a process ends: an exit code that scripts can rely on, and two lines for a person.

use crate::errors;
use std::{error::Error, fmt::Display, io};

/// Exit codes (contract, section 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// 2: the command line is wrong.
    Usage,
    /// 3: not logged in, or not allowed.
    NotAllowed,
    /// 4: no such thing.
    NotFound,
    /// 5: the state of the thing forbids it.
    Conflict,
    /// 6: refused as invalid.
    Invalid,
    /// 7: the other side can't be reached.
    Unreachable,
    /// 8: a fault.
    Internal,
    /// Any other: a job's own code, or one of those that stand for its end.
    Code(u8),
}

impl Exit {
    /// The number.
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

/// Why a process ends other than well.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What failed and what to try; empty when everything was said already.
    pub message: String,
}

impl Failure {
    /// With this code and this text.
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

    /// A fault.
    pub fn internal(error: impl Display) -> Self {
        Self::new(Exit::Internal, error.to_string())
    }

    /// Only a code: the end of a job that printed for itself.
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
