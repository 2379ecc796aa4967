//! Begin of a connection at a listener that speaks TLS.
//!
//! The first byte tells a TLS handshake from plain HTTP, which is answered with advice. Nothing of a plain request is
//! looked at: it may hold a password that has just crossed the network in the clear, and must not work.

use super::{
    connection_info::ConnectionInfo,
    http2,
    server::{HEADER_TIMEOUT, Shutdown, raw_answer, shutdown_requested},
    tls_only::TLS_ONLY,
};
use crate::{
    api::problem::{Problem, ProblemKind},
    tls::ServerTls,
};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::server::TlsStream;

/// First byte of a TLS handshake record (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Time for the client of a plain request to read the advice and leave.
const ADVICE_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes of a plain request that are thrown away.
const MAX_DISCARDED_BYTES: u64 = 64 * 1024;

/// Encrypted stream of a connection; `None` where the client did not complete a handshake, or at a shutdown.
pub(super) async fn accept(
    stream: TcpStream,
    tls: &ServerTls,
    connection: ConnectionInfo,
    drain: Shutdown,
) -> Option<TlsStream<TcpStream>> {
    let opened = tokio::select! {
        opened = timeout(HEADER_TIMEOUT, open(stream, tls, connection)) => opened,
        () = shutdown_requested(drain) => return None,
    };
    match opened {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, peer = %connection.peer, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(peer = %connection.peer, "TLS handshake timed out");
            None
        }
    }
}

/// Whether the client has chosen HTTP/2.
pub(super) fn is_http2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(http2::ALPN)
}

async fn open(
    stream: TcpStream,
    tls: &ServerTls,
    connection: ConnectionInfo,
) -> io::Result<Option<TlsStream<TcpStream>>> {
    let mut first = [0];
    // Nothing comes from a client that only looked whether the port is open.
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    if first == [HANDSHAKE_RECORD] {
        return Ok(Some(tls.acceptor().accept(stream).await?));
    }
    tracing::debug!(peer = %connection.peer, "plain HTTP refused: this listener speaks TLS");
    // A client that is gone already needs no answer.
    let _ = timeout(ADVICE_TIMEOUT, advise(stream, connection)).await;
    Ok(None)
}

/// Answers a plain request that it has to use TLS.
async fn advise(mut stream: TcpStream, connection: ConnectionInfo) -> io::Result<()> {
    let text = format!(
        "{TLS_ONLY}: use https:// in place of http://, as in https://{}, and give the pin that the orchestrator prints at \
         its start (--pin); change passwords, keys and tokens that you have sent to it over http://",
        connection.local
    );
    let problem = Problem::new(ProblemKind::InvalidRequest, text);
    stream
        .write_all(raw_answer(&problem, "").as_bytes())
        .await?;
    stream.shutdown().await?;
    // A close while bytes wait to be received would be a reset, which may overtake the answer.
    let mut rest = stream.take(MAX_DISCARDED_BYTES);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}
