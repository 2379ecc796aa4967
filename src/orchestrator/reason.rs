//! Reasons that involve a node's answer, made safe to show.
//!
//! A node's answer is hostile text: it may imitate this orchestrator, hold control characters, or reveal
//! details of its machine. So everybody gets a summary in this orchestrator's words, by the kind of the
//! problem. Only admins also get the node's own text, of known kinds, in one line of bounded length. An
//! answer of an unknown kind is not repeated.

use crate::{http::client::CallError, text::clean_prefix};
use std::fmt;

/// Longest text of a node that is repeated, in bytes.
const MAX_DETAIL_BYTES: usize = 600;

/// Reason with a summary for everybody, and a node's own text for admins.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Reason {
    summary: String,
    detail: Option<String>,
}

impl Reason {
    /// Reason with a node's own text as its detail.
    pub(super) fn with_detail(summary: impl Into<String>, detail: Option<&str>) -> Self {
        Self {
            summary: summary.into(),
            detail: detail.map(sanitize),
        }
    }

    /// Reason of a failed call to a node.
    pub(super) fn from_call_error(error: &CallError) -> Self {
        match (error, error.kind()) {
            (CallError::Transport { .. } | CallError::Untrusted { .. }, _) => {
                Self::from(error.to_string())
            }
            (CallError::Refused { problem, .. }, Some(kind)) => {
                let summary = format!("it answered {}: {}", kind.status(), kind.title());
                Self::with_detail(summary, Some(&problem.detail))
            }
            (CallError::Refused { status, .. }, None) => {
                Self::from(format!("it answered {status} with an unknown problem"))
            }
            (CallError::Malformed { .. }, _) => Self::from(
                "its answer is not valid here; run the same release of cynode on both sides"
                    .to_owned(),
            ),
        }
    }

    /// Same reason, with its summary in a sentence.
    pub(super) fn map(self, sentence: impl FnOnce(&str) -> String) -> Self {
        Self {
            summary: sentence(&self.summary),
            ..self
        }
    }

    /// Text for admins: summary and detail.
    pub(super) fn for_admins(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.summary),
            None => self.summary.clone(),
        }
    }

    /// Text for everybody, about the node of this slug: the summary.
    pub(super) fn for_users(&self, slug: &str) -> String {
        match &self.detail {
            Some(_) => format!(
                "{}; admins see more with: cynode nodes show {slug}",
                self.summary
            ),
            None => self.summary.clone(),
        }
    }
}

impl From<String> for Reason {
    fn from(summary: String) -> Self {
        Self {
            summary,
            detail: None,
        }
    }
}

impl From<&str> for Reason {
    fn from(summary: &str) -> Self {
        summary.to_owned().into()
    }
}

/// The summary alone.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary)
    }
}

/// Text of a node in one line of bounded length, without control characters.
pub(super) fn sanitize(text: &str) -> String {
    clean_prefix(text, MAX_DETAIL_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::{Problem, ProblemKind};
    use http::StatusCode;

    fn refused(status: u16, kind: Option<ProblemKind>, detail: &str) -> CallError {
        let mut problem = Problem::new(kind.unwrap_or(ProblemKind::Internal), detail).body("r");
        if kind.is_none() {
            problem.kind = "https://elsewhere.example/x".to_owned();
        }
        CallError::Refused {
            url: "http://box:1".to_owned(),
            status: StatusCode::from_u16(status).unwrap(),
            problem: Box::new(problem),
        }
    }

    #[test]
    fn node_details_are_for_admins_only() {
        let secret = "/home/ann\u{1b}[2J\u{202e} is full";
        let known = Reason::from_call_error(&refused(
            507,
            Some(ProblemKind::InsufficientStorage),
            secret,
        ));
        assert_eq!(
            known.for_admins(),
            "it answered 507: Not enough storage: /home/ann [2J  is full"
        );
        let public = known.for_users("box");
        assert!(!public.contains("ann") && public.contains("cynode nodes show box"));
        assert_eq!(known.to_string(), "it answered 507: Not enough storage");
        // A kind belongs to its status.
        for (status, kind) in [(503, None), (503, Some(ProblemKind::InsufficientStorage))] {
            let unknown = Reason::from_call_error(&refused(status, kind, secret));
            assert!(
                !unknown.for_admins().contains("ann"),
                "{}",
                unknown.for_admins()
            );
        }
        let malformed = CallError::Malformed {
            url: String::new(),
            reason: secret.to_owned(),
        };
        assert!(
            !Reason::from_call_error(&malformed)
                .for_admins()
                .contains("ann")
        );
        assert!(sanitize(&"é".repeat(2000)).len() <= MAX_DETAIL_BYTES);
    }
}
