//! Meaning of a failed call to a node.
//!
//! HTTP ends here: callers decide by [`NodeCallErrorKind`] and show the [`Reason`]. A proxy in between answers 404, 409 and
//! 503, too, for a node that it lost sight of. So [`NodeCallError::is_own_answer`] says whether the answer is in the
//! words of a worker.

use crate::{
    api::{jobs::files::ContentHash, problem::ProblemKind},
    http::client::CallError,
    orchestrator::reason::Reason,
};
use std::fmt;

/// Failed call to a node.
#[derive(Debug)]
pub(in crate::orchestrator) struct NodeCallError {
    pub(in crate::orchestrator) kind: NodeCallErrorKind,
    /// Reason for users and, with the node's own words, for admins.
    pub(in crate::orchestrator) reason: Reason,
    /// Whether a worker answered; otherwise anything in between may have.
    pub(in crate::orchestrator) is_own_answer: bool,
    /// Contents that the node lacks.
    pub(in crate::orchestrator) missing: Vec<ContentHash>,
    /// Whole error, for the log.
    detail: String,
}

/// Meaning of a failed call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::orchestrator) enum NodeCallErrorKind {
    /// No connection was made, so the node did not act.
    Unreachable,
    /// No answer, or one without a certain meaning: the node may have acted.
    Unclear,
    /// An answer of success that violates the contract.
    Malformed,
    /// The node has no such call (404 in no worker's words, 405).
    Unsupported,
    /// The node has no such call (501), or something in between lacks a feature: the node may have acted.
    NotImplemented,
    /// The node does not know the token (401).
    UnknownToken,
    /// The node does not accept calls from here (403, 421).
    Denied,
    /// The node has no such job, or its sandbox has ended (404, 410).
    NotFound,
    /// The node has another attempt of the job, or the attempt still runs (409).
    Conflict,
    /// The node lacks contents of the job (409).
    ContentMissing,
    /// The request is invalid (400, 415).
    Invalid,
    /// The request is too large for this node, whatever else it has (413).
    TooLarge,
    /// All slots are taken (429).
    AtCapacity,
    /// Too many jobs wait for image pulls (429).
    PullQueueFull,
    /// Too few GPUs are free (429).
    GpusBusy,
    /// The node can't run jobs at present, by its own account (503).
    Unhealthy,
    /// The node has too little space on its disk, by its own account (507).
    NoRoom,
}

impl NodeCallErrorKind {
    /// Whether the node may have no such call at all.
    pub(in crate::orchestrator) fn is_unsupported(self) -> bool {
        matches!(self, Self::Unsupported | Self::NotImplemented)
    }
}

impl From<CallError> for NodeCallError {
    fn from(error: CallError) -> Self {
        Self {
            kind: kind(&error),
            reason: Reason::from_call_error(&error),
            is_own_answer: !slug(&error).is_empty(),
            missing: match error {
                CallError::Refused { ref problem, .. } => problem.missing.clone(),
                _ => Vec::new(),
            },
            detail: error.to_string(),
        }
    }
}

impl std::error::Error for NodeCallError {}

impl fmt::Display for NodeCallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// Problem slug of a refusal; empty where no worker wrote it.
fn slug(error: &CallError) -> &str {
    match error {
        CallError::Refused { problem, .. } => problem.slug(),
        _ => "",
    }
}

fn kind(error: &CallError) -> NodeCallErrorKind {
    let status = match error {
        CallError::Malformed { .. } => return NodeCallErrorKind::Malformed,
        CallError::Untrusted { .. } => return NodeCallErrorKind::Unreachable,
        CallError::Transport { connected, .. } => {
            return if *connected {
                NodeCallErrorKind::Unclear
            } else {
                NodeCallErrorKind::Unreachable
            };
        }
        CallError::Refused { status, .. } => status.as_u16(),
    };
    let is_own_answer = !slug(error).is_empty();
    match status {
        501 => NodeCallErrorKind::NotImplemented,
        _ if error.is_unsupported() => NodeCallErrorKind::Unsupported,
        400 | 415 => NodeCallErrorKind::Invalid,
        413 => NodeCallErrorKind::TooLarge,
        401 => NodeCallErrorKind::UnknownToken,
        403 | 421 => NodeCallErrorKind::Denied,
        404 | 410 => NodeCallErrorKind::NotFound,
        409 if slug(error) == ProblemKind::ContentMissing.slug() => {
            NodeCallErrorKind::ContentMissing
        }
        409 => NodeCallErrorKind::Conflict,
        429 if slug(error) == ProblemKind::PullsFull.slug() => NodeCallErrorKind::PullQueueFull,
        429 if slug(error) == ProblemKind::GpusBusy.slug() => NodeCallErrorKind::GpusBusy,
        429 => NodeCallErrorKind::AtCapacity,
        503 if is_own_answer => NodeCallErrorKind::Unhealthy,
        507 if is_own_answer => NodeCallErrorKind::NoRoom,
        _ => NodeCallErrorKind::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::{ProblemBody, TYPE_BASE};
    use http::StatusCode;

    impl NodeCallError {
        pub(in crate::orchestrator) fn of_kind(
            kind: NodeCallErrorKind,
            is_own_answer: bool,
        ) -> Self {
            Self {
                kind,
                reason: Reason::default(),
                is_own_answer,
                missing: Vec::new(),
                detail: String::new(),
            }
        }
    }

    fn refusal(status: u16, problem: &str) -> NodeCallErrorKind {
        let error = CallError::Refused {
            url: String::new(),
            status: StatusCode::from_u16(status).unwrap(),
            problem: Box::new(ProblemBody {
                kind: problem.to_owned(),
                title: String::new(),
                status,
                detail: String::new(),
                instance: String::new(),
                errors: Vec::new(),
                missing: Vec::new(),
            }),
        };
        NodeCallError::from(error).kind
    }

    #[test]
    fn worker_statuses_are_unambiguous() {
        let expected = [
            (400, NodeCallErrorKind::Invalid),
            (413, NodeCallErrorKind::TooLarge),
            (415, NodeCallErrorKind::Invalid),
            (401, NodeCallErrorKind::UnknownToken),
            (403, NodeCallErrorKind::Denied),
            (421, NodeCallErrorKind::Denied),
            (404, NodeCallErrorKind::NotFound),
            (410, NodeCallErrorKind::NotFound),
            (405, NodeCallErrorKind::Unsupported),
            (501, NodeCallErrorKind::NotImplemented),
            (409, NodeCallErrorKind::Conflict),
            (429, NodeCallErrorKind::AtCapacity),
            (503, NodeCallErrorKind::Unhealthy),
            (507, NodeCallErrorKind::NoRoom),
            (500, NodeCallErrorKind::Unclear),
            (502, NodeCallErrorKind::Unclear),
        ];
        for (status, kind) in expected {
            assert_eq!(refusal(status, &format!("{TYPE_BASE}x")), kind, "{status}");
        }
        let pulls_full = refusal(429, &ProblemKind::PullsFull.uri());
        assert_eq!(pulls_full, NodeCallErrorKind::PullQueueFull);
        let gpus_busy = refusal(429, &ProblemKind::GpusBusy.uri());
        assert_eq!(gpus_busy, NodeCallErrorKind::GpusBusy);
    }

    #[test]
    fn proxy_statuses_are_inconclusive() {
        assert_eq!(refusal(404, ""), NodeCallErrorKind::Unsupported);
        for status in [500, 502, 503, 504, 507] {
            assert_eq!(refusal(status, ""), NodeCallErrorKind::Unclear, "{status}");
        }
    }

    #[test]
    fn only_failed_connection_is_unreachable() {
        let transport = |connected| {
            let (url, reason) = (String::new(), String::new());
            NodeCallError::from(CallError::Transport {
                url,
                reason,
                connected,
            })
            .kind
        };
        assert_eq!(transport(false), NodeCallErrorKind::Unreachable);
        assert_eq!(transport(true), NodeCallErrorKind::Unclear);
    }
}
