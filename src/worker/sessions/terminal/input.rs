//! From a client to its exec: bytes for stdin, sizes, and the end of the connection.

use super::super::{
    protocol::{SessionReply, SessionRequest, read_frame},
    socket,
};
use crate::{
    api::{ExecId, sandboxes::exec::TerminalSize},
    worker::ledger::Job,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use parking_lot::Mutex;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_tungstenite::tungstenite::{Error, Message, protocol::frame::coding::CloseCode};

/// Messages that wait for the exec to read its stdin, each of at most a frame. The next one is not read before.
pub(super) const INPUT_QUEUE: usize = 8;
/// Text frame of a client that makes no sense.
const NO_CONTROL: &str = "a text frame must be such as {\"resize\":{\"cols\":80,\"rows\":24}} or {\"detach\":true}; send input in binary frames";

/// Control message of a client. Fields of a later release are ignored.
#[derive(Deserialize)]
struct Control {
    #[serde(default)]
    resize: Option<TerminalSize>,
    #[serde(default)]
    detach: bool,
}

/// Why a client sends no more.
#[derive(Debug)]
pub(super) enum InputEnd {
    /// The connection broke off.
    Lost,
    /// It closed the connection.
    Closed,
    /// It wants the exec to go on.
    Detached,
    /// It sent what makes no sense.
    Refused(CloseCode, &'static str),
}

/// Time of the last message of a client, pings and pongs among them.
#[derive(Clone)]
pub(super) struct LastMessage(Arc<Mutex<Instant>>);

impl LastMessage {
    pub(super) fn now() -> Self {
        Self(Arc::new(Instant::now().into()))
    }

    fn mark(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Time since the last message.
    pub(super) fn age(&self) -> Duration {
        self.0.lock().elapsed()
    }
}

/// Reads what a client sends, until its end.
pub(super) async fn receive(
    messages: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
    input: mpsc::Sender<Bytes>,
    sizes: watch::Sender<Option<TerminalSize>>,
    last_message: LastMessage,
) -> InputEnd {
    loop {
        // While the exec does not read, neither does this. It fails only where this future is dropped, too.
        let Ok(permit) = input.reserve().await else {
            return InputEnd::Lost;
        };
        let message = match messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return end_by_error(&error),
            None => return InputEnd::Lost,
        };
        last_message.mark();
        match message {
            Message::Binary(bytes) if !bytes.is_empty() => permit.send(bytes),
            Message::Text(text) => {
                let control = serde_json::from_str(text.as_str());
                let Ok(Control { resize, detach }) = control else {
                    return InputEnd::Refused(CloseCode::Invalid, NO_CONTROL);
                };
                if let Some(size) = resize {
                    if size.check("/resize").is_err() {
                        let detail = "resize: cols and rows must be from 1 to 10000";
                        return InputEnd::Refused(CloseCode::Invalid, detail);
                    }
                    sizes.send_replace(Some(size));
                }
                if detach {
                    return InputEnd::Detached;
                }
            }
            Message::Close(_) => return InputEnd::Closed,
            // The answer to a ping is queued already.
            _ => {}
        }
    }
}

fn end_by_error(error: &Error) -> InputEnd {
    match error {
        Error::Capacity(_) => InputEnd::Refused(
            CloseCode::Size,
            "a message is longer than 64 KiB; send less at a time",
        ),
        Error::Utf8(_) => InputEnd::Refused(CloseCode::Invalid, "a text frame is not UTF-8"),
        Error::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => InputEnd::Lost,
        Error::Protocol(_) => InputEnd::Refused(CloseCode::Protocol, "this is no WebSocket frame"),
        Error::ConnectionClosed | Error::AlreadyClosed => InputEnd::Closed,
        _ => InputEnd::Lost,
    }
}

/// Hands input over to the exec, as fast as that reads it. Input that it does not take any more is dropped.
pub(super) async fn send(job: &Arc<Job>, exec_id: ExecId, mut input: mpsc::Receiver<Bytes>) {
    while let Some(first) = input.recv().await {
        let request = SessionRequest::Stdin {
            exec_id,
            eof: false,
        };
        let Ok((SessionReply::Done, mut stream)) = socket::open(job, &request).await else {
            continue;
        };
        let mut next = Some(first);
        while let Some(bytes) = next {
            if stream.write_all(&bytes).await.is_err() {
                break;
            }
            next = input.try_recv().ok();
        }
        // The next call is for input that follows, so this one has to be through.
        if stream.shutdown().await.is_ok() {
            let _ = read_frame::<SessionReply>(&mut stream).await;
        }
    }
}

/// Hands the newest size over to the exec.
pub(super) async fn resize(
    job: &Arc<Job>,
    exec_id: ExecId,
    mut sizes: watch::Receiver<Option<TerminalSize>>,
) {
    while sizes.changed().await.is_ok() {
        let size = *sizes.borrow_and_update();
        if let Some(size) = size {
            // An exec without a terminal has no size, and one that has ended needs none.
            let _ = socket::call(job, &SessionRequest::Resize { exec_id, size }).await;
        }
    }
}
