//! Tunnels: the bytes behind CONNECT, in both directions, until both have ended, none comes for long, or the job has
//! used all that it may.

use super::{
    Proxy,
    activity::Activity,
    client_hello::{self, HelloFault},
    refusal::hello_text,
    relay::pass_on,
    request::Target,
    server::ClientIo,
    tally::Direction,
    terminate,
};
use crate::api::egress::HostName;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Time for the hello of a TLS client.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a hello that are read at a time.
const HELLO_CHUNK_BYTES: usize = 4 * 1024;

/// Tunnel that was promised to a client.
pub(super) struct PendingTunnel {
    pub(super) client: OnUpgrade,
    pub(super) server: TcpStream,
    pub(super) target: Target,
}

impl PendingTunnel {
    /// Passes bytes on to the end of the tunnel, or the requests in it where the proxy opens its TLS.
    pub(super) async fn run(self, proxy: &Arc<Proxy>) {
        let Self {
            client,
            mut server,
            target,
        } = self;
        let activity = Activity::of(proxy.notices.flow(&target));
        let mut client = match client.await {
            Ok(client) => TokioIo::new(client),
            Err(error) => {
                tracing::debug!(%error, "client left before its tunnel began");
                return;
            }
        };
        let is_opened = proxy.edge.terminates(&target.host, target.port);
        let mut begin = Vec::new();
        if target.is_tls() || is_opened {
            begin = match read_hello(&mut client, &target.host).await {
                Ok(hello) => hello,
                Err(fault) => {
                    let reason = hello_text(fault);
                    let kept = format!("tunnel to {target} cut: {reason}");
                    proxy.meter.count_cut(&kept);
                    activity.cut(reason);
                    // Not more: a job could repeat it.
                    tracing::debug!(%target, reason, "tunnel of a job refused");
                    return;
                }
            };
            if is_opened {
                return terminate::serve(proxy, (client, begin), (server, target)).await;
            }
        }
        let Ok(client) = client.into_inner().downcast::<ClientIo>() else {
            tracing::error!(
                "connection of a tunnel is of another kind; please report this as a fault of cynode"
            );
            return;
        };
        // What came with the request.
        begin.extend_from_slice(&client.read_buf);
        let passing = async {
            activity.count(Direction::Sent, begin.len());
            proxy.meter.add(Direction::Sent, begin.len())?;
            server.write_all(&begin).await?;
            let client = client.io.inner().get_ref();
            pass_on(client, &server, (&proxy.meter, &activity)).await
        };
        if let Err(error) = passing.await {
            proxy.meter.count_used_up();
            activity.cut_if_used_up(&proxy.meter);
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test(start_paused = true)]
    async fn silent_client_has_no_hello() {
        let (_job, mut client) = duplex(64);
        let host = "a.example".parse().unwrap();
        let read = read_hello(&mut client, &host).await;
        assert_eq!(read, Err(HelloFault::Missing));
    }
}
