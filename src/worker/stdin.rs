//! Live stdin of a job: pieces from its orchestrator into the spool, from where the shim passes them on.
//!
//! Nothing is received before the command runs: a job that ends before that may be sent to another node, with all of
//! its stdin still to come. A piece waits a while for the start of the command, and for room; then its sender is told
//! to send it again.

use super::ledger::Job;
use crate::{
    api::{
        PAYLOAD_VERSION,
        jobs::stdin::{StdinReceipt, StdinStatus},
        problem::{Problem, ProblemKind},
    },
    spool::{Piece, PieceOutcome, Spool},
};
use std::{io, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// Longest wait for the start of the command, or for room.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Receives a piece of a job's stdin, or says why not.
pub(super) async fn receive(job: &Arc<Job>, piece: Piece) -> Result<StdinReceipt, Problem> {
    let piece = Arc::new(piece);
    let deadline = Instant::now() + WAIT_TIMEOUT;
    let mut changes = job.subscribe();
    loop {
        // Before the look, so that no change is missed.
        changes.mark_unchanged();
        let receipt = receive_now(job, &piece).await.map_err(|error| {
            tracing::error!(job = %job.accepted.job_id, %error, "stdin of a job can't be written");
            Problem::new(
                ProblemKind::InsufficientStorage,
                format!("this node can't write the stdin of the job to its disk ({error}); free space there, then send the piece again"),
            )
        })?;
        let may_change = matches!(receipt.status, StdinStatus::Full | StdinStatus::NotStarted);
        if !may_change || timeout_at(deadline, changes.changed()).await.is_err() {
            return Ok(receipt);
        }
    }
}

async fn receive_now(job: &Arc<Job>, piece: &Arc<Piece>) -> io::Result<StdinReceipt> {
    let receipt = |status, offset| StdinReceipt {
        version: PAYLOAD_VERSION,
        offset,
        status,
    };
    if job.has_ended() {
        return Ok(receipt(StdinStatus::Ended, 0));
    }
    if !job.has_started() {
        if !job.with_spool(Spool::has_started).await? {
            return Ok(receipt(StdinStatus::NotStarted, 0));
        }
        job.mark_started();
    }
    let piece = Arc::clone(piece);
    let (outcome, offset) = job
        .with_stdin(move |spool| spool.receive_stdin(&piece))
        .await
        .flatten()?;
    let status = match outcome {
        PieceOutcome::Accepted => StdinStatus::Accepted,
        PieceOutcome::Closed => StdinStatus::Closed,
        PieceOutcome::Ended => StdinStatus::Ended,
        PieceOutcome::Misplaced => StdinStatus::Misplaced,
        PieceOutcome::Full => StdinStatus::Full,
        // It is removed with the end of the command, a little before the job ends.
        PieceOutcome::NotLive if job.has_live_stdin() => StdinStatus::Ended,
        PieceOutcome::NotLive => StdinStatus::NotLive,
    };
    if status == StdinStatus::Accepted {
        job.mark_live_stdin();
        job.notify_stdin();
    }
    Ok(receipt(status, offset))
}
