//! From a silent node to another one, without an attempt that nobody runs and without two that count.
//!
//! ```text
//!        ┌──────────── the attempt that counts, asked again and again ───────────┐
//!        │                                                                       ├─▶ its end
//! lease ─┴▶ wait_for_assignment ──▶ offered (commit) ──▶ asked of the other node ──▶ wait_for_start ───┘
//!             ▲                                │                          │
//!             └──── backoff ◀── taken back ◀───┴── refused, or silent     └▶ accepted (commit): counts now
//! ```
//!
//! A node that answers has not wait_for_start yet: it looks for the image first, and may not have it. Until it says
//! that it has started, the attempt of the silent node is the one that counts.
//!
//! All of it is one task, so that what is decided about a job is decided at one place, one thing after the
//! other. Whatever was sent, the store says which attempt counts: a crash between two steps leaves an offer
//! there, and after the next start the other node is asked whether it has taken it.

use super::{
    INITIAL_RETRY_BACKOFF, MAX_RETRY_BACKOFF, Start,
    attempt::{InitialRequest, connect_node, follow_attempt, load_node, probe, request_job},
    finalize::{INITIAL_ATTEMPT_BACKOFF, back_off_node, collect_refusals, write_with_retry},
    lease::Lease,
    outcome::{AttemptError, AttemptOutcome, classify_error, validate_result},
};
use crate::{
    api::{NodeId, events::JobEvent, tasks::TaskStatus, time::Time},
    backoff::Backoff,
    errors,
    orchestrator::{
        AppState,
        active_jobs::{Assignment, JobHandle},
        node_client::{self, JobResponse},
        summary,
        task_watch::{TaskState, TaskWatch},
    },
    store::{MAX_BACKOFF, RunningJob},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use std::{future::ready, pin::pin};
use tokio::time::Instant;

/// Follows a job until the attempt that counts has ended; `job` is that attempt then.
pub(super) async fn follow(
    state: &AppState,
    job: &mut RunningJob,
    start: Start,
    watch: &TaskWatch,
    handle: &JobHandle,
) -> AttemptOutcome {
    let mut initial = InitialRequest::from(start);
    loop {
        match follow_until_handoff(state, job, initial, watch, handle).await {
            HandoffOutcome::Ended(outcome) => return outcome,
            HandoffOutcome::HandedOff(next, goes_on) => {
                let [from, to] = [slug(state, job).await, slug(state, &next).await];
                tracing::warn!(
                    job = %job.id, attempt = next.attempt, from, to,
                    "a job goes on at another node, since its own is silent"
                );
                state.nodes.reconciler.mark_superseded(job);
                watch.publish(TaskState::new(TaskStatus::Running, next.attempt));
                *job = *next;
                initial = goes_on;
            }
        }
    }
}

/// By what people know an attempt's node.
async fn slug(state: &AppState, job: &RunningJob) -> String {
    let node = load_node(state, job).await;
    node.map_or_else(|_| job.node_id.to_string(), |node| node.slug)
}

/// How it goes on.
enum HandoffOutcome<'a> {
    /// The attempt that counts has ended.
    Ended(AttemptOutcome),
    /// Another one counts now; its node was asked already.
    HandedOff(Box<RunningJob>, InitialRequest<'a>),
}

/// Follows one attempt for as long as it counts.
async fn follow_until_handoff<'a>(
    state: &'a AppState,
    job: &mut RunningJob,
    initial: InitialRequest<'a>,
    watch: &TaskWatch,
    handle: &JobHandle,
) -> HandoffOutcome<'a> {
    let lease = Lease::new(state.settings.lease);
    let (current, cancel) = (job.clone(), handle.cancellation());
    let mut ending = pin!(follow_attempt(
        state, &current, initial, watch, cancel, &lease
    ));
    let mut end = None;
    let offered = job.offered_attempt();
    let mut offer = offered.map(|next| Offer::send(state, next, Start::Attach));
    let mut backoff = Backoff::new(INITIAL_ATTEMPT_BACKOFF, MAX_BACKOFF);
    let mut not_before = Instant::now();
    // Those that were asked in vain come last.
    let mut tried = Vec::new();
    loop {
        let may_seek = offer.is_none() && job.may_retry() && !handle.is_cancel_requested();
        tokio::select! {
            outcome = &mut ending, if end.is_none() => {
                let is_final = outcome.is_final() || handle.is_cancel_requested();
                match &offer {
                    // Another node may have taken it, and is given the word.
                    Some(_) if !is_final => end = Some(outcome),
                    _ => return HandoffOutcome::Ended(outcome),
                }
            }
            (next, answer) = next_offer_answer(&mut offer) => {
                if let Some(goes_on) = record_offer_answer(state, job, &next, answer).await {
                    return HandoffOutcome::HandedOff(Box::new(next), goes_on);
                }
                if let Some(outcome) = end {
                    return HandoffOutcome::Ended(outcome);
                }
                not_before = Instant::now() + backoff.next_delay();
                tried.push(next.node_id);
            }
            () = lease.renewed(), if offer.is_some() && end.is_none() => {
                if let Some(Offer { job: next, .. }) = offer.take() {
                    record_offer_answer(state, job, &next, OfferAnswer::Unknown).await;
                }
            }
            chosen = wait_for_assignment(state, job, &lease, not_before, &tried, handle), if may_seek && end.is_none() => {
                offer = offer_to(state, job, chosen).await;
                if offer.is_none() {
                    not_before = Instant::now() + backoff.next_delay();
                }
            }
        }
    }
}

/// Waits until the lease has run out and the scheduler has chosen another node.
async fn wait_for_assignment(
    state: &AppState,
    job: &RunningJob,
    lease: &Lease,
    not_before: Instant,
    tried: &[NodeId],
    handle: &JobHandle,
) -> Assignment {
    loop {
        tokio::time::sleep_until(not_before).await;
        lease.expired().await;
        let seeking = handle.request_reschedule(job, tried);
        state.jobs.wake.notify_one();
        tokio::select! {
            biased;
            () = lease.renewed() => {}
            chosen = seeking => return chosen,
        }
    }
}

/// Offers the next attempt to the node that was chosen. The scheduler waits until that is written.
async fn offer_to<'a>(
    state: &'a AppState,
    job: &mut RunningJob,
    chosen: Assignment,
) -> Option<Offer<'a>> {
    let offered = state
        .store
        .job_offer(job.id, job.attempt, chosen.node)
        .await;
    match offered {
        Ok(next) => {
            let next = next?;
            job.last_attempt = next.attempt;
            job.offered_to = Some(next.node_id);
            Some(Offer::send(state, next, Start::Run))
        }
        Err(error) => {
            let error = errors::chain(&error);
            tracing::warn!(job = %job.id, error, "an offer can't be written down now");
            None
        }
    }
}

/// Writes down what the other node next_offer_answer; how it goes on there, where its attempt is the one that
/// counts now.
async fn record_offer_answer<'a>(
    state: &AppState,
    job: &mut RunningJob,
    next: &RunningJob,
    answer: OfferAnswer<'a>,
) -> Option<InitialRequest<'a>> {
    let store = &state.store;
    let refused = match answer {
        OfferAnswer::Accepted(goes_on) => {
            let accept = || store.job_accept(next.id, next.attempt, Time::now());
            return write_with_retry(next, accept).await.then_some(goes_on);
        }
        OfferAnswer::Refused(outcome) => {
            back_off_node(state, next.node_id, &outcome);
            true
        }
        OfferAnswer::Ineligible(reason) => {
            exclude(state, job, next, &reason).await;
            return None;
        }
        OfferAnswer::Unknown => false,
    };
    let withdraw = || store.job_withdraw(next.id, next.attempt, refused);
    if write_with_retry(next, withdraw).await && refused {
        job.last_attempt -= 1;
    }
    job.offered_to = None;
    if !refused {
        // Not before: until that is written what is offered there counts as awaited.
        state.nodes.reconciler.mark_superseded(next);
    }
    None
}

/// Takes an offer back for good from a node that can't run the job. The attempt ran nothing, and there may be
/// another one instead; its number is not given again, since the node has a record of it.
async fn exclude(state: &AppState, job: &mut RunningJob, next: &RunningJob, reason: &str) {
    tracing::info!(job = %next.id, attempt = next.attempt, reason, "node refused an offered job");
    let write = async || {
        let (refusals, _) = collect_refusals(state, next, reason).await?;
        state
            .store
            .job_exclude(next.id, next.attempt, refusals)
            .await
    };
    if let Some(placement) = write_with_retry(next, write).await {
        job.placement = placement;
        job.max_attempts += 1;
    }
    job.offered_to = None;
    state.nodes.reconciler.mark_superseded(next);
}

/// An attempt that another node is asked to take.
struct Offer<'a> {
    job: RunningJob,
    answer: BoxFuture<'a, OfferAnswer<'a>>,
}

/// What came of it.
enum OfferAnswer<'a> {
    /// It has started it, or, where it tells no events, lives and will answer at the end.
    Accepted(InitialRequest<'a>),
    /// It never began.
    Refused(AttemptOutcome),
    /// It never began, and never will, being what it is; for this reason.
    Ineligible(String),
    /// Nobody can tell.
    Unknown,
}

impl<'a> Offer<'a> {
    fn send(state: &'a AppState, job: RunningJob, start: Start) -> Self {
        let next = job.clone();
        Self {
            job,
            answer: async move { request_acceptance(state, &next, start).await }.boxed(),
        }
    }
}

/// Waits for the answer to an offer, and takes it away then.
async fn next_offer_answer<'a>(offer: &mut Option<Offer<'a>>) -> (RunningJob, OfferAnswer<'a>) {
    let Some(asked) = offer else {
        return std::future::pending().await;
    };
    let answer = (&mut asked.answer).await;
    match offer.take() {
        Some(asked) => (asked.job, answer),
        None => std::future::pending().await,
    }
}

/// Asks a node to take an attempt until it has said so, for as long as a lease.
async fn request_acceptance<'a>(
    state: &'a AppState,
    next: &RunningJob,
    mut start: Start,
) -> OfferAnswer<'a> {
    let until = Instant::now() + state.settings.lease;
    let mut backoff = Backoff::new(INITIAL_RETRY_BACKOFF, MAX_RETRY_BACKOFF);
    loop {
        let AttemptError { reason, outcome } = match try_offer(state, next, &mut start).await {
            Ok(goes_on) => return OfferAnswer::Accepted(goes_on),
            Err(trouble) => trouble,
        };
        tracing::debug!(job = %next.id, attempt = next.attempt, %reason, "a node does not take an offer");
        match outcome {
            Some(AttemptOutcome::Ended(last)) => {
                let error = last.result.error.as_ref();
                let error = error.filter(|error| error.kind.is_node_specific());
                return error.map_or(OfferAnswer::Unknown, |error| {
                    OfferAnswer::Ineligible(summary::of_error(error))
                });
            }
            Some(AttemptOutcome::Lost(_) | AttemptOutcome::Unreadable(_)) => {
                return OfferAnswer::Unknown;
            }
            Some(outcome) => return OfferAnswer::Refused(outcome),
            None if Instant::now() >= until => return OfferAnswer::Unknown,
            None => tokio::time::sleep(backoff.next_delay()).await,
        }
    }
}

/// Asks a node to take an attempt. One that lives and leaves the answer open has taken it: it answers at
/// the end.
async fn try_offer<'a>(
    state: &'a AppState,
    next: &RunningJob,
    start: &mut Start,
) -> Result<InitialRequest<'a>, AttemptError> {
    let node = load_node(state, next).await?;
    let client = connect_node(state, &node, *start)?;
    let start = start.take();
    let mut pending = request_job(&client, next, start, 0);
    let given_up = Instant::now() + node_client::SILENCE_TIMEOUT;
    loop {
        tokio::select! {
            biased;
            answer = &mut pending => {
                let answer = answer.map_err(|error| classify_error(&error, start))?;
                let pending = Some(ready(Ok(wait_for_start(next, start, answer).await?)).boxed());
                return Ok(InitialRequest { start, pending });
            }
            is_alive = probe(&client) => {
                if is_alive {
                    let pending = Some(pending);
                    return Ok(InitialRequest { start, pending });
                }
                if Instant::now() >= given_up {
                    return Err(AttemptError::passing("it does not answer"));
                }
            }
        }
    }
}

/// Waits until a node that tells events has started an attempt, or has ended it with a result that is the
/// job's whatever another node would come to.
async fn wait_for_start(
    next: &RunningJob,
    start: Start,
    answer: JobResponse,
) -> Result<JobResponse, AttemptError> {
    let JobResponse::Stream(mut events) = answer else {
        return Ok(answer);
    };
    match events.peek_first().await {
        Ok(Some(JobEvent::Result(last))) => {
            let ended = AttemptOutcome::Ended(Box::new(validate_result(next, (**last).clone())?));
            if !ended.is_final() {
                return Err(AttemptError {
                    reason: "it ended before it started".into(),
                    outcome: Some(ended),
                });
            }
        }
        Ok(Some(_)) => {}
        Ok(None) => {
            return Err(AttemptError::passing(
                "the events ended before the job started",
            ));
        }
        Err(error) => return Err(AttemptError::unread(&error, start)),
    }
    Ok(JobResponse::Stream(events))
}
