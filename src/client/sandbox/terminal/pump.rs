//! One connection of a terminal: keys go out, output comes in, until one side ends it.

use super::{
    keys::DetachKeys,
    link::{Link, ServerNote},
    raw::{self, RawTerminal},
};
use crate::{
    api::sandboxes::exec::{ExecStatus, TerminalSize},
    client::{print::clean, sandbox::events::ExecEnd},
};
use bytes::Bytes;
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use serde_json::json;
use std::{
    cell::Cell,
    io,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::Signal,
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

/// Time for which Ctrl-P is held back.
const HOLD_TIME: Duration = Duration::from_millis(200);
/// Time between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Silence after which a connection counts as lost, as after a laptop's sleep.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(35);
/// Time for the last messages of a connection that this side ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two sizes, so that a program sees both.
const NUDGE_TIME: Duration = Duration::from_millis(60);

/// Message that is shown, in the order of its arrival.
pub(super) enum Shown {
    Output(Bytes),
    Remark(String),
}

/// The user's side of a terminal.
pub(super) struct Person {
    pub(super) terminal: RawTerminal,
    pub(super) keys: mpsc::Receiver<Vec<u8>>,
    pub(super) screen: mpsc::Sender<Shown>,
    pub(super) resized: Signal,
    pub(super) continued: Signal,
    pub(super) detach: DetachKeys,
}

/// End of a connection.
pub(super) enum Ended {
    /// The program has ended.
    Exited(ExecEnd),
    /// The user has detached.
    Detached,
    /// The terminal is gone.
    HungUp,
    /// The connection is lost.
    Lost,
}

/// Passes everything on until the end. A program that was there before is made to draw its screen again.
pub(super) async fn pump(link: Link, person: &mut Person, is_again: bool) -> Ended {
    let (mut sink, mut stream) = link.split();
    let last_sign = Cell::new(Instant::now());
    let screen = person.screen.clone();
    let ended = tokio::select! {
        ended = send_all(&mut sink, person, &last_sign, is_again) => ended,
        ended = receive_all(&mut stream, &screen, &last_sign) => ended,
    };
    let (is_lost, is_detached) = (
        matches!(ended, Ended::Lost),
        matches!(ended, Ended::Detached),
    );
    let end = async {
        if is_detached {
            send_json(&mut sink, &json!({"detach": true})).await?;
        }
        sink.close().await?;
        // Output that is not read would have the connection reset, and the last messages be lost.
        while let Some(Ok(_)) = stream.next().await {}
        Ok::<_, SendError>(())
    };
    if !is_lost {
        // The other side may be gone.
        let _ = timeout(CLOSE_TIMEOUT, end).await;
    }
    ended
}

type Sink = SplitSink<Link, Message>;
type SendError = tokio_tungstenite::tungstenite::Error;

async fn send_json(sink: &mut Sink, message: &serde_json::Value) -> Result<(), SendError> {
    sink.send(Message::text(message.to_string())).await
}

async fn send_size(sink: &mut Sink, size: TerminalSize) -> Result<(), SendError> {
    send_json(sink, &json!({ "resize": size })).await
}

async fn send_all(
    sink: &mut Sink,
    person: &mut Person,
    last_sign: &Cell<Instant>,
    is_again: bool,
) -> Ended {
    if is_again && nudge(sink).await.is_err() {
        return Ended::Lost;
    }
    match try_send_all(sink, person, last_sign).await {
        Ok(ended) => ended,
        Err(_) => Ended::Lost,
    }
}

/// Has a program draw its screen again: the size changes, and changes back.
async fn nudge(sink: &mut Sink) -> Result<(), SendError> {
    let size = raw::size();
    let rows = size.rows.saturating_sub(1).max(1);
    send_size(sink, TerminalSize { rows, ..size }).await?;
    sleep(NUDGE_TIME).await;
    send_size(sink, size).await
}

async fn try_send_all(
    sink: &mut Sink,
    person: &mut Person,
    last_sign: &Cell<Instant>,
) -> Result<Ended, SendError> {
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_holding = person.detach.is_holding();
        tokio::select! {
            typed = person.keys.recv() => {
                let Some(typed) = typed else { return Ok(Ended::HungUp) };
                let typed = person.detach.take(&typed);
                if !typed.bytes.is_empty() {
                    sink.send(Message::binary(typed.bytes)).await?;
                }
                if typed.is_detach {
                    return Ok(Ended::Detached);
                }
            }
            () = sleep(HOLD_TIME), if is_holding => {
                if let Some(key) = person.detach.release() {
                    sink.send(Message::binary(vec![key])).await?;
                }
            }
            _ = person.resized.recv() => send_size(sink, raw::size()).await?,
            _ = person.continued.recv() => {
                // Where that fails, the terminal is gone, and so are its keys.
                let _ = person.terminal.set_raw();
                send_size(sink, raw::size()).await?;
            }
            _ = pings.tick() => {
                if last_sign.get().elapsed() > SILENCE_TIMEOUT {
                    return Ok(Ended::Lost);
                }
                sink.send(Message::Ping(Bytes::new())).await?;
            }
        }
    }
}

async fn receive_all(
    stream: &mut SplitStream<Link>,
    screen: &mpsc::Sender<Shown>,
    last_sign: &Cell<Instant>,
) -> Ended {
    while let Some(Ok(message)) = stream.next().await {
        last_sign.set(Instant::now());
        let shown = match message {
            Message::Binary(output) => Shown::Output(output),
            Message::Text(text) => {
                // A message that is not understood is from a later release.
                let note: ServerNote = serde_json::from_str(&text).unwrap_or_default();
                if note.status.is_some() || note.exit_code.is_some() {
                    return Ended::Exited(ExecEnd {
                        is_lost: note.status == Some(ExecStatus::Lost),
                        code: note.exit_code,
                        cause: note.cause,
                    });
                }
                match note.warning {
                    Some(warning) => Shown::Remark(clean(&warning)),
                    None => continue,
                }
            }
            Message::Close(_) => break,
            _ => continue,
        };
        if screen.send(shown).await.is_err() {
            return Ended::HungUp;
        }
        last_sign.set(Instant::now());
    }
    Ended::Lost
}

/// Shows what comes, until the terminal or the sender is gone.
pub(super) fn show_all(
    terminal: &RawTerminal,
    shown: &mut mpsc::Receiver<Shown>,
) -> io::Result<()> {
    while let Some(next) = shown.blocking_recv() {
        match next {
            Shown::Output(output) => terminal.write(&output)?,
            Shown::Remark(text) => terminal.remark(&text)?,
        }
    }
    Ok(())
}
