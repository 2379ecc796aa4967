//! Why a call gave no usable answer.

use crate::api::problem::{ProblemBody, ProblemKind};
use http::StatusCode;
use std::time::Duration;

/// Why a call gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer came: not reached, cut off, or too slow. Whether the other side acted is unknown.
    #[error("no answer from {url}: {reason}")]
    Transport {
        /// Whom we called.
        url: String,
        /// What happened.
        reason: String,
        /// Whether a connection was made; without one the other side can't have acted.
        connected: bool,
    },
    /// The other side refused.
    #[error("{status} from {url}: {}", problem.detail)]
    Refused {
        /// Whom we called.
        url: String,
        /// Its status.
        status: StatusCode,
        /// Its reason; empty fields where it didn't speak problem+json.
        problem: Box<ProblemBody>,
    },
    /// It answered something that isn't in the contract.
    #[error("{url} answered what this cynode doesn't understand: {reason}")]
    Malformed {
        /// Whom we called.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

impl CallError {
    /// Whether it is certain that the other side never heard of the call.
    pub fn is_not_sent(&self) -> bool {
        matches!(
            self,
            Self::Transport {
                connected: false,
                ..
            }
        )
    }

    /// An answer that was waited for in vain.
    pub fn timed_out(url: &str, limit: Duration) -> Self {
        transport(url, format!("nothing was heard for {} s", limit.as_secs()))
    }

    /// Whether the other side may know no such call. A 404 in the words of a cynode is about a thing.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Refused {
                status, problem, ..
            } => match *status {
                StatusCode::NOT_FOUND => problem.slug().is_empty(),
                StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether it is a refusal of this kind.
    pub fn is_problem(&self, kind: ProblemKind) -> bool {
        self.kind() == Some(kind)
    }

    /// Kind of a refusal in the words of a cynode; none where anything else refused.
    pub fn kind(&self) -> Option<ProblemKind> {
        let Self::Refused {
            status, problem, ..
        } = self
        else {
            return None;
        };
        let mut kinds = ProblemKind::ALL.iter().copied();
        kinds.find(|kind| kind.slug() == problem.slug() && kind.status() == status.as_u16())
    }

    /// The status of a refusal.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

pub(super) fn malformed(url: &str, reason: String) -> CallError {
    CallError::Malformed {
        url: url.to_owned(),
        reason,
    }
}

pub(super) fn transport(url: &str, reason: impl Into<String>) -> CallError {
    CallError::Transport {
        url: url.to_owned(),
        reason: reason.into(),
        connected: true,
    }
}
