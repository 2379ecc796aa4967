//! What nodes answer, made fit for others.
//!
//! A node's answer is hostile text: it may imitate us, carry what a terminal obeys, or tell what its machine
//! keeps to itself. So its kind is told to everybody in words of our own, and its own words only to admins:
//! of problems that we know, in one line of bounded length. Answers of no known kind are not repeated.

use crate::{http::client::CallError, text::brief};
use std::fmt;

/// Most of a node's words that is repeated, in bytes.
const MAX_WORDS: usize = 600;

/// Reason in our words, and for admins in the node's, too.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Reason {
    ours: String,
    words: Option<String>,
}

impl Reason {
    /// One with words of a node, which only admins are told.
    pub(super) fn with_words(ours: impl Into<String>, words: Option<&str>) -> Self {
        Self {
            ours: ours.into(),
            words: words.map(clean),
        }
    }

    /// What an answer, or the lack of one, means.
    pub(super) fn of(error: &CallError) -> Self {
        match (error, error.kind()) {
            (CallError::Transport { .. }, _) => Self::from(error.to_string()),
            (CallError::Refused { problem, .. }, Some(kind)) => {
                let ours = format!("it answered {}: {}", kind.status(), kind.title());
                Self::with_words(ours, Some(&problem.detail))
            }
            (CallError::Refused { status, .. }, None) => {
                Self::from(format!("it answered {status}, and no reason that we know"))
            }
            (CallError::Malformed { .. }, _) => {
                Self::from("it answered what this cynode doesn't understand".to_owned())
            }
        }
    }

    /// The same in a sentence around it.
    pub(super) fn map(self, sentence: impl FnOnce(&str) -> String) -> Self {
        Self {
            ours: sentence(&self.ours),
            ..self
        }
    }

    /// For admins.
    pub(super) fn full(&self) -> String {
        match &self.words {
            Some(words) => format!("{}: {words}", self.ours),
            None => self.ours.clone(),
        }
    }

    /// For everybody, of the node of this slug.
    pub(super) fn public(&self, slug: &str) -> String {
        match &self.words {
            Some(_) => format!(
                "{}; admins are told more by: cynode nodes show {slug}",
                self.ours
            ),
            None => self.ours.clone(),
        }
    }
}

impl From<String> for Reason {
    fn from(ours: String) -> Self {
        Self { ours, words: None }
    }
}

impl From<&str> for Reason {
    fn from(ours: &str) -> Self {
        ours.to_owned().into()
    }
}

/// In our words alone.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.ours)
    }
}

/// Words of a node in one line of bounded length, with nothing in it that a terminal obeys.
pub(super) fn clean(text: &str) -> String {
    brief(text, MAX_WORDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::{Kind, Problem};
    use http::StatusCode;

    fn refused(status: u16, kind: Option<Kind>, detail: &str) -> CallError {
        let mut problem = Problem::new(kind.unwrap_or(Kind::Internal), detail).body("r");
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
    fn words_of_a_node_are_for_admins_and_of_known_kinds() {
        let secret = "/home/ann\u{1b}[2J\u{202e} is full";
        let known = Reason::of(&refused(507, Some(Kind::InsufficientStorage), secret));
        assert_eq!(
            known.full(),
            "it answered 507: Not enough storage: /home/ann [2J  is full"
        );
        let public = known.public("box");
        assert!(!public.contains("ann") && public.contains("cynode nodes show box"));
        assert_eq!(known.to_string(), "it answered 507: Not enough storage");
        // A kind belongs to its status.
        for (status, kind) in [(503, None), (503, Some(Kind::InsufficientStorage))] {
            let unknown = Reason::of(&refused(status, kind, secret));
            assert!(!unknown.full().contains("ann"), "{}", unknown.full());
        }
        let malformed = CallError::Malformed {
            url: String::new(),
            reason: secret.to_owned(),
        };
        assert!(!Reason::of(&malformed).full().contains("ann"));
        assert!(clean(&"é".repeat(2000)).len() <= MAX_WORDS);
    }
}
