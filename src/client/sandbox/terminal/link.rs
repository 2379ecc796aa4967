//! Connection of a terminal: the WebSocket, and what the server says in text.

use crate::{
    api::{
        problem::ProblemBody,
        sandboxes::exec::{ExecEndCause, ExecStatus},
    },
    client::{api_client::exit_of, connection, print::clean},
    exit::Failure,
    http::resolve::{port_of, resolve_host},
    tls::{self, ClientStream, Trust, Untrusted},
};
use http::{Uri, uri::Scheme};
use serde::Deserialize;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, ClientRequestBuilder, protocol::WebSocketConfig},
};

/// Time for a connection to be made, name resolution and the handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the handshake: a sandbox that starts keeps it waiting.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest message of the server.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Connection to a terminal.
pub(super) type Link = WebSocketStream<ClientStream>;

/// Message of the server in text.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct ServerNote {
    /// Remark that is for the user, such as about the end of the sandbox.
    pub(super) warning: Option<String>,
    /// State of the program, which has ended; the last message.
    pub(super) status: Option<ExecStatus>,
    /// Exit code of the program; in the last message.
    pub(super) exit_code: Option<i32>,
    /// Cause of an end that the program did not choose.
    pub(super) cause: Option<ExecEndCause>,
}

/// Reason for which there is no connection.
pub(super) enum ConnectError {
    /// The server does not answer.
    Unreachable(Failure),
    /// The token has expired.
    Expired,
    /// The server refused it.
    Refused(Failure),
}

/// Opens the terminal at a path of the gateway.
pub(super) async fn connect(
    (url, trust): (&str, &Trust),
    path: &str,
    token: &str,
) -> Result<Link, ConnectError> {
    let unreachable = |reason: &dyn std::fmt::Display| {
        ConnectError::Unreachable(connection::unreachable(url, reason))
    };
    let gateway: Uri = url
        .parse()
        .map_err(|error| ConnectError::Refused(Failure::internal(error)))?;
    let authority = gateway
        .authority()
        .map_or("", |authority| authority.as_str());
    let prefix = gateway.path().trim_end_matches('/');
    // Of the scheme, tungstenite wants to know only that it is one of its own.
    let uri: Uri = format!("ws://{authority}{prefix}{path}")
        .parse()
        .map_err(|error| ConnectError::Refused(Failure::internal(error)))?;
    let stream = match timeout(CONNECT_TIMEOUT, open(&gateway, trust)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(not_opened(url, &error)),
        Err(_) => return Err(unreachable(&"it did not answer in time")),
    };
    let request = ClientRequestBuilder::new(uri)
        .with_header("authorization", format!("Bearer {token}"))
        .with_header("user-agent", concat!("cynode/", env!("CARGO_PKG_VERSION")));
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let opened = client_async_with_config(request, stream, Some(config));
    match timeout(HANDSHAKE_TIMEOUT, opened).await {
        Ok(Ok((link, _))) => Ok(link),
        Ok(Err(tungstenite::Error::Http(answer))) => Err(refused(&answer)),
        Ok(Err(error)) => Err(unreachable(&error)),
        Err(_) => Err(unreachable(&"it did not answer in time")),
    }
}

/// Failure to open a connection. One that is not trusted is no reason to try again.
fn not_opened(url: &str, error: &io::Error) -> ConnectError {
    if let Some(untrusted) = Untrusted::find(error) {
        return ConnectError::Refused(connection::not_trusted(url, untrusted));
    }
    let reason = tls::reason(error).unwrap_or_else(|| error.to_string());
    ConnectError::Unreachable(connection::unreachable(url, &reason))
}

async fn open(gateway: &Uri, trust: &Trust) -> io::Result<ClientStream> {
    let stream = connect_tcp(gateway).await?;
    if gateway.scheme() == Some(&Scheme::HTTPS) {
        return trust
            .connect(gateway.host().unwrap_or_default(), stream)
            .await;
    }
    Ok(ClientStream::Plain(stream))
}

async fn connect_tcp(uri: &Uri) -> io::Result<TcpStream> {
    let host = uri.host().unwrap_or_default();
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for ip in resolve_host(host).await? {
        let address = SocketAddr::new(ip, port_of(uri));
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // A key is one packet, and its echo is waited for.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Refusal as a failure. Of its body there is what came together with the head.
fn refused(answer: &http::Response<Option<Vec<u8>>>) -> ConnectError {
    let status = answer.status();
    if status == 401 {
        return ConnectError::Expired;
    }
    let body = answer.body().as_deref().unwrap_or_default();
    let text = match serde_json::from_slice::<ProblemBody>(body) {
        Ok(problem) => clean(&problem.detail),
        Err(_) if status == 404 => "there is no such sandbox".to_owned(),
        Err(_) => format!("the orchestrator answered {status}; try again"),
    };
    ConnectError::Refused(Failure::new(exit_of(status), text))
}
