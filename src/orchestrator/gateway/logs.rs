//! What a task prints: all at once, or live as server-sent events.
//!
//! An event's id is its [`Place`], `<attempt>-<seq>`. A reader that
//! comes back with it (`Last-Event-ID`) gets what follows, from the live log while the task
//! runs and from the stored one afterwards: the numbers are the same.

use super::{Orchestrator, caller, tasks::named_for};
use crate::{
    api::{
        TaskId,
        events::{JobEvent, OutputLog, Stream},
        problem::{Kind, Problem},
        tasks::{JobView, Place, Task, TaskLogs, TaskStatus},
    },
    http::{
        request::Request,
        response::{self, Reply},
        server::ended,
    },
    identity::{Caller, store_problem},
    orchestrator::live::{LiveTask, Moment},
};
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use std::{str::FromStr, sync::Arc, time::Duration};
use tokio::sync::watch;

/// A silent stream says so often that it is alive, which keeps proxies from cutting it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// `?stream=`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    Only(Stream),
}

impl FromStr for Which {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "all" => Ok(Self::All),
            "stdout" => Ok(Self::Only(Stream::Stdout)),
            "stderr" => Ok(Self::Only(Stream::Stderr)),
            _ => Err(()),
        }
    }
}

impl Which {
    fn has(self, stream: Stream) -> bool {
        self == Self::All || self == Self::Only(stream)
    }
}

pub(super) async fn get(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    // Before anything else, so that no end of the session goes unheard.
    let revocations = orchestrator.identity.revocations();
    let caller = caller(&orchestrator, &request).await?;
    let id = named_for(&orchestrator, &request, &caller).await?.id;
    let which = request
        .query_as("stream", "all, stdout or stderr")?
        .unwrap_or(Which::All);
    let follow = request
        .query_as("follow", "true or false")?
        .unwrap_or(false);
    let place = last_place(&request)?;
    let (task, live) = open(&orchestrator, id).await?;
    if !follow && !request.accepts("text/event-stream") {
        let (stdout, stderr) = live.texts();
        let of = |stream, text: String| {
            if which.has(stream) {
                text
            } else {
                String::new()
            }
        };
        let (stdout, stderr) = (of(Stream::Stdout, stdout), of(Stream::Stderr, stderr));
        let truncated = Some(live.truncated()).filter(|which| which.stdout || which.stderr);
        return response::ok(&TaskLogs {
            task_id: id,
            stdout,
            stderr,
            truncated,
        });
    }
    let reader = Reader {
        changes: live.changes(),
        live,
        caller,
        revocations,
        orchestrator,
        task: task.id,
        which,
        place,
        told: None,
        over: false,
    };
    Ok(response::stream(
        "text/event-stream",
        futures_util::stream::unfold(reader, Reader::next),
    ))
}

/// Where the reader was before, should it say so.
fn last_place(request: &Request) -> Result<Place, Problem> {
    let Some(id) = request.headers().get("last-event-id") else {
        return Ok(Place::default());
    };
    if id.is_empty() {
        return Ok(Place::default());
    }
    let place = id.to_str().ok().and_then(|id| id.parse().ok());
    place.ok_or_else(|| {
        Problem::new(
            Kind::InvalidRequest,
            "header Last-Event-ID: expected the id of an earlier event, or nothing",
        )
    })
}

/// The task and its output, live or stored.
async fn open(orchestrator: &Orchestrator, id: TaskId) -> Result<(Task, Arc<LiveTask>), Problem> {
    // First the entry, then a look at the store: a task that ends in between is told through the
    // entry, and one that had ended before is in the store.
    let live = orchestrator.live.task(id);
    let task = orchestrator
        .store
        .task_get(id, None)
        .await
        .map_err(store_problem)?;
    let task = task.ok_or_else(|| Problem::not_found("task"))?;
    if !task.status.is_final() {
        return Ok((task, live));
    }
    let jobs = orchestrator
        .store
        .task_jobs(id)
        .await
        .map_err(store_problem)?;
    let outline = orchestrator
        .store
        .job_outline(id)
        .await
        .map_err(store_problem)?;
    let log = stored_log(jobs.last(), &outline);
    let attempt = jobs.last().map_or(0, |job| job.attempt);
    let status = task.status;
    Ok((task, LiveTask::ended(Moment { status, attempt }, log)))
}

fn stored_log(job: Option<&JobView>, outline: &[(u8, u64)]) -> OutputLog {
    match job.and_then(|job| job.result_object.as_ref()) {
        Some(result) => OutputLog::restore(outline, &result.stdout, &result.stderr),
        None => OutputLog::default(),
    }
}

/// One reader of a live stream.
struct Reader {
    orchestrator: Arc<Orchestrator>,
    task: TaskId,
    live: Arc<LiveTask>,
    changes: watch::Receiver<()>,
    /// Who reads; nobody any more once their session has ended.
    caller: Caller,
    revocations: watch::Receiver<()>,
    which: Which,
    place: Place,
    /// The state that the reader was told last.
    told: Option<Moment>,
    over: bool,
}

impl Reader {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        if self.over {
            return None;
        }
        loop {
            self.changes.mark_unchanged();
            if self.revocations.has_changed().unwrap_or(true) {
                self.revocations.mark_unchanged();
                if !self.orchestrator.identity.lives(&self.caller).await {
                    return None;
                }
            }
            if let Some(chunk) = self.step().await {
                return Some((chunk, self));
            }
            tokio::select! {
                // The sender lives in `live`.
                _ = self.changes.changed() => {}
                _ = self.revocations.changed() => self.revocations.mark_changed(),
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    // A session may also run out, which nobody says.
                    self.revocations.mark_changed();
                    return Some((Bytes::from_static(b": still here\n\n"), self));
                }
                () = ended(self.orchestrator.shutdown.clone()) => return None,
            }
        }
    }

    /// What the reader has not been told yet, if anything.
    async fn step(&mut self) -> Option<Bytes> {
        loop {
            let (moment, event) = self.live.look(self.place.attempt, self.place.seq);
            if moment.attempt != self.place.attempt {
                self.place = Place {
                    attempt: moment.attempt,
                    seq: 0,
                };
                continue;
            }
            if self.told != Some(moment) && !moment.status.is_final() {
                self.told = Some(moment);
                return Some(self.status(moment.status).await);
            }
            match event {
                Some(event) => {
                    self.place.seq = event.seq().unwrap_or(u64::MAX);
                    if let Some(chunk) = self.output(&event) {
                        return Some(chunk);
                    }
                }
                None if moment.status.is_final() => return Some(self.end(moment.status).await),
                None => return None,
            }
        }
    }

    async fn status(&self, status: TaskStatus) -> Bytes {
        let mut data = json!({ "status": status });
        if status == TaskStatus::Queued
            && let Some(reason) = self.orchestrator.waits_for(self.task).await
        {
            data["reason"] = reason.into();
        }
        self.event("status", &data)
    }

    fn output(&self, event: &JobEvent) -> Option<Bytes> {
        match event {
            JobEvent::Stdout { data, .. } if self.which.has(Stream::Stdout) => {
                Some(self.event("stdout", &json!({ "data": data })))
            }
            JobEvent::Stderr { data, .. } if self.which.has(Stream::Stderr) => {
                Some(self.event("stderr", &json!({ "data": data })))
            }
            JobEvent::Gap { stream, bytes, .. } if self.which.has(*stream) => {
                Some(self.event("gap", &json!({ "stream": stream, "bytes": bytes })))
            }
            _ => None,
        }
    }

    async fn end(&mut self, status: TaskStatus) -> Bytes {
        self.over = true;
        let task = self
            .orchestrator
            .store
            .task_get(self.task, None)
            .await
            .ok()
            .flatten();
        let mut data = json!({ "status": status });
        if let Some(code) = task.and_then(|task| task.exit_code) {
            data["exit_code"] = code.into();
        }
        self.event("end", &data)
    }

    fn event(&self, name: &str, data: &impl Serialize) -> Bytes {
        response::sse_event(&self.place.to_string(), name, data)
    }
}
