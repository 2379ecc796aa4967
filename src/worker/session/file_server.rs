//! Bound on the time of a file server whose caller has left.
//!
//! A file server ends when its connection does. A command of the sandbox can stop its process, though, which notices nothing
//! then and would keep its place among the few that may run. Callers leave one that is silent, so the end of the
//! connection is the sign to look for: a file server that has not ended a while after it is killed.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{os::fd::OwnedFd, pin::pin, time::Duration};
use tokio::time::{sleep, timeout};

/// Interval between checks whether the caller is there.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time that a file server has, once its caller has left, to end what it does.
const LEFT_TIMEOUT: Duration = Duration::from_mins(1);
/// Time for the end of one that is killed. After it, nothing waits for it any more.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until a file server has `ended`. One that goes on without its caller, the peer of `connection`, is killed.
pub(super) async fn wait_ended(
    ended: impl Future<Output = ()>,
    connection: &OwnedFd,
    kill: impl FnOnce(),
) {
    let mut ended = pin!(ended);
    tokio::select! {
        biased;
        () = &mut ended => return,
        () = caller_left(connection) => {}
    }
    if timeout(LEFT_TIMEOUT, &mut ended).await.is_err() {
        tracing::info!("file server did not end without its caller, and is killed");
        kill();
        if timeout(KILL_TIMEOUT, &mut ended).await.is_err() {
            tracing::warn!("killed file server has not ended");
        }
    }
}

async fn caller_left(connection: &OwnedFd) {
    while !is_hung_up(connection) {
        sleep(POLL_INTERVAL).await;
    }
}

/// Whether the peer of a connection has closed it. A peer that only sends no more has not.
fn is_hung_up(connection: &OwnedFd) -> bool {
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // A hang-up is reported unasked.
    let mut looked = [PollFd::new(connection, PollFlags::empty())];
    let found = poll(&mut looked, Some(&at_once));
    found.is_ok() && looked[0].revents().contains(PollFlags::HUP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        cell::Cell,
        future::{pending, ready},
        net::Shutdown,
        os::unix::net::UnixStream,
    };
    use tokio::time::Instant;

    fn connection() -> (UnixStream, OwnedFd) {
        let (caller, server) = UnixStream::pair().unwrap();
        (caller, server.into())
    }

    #[tokio::test(start_paused = true)]
    async fn stopped_server_is_killed_once_caller_left() {
        let (caller, server) = connection();
        let (start, is_killed) = (Instant::now(), Cell::new(false));
        drop(caller);
        wait_ended(pending(), &server, || is_killed.set(true)).await;
        assert!(is_killed.get());
        assert!(start.elapsed() >= LEFT_TIMEOUT + KILL_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn server_ends_by_itself_within_its_time() {
        let (caller, server) = connection();
        drop(caller);
        let is_killed = Cell::new(false);
        wait_ended(sleep(LEFT_TIMEOUT / 2), &server, || is_killed.set(true)).await;
        let (_caller, server) = connection();
        wait_ended(ready(()), &server, || is_killed.set(true)).await;
        assert!(!is_killed.get());
    }

    #[tokio::test(start_paused = true)]
    async fn server_with_caller_goes_on() {
        let (caller, server) = connection();
        caller.shutdown(Shutdown::Write).unwrap();
        let is_killed = Cell::new(false);
        let waited = wait_ended(pending(), &server, || is_killed.set(true));
        let waited = timeout(Duration::from_hours(1), waited).await;
        assert!(waited.is_err() && !is_killed.get());
    }
}
