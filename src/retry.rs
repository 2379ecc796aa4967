//! Operations that are tried again until they succeed.
//!
//! Of several failures in a row only the first is a warning, so that an outage of hours does not fill
//! the log; the success that follows is logged, too.

use crate::{backoff::Backoff, errors};
use std::{error::Error, future::Future};

/// Runs `operation` until it succeeds, with growing pauses in between. `what` names the operation in the
/// log, as in "store the result".
pub async fn retry<T, E, F>(
    mut backoff: Backoff,
    what: &'static str,
    mut operation: impl FnMut() -> F,
) -> T
where
    E: Error,
    F: Future<Output = Result<T, E>>,
{
    loop {
        match operation().await {
            Ok(output) => {
                log_success(&backoff, what);
                return output;
            }
            Err(error) => pause(&mut backoff, what, errors::chain(&error)).await,
        }
    }
}

/// Same as [`retry`], but an error that is not transient is returned at once.
pub async fn retry_if<T, E, F>(
    mut backoff: Backoff,
    what: &'static str,
    is_transient: impl Fn(&E) -> bool,
    mut operation: impl FnMut() -> F,
) -> Result<T, E>
where
    E: Error,
    F: Future<Output = Result<T, E>>,
{
    loop {
        match operation().await {
            Err(error) if is_transient(&error) => {
                pause(&mut backoff, what, errors::chain(&error)).await
            }
            Err(error) => return Err(error),
            Ok(output) => {
                log_success(&backoff, what);
                return Ok(output);
            }
        }
    }
}

async fn pause(backoff: &mut Backoff, what: &'static str, error: String) {
    if backoff.is_fresh() {
        tracing::warn!(operation = what, error, "operation failed; retrying");
    } else {
        tracing::debug!(operation = what, error, "operation failed again; retrying");
    }
    tokio::time::sleep(backoff.next_delay()).await;
}

fn log_success(backoff: &Backoff, what: &'static str) {
    if !backoff.is_fresh() {
        tracing::info!(operation = what, "operation succeeded after retries");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, future::ready, io, time::Duration};

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_secs(1), Duration::from_mins(1))
    }

    fn is_interrupted(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::Interrupted
    }

    #[tokio::test(start_paused = true)]
    async fn transient_failures_are_retried() {
        let tries = Cell::new(0);
        let operation = || {
            tries.set(tries.get() + 1);
            ready(match tries.get() % 5 {
                0 => Ok(tries.get()),
                _ => Err(io::Error::from(io::ErrorKind::Interrupted)),
            })
        };
        assert_eq!(retry(backoff(), "test", operation).await, 5);
        let output = retry_if(backoff(), "test", is_interrupted, operation).await;
        assert_eq!(output.unwrap(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn other_failures_are_returned_at_once() {
        let tries = Cell::new(0);
        let output = retry_if(backoff(), "test", is_interrupted, || {
            tries.set(tries.get() + 1);
            ready(Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)))
        });
        assert_eq!(output.await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(tries.get(), 1);
    }
}
