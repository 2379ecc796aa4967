//! Errors of calls to other roles.

use super::tls_only::is_tls_only;
use crate::{
    api::problem::{ProblemBody, ProblemKind},
    errors,
    tls::{self, Untrusted},
};
use http::StatusCode;
use hyper_util::client::legacy;
use std::{error::Error, time::Duration};

/// Error of a call to another role.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer: the peer was not reached, hung up, or was too slow. Whether it acted is unknown.
    #[error("no answer from {url}: {reason}")]
    Transport {
        /// URL of the call.
        url: String,
        /// Cause, for the log.
        reason: String,
        /// Whether a connection was made; without one the peer can't have acted.
        connected: bool,
    },
    /// The peer is not trusted, and got no byte of the call.
    #[error("{url} is not trusted: {untrusted}")]
    Untrusted {
        /// URL of the call.
        url: String,
        /// Cause, and what to do.
        untrusted: Box<Untrusted>,
    },
    /// The peer refused the call.
    #[error("{status} from {url}: {}", problem.detail)]
    Refused {
        /// URL of the call.
        url: String,
        /// HTTP status.
        status: StatusCode,
        /// Problem; with empty fields where the peer did not answer problem+json.
        problem: Box<ProblemBody>,
    },
    /// The answer does not follow the contract.
    #[error("{url} sent an answer that this cynode does not understand: {reason}")]
    Malformed {
        /// URL of the call.
        url: String,
        /// Part of the answer that is wrong.
        reason: String,
    },
}

impl CallError {
    /// Error of an answer that did not arrive within `limit`.
    pub fn timed_out(url: &str, limit: Duration) -> Self {
        transport(url, format!("no data for {} s", limit.as_secs()))
    }

    /// Whether the peer may not implement the call. A 404 with a problem of cynode's is about a resource instead.
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

    /// Whether this is a refusal with a problem of this kind.
    pub fn is_problem(&self, kind: ProblemKind) -> bool {
        self.kind() == Some(kind)
    }

    /// Kind of the problem of a refusal; `None` where it is not one of cynode's.
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

    /// Whether the peer speaks TLS only, and this call did not.
    pub fn is_tls_only(&self) -> bool {
        match self {
            Self::Refused {
                url,
                status,
                problem,
            } => !tls::is_encrypted(url) && is_tls_only(*status, &problem.detail),
            _ => false,
        }
    }

    /// HTTP status of a refusal.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Error of a call that got no answer.
pub(super) fn not_sent(url: &str, error: &legacy::Error) -> CallError {
    no_answer(url, error, !error.is_connect())
}

/// The same for an error of any source.
pub(super) fn no_answer(url: &str, error: &(dyn Error + 'static), connected: bool) -> CallError {
    if let Some(untrusted) = Untrusted::find(error) {
        return CallError::Untrusted {
            url: url.to_owned(),
            untrusted: Box::new(untrusted.clone()),
        };
    }
    CallError::Transport {
        url: url.to_owned(),
        // hyper's own texts say little; their sources say more.
        reason: tls::reason(error).unwrap_or_else(|| errors::chain(error)),
        connected,
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
