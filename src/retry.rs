//! Operations that are tried again until they succeed.

use crate::{errors, pause::Pauses};
use std::{error::Error, future::Future};

/// Runs `operation` until it succeeds, with growing pauses in between, or until it fails with an error
/// that is not transient, which is returned. `what` completes the log line "… failed; retrying".
///
/// Only the first of several failures is a warning, so that an outage of hours does not fill the log.
pub async fn retry<T, E, F>(
    mut pauses: Pauses,
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
                let cause = errors::chain(&error);
                if pauses.is_fresh() {
                    tracing::warn!(operation = what, error = cause, "operation failed; retrying");
                } else {
                    tracing::debug!(
                        operation = what,
                        error = cause,
                        "operation failed again; retrying"
                    );
                }
                tokio::time::sleep(pauses.take()).await;
            }
            Ok(output) => {
                if !pauses.is_fresh() {
                    tracing::info!(operation = what, "operation succeeded after retries");
                }
                return Ok(output);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, future::ready, io, time::Duration};

    fn pauses() -> Pauses {
        Pauses::new(Duration::from_secs(1), Duration::from_mins(1))
    }

    fn is_interrupted(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::Interrupted
    }

    #[tokio::test(start_paused = true)]
    async fn transient_failures_are_retried() {
        let tries = Cell::new(0);
        let output = retry(pauses(), "test", is_interrupted, || {
            tries.set(tries.get() + 1);
            ready(match tries.get() {
                1..5 => Err(io::ErrorKind::Interrupted.into()),
                n => Ok(n),
            })
        });
        assert_eq!(output.await.unwrap(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn other_failures_are_returned_at_once() {
        let tries = Cell::new(0);
        let output = retry(pauses(), "test", is_interrupted, || {
            tries.set(tries.get() + 1);
            ready(Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)))
        });
        assert_eq!(output.await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(tries.get(), 1);
    }
}
