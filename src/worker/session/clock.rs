//! Times of a sandbox that stays: its lifetime, and how long nothing has used it. Pure.
//!
//! Both are kept by the shim, on the node's monotonic clock, which stands still while the node sleeps. So the sleep of a
//! laptop with the orchestrator counts as idle time, and the node's own doesn't; and neither a restart of the worker
//! nor a changed wall clock changes them.

use crate::{
    api::sandboxes::{SessionSpec, WARNING_SECONDS},
    sandbox::StopReason,
};
use std::time::{Duration, Instant};

/// Times of a sandbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionClock {
    expires_at: Instant,
    idle_timeout: Duration,
    /// Time since which nothing uses it.
    idle_since: Instant,
    /// Execs and calls that use it now.
    uses: u32,
    /// Whether its users know of its end of age.
    is_announced: bool,
}

/// Next thing that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// Nothing, until this time.
    At(Instant),
    /// The end of age is to be announced.
    Announce,
    /// The sandbox is to be stopped.
    Stop(StopReason),
}

impl SessionClock {
    pub(super) fn new(spec: &SessionSpec, now: Instant) -> Self {
        Self {
            expires_at: now + Duration::from_secs(spec.lifetime_seconds),
            idle_timeout: Duration::from_secs(spec.idle_timeout_seconds),
            idle_since: now,
            uses: 0,
            is_announced: false,
        }
    }

    /// Begins a use.
    pub(super) fn enter(&mut self) {
        self.uses += 1;
    }

    /// Ends a use.
    pub(super) fn leave(&mut self, now: Instant) {
        self.uses = self.uses.saturating_sub(1);
        self.idle_since = now;
    }

    /// Restarts the lifetime.
    pub(super) fn renew(&mut self, lifetime: Duration, now: Instant) {
        self.expires_at = now + lifetime;
        self.is_announced = false;
    }

    /// Time to the end of age.
    pub(super) fn expires_in(&self, now: Instant) -> Duration {
        self.expires_at.saturating_duration_since(now)
    }

    /// Time to the end for want of use; `None` while something uses it.
    pub(super) fn idle_ends_in(&self, now: Instant) -> Option<Duration> {
        let idle = now.saturating_duration_since(self.idle_since);
        (self.uses == 0).then(|| self.idle_timeout.saturating_sub(idle))
    }

    /// Next thing that is due.
    pub(super) fn due(&self, now: Instant) -> Due {
        let idle_end = (self.uses == 0).then(|| self.idle_since + self.idle_timeout);
        if self.expires_at <= now {
            return Due::Stop(StopReason::Lifetime);
        }
        if idle_end.is_some_and(|end| end <= now) {
            return Due::Stop(StopReason::Idle);
        }
        let warning = Duration::from_secs(WARNING_SECONDS);
        let announcement = self.expires_at.checked_sub(warning).unwrap_or(now);
        if !self.is_announced && announcement <= now {
            return Due::Announce;
        }
        let announcement = (!self.is_announced).then_some(announcement);
        let others = [idle_end, announcement].into_iter().flatten();
        Due::At(others.fold(self.expires_at, Instant::min))
    }

    /// Records that the end of age was announced.
    pub(super) fn mark_announced(&mut self) {
        self.is_announced = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPEC: SessionSpec = SessionSpec {
        lifetime_seconds: 3600,
        idle_timeout_seconds: 900,
    };

    #[test]
    fn uses_keep_sandbox_until_its_lifetime() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut clock = SessionClock::new(&SPEC, start);
        assert_eq!(clock.due(at(0)), Due::At(at(900)));
        assert_eq!(clock.due(at(900)), Due::Stop(StopReason::Idle));
        clock.enter();
        clock.enter();
        clock.leave(at(10));
        assert_eq!(clock.idle_ends_in(at(20)), None);
        assert_eq!(clock.due(at(3479)), Due::At(at(3480)));
        assert_eq!(clock.due(at(3480)), Due::Announce);
        clock.mark_announced();
        assert_eq!(clock.due(at(3480)), Due::At(at(3600)));
        clock.renew(Duration::from_secs(60), at(3590));
        assert_eq!(clock.due(at(3600)), Due::Announce);
        clock.leave(at(3600));
        assert_eq!(clock.idle_ends_in(at(3700)), Some(Duration::from_secs(800)));
        assert_eq!(clock.due(at(3650)), Due::Stop(StopReason::Lifetime));
    }

    proptest! {
        #[test]
        fn next_time_is_later_and_brings_something(
            lifetime in 1u64..100_000,
            idle in 1u64..100_000,
            used: bool,
            passed in 0u64..200_000,
        ) {
            let start = Instant::now();
            let spec = SessionSpec { lifetime_seconds: lifetime, idle_timeout_seconds: idle };
            let mut clock = SessionClock::new(&spec, start);
            if used {
                clock.enter();
            }
            let now = start + Duration::from_secs(passed);
            if let Due::At(next) = clock.due(now) {
                prop_assert!(next > now);
                prop_assert!(!matches!(clock.due(next), Due::At(_)));
            }
        }
    }
}
