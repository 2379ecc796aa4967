//! Notices in the node's log about the way from the orchestrator to its Worker API.
//!
//! Without a tunnel the node sees nothing of calls that don't arrive: its own calls to the orchestrator do. So the answer to
//! each report says why the orchestrator can't reach it, and each change of that is logged once.

use parking_lot::Mutex;

/// Longest reason in the log, in characters.
const MAX_REASON_CHARS: usize = 512;

/// Reason that the last answer to a report had.
#[derive(Default)]
pub(super) struct ReachNotices(Mutex<Option<String>>);

impl ReachNotices {
    /// Takes the reason of an answer, and logs it where it is another one than before.
    pub(super) fn record(&self, reason: Option<String>) {
        match self.change(reason) {
            Some(Some(reason)) => {
                tracing::warn!(
                    reason,
                    "the orchestrator can't reach this node, which gets no jobs until it can"
                );
            }
            Some(None) => {
                tracing::info!("the orchestrator no longer reports this node as unreachable");
            }
            None => {}
        }
    }

    /// The reason, where it is another one than before.
    fn change(&self, reason: Option<String>) -> Option<Option<String>> {
        let clean = |text: String| -> String {
            let text = text.replace(char::is_control, " ");
            text.chars().take(MAX_REASON_CHARS).collect()
        };
        let reason = reason.map(clean);
        let mut last = self.0.lock();
        if *last == reason {
            return None;
        }
        last.clone_from(&reason);
        Some(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_logged_once() {
        let notices = ReachNotices::default();
        let closed = || Some("the port is closed".to_owned());
        assert_eq!(notices.change(None), None);
        assert_eq!(notices.change(closed()), Some(closed()));
        assert_eq!(notices.change(closed()), None);
        let long = notices.change(Some("x\u{1b}".repeat(999))).flatten();
        let long = long.unwrap();
        assert!(long.starts_with("x x ") && long.len() == MAX_REASON_CHARS);
        assert_eq!(notices.change(None), Some(None));
        assert_eq!(notices.change(None), None);
    }
}
