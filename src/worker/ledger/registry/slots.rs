//! Slots of a worker, each held by a job from its admission to its end.

use super::{Registry, is_owned_by};
use crate::{
    api::problem::{Problem, ProblemKind},
    spool::AcceptedJob,
};

/// Delay after which a job is to be sent again for which there was no slot.
const SLOTS_FULL_RETRY_SECONDS: u64 = 1;

impl Registry {
    /// Refuses a new job while there is no slot for it.
    pub(super) fn check_slots(&self, wanted: &AcceptedJob) -> Result<(), Problem> {
        let holders = self.slot_holders();
        let others = holders.filter(|holder| holder.job_id != wanted.job_id);
        let owner = wanted.orchestrator_id.as_ref();
        let (own, foreign): (Vec<_>, Vec<_>) =
            others.partition(|holder| is_owned_by(holder, owner));
        let slots = self.max_concurrency;
        if own.len() + foreign.len() < slots {
            return Ok(());
        }
        let foreign = match foreign.len() {
            0 => String::new(),
            n => format!(" ({n} of them by jobs of another orchestrator)"),
        };
        let detail = format!(
            "all {slots} slots of this worker are taken{foreign}; try again when a job has ended"
        );
        Err(Problem::new(ProblemKind::TooManyRequests, detail)
            .retry_after(SLOTS_FULL_RETRY_SECONDS))
    }
}
