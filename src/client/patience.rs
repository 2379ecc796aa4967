//! Patience with what passes: a lost connection, an orchestrator that starts, another call that is at work.

use super::{
    api_client::{ApiClient, Payload, read_json},
    print::note,
};
use crate::exit::{Exit, Failure};
use http::{Method, header};
use serde::de::DeserializeOwned;
use std::{
    thread,
    time::{Duration, Instant},
};
use ureq::Body;

/// Time for which there are further attempts without any progress.
const TIMEOUT: Duration = Duration::from_mins(5);
/// Pause between two attempts.
const INTERVAL: Duration = Duration::from_secs(1);

/// Failure of a call that may be repeated.
pub(super) enum CallFailure {
    /// The orchestrator can't be reached, or asks for patience.
    Passing(Failure),
    /// Another call is at the same thing.
    Busy(Failure),
    /// The same call would fail again.
    Lasting(Failure),
}

impl From<Failure> for CallFailure {
    fn from(failure: Failure) -> Self {
        match failure.exit {
            Exit::Unreachable => Self::Passing(failure),
            _ => Self::Lasting(failure),
        }
    }
}

/// Attempts at one thing, which end where nothing moves any more.
pub(super) struct Patience {
    last_progress: Instant,
    furthest: u64,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self {
            last_progress: Instant::now(),
            furthest: 0,
        }
    }

    /// Takes note of the position after an attempt.
    pub(super) fn reached(&mut self, position: u64) {
        if position > self.furthest {
            self.furthest = position;
            self.last_progress = Instant::now();
        }
    }

    /// Leaves out a time that went into work of our own.
    pub(super) fn excuse(&mut self, time: Duration) {
        self.last_progress += time;
    }

    /// Waits for the next attempt; fails where nothing has moved for too long.
    pub(super) fn pause(&self, failure: impl FnOnce() -> Failure) -> Result<(), Failure> {
        if self.last_progress.elapsed() > TIMEOUT {
            return Err(failure());
        }
        thread::sleep(INTERVAL);
        Ok(())
    }
}

/// Calls until it succeeds, or fails for good.
pub(super) fn patiently<T>(mut call: impl FnMut() -> Result<T, CallFailure>) -> Result<T, Failure> {
    let patience = Patience::new();
    let mut is_noted = false;
    loop {
        let failure = match call() {
            Ok(value) => return Ok(value),
            Err(CallFailure::Lasting(failure)) => return Err(failure),
            Err(CallFailure::Passing(failure) | CallFailure::Busy(failure)) => failure,
        };
        if !is_noted {
            note("the orchestrator does not answer; retrying");
            is_noted = true;
        }
        patience.pause(|| failure)?;
    }
}

impl ApiClient {
    /// A successful answer; else the failure, and whether it passes.
    pub(super) fn check_answer(
        &self,
        answer: http::Response<Body>,
    ) -> Result<http::Response<Body>, CallFailure> {
        let status = answer.status().as_u16();
        // A conflict with a time to wait is about another call, one without about the state of things.
        let is_busy = status == 409 && answer.headers().contains_key(header::RETRY_AFTER);
        self.check_status(answer).map_err(|failure| match status {
            409 if is_busy => CallFailure::Busy(failure),
            429 | 502..=504 => CallFailure::Passing(failure),
            _ => CallFailure::Lasting(failure),
        })
    }

    /// Sends a GET as the user until it is answered; reads the answer as JSON.
    pub(super) fn get_patiently<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Failure> {
        patiently(|| {
            let answer = self.exchange(&Method::GET, path, &[], Payload::None)?;
            Ok(read_json(self.check_answer(answer)?)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_failures_are_retried_lasting_ones_not() {
        let failure = |exit| CallFailure::from(Failure::new(exit, "x"));
        let mut failures = vec![failure(Exit::Conflict), failure(Exit::Unreachable)];
        let ended = patiently(|| match failures.pop() {
            Some(failure) => Err(failure),
            None => Ok(()),
        });
        assert_eq!(ended.unwrap_err().exit, Exit::Conflict);
        assert!(failures.is_empty());
    }

    #[test]
    fn patience_ends_without_progress() {
        let mut patience = Patience::new();
        let Some(before) = Instant::now().checked_sub(2 * TIMEOUT) else {
            return;
        };
        patience.last_progress = before;
        let given_up = |patience: &Patience| {
            let paused = patience.pause(|| Failure::usage("given up"));
            paused.is_err()
        };
        assert!(given_up(&patience));
        patience.reached(0);
        assert!(given_up(&patience), "nothing has moved");
        patience.reached(1);
        assert!(!given_up(&patience));
        patience.last_progress = before;
        patience.excuse(2 * TIMEOUT);
        assert!(!given_up(&patience));
    }
}
