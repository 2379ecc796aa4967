//! Errors of API calls.
//!
//! An error has two faces. The *problem* goes to the caller: it says what happened in the caller's terms
//! and what to do next. The *cause* goes to the log, once, with its whole chain and the id of the request;
//! it may name files, tables and addresses, and never reaches the caller.

use super::problem::{Problem, ProblemKind};
use std::error::Error;

/// Internal cause of an error.
type Cause = Box<dyn Error + Send + Sync>;

/// Error of an API call: the problem that the caller gets, and the cause that the log gets.
#[derive(Debug)]
pub struct ApiError {
    problem: Problem,
    cause: Option<Cause>,
}

impl ApiError {
    /// An internal error: the caller gets a 500 that says nothing of its cause.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Problem::internal().caused_by(cause)
    }

    /// External face: what the caller gets.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Internal cause: what the log gets. `None` where the problem says all.
    pub fn cause(&self) -> Option<&(dyn Error + 'static)> {
        let cause = self.cause.as_deref()?;
        Some(cause)
    }

    /// Kind of the problem.
    pub fn kind(&self) -> ProblemKind {
        self.problem.kind
    }

    /// Same error with another problem for the caller.
    pub fn map_problem(self, change: impl FnOnce(Problem) -> Problem) -> Self {
        Self {
            problem: change(self.problem),
            cause: self.cause,
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            cause: None,
        }
    }
}

impl Problem {
    /// This problem for the caller, and `cause` for the log.
    pub fn caused_by(self, cause: impl Into<Cause>) -> ApiError {
        ApiError {
            problem: self,
            cause: Some(cause.into()),
        }
    }
}
