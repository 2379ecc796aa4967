//! From a failure of the store to the error of a call.
//!
//! The caller learns what can be done about it: 503 where an operator or time can help, 507 where the disk
//! is nearly full, 401 where the session has ended meanwhile, else 500. It is never a 400: the request is
//! not to blame. The failure itself is the cause, which only the log gets.

use crate::{
    api::{
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    store::StoreError,
};

/// Seconds after which a refused or stopped read may succeed.
const READ_RETRY_SECONDS: u64 = 5;

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let unavailable = |detail: &str| Problem::new(ProblemKind::Unavailable, detail);
        if let Some(fault) = error.storage_fault() {
            let problem = unavailable(&fault.to_string());
            // The store has logged the fault when it found it.
            return match error {
                StoreError::Fault(_) => problem.into(),
                error => problem.caused_by(error),
            };
        }
        match error {
            StoreError::NotAuthorized => {
                Problem::unauthorized("your session or API key has ended meanwhile; log in again, or use another key").into()
            }
            StoreError::ListsBusy => {
                let detail =
                    "you read too many lists at once; wait until some have arrived, then try again";
                Problem::new(ProblemKind::TooManyRequests, detail)
                    .retry_after(READ_RETRY_SECONDS)
                    .into()
            }
            StoreError::TooSlow => unavailable(
                "reading took too long and was stopped; ask for less (a smaller limit), or try again later",
            )
            .retry_after(READ_RETRY_SECONDS)
            .caused_by(error),
            StoreError::LowSpace(low) => {
                let detail = format!("{low}; until then no new task is accepted");
                Problem::new(ProblemKind::InsufficientStorage, detail).into()
            }
            StoreError::Commit(_) | StoreError::Closed => unavailable(
                "the database accepts no writes at present; the operator finds the reason in the orchestrator's log",
            )
            .caused_by(error),
            error => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StorageFault;
    use std::io;

    #[test]
    fn store_failures_are_never_client_errors() {
        let secret = "/var/lib/cynode/cynode.db";
        for (error, status, has_cause) in [
            (StoreError::Io(io::Error::other(secret)), 500, true),
            (StoreError::Damaged("task"), 500, true),
            (StoreError::Commit(secret.to_owned()), 503, true),
            (StoreError::Closed, 503, true),
            (StoreError::TooSlow, 503, true),
            (StoreError::Fault(StorageFault::Full), 503, false),
            (StoreError::ListsBusy, 429, false),
            (StoreError::NotAuthorized, 401, false),
        ] {
            let error = ApiError::from(error);
            assert_eq!(error.kind().status(), status, "{error:?}");
            assert_eq!(error.cause().is_some(), has_cause, "{error:?}");
            assert!(!error.problem().detail.contains(secret), "{error:?}");
        }
    }
}
