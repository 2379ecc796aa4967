//! One connection of a terminal, from its upgrade to its end.

use super::{
    Attachment, Ending,
    input::{self, INPUT_QUEUE, InputEnd, LastMessage},
    output::{Output, OutputEnd},
};
use crate::{api::sandboxes::exec::Exec, worker::ledger::Job};
use futures_util::{SinkExt as _, StreamExt as _};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

/// Longest message of a client.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Buffers of a connection.
const READ_BUFFER_BYTES: usize = 16 * 1024;
const WRITE_BUFFER_BYTES: usize = 64 * 1024;
/// Most bytes that wait to be written, several frames of output.
const MAX_WRITE_BUFFER_BYTES: usize = 1024 * 1024;
/// Time for the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves the connection of a client, which is attached to an exec meanwhile.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    job: Arc<Job>,
    exec: Exec,
    mut attachment: Attachment,
) {
    let exec_id = exec.exec_id;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(MAX_WRITE_BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let (mut sink, mut messages) = socket.split();
    let last_message = LastMessage::now();
    let (input, queued_input) = mpsc::channel(INPUT_QUEUE);
    let (sizes, newest_size) = watch::channel(None);
    let output = Output::new(Arc::clone(&job), exec, last_message.clone());
    // Each waits for its own: input that the exec does not read holds up no output, and the other way round.
    let closing = tokio::select! {
        end = output.send(&mut sink) => match end {
            OutputEnd::Ended => closing(Ending::Detached, CloseCode::Normal, "the command has ended"),
            OutputEnd::Lost => closing(Ending::Lost, CloseCode::Away, "no sign of the client"),
        },
        end = input::receive(&mut messages, input, sizes, last_message) => match end {
            InputEnd::Closed => closing(Ending::Closed, CloseCode::Normal, ""),
            InputEnd::Detached => closing(Ending::Detached, CloseCode::Normal, "detached"),
            InputEnd::Refused(code, reason) => closing(Ending::Closed, code, reason),
            InputEnd::Lost => closing(Ending::Lost, CloseCode::Away, ""),
        },
        never = async {
            tokio::join!(
                input::send(&job, exec_id, queued_input),
                input::resize(&job, exec_id, newest_size),
            );
            // Both end only once no more is received.
            std::future::pending().await
        } => never,
    };
    let (ending, frame) = closing;
    attachment.ending = ending;
    // The exec is hung up without waiting for the client's farewell.
    drop(attachment);
    let farewell = async {
        // It fails where the client has closed the connection; its own frame is answered already, in a buffer.
        let _ = sink.send(Message::Close(Some(frame))).await;
        let _ = sink.flush().await;
        // Unread bytes of the client would reset the connection, and the last frame be lost.
        while let Some(Ok(_)) = messages.next().await {}
    };
    // A client that says no farewell is cut.
    let _ = timeout(CLOSE_TIMEOUT, farewell).await;
}

fn closing(ending: Ending, code: CloseCode, reason: &'static str) -> (Ending, CloseFrame) {
    let reason = reason.into();
    (ending, CloseFrame { code, reason })
}
