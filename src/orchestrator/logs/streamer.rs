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
//! A node keeps a job until its result is stored and no reader follows it any more, within limits. So a
//! reader from the start gets all output, and a later one the part that the result keeps.

use super::{
    AppState, EventSelection, NODE_ANSWER_TIMEOUT, NodeLogError, StreamFilter, read_events,
    stored_log, stored_task,
};
use crate::{
    api::{
        TaskId,
        error::ApiError,
        events::{JobEvent, Stream},
        tasks::{LogCursor, TaskStatus},
    },
    backoff::Backoff,
    errors,
    orchestrator::{
        reason::sanitize,
        task_watch::{LogSource, TaskState, TaskWatch},
        tasks,
    },
    wait,
};
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
    /// `status`, `stdout`, `stderr`, `gap` or `end`.
    pub(in crate::orchestrator) name: &'static str,
    /// Fields of the event, as the API documents them by name.
    pub(in crate::orchestrator) data: Value,
}

/// Progress of one reader.
pub(super) struct LogStreamer {
    state: Arc<AppState>,
    task: TaskId,
    /// Keeps the sender of `states`.
    _watch: Arc<TaskWatch>,
    states: watch::Receiver<TaskState>,
    filter: StreamFilter,
    cursor: LogCursor,
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
        filter: StreamFilter,
        cursor: LogCursor,
    ) -> Self {
        Self {
            state,
            task,
            states: watch.subscribe(),
            _watch: watch,
            filter,
            cursor,
            last_status: None,
            is_complete: false,
        }
    }

    /// Sends all events up to the end of the task, whose stored status is `stored`.
    pub(super) async fn run(mut self, stored: TaskStatus, to: mpsc::Sender<LogEvent>) {
        let to = &to;
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
        let selection = EventSelection::All;
        let mut events = read_events(&self.state, source, self.cursor.seq, selection).await?;
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
            self.relay_event(&event, to).await;
        }
    }

    /// Relays an event, unless the reader has it already or did not ask for it.
    async fn relay_event(&mut self, event: &JobEvent, to: &mpsc::Sender<LogEvent>) {
        let Some(seq) = event.seq().filter(|seq| *seq > self.cursor.seq) else {
            return;
        };
        self.cursor.seq = seq;
        let (name, data) = match event {
            JobEvent::Stdout { data, .. } if self.filter.has(Stream::Stdout) => {
                ("stdout", json!({ "data": data }))
            }
            JobEvent::Stderr { data, .. } if self.filter.has(Stream::Stderr) => {
                ("stderr", json!({ "data": data }))
            }
            JobEvent::Gap { stream, bytes, .. } if self.filter.has(*stream) => {
                ("gap", json!({ "stream": stream, "bytes": bytes }))
            }
            JobEvent::Status { detail, .. } => (
                "status",
                json!({ "status": TaskStatus::Running, "detail": sanitize(detail) }),
            ),
            _ => return,
        };
        self.send(name, data, to).await;
    }

    /// Sends the missing output of the last attempt, and the end. Stops early where the store can't be read:
    /// the reader reconnects.
    async fn send_end(&mut self, status: TaskStatus, to: &mpsc::Sender<LogEvent>) {
        if !self.is_complete {
            let (attempt, log) = match stored_log(&self.state, self.task).await {
                Ok(stored) => stored,
                Err(error) => return self.log_interruption(&error),
            };
            self.start_attempt(attempt);
            while let Some(event) = log.event_after(attempt, self.cursor.seq) {
                self.relay_event(&event, to).await;
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

/// Waits until no node runs this attempt.
async fn wait_attempt_over(mut states: watch::Receiver<TaskState>, attempt: u32) {
    let _ = wait::until(&mut states, |current| !current.is_running(attempt)).await;
}
