//! How many jobs run at the same time: at one node, and in all.
//!
//! A node says itself how many jobs it takes, and each of them costs this process file descriptors: a
//! connection to its node, and now and then another one to cancel it, to offer it elsewhere or to read its
//! output. So what a node offers beyond `--max-jobs-per-node` is not used, and in all no more jobs run than
//! there are descriptors for; the others stay in the queue, and their tasks tell why.

use crate::{api::nodes::NodeView, http::listener_policy};

/// Descriptors for each running job; see above.
const DESCRIPTORS_PER_JOB: u64 = 3;

/// Bounds on the jobs that run.
#[derive(Clone, Copy, Debug)]
pub struct SlotLimits {
    /// At one node.
    pub per_node: u32,
    /// At all nodes together.
    pub total: u32,
}

impl SlotLimits {
    /// So many at one node, and as many in all as this process has descriptors for.
    pub(super) fn new(per_node: u32) -> Self {
        let files = listener_policy::available_descriptors();
        let total = files.map_or(u64::MAX, |files| files / 2 / DESCRIPTORS_PER_JOB);
        Self {
            per_node,
            total: u32::try_from(total).unwrap_or(u32::MAX).max(1),
        }
    }

    /// SlotLimits that are used of those that a node offers.
    pub(super) fn usable(self, offered: u32) -> u32 {
        offered.min(self.per_node)
    }

    /// SlotLimits of a ready node that are not used, in words; `None` where all are.
    pub(super) fn describe_unused(self, offered: u32) -> Option<String> {
        let used = self.per_node;
        (offered > used).then(|| {
            format!("offers {offered} slots, of which {used} are used (--max-jobs-per-node at the orchestrator)")
        })
    }

    /// Says in the log that not all slots are used of a node that offers so many now, and offered so many
    /// `before`, where it was heard before.
    pub(super) fn log_excess_slots(self, node: &str, before: Option<u32>, offered: u32) {
        let used = self.per_node;
        if offered > used && before.is_none_or(|before| before <= used) {
            tracing::warn!(
                node,
                offered,
                used,
                "node offers more slots than --max-jobs-per-node; the others are not used"
            );
        }
    }

    /// Reason for which no node is given another job, where that is the number of jobs in all.
    pub(super) fn exhausted_reason(self, nodes: &[NodeView]) -> Option<String> {
        let running = nodes.iter().map(|node| node.running_jobs);
        let running = running.fold(0, u32::saturating_add);
        (running >= self.total).then(|| {
            format!(
                "{running} jobs run, as many as the orchestrator can follow with its limit of open files \
                 (ulimit -n, LimitNOFILE=); it starts when a job ends"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_gets_no_more_than_its_share() {
        let slots = SlotLimits {
            per_node: 256,
            total: 1000,
        };
        assert_eq!([slots.usable(4), slots.usable(100_000)], [4, 256]);
        assert_eq!(slots.describe_unused(256), None);
        assert!(slots.describe_unused(257).unwrap().contains("257"));
    }
}
