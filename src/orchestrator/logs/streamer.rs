//! Source of one reader's events: the output of a task in order, without a gap or a duplicate.
//!
//! ```text
//! queued ──▶ a node runs it ──▶ its event stream, requested again after each cut ──▶ its result event
//!   ▲             │                                                                        │
//!   └─ next attempt ◀──────────────── the attempt is over ◀────────────────────────────────┤
//!                                          │ the task is over                              │
//!                     missing output, from the store ──▶ end ◀─────────────────────────────┘
//! ```
//!
//! A node keeps a job until its result is stored and no reader follows it any more, within limits; a reader that comes
//! later gets the kept log. One that does not follow gets a snapshot, and an `end` with the status at that time.

use super::{
    AppState, LogQuery, NODE_ANSWER_TIMEOUT, NodeLogError, kept::KeptLog, open_events, stored_task,
    unreachable_node,
};
use crate::{
    api::{
        TaskId,
        error::ApiError,
        events::{EgressEvent, JobEvent, OutputData, OutputEncoding, Stream, StreamFilter},
        tasks::{LogCursor, TaskStatus},
        time::Time,
    },
    backoff::Backoff,
    errors,
    orchestrator::{
        node_client::NodeEvents,
        reason::sanitize,
        task_watch::{LogSource, TaskState, TaskWatch},
        tasks,
    },
    wait,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};

/// Backoff before a node's stream is requested again.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Event of a followed log.
pub(in crate::orchestrator) struct LogEvent {
    /// Position after this event.
    pub(in crate::orchestrator) cursor: LogCursor,
    /// `status`, `stdout`, `stderr`, `gap`, `egress` or `end`.
    pub(in crate::orchestrator) name: &'static str,
    /// Fields of the event, as the API documents them by name.
    pub(in crate::orchestrator) data: Value,
}

/// Output of a task that has not ended.
enum Snapshot {
    /// No node runs it yet.
    Nothing,
    /// Events of its node.
    Events(u32, Box<NodeEvents>),
}

/// Progress of one reader.
pub(super) struct LogStreamer {
    state: Arc<AppState>,
    task: TaskId,
    /// Keeps the sender of `states`.
    _watch: Arc<TaskWatch>,
    states: watch::Receiver<TaskState>,
    query: LogQuery,
    cursor: LogCursor,
    /// Output so far, for a reader that does not follow.
    snapshot: Option<Snapshot>,
    /// Status, attempt and reachability that the reader got last.
    last_status: Option<(TaskStatus, u32, (bool, Option<u8>))>,
    /// Whether the reader got all output of the current attempt.
    is_complete: bool,
}

impl LogStreamer {
    /// Streamer for a reader that has all events up to `cursor`.
    pub(super) fn new(
        state: Arc<AppState>,
        task: TaskId,
        watch: Arc<TaskWatch>,
        query: LogQuery,
        cursor: LogCursor,
    ) -> Self {
        Self {
            state,
            task,
            states: watch.subscribe(),
            _watch: watch,
            query,
            cursor,
            snapshot: None,
            last_status: None,
            is_complete: false,
        }
    }

    /// Prepares for a reader that wants what there is, and does not wait. Fails where the node does not answer.
    pub(super) async fn open_snapshot(&mut self) -> Result<(), ApiError> {
        let current = *self.states.borrow();
        if current.status.is_final() {
            return Ok(());
        }
        let Some(source) = current.source else {
            self.snapshot = Some(Snapshot::Nothing);
            return Ok(());
        };
        self.start_attempt(current.attempt);
        match open_events(&self.state, source, self.cursor.seq, false, &self.query).await {
            Ok(events) => self.snapshot = Some(Snapshot::Events(current.attempt, events.into())),
            Err(NodeLogError::Store(error)) => return Err(error.into()),
            Err(error) => {
                let error = errors::chain(&error);
                tracing::debug!(
                    error,
                    "output of a running task can't be read from its node"
                );
                // The task may have ended meanwhile, and its node have forgotten it.
                if !stored_task(&self.state, self.task).await?.status.is_final() {
                    return Err(unreachable_node().into());
                }
            }
        }
        Ok(())
    }

    /// Sends what there is of a task that has not ended, and an end with its status.
    async fn send_snapshot(&mut self, snapshot: Snapshot, to: &mpsc::Sender<LogEvent>) {
        let current = *self.states.borrow();
        self.send_status(current, to).await;
        if let Snapshot::Events(attempt, mut events) = snapshot {
            loop {
                match events.next().await {
                    Ok(Some(JobEvent::Result(_)) | None) => break,
                    Ok(Some(event)) if event.attempt().is_none_or(|other| other == attempt) => {
                        self.relay_event(event, to).await;
                    }
                    Ok(Some(_)) => break,
                    Err(error) => {
                        // Without an end: the reader comes again, and goes on where it was.
                        let error = errors::chain(&error);
                        return tracing::debug!(task = %self.task, error, "log of a node was cut off");
                    }
                }
            }
        }
        self.send("end", json!({ "status": current.status }), to)
            .await;
    }

    /// Sends all events up to the end of the task, whose stored status is `stored`.
    pub(super) async fn run(mut self, stored: TaskStatus, to: mpsc::Sender<LogEvent>) {
        let to = &to;
        if let Some(snapshot) = self.snapshot.take() {
            return self.send_snapshot(snapshot, to).await;
        }
        if stored.is_final() {
            return self.send_end(stored, to).await;
        }
        loop {
            let current = *self.states.borrow_and_update();
            if current.status.is_final() {
                return self.send_end(current.status, to).await;
            }
            self.start_attempt(current.attempt);
            self.send_status(current, to).await;
            match current.source {
                Some(source) if !self.is_complete => self.relay_attempt(source, to).await,
                // The sender lives in `_watch`, so this can't fail.
                _ => drop(self.states.changed().await),
            }
        }
    }

    fn start_attempt(&mut self, attempt: u32) {
        if attempt != self.cursor.attempt {
            self.cursor = LogCursor { attempt, seq: 0 };
            self.is_complete = false;
        }
    }

    async fn send_status(&mut self, current: TaskState, to: &mpsc::Sender<LogEvent>) {
        // In steps of ten percent, so that a long transfer is not a long log.
        let sending = current.sending.map(|(_, percent)| percent / 10);
        let status = Some((
            current.status,
            current.attempt,
            (current.is_unreachable, sending),
        ));
        if self.last_status == status {
            return;
        }
        self.last_status = status;
        let mut data = json!({ "status": current.status });
        if let Some(reason) = tasks::waiting_for(&self.state, self.task, current.status).await {
            data["reason"] = reason.into();
        }
        self.send("status", data, to).await;
    }

    /// Relays the output of this attempt from its node until it is complete or the attempt is over.
    async fn relay_attempt(&mut self, source: LogSource, to: &mpsc::Sender<LogEvent>) {
        let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
        loop {
            let before = self.cursor.seq;
            match self.relay_stream(source, to).await {
                Ok(()) => {
                    self.is_complete = true;
                    return;
                }
                Err(error) => {
                    let error = errors::chain(&error);
                    tracing::debug!(task = %self.task, error, "log stream of a node interrupted");
                }
            }
            if self.cursor.seq > before {
                backoff.reset();
            }
            let current = *self.states.borrow();
            if current.is_running(self.cursor.attempt) {
                self.send_status(current, to).await;
            }
            let over = wait_attempt_over(self.states.clone(), self.cursor.attempt);
            if tokio::time::timeout(backoff.next_delay(), over)
                .await
                .is_ok()
            {
                // The node keeps the job while it is followed, so it still has the rest.
                self.is_complete = self.relay_stream(source, to).await.is_ok();
                return;
            }
        }
    }

    /// Relays one event stream of the node, up to the result.
    async fn relay_stream(
        &mut self,
        source: LogSource,
        to: &mpsc::Sender<LogEvent>,
    ) -> Result<(), NodeLogError> {
        let attempt = self.cursor.attempt;
        let after = self.cursor.seq;
        let mut events = open_events(&self.state, source, after, true, &self.query).await?;
        loop {
            let silence_after_end = async {
                wait_attempt_over(self.states.clone(), attempt).await;
                tokio::time::sleep(NODE_ANSWER_TIMEOUT).await;
            };
            let event = tokio::select! {
                event = events.next() => event?.ok_or(NodeLogError::NoResult)?,
                () = silence_after_end => return Err(NodeLogError::Timeout),
            };
            if event.attempt().is_some_and(|other| other != attempt) {
                return Err(NodeLogError::OtherAttempt);
            }
            if matches!(event, JobEvent::Result(_)) {
                return Ok(());
            }
            self.relay_event(event, to).await;
        }
    }

    /// Relays an event, unless the reader has it already or did not ask for it.
    async fn relay_event(&mut self, event: JobEvent, to: &mpsc::Sender<LogEvent>) {
        let Some(seq) = event.seq().filter(|seq| *seq > self.cursor.seq) else {
            return;
        };
        self.cursor.seq = seq;
        let streams = self.query.part.streams;
        let (name, data) = match event {
            JobEvent::Stdout { data, time, .. } if streams.has(Stream::Stdout) => {
                ("stdout", self.output(data, time))
            }
            JobEvent::Stderr { data, time, .. } if streams.has(Stream::Stderr) => {
                ("stderr", self.output(data, time))
            }
            JobEvent::Gap { stream, bytes, .. } if streams.has(stream) => {
                ("gap", json!({ "stream": stream, "bytes": bytes }))
            }
            JobEvent::Egress { time, egress, .. } if streams == StreamFilter::All => {
                ("egress", egress_fields(egress, time))
            }
            JobEvent::Status { detail, .. } => (
                "status",
                json!({ "status": TaskStatus::Running, "detail": sanitize(&detail) }),
            ),
            _ => return,
        };
        self.send(name, data, to).await;
    }

    /// Output in the encoding that the reader wants. A node of an earlier release sends text to all.
    fn output(&self, data: OutputData, time: Option<Time>) -> Value {
        let mut value = match (data, self.query.encoding) {
            (OutputData::Text(text), OutputEncoding::Base64) => {
                json!({ "data_base64": STANDARD.encode(text) })
            }
            (OutputData::Base64(text), _) => json!({ "data_base64": text }),
            (OutputData::Text(text), _) => json!({ "data": text }),
        };
        if let Some(time) = time {
            value["time"] = json!(time);
        }
        value
    }

    /// Sends the missing output of the last attempt, and the end. Stops early where the output can't be read:
    /// the reader reconnects.
    async fn send_end(&mut self, status: TaskStatus, to: &mpsc::Sender<LogEvent>) {
        if !self.is_complete {
            let (part, cursor) = (self.query.part, self.cursor);
            let kept = KeptLog::open(&self.state, self.task, part, cursor).await;
            let kept = match kept {
                Ok(kept) => kept,
                Err(error) => return self.log_interruption(&error),
            };
            if !self.send_kept(kept, status, to).await {
                return;
            }
        }
        let task = match stored_task(&self.state, self.task).await {
            Ok(task) => task,
            Err(error) => return self.log_interruption(&error),
        };
        let mut data = json!({ "status": status });
        if let Some(code) = task.exit_code {
            data["exit_code"] = code.into();
        }
        self.send("end", data, to).await;
    }

    /// Sends kept output; false where it could not be read to its end.
    async fn send_kept(
        &mut self,
        mut kept: KeptLog,
        status: TaskStatus,
        to: &mpsc::Sender<LogEvent>,
    ) -> bool {
        self.start_attempt(kept.attempt);
        let shows_all = self.query.part.streams == StreamFilter::All;
        let of_events = kept.events_notice.filter(|_| shows_all);
        for notice in kept.notice.into_iter().chain(of_events) {
            let data = json!({ "status": status, "detail": notice });
            self.send("status", data, to).await;
        }
        loop {
            let records = match kept.read().await {
                Ok(records) => records,
                Err(error) => {
                    let error = errors::chain(&error);
                    tracing::warn!(task = %self.task, error, "kept log can't be read to its end");
                    return false;
                }
            };
            if records.is_empty() {
                return true;
            }
            for record in records {
                let event = record.into_event(kept.attempt, self.query.encoding);
                if let Some(event) = event {
                    self.relay_event(event, to).await;
                }
            }
        }
    }

    fn log_interruption(&self, error: &ApiError) {
        let error = error.cause().map(errors::chain);
        tracing::warn!(task = %self.task, error, "log stream ended early: the store could not be read");
    }

    async fn send(&self, name: &'static str, data: Value, to: &mpsc::Sender<LogEvent>) {
        let cursor = self.cursor;
        // It fails where the reader is gone, and then this future is no longer polled either.
        let _ = to.send(LogEvent { cursor, name, data }).await;
    }
}

/// Fields of an event of the proxy, whose texts are the node's.
fn egress_fields(mut event: EgressEvent, time: Option<Time>) -> Value {
    for text in [&mut event.host, &mut event.detail].into_iter().flatten() {
        *text = sanitize(text);
    }
    let mut fields = json!(event);
    if let Some(time) = time {
        fields["time"] = json!(time);
    }
    fields
}

/// Waits until no node runs this attempt.
async fn wait_attempt_over(mut states: watch::Receiver<TaskState>, attempt: u32) {
    let _ = wait::until(&mut states, |current| !current.is_running(attempt)).await;
}
