//! From an exec to a client: the last screenful of its log, what follows it, and how it ended.

use super::{
    super::{
        answers,
        execs::{ExecFollower, RECORD_GONE},
    },
    input::LastMessage,
};
use crate::{
    api::{
        events::RecordContent,
        sandboxes::exec::{Exec, ExecStatus},
    },
    spool::{ExecSpool, LogReader},
    worker::ledger::Job,
};
use bytes::Bytes;
use futures_util::{Sink, SinkExt as _};
use serde_json::{Value, json};
use std::{collections::VecDeque, io, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Most bytes of earlier output that a client gets first.
const SCREENFUL_BYTES: usize = 64 * 1024;
/// Bytes of output that are read at a time.
const READ_BYTES: usize = 256 * 1024;
/// Time between two pings, which also show whether the client is there.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Silence after which a client is gone: it answers pings.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(70);

/// Why no more output is sent.
#[derive(Debug)]
pub(super) enum OutputEnd {
    /// The exec has ended, and all was sent.
    Ended,
    /// The client reads no more, or its log can't be read.
    Lost,
}

/// Sender of an exec's output.
pub(super) struct Output {
    job: Arc<Job>,
    follower: ExecFollower,
    /// Reader of the log; `None` before the first look, and after an error.
    reader: Option<LogReader>,
    last_message: LastMessage,
    ping_at: Instant,
}

impl Output {
    pub(super) fn new(job: Arc<Job>, exec: Exec, last_message: LastMessage) -> Self {
        Self {
            follower: ExecFollower::new(Arc::clone(&job), exec),
            job,
            reader: None,
            last_message,
            ping_at: Instant::now() + PING_INTERVAL,
        }
    }

    /// Sends output until the exec has ended or the client is gone.
    pub(super) async fn send(
        mut self,
        to: &mut (impl Sink<Message, Error = Error> + Unpin),
    ) -> OutputEnd {
        match self.try_send(to).await {
            Ok(end) => end,
            Err(error) => {
                tracing::debug!(%error, "terminal's output not sent");
                OutputEnd::Lost
            }
        }
    }

    async fn try_send(
        &mut self,
        to: &mut (impl Sink<Message, Error = Error> + Unpin),
    ) -> Result<OutputEnd, Error> {
        let exec_id = self.follower.exec().exec_id;
        to.send(text(&json!({ "exec_id": exec_id }))).await?;
        loop {
            let (pieces, end) = match self.read().await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    to.send(text(&json!({ "warning": RECORD_GONE }))).await?;
                    return Ok(OutputEnd::Ended);
                }
                read => read?,
            };
            for piece in &pieces {
                match piece {
                    Piece::Output(bytes) => to.feed(Message::Binary(bytes.clone())).await?,
                    Piece::Warning(warning) => {
                        to.feed(text(&json!({ "warning": warning }))).await?;
                    }
                }
            }
            to.flush().await?;
            match end {
                Some(exec) if pieces.is_empty() => {
                    self.send_end(&exec, to).await?;
                    return Ok(OutputEnd::Ended);
                }
                _ if !pieces.is_empty() => {}
                _ => {
                    // Looks again either way.
                    let _ = timeout_at(self.ping_at, self.follower.changed()).await;
                }
            }
            if self.ping_at <= Instant::now() {
                self.ping_at = Instant::now() + PING_INTERVAL;
                if self.last_message.age() > SILENCE_TIMEOUT {
                    return Ok(OutputEnd::Lost);
                }
                to.send(Message::Ping(Bytes::new())).await?;
            }
        }
    }

    /// The next pieces, none once all were read; and the end of the exec.
    async fn read(&mut self) -> io::Result<(Vec<Piece>, Option<Exec>)> {
        let reader = self.reader.take();
        let read = self.follower.look(move |spool, _| {
            let (mut reader, mut pieces) = match reader {
                Some(reader) => (reader, Vec::new()),
                None => last_screenful(spool)?,
            };
            if pieces.is_empty() {
                pieces = read_pieces(&mut reader)?.0;
            }
            Ok((reader, pieces))
        });
        let ((reader, pieces), end) = read.await?;
        self.reader = Some(reader);
        Ok((pieces, end))
    }

    async fn send_end(
        &self,
        exec: &Exec,
        to: &mut (impl Sink<Message, Error = Error> + Unpin),
    ) -> Result<(), Error> {
        if exec.status == ExecStatus::Lost {
            let warning = answers::ended(&self.job).await.detail;
            to.feed(text(&json!({ "warning": warning }))).await?;
        }
        let mut end = json!({ "exit_code": exec.exit_code, "status": exec.status });
        if let Some(cause) = exec.cause {
            end["cause"] = json!(cause);
        }
        to.send(text(&end)).await
    }
}

/// Piece of output.
enum Piece {
    Output(Bytes),
    /// Message about the sandbox, such as of its end, or about output that is not kept.
    Warning(String),
}

fn text(value: &Value) -> Message {
    Message::text(value.to_string())
}

/// Last output so far, and a reader of what follows it.
fn last_screenful(spool: &ExecSpool) -> io::Result<(LogReader, Vec<Piece>)> {
    let mut reader = spool.log(0).until_now()?;
    let (mut kept, mut bytes, mut last_seq) = (VecDeque::new(), 0, 0);
    loop {
        let (pieces, seq) = read_pieces(&mut reader)?;
        let Some(seq) = seq else { break };
        last_seq = seq;
        for piece in pieces {
            if let Piece::Output(output) = piece {
                bytes += output.len();
                kept.push_back(output);
            }
        }
        while let Some(first) = kept.front_mut().filter(|_| bytes > SCREENFUL_BYTES) {
            let excess = bytes - SCREENFUL_BYTES;
            bytes -= first.len().min(excess);
            if first.len() <= excess {
                kept.pop_front();
            } else {
                let _ = first.split_to(excess);
            }
        }
    }
    let reader = spool.log(last_seq);
    Ok((reader, kept.into_iter().map(Piece::Output).collect()))
}

/// The next pieces of a log, and the number of the last record; `None` once all were read.
fn read_pieces(reader: &mut LogReader) -> io::Result<(Vec<Piece>, Option<u64>)> {
    let (mut pieces, mut last_seq) = (Vec::new(), None);
    while pieces.is_empty() {
        let records = reader.read(READ_BYTES, true)?;
        let Some(last) = records.last() else { break };
        last_seq = Some(last.seq);
        for record in records {
            match record.content {
                RecordContent::Output(chunk) if !chunk.bytes.is_empty() => {
                    pieces.push(Piece::Output(chunk.bytes.into()));
                }
                RecordContent::Gap { bytes, .. } => {
                    let warning = format!("{bytes} bytes of output are not kept");
                    pieces.push(Piece::Warning(warning));
                }
                RecordContent::Status(warning) => pieces.push(Piece::Warning(warning)),
                _ => {}
            }
        }
    }
    Ok((pieces, last_seq))
}
