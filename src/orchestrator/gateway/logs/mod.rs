//! What a task prints: all at once, or live as server-sent events.
//!
//! While an attempt runs its node has what it prints, and whoever reads asks for it there; what is
//! kept after its end is in the store. An event's id is its [`Place`], `<attempt>-<seq>`. A reader
//! that comes back with it (`Last-Event-ID`) gets what follows, from the one or the other: the
//! numbers are the same.

mod limits;
mod reader;
mod teller;

use super::{Orchestrator, caller, tasks::named_for};
use crate::{
    api::{
        TaskId,
        events::{OutputLog, Stream},
        problem::{Kind, Problem},
        tasks::{Place, Task, TaskLogs},
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::store_problem,
    orchestrator::{
        live::{Moment, Source},
        node_client::{Events, Wanted},
    },
};
pub(in crate::orchestrator) use limits::LogReaders;
use reader::Reader;
use std::{str::FromStr, sync::Arc, time::Duration};
use teller::Teller;
use tokio::time::timeout;

/// How long a node may take to answer, and to send the next piece of what it has.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take for all that there is.
const WHOLE_LIMIT: Duration = Duration::from_secs(30);
/// When a node that doesn't answer may be asked again, in seconds.
const SILENT_PAUSE: u64 = 5;

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
    // First the entry, then a look at the store: a task that ends in between is told through the
    // entry, and one that had ended before is in the store.
    let live = orchestrator.live.task(id);
    let task = stored_task(&orchestrator, id).await?;
    let user = caller.user.id;
    if follow || request.accepts("text/event-stream") {
        let following = orchestrator.log_readers.follow(user)?;
        let teller = Teller::new(Arc::clone(&orchestrator), id, live, which, place);
        let reader = Reader::new(
            |chunks| teller.tell(task.status, chunks),
            orchestrator,
            caller,
            revocations,
            following,
        );
        return Ok(response::stream("text/event-stream", reader.chunks()));
    }
    let _turn = orchestrator.log_readers.turn(user).await?;
    // After the turn, which may have been a while.
    let task = stored_task(&orchestrator, id).await?;
    let moment = *live.moments().borrow();
    let log = printed(&orchestrator, &task, moment, which).await?;
    let of = |stream| {
        if which.has(stream) {
            log.text(stream).to_owned()
        } else {
            String::new()
        }
    };
    response::ok(&TaskLogs {
        task_id: id,
        stdout: of(Stream::Stdout),
        stderr: of(Stream::Stderr),
        truncated: Some(log.truncated()).filter(|which| which.stdout || which.stderr),
    })
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

async fn stored_task(orchestrator: &Orchestrator, id: TaskId) -> Result<Task, Problem> {
    let task = orchestrator
        .store
        .task_get(id, None)
        .await
        .map_err(store_problem)?;
    task.ok_or_else(|| Problem::not_found("task"))
}

/// What is kept of a task's last attempt, and which that is.
async fn stored_log(orchestrator: &Orchestrator, id: TaskId) -> Result<(u32, OutputLog), Problem> {
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
    let Some(job) = jobs.last() else {
        return Ok((0, OutputLog::default()));
    };
    let log = match &job.result_object {
        Some(result) => OutputLog::restore(&outline, &result.stdout, &result.stderr),
        None => OutputLog::default(),
    };
    Ok((job.attempt, log))
}

/// What a task has printed by now, as much as a result would keep of it.
async fn printed(
    orchestrator: &Orchestrator,
    task: &Task,
    moment: Moment,
    which: Which,
) -> Result<OutputLog, Problem> {
    if !task.status.is_final() && !moment.status.is_final() {
        let Some(source) = moment.source else {
            return Ok(OutputLog::default());
        };
        let asked = timeout(
            WHOLE_LIMIT,
            so_far(orchestrator, source, moment.attempt, which),
        )
        .await;
        match asked.unwrap_or_else(|_| Err("it has much to say, or is slow".to_owned())) {
            Ok(log) => return Ok(log),
            Err(reason) => {
                tracing::debug!(task = %task.id, reason, "a node does not tell what it has of a job");
            }
        }
        // It may have ended meanwhile, and its node have forgotten it.
        if !stored_task(orchestrator, task.id).await?.status.is_final() {
            let text = "the node that runs this task does not answer at present; what it printed is kept there. \
                        Try again, or follow it (follow=true, --follow), which waits for the node";
            return Err(Problem::new(Kind::Unavailable, text).retry_after(SILENT_PAUSE));
        }
    }
    Ok(stored_log(orchestrator, task.id).await?.1)
}

/// What a node has of a job that runs.
async fn so_far(
    orchestrator: &Orchestrator,
    source: Source,
    attempt: u32,
    which: Which,
) -> Result<OutputLog, String> {
    let mut events = ask(orchestrator, source, 0, Wanted::SoFar).await?;
    let mut log = OutputLog::default();
    loop {
        let event = timeout(ANSWER_LIMIT, events.next())
            .await
            .map_err(|_| "it stopped in the middle")?
            .map_err(|error| error.to_string())?;
        let Some(event) = event else { return Ok(log) };
        if event.attempt() == Some(attempt) {
            log.take(&event);
        }
        let full = log.truncated();
        let is_open = |stream, is_full: bool| which.has(stream) && !is_full;
        if !is_open(Stream::Stdout, full.stdout) && !is_open(Stream::Stderr, full.stderr) {
            return Ok(log);
        }
    }
}

/// Asks a node what it has of a job.
async fn ask(
    orchestrator: &Orchestrator,
    source: Source,
    after: u64,
    wanted: Wanted,
) -> Result<Events, String> {
    let node = orchestrator
        .store
        .node_get(source.node)
        .await
        .map_err(|error| error.to_string())?
        .ok_or("it was forgotten")?;
    let client = orchestrator
        .node_client(&node)
        .ok_or("it has not said where its Worker API is")?;
    timeout(
        ANSWER_LIMIT,
        client.read(source.job, source.attempt, after, wanted),
    )
    .await
    .map_err(|_| "it does not answer")?
    .map_err(|error| error.to_string())
}
