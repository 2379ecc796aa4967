//! History that decisions need: the last turn of each user, and the nodes that ran each image.
//!
//! All of it is a preference. A restart forgets it, and the next decisions are as valid without it.

use crate::api::{NodeId, UserId};
use std::collections::{HashMap, HashSet};

/// Maximum number of images whose nodes are known. All are forgotten when there are more.
pub(super) const MAX_IMAGES: usize = 256;

/// Turns of the users, in the order in which they had them.
#[derive(Debug, Default)]
pub(super) struct FairShare {
    turns: u64,
    last_turn: HashMap<UserId, u64>,
}

impl FairShare {
    /// Number of the last turn of a user; 0 before the first.
    pub(super) fn last_turn(&self, user: UserId) -> u64 {
        self.last_turn.get(&user).copied().unwrap_or(0)
    }

    /// Records a turn of a user; its number.
    pub(super) fn record_turn(&mut self, user: UserId) -> u64 {
        self.turns += 1;
        self.last_turn.insert(user, self.turns);
        self.turns
    }
}

/// Nodes that were assigned jobs of an image, which they need not pull again.
#[derive(Debug, Default)]
pub(super) struct ImageNodes(HashMap<String, HashSet<NodeId>>);

impl ImageNodes {
    pub(super) fn get(&self, image: &str) -> Option<&HashSet<NodeId>> {
        self.0.get(image)
    }

    pub(super) fn record(&mut self, image: String, node: NodeId) {
        if self.0.len() >= MAX_IMAGES && !self.0.contains_key(&image) {
            self.0.clear();
        }
        self.0.entry(image).or_default().insert(node);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
