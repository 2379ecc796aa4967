//! Waits for a value that another task sets.
//!
//! `watch::Receiver::wait_for` returns a guard that read-locks the channel. A guard that outlives its
//! statement, such as one that `join!` keeps until all of its futures have ended, blocks the next
//! send, and with it a thread of the runtime, for good. So waiting goes through here and returns a
//! copy; clippy.toml disallows the original, and guards that are held across an `await`.

use tokio::sync::watch::{Receiver, error::RecvError};

/// Waits until the value satisfies `condition`, and returns a copy of it. Fails when the sender is gone and the
/// value changes no more.
#[expect(
    clippy::disallowed_methods,
    reason = "the guard ends with the statement"
)]
pub(crate) async fn until<T: Clone>(
    receiver: &mut Receiver<T>,
    condition: impl FnMut(&T) -> bool,
) -> Result<T, RecvError> {
    Ok(receiver.wait_for(condition).await?.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::watch;

    #[tokio::test]
    async fn reached_value_does_not_block_senders() {
        let (sender, mut receiver) = watch::channel(1);
        let value = until(&mut receiver, |value| *value == 1).await;
        // A guard in place of the copy would block this for good.
        sender.send_replace(2);
        assert_eq!(value.unwrap(), 1);
        drop(sender);
        until(&mut receiver, |value| *value == 3).await.unwrap_err();
    }
}
