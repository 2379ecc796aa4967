//! Limits on running jobs: on one node, and in total.
//!
//! A node reports its own number of slots, and each running job takes file descriptors of this process: a
//! connection to its node, and at times others to cancel it, to offer it to another node or to read its
//! output. So slots beyond `--max-jobs-per-node` are not used, and the total is bounded by the limit of open files.
//! Further jobs stay in the queue, and their tasks show the reason.

use crate::http::listener_policy;

/// File descriptors for each running job.
const DESCRIPTORS_PER_JOB: u64 = 3;

/// Maximum numbers of running jobs.
#[derive(Clone, Copy, Debug)]
pub struct SlotLimits {
    /// Jobs on one node.
    pub per_node: u32,
    /// Jobs on all nodes together.
    pub total: u32,
}

impl SlotLimits {
    /// Limits with this number of jobs per node, and a total that this process has file descriptors for.
    pub(super) fn new(per_node: u32) -> Self {
        let files = listener_policy::available_descriptors();
        let total = files.map_or(u64::MAX, |files| files / 2 / DESCRIPTORS_PER_JOB);
        Self {
            per_node,
            total: u32::try_from(total).unwrap_or(u32::MAX).max(1),
        }
    }

    /// Number of slots to use of those that a node offers.
    pub(super) fn usable(self, offered: u32) -> u32 {
        offered.min(self.per_node)
    }

    /// Unused slots of a ready node, in words; `None` where all are used.
    pub(super) fn describe_unused(self, offered: u32) -> Option<String> {
        let used = self.per_node;
        (offered > used).then(|| {
            format!("offers {offered} slots, of which {used} are used (--max-jobs-per-node at the orchestrator)")
        })
    }

    /// Logs that not all slots of a node are used, unless the report `before` exceeded the limit already.
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

    /// Reason for which queued jobs wait while the nodes run these numbers of jobs, where that is the total limit.
    pub(super) fn exhausted_reason(self, running: impl Iterator<Item = u32>) -> Option<String> {
        let running = running.fold(0, u32::saturating_add);
        (running >= self.total).then(|| {
            format!(
                "{running} jobs run, the maximum for the orchestrator's limit of open files \
                 (ulimit -n, LimitNOFILE=); it starts when a job ends"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_uses_at_most_its_limit() {
        let slots = SlotLimits {
            per_node: 256,
            total: 1000,
        };
        assert_eq!([slots.usable(4), slots.usable(100_000)], [4, 256]);
        assert_eq!(slots.describe_unused(256), None);
        assert!(slots.describe_unused(257).unwrap().contains("257"));
    }
}
