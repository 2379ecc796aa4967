//! Offer of the next attempt to another node.

use super::machine::Answer;
use crate::{
    api::events::JobEvent,
    orchestrator::{
        AppState,
        dispatch::{
            InitialRequest, Start,
            outcome::{AttemptError, AttemptOutcome, validate_result},
            request::{connect, request_job},
            send::{MAX_ROUNDS, send_contents},
        },
        node_client::{self, JobResponse, NodeCallErrorKind, SILENCE_TIMEOUT},
        summary,
    },
    store::RunningJob,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use std::future::ready;
use tokio::time::Instant;

/// Attempt that another node is asked to take.
pub(super) struct Offer<'a> {
    pub(super) job: RunningJob,
    asking: BoxFuture<'a, Reply<'a>>,
    /// Reply of the node, once it is there.
    pub(super) reply: Option<Reply<'a>>,
}

/// Reply of a node to an offer.
pub(super) enum Reply<'a> {
    /// The node started the attempt; one without events is alive and answers at the end.
    Accepted(InitialRequest<'a>),
    /// The node did not start the attempt.
    Refused(AttemptOutcome),
    /// The node can't run this job, for this reason.
    Ineligible(String),
    /// Unknown: the node may have started the attempt.
    Unknown,
}

impl<'a> Offer<'a> {
    /// Offer that is made when its answer is first awaited.
    pub(super) fn new(state: &'a AppState, job: RunningJob, start: Start) -> Self {
        let next = job.clone();
        Self {
            job,
            asking: async move { request_acceptance(state, &next, start).await }.boxed(),
            reply: None,
        }
    }

    /// Waits for the answer. Cancel safe; to be called once it is answered never again.
    pub(super) async fn answer(&mut self) -> Answer {
        let reply = (&mut self.asking).await;
        let answer = match reply {
            Reply::Accepted(_) => Answer::Accepted,
            Reply::Refused(_) => Answer::Refused,
            Reply::Ineligible(_) => Answer::Ineligible,
            Reply::Unknown => Answer::Unknown,
        };
        self.reply = Some(reply);
        answer
    }
}

/// Asks a node to take an attempt until it answers, for the shortest length of a lease.
async fn request_acceptance<'a>(
    state: &'a AppState,
    next: &RunningJob,
    mut start: Start,
) -> Reply<'a> {
    let mut deadline = Instant::now() + state.settings.lease.length;
    let mut backoff = node_client::retry_backoff();
    let mut rounds = 0;
    loop {
        let began = Instant::now();
        let AttemptError {
            reason, outcome, ..
        } = match try_offer(state, next, &mut start).await {
            Ok(request) => return Reply::Accepted(request),
            Err(error) => error,
        };
        tracing::debug!(next_attempt = next.attempt, %reason, "node did not take an offer");
        if start == Start::Run && outcome.is_none() && rounds < MAX_ROUNDS {
            // It was sent files, however long that took.
            rounds += 1;
            deadline += began.elapsed();
        }
        match outcome {
            Some(AttemptOutcome::Ended(last)) => {
                let error = last.result.error.as_ref();
                let error = error.filter(|error| error.kind.is_node_specific());
                return error.map_or(Reply::Unknown, |error| {
                    Reply::Ineligible(summary::of_error(error))
                });
            }
            Some(AttemptOutcome::Lost(_) | AttemptOutcome::Unreadable(_)) => return Reply::Unknown,
            Some(outcome) => return Reply::Refused(outcome),
            None if Instant::now() >= deadline => return Reply::Unknown,
            None => tokio::time::sleep(backoff.next_delay()).await,
        }
    }
}

/// Asks a node once. A node that is alive and keeps the request open has accepted: it answers at the end of the job.
async fn try_offer<'a>(
    state: &'a AppState,
    next: &RunningJob,
    next_start: &mut Start,
) -> Result<InitialRequest<'a>, AttemptError> {
    let client = connect(state, next, *next_start).await?;
    let mut pending = request_job(state, &client, next, *next_start, 0).await?;
    let start = next_start.take();
    let deadline = Instant::now() + SILENCE_TIMEOUT;
    loop {
        tokio::select! {
            biased;
            response = &mut pending => {
                let response = match response {
                    Err(error)
                        if error.kind == NodeCallErrorKind::ContentMissing && start == Start::Run =>
                    {
                        send_contents(state, &client, next, &error.missing, None).await?;
                        // The node refused, so it has nothing of the attempt.
                        *next_start = Start::Run;
                        return Err(AttemptError::transient("its files were sent first"));
                    }
                    response => response,
                };
                let response = response.map_err(|error| AttemptError::of_request(error, start))?;
                let response = wait_for_start(next, start, response).await?;
                let pending = Some(ready(Ok(response)).boxed());
                return Ok(InitialRequest { start, pending });
            }
            is_alive = client.probe_later() => {
                if is_alive {
                    let pending = Some(pending);
                    return Ok(InitialRequest { start, pending });
                }
                if Instant::now() >= deadline {
                    return Err(AttemptError::transient("it does not answer"));
                }
            }
        }
    }
}

/// Waits until a node with events has started an attempt, or ended it with a final outcome.
async fn wait_for_start(
    next: &RunningJob,
    start: Start,
    response: JobResponse,
) -> Result<JobResponse, AttemptError> {
    let JobResponse::Stream(mut events) = response else {
        return Ok(response);
    };
    let first = events.peek_first().await;
    match first.map_err(|error| AttemptError::of_read(error, start))? {
        Some(JobEvent::Result(last)) => {
            let last = validate_result(next, (**last).clone())?;
            let outcome = AttemptOutcome::Ended(Box::new(last));
            if !outcome.is_final() {
                return Err(AttemptError {
                    store_error: None,
                    reason: "the attempt ended before its command started".into(),
                    outcome: Some(outcome),
                });
            }
        }
        Some(_) => {}
        None => {
            let reason = "the events ended before the job started";
            return Err(AttemptError::transient(reason));
        }
    }
    Ok(JobResponse::Stream(events))
}
