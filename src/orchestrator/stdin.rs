//! Live stdin of a task: pieces from its user to the node that runs it. Nothing of it is kept here.
//!
//! A piece names the offset of its first byte, so it may be sent again after any failure: the node receives it once. It
//! waits a while for the start of the command; then its sender is told to send it again.

use super::{AppState, node_client::NodeCallErrorKind, task_watch::LogSource, tasks};
use crate::{
    api::{
        TaskId,
        error::ApiError,
        jobs::stdin::{StdinReceipt, StdinStatus},
        problem::{Problem, ProblemKind},
        tasks::StdinAnswer,
    },
    identity::Caller,
    wait,
};
use std::time::Duration;

/// Longest wait for a node that has the task.
const NODE_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds after which a piece is to be sent again.
const RETRY_SECONDS: u64 = 1;

/// Piece of the stdin of a task.
pub(super) struct StdinPiece {
    pub(super) offset: u64,
    /// Whether stdin ends behind it.
    pub(super) is_last: bool,
    pub(super) bytes: Vec<u8>,
}

/// Sends a piece to the node that runs a task.
pub(super) async fn send(
    state: &AppState,
    caller: &Caller,
    name: String,
    piece: &StdinPiece,
) -> Result<StdinAnswer, ApiError> {
    let id = tasks::find(state, caller, name).await?.id;
    // The watch comes before the look at the store: an end in between shows in the watch.
    let watch = state.jobs.watches.for_task(id);
    let mut states = watch.subscribe();
    let task = state.store.task_get(id, caller.visible_owner()).await?;
    let task = task.ok_or_else(|| Problem::unknown_task(&id.to_string()))?;
    if task.status.is_final() {
        return Err(ended().into());
    }
    let at_node = wait::until(&mut states, |state| {
        state.source.is_some() || state.status.is_final()
    });
    let current = tokio::time::timeout(NODE_TIMEOUT, at_node).await;
    // The sender lives in `watch`, so only the time can run out.
    let Ok(Ok(current)) = current else {
        return Err(match is_interactive(state, id).await? {
            true => not_started().into(),
            false => not_interactive().into(),
        });
    };
    match current.source {
        Some(source) if !current.status.is_final() => {
            let receipt = send_to_node(state, source, piece).await?;
            answer(id, receipt).map_err(Into::into)
        }
        _ => Err(ended().into()),
    }
}

async fn is_interactive(state: &AppState, id: TaskId) -> Result<bool, ApiError> {
    Ok(state.store.task_sandbox(id).await?.interactive)
}

async fn send_to_node(
    state: &AppState,
    source: LogSource,
    piece: &StdinPiece,
) -> Result<StdinReceipt, ApiError> {
    let node = state.store.node_get(source.node).await?;
    let client = node.as_ref().and_then(|node| state.node_client(node));
    let client = client.ok_or_else(unreachable)?;
    let place = (piece.offset, piece.is_last);
    let sent = client.send_stdin((source.job, source.attempt), place, &piece.bytes);
    let error = match sent.await {
        Ok(receipt) => return Ok(receipt),
        Err(error) => error,
    };
    // A sender repeats it again and again, so it is no warning.
    tracing::debug!(node = client.slug(), %error, "node did not receive a piece of stdin");
    if client.lacks_call(&error).await {
        let detail = "the node that runs this task can't pass stdin on; upgrade it, or run the task on another node";
        return Err(Problem::new(ProblemKind::Conflict, detail).into());
    }
    Err(match error.kind {
        NodeCallErrorKind::NotFound | NodeCallErrorKind::Conflict => not_started(),
        _ => unreachable(),
    }
    .into())
}

/// Answer to the user, in our words.
fn answer(task_id: TaskId, receipt: StdinReceipt) -> Result<StdinAnswer, Problem> {
    let StdinReceipt { offset, status, .. } = receipt;
    let received = |is_closed| {
        Ok(StdinAnswer {
            task_id,
            offset,
            closed: is_closed,
        })
    };
    match status {
        StdinStatus::Accepted => received(false),
        StdinStatus::Closed => received(true),
        StdinStatus::Ended => Err(ended()),
        StdinStatus::NotStarted => Err(not_started()),
        StdinStatus::NotLive => Err(not_interactive()),
        StdinStatus::Misplaced => Err(Problem::new(
            ProblemKind::Conflict,
            format!(
                "stdin has {offset} bytes so far, so the next piece has offset {offset}, unless another sender \
                 writes, too; a piece that was received already can only be sent again as it was"
            ),
        )),
        StdinStatus::Full => Err(Problem::new(
            ProblemKind::TooManyRequests,
            "the command has not read enough of its stdin yet; send the same piece again",
        )
        .retry_after(RETRY_SECONDS)),
    }
}

fn ended() -> Problem {
    let detail = "the task or its stdin has ended, so it takes no more; look at its result";
    Problem::new(ProblemKind::JobAlreadyFinished, detail)
}

fn not_interactive() -> Problem {
    let detail = "the task takes no stdin while it runs; create it with interactive: true";
    Problem::new(ProblemKind::Conflict, detail)
}

fn not_started() -> Problem {
    let detail = "the task's command has not started yet; send the same piece again";
    Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_SECONDS)
}

fn unreachable() -> Problem {
    let detail =
        "the node that runs this task does not answer at present; send the same piece again";
    Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_SECONDS)
}
