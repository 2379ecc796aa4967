//! Bytes between two sockets, moved by the kernel through a pipe: they are never copied into this process, which would
//! take most of the time of a large download, and a buffer for each tunnel.

use super::{
    activity::Activity,
    tally::{Direction, Meter},
};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::{io, os::fd::AsFd};
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::{Semaphore, SemaphorePermit},
};

/// Most bytes that are moved at a time at first; as many as a pipe holds by default.
const MOVED_BYTES: usize = 64 * 1024;
/// Most bytes that are moved at a time once so many have come at once: a large download is slowed by each turn.
const WIDE_BYTES: usize = 256 * 1024;
/// Places of pipes that hold so much: a quarter of what pipes of a user other than root may hold before the kernel makes new
/// ones small, those of podman among them.
static WIDE_PIPES: Semaphore = Semaphore::const_new(64);

/// Passes bytes on in both directions. The end of one is passed on, and the other goes on.
pub(super) async fn pass_on(
    client: &TcpStream,
    server: &TcpStream,
    (meter, activity): (&Meter, &Activity),
) -> io::Result<()> {
    let sent = relay((client, server), (Direction::Sent, meter), activity);
    let received = relay((server, client), (Direction::Received, meter), activity);
    tokio::select! {
        ended = async { tokio::try_join!(sent, received) } => ended.map(drop),
        () = activity.wait_idle() => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Moves bytes in one direction to their end.
async fn relay(
    (from, to): (&TcpStream, &TcpStream),
    (direction, meter): (Direction, &Meter),
    activity: &Activity,
) -> io::Result<()> {
    let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let (mut most, mut wide) = (MOVED_BYTES, None);
    loop {
        // The pipe is empty here and holds all of it below, so it is always the socket that is waited for.
        let mut left = from
            .async_io(Interest::READABLE, || move_some(from, &into, most))
            .await?;
        if left == 0 {
            rustix::net::shutdown(to, rustix::net::Shutdown::Write)?;
            return Ok(());
        }
        // Asked for once: a kernel that refuses it would be asked at each turn.
        if left == MOVED_BYTES && wide.get_or_insert_with(|| widen(&into)).is_some() {
            most = WIDE_BYTES;
        }
        activity.touch();
        activity.count(direction, left);
        meter.add(direction, left)?;
        while left > 0 {
            left -= to
                .async_io(Interest::WRITABLE, || move_some(&out, to, left))
                .await?;
        }
    }
}

/// Has a pipe hold more. `None` where too many do, or the kernel refuses it.
fn widen(pipe: impl AsFd) -> Option<SemaphorePermit<'static>> {
    let place = WIDE_PIPES.try_acquire().ok()?;
    let size = fcntl_setpipe_size(pipe, WIDE_BYTES).ok()?;
    (size >= WIDE_BYTES).then_some(place)
}

fn move_some(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(splice(from, None, to, None, most, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::size::ByteSize, http::metrics::MetricsRegistry, worker::egress::metrics::EgressMetrics,
    };
    use std::sync::Arc;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    fn meter(limit: u64) -> Meter {
        let metrics = EgressMetrics::new(&MetricsRegistry::default());
        Meter::new(Arc::default(), Some(ByteSize(limit)), metrics, false)
    }

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (server, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (server.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn answer_comes_after_end_of_request() {
        let ((mut job, client), (server, mut host)) = (connected().await, connected().await);
        let (meter, activity) = (meter(1 << 20), Activity::new());
        let ends = async {
            job.write_all(b"question").await.unwrap();
            job.shutdown().await.unwrap();
            let mut question = String::new();
            host.read_to_string(&mut question).await.unwrap();
            assert_eq!(question, "question");
            host.write_all(b"answer").await.unwrap();
            drop(host);
            let mut answer = String::new();
            job.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "answer");
        };
        let passing = pass_on(&client, &server, (&meter, &activity));
        let (passed, ()) = tokio::join!(passing, ends);
        passed.unwrap();
    }

    #[tokio::test]
    async fn bytes_arrive_as_they_are_at_any_pace() {
        let ((mut job, client), (server, mut host)) = (connected().await, connected().await);
        let (meter, activity) = (meter(1 << 30), Activity::new());
        // More than sockets and pipe hold, both ways at once.
        let content: Vec<u8> = (0..8_000_000_u32).map(|n| (n % 251) as u8).collect();
        let ends = async {
            let (mut from_host, mut to_host) = job.split();
            let (mut from_job, mut to_job) = host.split();
            let (mut there, mut back) = (Vec::new(), Vec::new());
            let sending = async {
                to_host.write_all(&content).await.unwrap();
                to_host.shutdown().await.unwrap();
            };
            let answering = async {
                for piece in content.chunks(7_777) {
                    to_job.write_all(piece).await.unwrap();
                }
                to_job.shutdown().await.unwrap();
            };
            let reading = from_job.read_to_end(&mut there);
            let returning = from_host.read_to_end(&mut back);
            let ((), (), read, returned) = tokio::join!(sending, answering, reading, returning);
            read.unwrap();
            returned.unwrap();
            assert!(there == content && back == content, "other bytes arrive");
        };
        let passing = pass_on(&client, &server, (&meter, &activity));
        let (passed, ()) = tokio::join!(passing, ends);
        passed.unwrap();
    }

    #[tokio::test]
    async fn tunnel_is_cut_at_the_limit() {
        let ((mut job, client), (server, mut host)) = (connected().await, connected().await);
        let (meter, activity) = (meter(100), Activity::new());
        let passing = async {
            let passed = pass_on(&client, &server, (&meter, &activity)).await;
            drop((client, server));
            passed
        };
        let ends = async {
            // Fails as soon as the tunnel is gone.
            let _ = job.write_all(&[7; 1000]).await;
            let mut received = Vec::new();
            let _ = host.read_to_end(&mut received).await;
            assert!(received.len() <= 100, "{}", received.len());
        };
        let (passed, ()) = tokio::join!(passing, ends);
        passed.unwrap_err();
        assert!(meter.excess().is_some());
    }
}
