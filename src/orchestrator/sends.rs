//! Contents on their way to nodes: each goes to a node once, and all jobs that need it there wait for that.
//!
//! Sent once for each job it would take the room of several at the node, which keeps one.

use super::node_client::SendProgress;
use crate::api::jobs::files::ContentHash;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

/// One content on its way to one node.
#[derive(Default)]
pub(super) struct Sending {
    /// Held by the job that sends it; whether it has arrived.
    pub(super) turn: tokio::sync::Mutex<bool>,
    /// Progress of the job that sends it, which those that wait show as theirs.
    pub(super) progress: SendProgress,
}

/// Contents on their way, by the slug of the node and the hash.
#[derive(Default)]
pub(super) struct Sends(Mutex<HashMap<(String, ContentHash), Weak<Sending>>>);

impl Sends {
    /// Joins those that send a content to a node, or is the first of them.
    pub(super) fn join(&self, node: &str, hash: &ContentHash) -> Arc<Sending> {
        let mut map = self.0.lock();
        map.retain(|_, sending| sending.strong_count() > 0);
        let sending = map.entry((node.to_owned(), hash.clone())).or_default();
        sending.upgrade().unwrap_or_else(|| {
            let first = Arc::new(Sending::default());
            *sending = Arc::downgrade(&first);
            first
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_joined_while_it_is_sent() {
        let (sends, hash) = (Sends::default(), ContentHash::from_digest(&[7; 32]));
        let first = sends.join("a", &hash);
        assert!(Arc::ptr_eq(&first, &sends.join("a", &hash)));
        assert!(!Arc::ptr_eq(&first, &sends.join("b", &hash)));
        *first.turn.try_lock().unwrap() = true;
        drop(first);
        let later = sends.join("a", &hash);
        assert!(!*later.turn.try_lock().unwrap(), "the node may lose it");
        assert_eq!(sends.0.lock().len(), 1);
    }
}
