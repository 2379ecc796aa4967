//! Failure of one try to fetch an artifact.

use crate::{
    contents::ContentError,
    orchestrator::{
        dispatch::outcome::AttemptError,
        node_client::{NodeCallError, NodeCallErrorKind},
    },
};
use std::io;

/// Failure of one try.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum TryError {
    /// The artifact will not come.
    #[error("{0}")]
    Missing(String),
    /// The store is full at the moment.
    #[error("{0}")]
    NoRoom(String),
    /// The orchestrator could not ask, or store; the next try may do.
    #[error("{0}")]
    Local(String),
    /// The node sent nothing or too little, or broke off.
    #[error("{0}")]
    Node(String),
    /// Another transfer has its turn; what has arrived is kept.
    #[error("another transfer has its turn")]
    Paused,
}

impl From<AttemptError> for TryError {
    fn from(error: AttemptError) -> Self {
        let reason = error.reason.to_string();
        match error.outcome {
            Some(_) => Self::Missing(reason),
            None if error.store_error.is_some() => Self::Local(reason),
            None => Self::Node(reason),
        }
    }
}

impl From<NodeCallError> for TryError {
    fn from(error: NodeCallError) -> Self {
        use NodeCallErrorKind::{Conflict, NotFound};
        match error.kind {
            NotFound | Conflict if error.is_own_answer => {
                Self::Missing("its node has lost it".to_owned())
            }
            _ => Self::Node(error.to_string()),
        }
    }
}

impl From<io::Error> for TryError {
    fn from(error: io::Error) -> Self {
        Self::from(ContentError::from(error))
    }
}

impl From<ContentError> for TryError {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::Busy | ContentError::WrongOffset { .. } => Self::Local(error.to_string()),
            ContentError::QuotaExceeded { .. } | ContentError::DiskFull { .. } => {
                Self::NoRoom(format!("the orchestrator has no room: {error}"))
            }
            ContentError::WrongHash { .. } | ContentError::WrongSize { .. } => {
                Self::Missing("its node sent something else than it had announced".to_owned())
            }
            // Such as too many open files: it passes, or else the time of a full disk does.
            ContentError::Io(cause) => {
                tracing::warn!(error = %cause, "artifact can't be stored; retrying");
                Self::NoRoom("the orchestrator can't store it; see its log".to_owned())
            }
        }
    }
}
