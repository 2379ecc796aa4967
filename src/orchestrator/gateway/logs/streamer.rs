//! Tells one reader what a task prints, in order, without a gap or a double.
//!
//! ```text
//! queued ──▶ a node has it ──▶ its stream, asked for again after each cut ──▶ the result was heard
//!   ▲             │                                                                  │
//!   └─ next attempt ◀─────────────── the attempt is over ◀───────────────────────────┤
//!                                         │ for good                                 │
//!                    what is missing, from the store ──▶ end ◀───────────────────────┘
//! ```
//!
//! A node is let forget a job once its result is stored and nobody reads along any more, within
//! limits. So who was there reads all of it, and who comes later what the result holds.

use super::{
    AppState, EventSelection, NODE_ANSWER_TIMEOUT, StreamFilter, ask, stored_log, stored_task,
};
use crate::{
    api::{
        TaskId,
        events::{JobEvent, Stream},
        tasks::{LogCursor, TaskStatus},
    },
    backoff::Backoff,
    http::response,
    orchestrator::{
        reason::sanitize,
        task_watch::{LogSource, TaskState, TaskWatch},
    },
    wait,
};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};

/// Backoff before a node is asked again.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What a reader has been told, and of whom.
pub(super) struct LogStreamer {
    state: Arc<AppState>,
    task: TaskId,
    /// Holds the other end of `states`.
    _live: Arc<TaskWatch>,
    states: watch::Receiver<TaskState>,
    filter: StreamFilter,
    place: LogCursor,
    /// The state that the reader was told last.
    last_status: Option<(TaskStatus, u32, bool)>,
    /// Whether all of the present attempt was told.
    is_complete: bool,
}

impl LogStreamer {
    /// For a reader who was at `place`.
    pub(super) fn new(
        state: Arc<AppState>,
        task: TaskId,
        live: Arc<TaskWatch>,
        filter: StreamFilter,
        place: LogCursor,
    ) -> Self {
        Self {
            state,
            task,
            states: live.subscribe(),
            _live: live,
            filter,
            place,
            last_status: None,
            is_complete: false,
        }
    }

    /// Tells everything up to the end of the task, filter the store said was in this state.
    pub(super) async fn run(mut self, stored: TaskStatus, to: mpsc::Sender<Bytes>) {
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
                Some(source) if !self.is_complete => self.relay_live(source, to).await,
                // The other end lives as long as we do.
                _ => drop(self.states.changed().await),
            }
        }
    }

    fn start_attempt(&mut self, attempt: u32) {
        if attempt != self.place.attempt {
            self.place = LogCursor { attempt, seq: 0 };
            self.is_complete = false;
        }
    }

    async fn send_status(&mut self, current: TaskState, to: &mpsc::Sender<Bytes>) {
        let state = Some((current.status, current.attempt, current.is_unreachable));
        if self.last_status == state {
            return;
        }
        self.last_status = state;
        let mut data = json!({ "status": current.status });
        if let Some(reason) = self.state.waiting_for(self.task, current.status).await {
            data["reason"] = reason.into();
        }
        self.send("status", &data, to).await;
    }

    /// Tells what a node has of this attempt, until that is all, or the attempt is over.
    async fn relay_live(&mut self, source: LogSource, to: &mpsc::Sender<Bytes>) {
        let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
        loop {
            let before = self.place.seq;
            match self.relay_stream(source, to).await {
                Ok(()) => {
                    self.is_complete = true;
                    return;
                }
                Err(reason) => {
                    tracing::debug!(task = %self.task, reason, "a reader's stream from a node broke off");
                }
            }
            if self.place.seq > before {
                backoff.reset();
            }
            let current = *self.states.borrow();
            if current.is_running(self.place.attempt) {
                self.send_status(current, to).await;
            }
            let over = wait_attempt_over(self.states.clone(), self.place.attempt);
            if tokio::time::timeout(backoff.next_delay(), over)
                .await
                .is_ok()
            {
                // The node forgets nothing while somebody reads: the rest is still to be had there.
                self.is_complete = self.relay_stream(source, to).await.is_ok();
                return;
            }
        }
    }

    /// Passes on what the node tells, up to the result.
    async fn relay_stream(
        &mut self,
        source: LogSource,
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), String> {
        let attempt = self.place.attempt;
        let mut events = ask(&self.state, source, self.place.seq, EventSelection::All).await?;
        loop {
            let silent = async {
                wait_attempt_over(self.states.clone(), attempt).await;
                tokio::time::sleep(NODE_ANSWER_TIMEOUT).await;
            };
            let event = tokio::select! {
                event = events.next() => event.map_err(|error| error.to_string())?,
                () = silent => return Err("the attempt is over, and it tells nothing more".to_owned()),
            };
            let Some(event) = event else {
                return Err("the events ended without a result".to_owned());
            };
            if event.attempt().is_some_and(|other| other != attempt) {
                return Err("it tells of another attempt".to_owned());
            }
            if matches!(event, JobEvent::Result(_)) {
                return Ok(());
            }
            self.relay_event(&event, to).await;
        }
    }

    /// Tells an event that wasn't told before, if it is wanted.
    async fn relay_event(&mut self, event: &JobEvent, to: &mpsc::Sender<Bytes>) {
        let Some(seq) = event.seq().filter(|seq| *seq > self.place.seq) else {
            return;
        };
        self.place.seq = seq;
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
        self.send(name, &data, to).await;
    }

    /// Tells what is missing of the last attempt, and how it all ended. Where the store can't be read it
    /// breaks off: the reader comes back.
    async fn send_end(&mut self, status: TaskStatus, to: &mpsc::Sender<Bytes>) {
        if !self.is_complete {
            let Ok((attempt, log)) = stored_log(&self.state, self.task).await else {
                return;
            };
            self.start_attempt(attempt);
            while let Some(event) = log.event_after(attempt, self.place.seq) {
                self.relay_event(&event, to).await;
            }
        }
        let Ok(task) = stored_task(&self.state, self.task).await else {
            return;
        };
        let mut data = json!({ "status": status });
        if let Some(code) = task.exit_code {
            data["exit_code"] = code.into();
        }
        self.send("end", &data, to).await;
    }

    async fn send(&self, name: &str, data: &Value, to: &mpsc::Sender<Bytes>) {
        let event = response::sse_event(&self.place.to_string(), name, data);
        // Nobody polls us once the other end is gone.
        let _ = to.send(event).await;
    }
}

/// Waits until no node has this attempt any more.
async fn wait_attempt_over(mut states: watch::Receiver<TaskState>, attempt: u32) {
    let _ = wait::until(&mut states, |current| !current.is_running(attempt)).await;
}
