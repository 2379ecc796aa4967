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
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::{Error, Message, protocol::frame::coding::CloseCode};

/// Messages that wait for the exec to read its stdin, each of at most a frame. One more is read, and none behind it.
pub(super) const INPUT_QUEUE: usize = 8;
/// Interval in which a client counts as there whose messages are not read.
const MARK_INTERVAL: Duration = Duration::from_secs(10);
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
        let message = match messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return end_by_error(&error),
            None => return InputEnd::Lost,
        };
        last_message.mark();
        match message {
            Message::Binary(bytes) => {
                let is_passed = bytes.is_empty() || queue(&input, bytes, &last_message).await;
                if !is_passed {
                    return InputEnd::Lost;
                }
            }
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

/// Queues input once there is room: while the exec does not read, neither does this. Pongs are not read meanwhile, so
/// a client that is gone then shows in a write that fails. Returns false only where the connection's future is dropped.
async fn queue(input: &mpsc::Sender<Bytes>, bytes: Bytes, last_message: &LastMessage) -> bool {
    let mut queued = pin!(input.send(bytes));
    loop {
        match timeout(MARK_INTERVAL, &mut queued).await {
            Ok(sent) => return sent.is_ok(),
            Err(_) => last_message.mark(),
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
            offset: None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    #[tokio::test(start_paused = true)]
    async fn client_of_deaf_exec_is_there() {
        let (input, _never_read) = mpsc::channel(1);
        let (sizes, _newest_size) = watch::channel(None);
        let last_message = LastMessage::now();
        let sent = [Ok(Message::binary("read")), Ok(Message::binary("held"))];
        let mut messages = stream::iter(sent).chain(stream::pending());
        let received = receive(&mut messages, input, sizes, last_message.clone());
        let end = timeout(Duration::from_secs(600), received).await;
        assert!(end.is_err());
        assert!(last_message.age() <= MARK_INTERVAL);
    }
}
