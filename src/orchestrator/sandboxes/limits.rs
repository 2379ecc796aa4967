//! Limits of the calls that pass to sandboxes: each may last as long as its command, and costs a connection here and one
//! to the node.

use crate::{
    api::{
        UserId,
        problem::{Problem, ProblemKind},
    },
    http::listener_policy::connection_limit,
};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// Calls at the same time, where the connections suffice.
const MAX_CALLS: usize = 512;
/// Same for one user.
const MAX_CALLS_PER_USER: usize = 128;
/// Seconds after which a refused caller may try again.
const RETRY_SECONDS: u64 = 1;

/// Calls that pass now.
pub(in crate::orchestrator) struct PassLimits {
    calls: Arc<Mutex<HashMap<UserId, usize>>>,
    limit: usize,
    own_limit: usize,
}

/// Permit of one call, counted until it is dropped.
pub(super) struct PassPermit {
    user: UserId,
    calls: Arc<Mutex<HashMap<UserId, usize>>>,
}

impl Default for PassLimits {
    fn default() -> Self {
        let connections = connection_limit();
        Self {
            calls: Arc::default(),
            limit: (connections / 2).clamp(1, MAX_CALLS),
            own_limit: (connections / 8).clamp(1, MAX_CALLS_PER_USER),
        }
    }
}

impl PassLimits {
    /// Admits another call. Fails above the limits.
    pub(super) fn acquire(&self, user: UserId) -> Result<PassPermit, Problem> {
        let mut calls = self.calls.lock();
        let own = calls.get(&user).copied().unwrap_or(0);
        let refuse = |kind, text| Err(Problem::new(kind, text).retry_after(RETRY_SECONDS));
        if own >= self.own_limit {
            let text = format!(
                "{own} of your calls of sandboxes are under way; wait until one has ended, or start long commands with \
                 background: true"
            );
            return refuse(ProblemKind::TooManyRequests, text);
        }
        if calls.values().sum::<usize>() >= self.limit {
            let text = "too many calls of sandboxes are under way; try again in a moment";
            return refuse(ProblemKind::Unavailable, text.to_owned());
        }
        calls.insert(user, own + 1);
        Ok(PassPermit {
            user,
            calls: Arc::clone(&self.calls),
        })
    }
}

impl Drop for PassPermit {
    fn drop(&mut self) {
        let mut calls = self.calls.lock();
        if let Some(own) = calls.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                calls.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_leaves_room_for_others() {
        let limits = PassLimits {
            own_limit: 2,
            limit: 3,
            ..PassLimits::default()
        };
        let (ann, bob) = (UserId::new(), UserId::new());
        let acquire = |user| limits.acquire(user).map_err(|problem| problem.kind);
        let held = [acquire(ann).ok(), acquire(ann).ok()];
        assert_eq!(acquire(ann).err(), Some(ProblemKind::TooManyRequests));
        let third = acquire(bob).ok();
        assert!(held.iter().all(Option::is_some) && third.is_some());
        assert_eq!(acquire(bob).err(), Some(ProblemKind::Unavailable));
        drop(held);
        assert!(acquire(ann).is_ok() && acquire(bob).is_ok());
        drop(third);
        assert!(limits.calls.lock().is_empty());
    }
}
