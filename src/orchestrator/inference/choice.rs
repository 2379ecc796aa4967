//! Choice of a node for a call. Pure: takes facts, returns a node.

use crate::api::NodeId;

/// Node that has the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Candidate {
    pub(super) node: NodeId,
    /// Whether the model is in its memory.
    pub(super) is_loaded: bool,
    /// Calls that it computes now.
    pub(super) in_flight: u32,
    /// Whether it failed a call a moment ago.
    pub(super) is_suspect: bool,
    /// Number of the last call that it was given; 0 for none.
    pub(super) last_call: u64,
}

/// Chooses the node that did not just fail, has the model loaded and has the fewest calls under way, in this order;
/// among equals the one that had no call for longest. `None` where all have `limit` calls.
pub(super) fn choose(
    candidates: impl IntoIterator<Item = Candidate>,
    limit: u32,
) -> Option<NodeId> {
    let free = candidates
        .into_iter()
        .filter(|candidate| candidate.in_flight < limit);
    let best = free.min_by_key(|candidate| {
        let Candidate {
            node,
            is_loaded,
            in_flight,
            is_suspect,
            last_call,
        } = *candidate;
        (is_suspect, !is_loaded, in_flight, last_call, node)
    });
    best.map(|candidate| candidate.node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn candidate() -> impl Strategy<Value = Candidate> {
        (
            any::<u128>(),
            any::<bool>(),
            0..6u32,
            any::<bool>(),
            0..4u64,
        )
            .prop_map(
                |(node, is_loaded, in_flight, is_suspect, last_call)| Candidate {
                    node: Uuid::from_u128(node).to_string().parse().unwrap(),
                    is_loaded,
                    in_flight,
                    is_suspect,
                    last_call,
                },
            )
    }

    proptest! {
        #[test]
        fn chosen_node_is_free_and_best(
            candidates in prop::collection::vec(candidate(), 0..8), limit in 1..6u32,
        ) {
            let chosen = choose(candidates.iter().copied(), limit);
            let is_free = |candidate: &&Candidate| candidate.in_flight < limit;
            let free: Vec<_> = candidates.iter().filter(is_free).collect();
            prop_assert_eq!(chosen.is_none(), free.is_empty());
            let Some(chosen) = chosen.and_then(|id| free.iter().find(|one| one.node == id)) else {
                return Ok(());
            };
            for other in &free {
                if other.is_suspect == chosen.is_suspect {
                    prop_assert!(chosen.is_loaded || !other.is_loaded);
                    if other.is_loaded == chosen.is_loaded {
                        prop_assert!(chosen.in_flight <= other.in_flight);
                    }
                } else {
                    prop_assert!(!chosen.is_suspect);
                }
            }
        }
    }
}
