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

use super::{ANSWER_LIMIT, Orchestrator, Wanted, Which, ask, stored_log, stored_task};
use crate::{
    api::{
        TaskId,
        events::{JobEvent, Stream},
        tasks::{Place, TaskStatus},
    },
    http::response,
    orchestrator::{
        live::{LiveTask, Moment, Source},
        node_words::clean,
    },
    pause::Pauses,
    wait,
};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};

/// Pauses before a node is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a reader has been told, and of whom.
pub(super) struct Teller {
    orchestrator: Arc<Orchestrator>,
    task: TaskId,
    /// Holds the other end of `moments`.
    _live: Arc<LiveTask>,
    moments: watch::Receiver<Moment>,
    which: Which,
    place: Place,
    /// The state that the reader was told last.
    told: Option<(TaskStatus, u32, bool)>,
    /// Whether all of the present attempt was told.
    whole: bool,
}

impl Teller {
    /// For a reader who was at `place`.
    pub(super) fn new(
        orchestrator: Arc<Orchestrator>,
        task: TaskId,
        live: Arc<LiveTask>,
        which: Which,
        place: Place,
    ) -> Self {
        Self {
            orchestrator,
            task,
            moments: live.moments(),
            _live: live,
            which,
            place,
            told: None,
            whole: false,
        }
    }

    /// Tells everything up to the end of the task, which the store said was in this state.
    pub(super) async fn tell(mut self, stored: TaskStatus, to: mpsc::Sender<Bytes>) {
        let to = &to;
        if stored.is_final() {
            return self.tell_end(stored, to).await;
        }
        loop {
            let moment = *self.moments.borrow_and_update();
            if moment.status.is_final() {
                return self.tell_end(moment.status, to).await;
            }
            self.enter(moment.attempt);
            self.tell_status(moment, to).await;
            match moment.source {
                Some(source) if !self.whole => self.tell_live(source, to).await,
                // The other end lives as long as we do.
                _ => drop(self.moments.changed().await),
            }
        }
    }

    fn enter(&mut self, attempt: u32) {
        if attempt != self.place.attempt {
            self.place = Place { attempt, seq: 0 };
            self.whole = false;
        }
    }

    async fn tell_status(&mut self, moment: Moment, to: &mpsc::Sender<Bytes>) {
        let state = Some((moment.status, moment.attempt, moment.is_silent));
        if self.told == state {
            return;
        }
        self.told = state;
        let mut data = json!({ "status": moment.status });
        if let Some(reason) = self.orchestrator.waits_for(self.task, moment.status).await {
            data["reason"] = reason.into();
        }
        self.say("status", &data, to).await;
    }

    /// Tells what a node has of this attempt, until that is all, or the attempt is over.
    async fn tell_live(&mut self, source: Source, to: &mpsc::Sender<Bytes>) {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let before = self.place.seq;
            match self.listen(source, to).await {
                Ok(()) => {
                    self.whole = true;
                    return;
                }
                Err(reason) => {
                    tracing::debug!(task = %self.task, reason, "a reader's stream from a node broke off");
                }
            }
            if self.place.seq > before {
                pauses.reset();
            }
            let moment = *self.moments.borrow();
            if moment.runs(self.place.attempt) {
                self.tell_status(moment, to).await;
            }
            let over = over(self.moments.clone(), self.place.attempt);
            if tokio::time::timeout(pauses.take(), over).await.is_ok() {
                // The node forgets nothing while somebody reads: the rest is still to be had there.
                self.whole = self.listen(source, to).await.is_ok();
                return;
            }
        }
    }

    /// Passes on what the node tells, up to the result.
    async fn listen(&mut self, source: Source, to: &mpsc::Sender<Bytes>) -> Result<(), String> {
        let attempt = self.place.attempt;
        let mut events = ask(&self.orchestrator, source, self.place.seq, Wanted::All).await?;
        loop {
            let silent = async {
                over(self.moments.clone(), attempt).await;
                tokio::time::sleep(ANSWER_LIMIT).await;
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
            self.pass_on(&event, to).await;
        }
    }

    /// Tells an event that wasn't told before, if it is wanted.
    async fn pass_on(&mut self, event: &JobEvent, to: &mpsc::Sender<Bytes>) {
        let Some(seq) = event.seq().filter(|seq| *seq > self.place.seq) else {
            return;
        };
        self.place.seq = seq;
        let (name, data) = match event {
            JobEvent::Stdout { data, .. } if self.which.has(Stream::Stdout) => {
                ("stdout", json!({ "data": data }))
            }
            JobEvent::Stderr { data, .. } if self.which.has(Stream::Stderr) => {
                ("stderr", json!({ "data": data }))
            }
            JobEvent::Gap { stream, bytes, .. } if self.which.has(*stream) => {
                ("gap", json!({ "stream": stream, "bytes": bytes }))
            }
            JobEvent::Status { detail, .. } => (
                "status",
                json!({ "status": TaskStatus::Running, "detail": clean(detail) }),
            ),
            _ => return,
        };
        self.say(name, &data, to).await;
    }

    /// Tells what is missing of the last attempt, and how it all ended. Where the store can't be read it
    /// breaks off: the reader comes back.
    async fn tell_end(&mut self, status: TaskStatus, to: &mpsc::Sender<Bytes>) {
        if !self.whole {
            let Ok((attempt, log)) = stored_log(&self.orchestrator, self.task).await else {
                return;
            };
            self.enter(attempt);
            while let Some(event) = log.event_after(attempt, self.place.seq) {
                self.pass_on(&event, to).await;
            }
        }
        let Ok(task) = stored_task(&self.orchestrator, self.task).await else {
            return;
        };
        let mut data = json!({ "status": status });
        if let Some(code) = task.exit_code {
            data["exit_code"] = code.into();
        }
        self.say("end", &data, to).await;
    }

    async fn say(&self, name: &str, data: &Value, to: &mpsc::Sender<Bytes>) {
        let event = response::sse_event(&self.place.to_string(), name, data);
        // Nobody polls us once the other end is gone.
        let _ = to.send(event).await;
    }
}

/// Waits until no node has this attempt any more.
async fn over(mut moments: watch::Receiver<Moment>, attempt: u32) {
    let _ = wait::until(&mut moments, |moment| !moment.runs(attempt)).await;
}
