//! Connection of a tunnel at its HTTP/2 client, the orchestrator.

use super::{
    CONNECTION_WINDOW, MAX_HEAD_BYTES, MAX_STREAMS, MIN_STREAMS, PING_INTERVAL, PING_TIMEOUT,
    SEND_BUFFER_BYTES, STREAM_WINDOW, TUNNEL_URL, TunnelLink,
    cut::{CutStream, Cutter},
    frames::NonEmptyFrames,
    link::Sender,
};
use crate::{
    errors,
    http::client::{CallBody, Client},
};
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

/// Time for calls under way, once the peer takes no more.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(6);
/// Time for the first answer of the peer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Connection of a tunnel. Dropped, it is cut, with its calls.
pub struct TunnelConnection {
    sender: Sender,
    /// Resolves once no further call can be sent, with the cause if that is an error.
    driver: BoxFuture<'static, Option<String>>,
    cutter: Cutter,
}

/// Begins HTTP/2 on a connection that was upgraded. The peer has sent nothing yet. Fails where the peer has left.
pub async fn open<T>(stream: T) -> Result<TunnelConnection, String>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stream, cutter) = CutStream::new(stream);
    let handshake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .adaptive_window(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(MAX_STREAMS as usize)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        // All calls may be dropped at once. What arrives late on a stream that is not remembered counts as a fault of the
        // peer, and after 1024 of these the connection would end.
        .max_concurrent_reset_streams(MAX_STREAMS as usize)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake::<_, NonEmptyFrames<CallBody>>(TokioIo::new(stream))
        .await;
    let (sender, mut connection) = handshake.map_err(|error| errors::chain(&error))?;
    let driver = poll_fn(move |context| {
        // Calls would pile up, with their bodies, and wait for streams that never open.
        if connection.current_max_send_streams() < MIN_STREAMS {
            let reason = format!("it allows fewer than {MIN_STREAMS} calls at a time");
            return Poll::Ready(Some(reason));
        }
        let polled = Pin::new(&mut connection).poll(context);
        polled.map(|ended| ended.err().map(|error| errors::chain(&error)))
    });
    Ok(TunnelConnection {
        sender,
        driver: Box::pin(driver),
        cutter,
    })
}

impl TunnelConnection {
    /// Waits until the peer has answered a call, so that a peer which speaks something else is never called for work. Fails
    /// with the reason. The connection is of no use after a failure.
    pub async fn check(&mut self) -> Result<(), String> {
        let link = TunnelLink::default();
        link.connect(0, self.sender.clone());
        let client = Client::over_tunnel(link);
        let call = client.call(Method::GET, format!("{TUNNEL_URL}/healthz"));
        tokio::select! {
            answer = call.probe(CHECK_TIMEOUT) => match answer {
                Ok(answer) if answer.status == StatusCode::OK => Ok(()),
                Ok(answer) => Err(format!("its Worker API answers {}", answer.status)),
                Err(error) => Err(error.to_string()),
            },
            cause = &mut self.driver => {
                Err(cause.unwrap_or_else(|| "it was closed before the first answer".to_owned()))
            }
        }
    }

    /// Has calls over `link` take this connection.
    pub fn attach(&self, link: &TunnelLink, generation: u64) {
        link.connect(generation, self.sender.clone());
    }

    /// Waits until the connection takes no further calls: the cause, where it is an error.
    pub async fn ended(&mut self) -> Option<String> {
        (&mut self.driver).await
    }

    /// Lets the calls under way end, for a while: a node that shuts down finishes its answers.
    pub async fn drain(self) {
        let Self {
            sender,
            driver,
            mut cutter,
        } = self;
        // Without these, the connection ends with its last call.
        drop((sender, driver));
        // What is left is cut.
        let _ = timeout(DRAIN_TIMEOUT, cutter.dropped()).await;
    }
}
