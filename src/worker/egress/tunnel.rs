//! Tunnels: the bytes behind CONNECT, in both directions, until both have ended, none comes for long, or the job has
//! used all that it may.

use super::{
    Proxy,
    activity::Activity,
    client_hello::{self, HelloFault},
    refusal::hello_text,
    request::Target,
    tally::{Direction, Meter},
};
use crate::api::egress::HostName;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    net::TcpStream,
    time::timeout,
};

/// Time for the hello of a TLS client.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that are on their way in one direction. More make no transfer faster, and a node has many tunnels.
const BUFFER_BYTES: usize = 32 * 1024;
/// Bytes of a hello that are read at a time.
const HELLO_CHUNK_BYTES: usize = 4 * 1024;

/// Tunnel that was promised to a client.
pub(super) struct PendingTunnel {
    pub(super) client: OnUpgrade,
    pub(super) server: TcpStream,
    pub(super) target: Target,
}

impl PendingTunnel {
    /// Passes bytes on to the end of the tunnel.
    pub(super) async fn run(self, proxy: &Proxy) {
        let Self {
            client,
            mut server,
            target,
        } = self;
        let mut client = match client.await {
            Ok(client) => TokioIo::new(client),
            Err(error) => {
                tracing::debug!(%error, "client left before its tunnel began");
                return;
            }
        };
        if target.is_tls() {
            let hello = match read_hello(&mut client, &target.host).await {
                Ok(hello) => hello,
                Err(fault) => {
                    let reason = hello_text(fault);
                    let kept = format!("tunnel to {target} cut: {reason}");
                    proxy.meter.count_cut(&kept);
                    // Not more: a job could repeat it.
                    tracing::debug!(%target, reason, "tunnel of a job refused");
                    return;
                }
            };
            let passed = proxy.meter.add(Direction::Sent, hello.len());
            if passed.is_err() || server.write_all(&hello).await.is_err() {
                return;
            }
        }
        if let Err(error) = pass_on(client, server, &proxy.meter).await {
            proxy.meter.count_used_up();
            tracing::debug!(%target, %error, "tunnel of a job ended early");
        }
    }
}

/// Reads the begin of a TLS connection, as far as it names the server, which must be `host`.
async fn read_hello(
    client: &mut (impl AsyncRead + Unpin),
    host: &HostName,
) -> Result<Vec<u8>, HelloFault> {
    let reading = async {
        let mut seen = Vec::new();
        let mut chunk = [0; HELLO_CHUNK_BYTES];
        while client_hello::check(&seen, host)?.is_none() {
            match client.read(&mut chunk).await {
                Ok(read @ 1..) => seen.extend_from_slice(&chunk[..read]),
                _ => return Err(HelloFault::Missing),
            }
        }
        Ok(seen)
    };
    let read = timeout(HELLO_TIMEOUT, reading).await;
    read.unwrap_or(Err(HelloFault::Missing))
}

/// Passes bytes on in both directions. The end of one is passed on, and the other goes on.
async fn pass_on(
    client: impl AsyncRead + AsyncWrite + Unpin,
    server: TcpStream,
    meter: &Meter,
) -> io::Result<()> {
    let activity = Activity::new();
    let (from_client, to_client) = split(client);
    let (from_server, to_server) = server.into_split();
    let sent = copy(from_client, to_server, (Direction::Sent, meter), &activity);
    let received = copy(
        from_server,
        to_client,
        (Direction::Received, meter),
        &activity,
    );
    tokio::select! {
        ended = async { tokio::try_join!(sent, received) } => ended.map(drop),
        () = activity.wait_idle() => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    (direction, meter): (Direction, &Meter),
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        activity.touch();
        meter.add(direction, read)?;
        to.write_all(&buffer[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::size::ByteSize, http::metrics::MetricsRegistry, worker::egress::metrics::EgressMetrics,
    };
    use std::sync::Arc;
    use tokio::{io::duplex, net::TcpListener};

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
        let (mut job, client) = duplex(64);
        let (server, mut host) = connected().await;
        let meter = meter(1 << 20);
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
        let (passed, ()) = tokio::join!(pass_on(client, server, &meter), ends);
        passed.unwrap();
    }

    #[tokio::test]
    async fn tunnel_is_cut_at_the_limit() {
        let (mut job, client) = duplex(64);
        let (server, mut host) = connected().await;
        let meter = meter(100);
        let ends = async {
            // Fails as soon as the tunnel is gone.
            let _ = job.write_all(&[7; 1000]).await;
            let mut received = Vec::new();
            let _ = host.read_to_end(&mut received).await;
            assert!(received.len() <= 100, "{}", received.len());
        };
        let (passed, ()) = tokio::join!(pass_on(client, server, &meter), ends);
        passed.unwrap_err();
        assert!(meter.excess().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn silent_client_has_no_hello() {
        let (_job, mut client) = duplex(64);
        let host = "a.example".parse().unwrap();
        let read = read_hello(&mut client, &host).await;
        assert_eq!(read, Err(HelloFault::Missing));
    }
}
