//! From a silent node to another one, without an attempt that nobody runs and without two that count.
//!
//! ```text
//!        ┌──────────── the attempt that counts, asked again and again ───────────┐
//!        │                                                                       ├─▶ its end
//! lease ─┴▶ sought ──▶ offered (commit) ──▶ asked of the other node ──▶ begun ───┘
//!             ▲                                │                          │
//!             └──── backoff ◀── taken back ◀───┴── refused, or silent     └▶ accepted (commit): counts now
//! ```
//!
//! A node that answers has not begun yet: it looks for the image first, and may not have it. Until it says
//! that it has started, the attempt of the silent node is the one that counts.
//!
//! All of it is one task, so that what is decided about a job is decided at one place, one thing after the
//! other. Whatever was sent, the store says which attempt counts: a crash between two steps leaves an offer
//! there, and after the next start the other node is asked whether it has taken it.

use super::{
    Entry, FIRST_PAUSE, LONGEST_PAUSE,
    attempt::{Opening, ask, attend, client_of, node_of, probe},
    lease::Lease,
    settle::{FIRST_BACKOFF, avoid, refused as refusals_with, stored},
    verdict::{Trouble, Verdict, check, refused},
};
use crate::{
    api::{NodeId, events::JobEvent, tasks::TaskStatus, time::Time},
    errors,
    orchestrator::{
        Orchestrator,
        followers::{Chosen, Follower},
        live::{LiveTask, Moment},
        node_client::{self, JobAnswer},
        summary,
    },
    pause::Pauses,
    store::{LONGEST_BACKOFF, RunningJob},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use std::{future::ready, pin::pin};
use tokio::time::Instant;

/// Follows a job until the attempt that counts has ended; `job` is that attempt then.
pub(super) async fn follow(
    orchestrator: &Orchestrator,
    job: &mut RunningJob,
    entry: Entry,
    live: &LiveTask,
    follower: &Follower,
) -> Verdict {
    let mut opening = Opening::from(entry);
    loop {
        match hold(orchestrator, job, opening, live, follower).await {
            Turn::Over(verdict) => return verdict,
            Turn::HandedOver(next, goes_on) => {
                let [from, to] = [
                    slug(orchestrator, job).await,
                    slug(orchestrator, &next).await,
                ];
                tracing::warn!(
                    job = %job.id, attempt = next.attempt, from, to,
                    "a job goes on at another node, since its own is silent"
                );
                orchestrator.leftovers.owe_end(job);
                live.moves_to(Moment::of(TaskStatus::Running, next.attempt));
                *job = *next;
                opening = goes_on;
            }
        }
    }
}

/// By what people know an attempt's node.
async fn slug(orchestrator: &Orchestrator, job: &RunningJob) -> String {
    let node = node_of(orchestrator, job).await;
    node.map_or_else(|_| job.node_id.to_string(), |node| node.slug)
}

/// How it goes on.
enum Turn<'a> {
    /// The attempt that counts has ended.
    Over(Verdict),
    /// Another one counts now; its node was asked already.
    HandedOver(Box<RunningJob>, Opening<'a>),
}

/// Follows one attempt for as long as it counts.
async fn hold<'a>(
    orchestrator: &'a Orchestrator,
    job: &mut RunningJob,
    opening: Opening<'a>,
    live: &LiveTask,
    follower: &Follower,
) -> Turn<'a> {
    let lease = Lease::new(orchestrator.settings.lease);
    let (current, cancel) = (job.clone(), follower.cancel());
    let mut ending = pin!(attend(
        orchestrator,
        &current,
        opening,
        live,
        cancel,
        &lease
    ));
    let mut end = None;
    let offered = job.offered();
    let mut offer = offered.map(|next| Offer::put(orchestrator, next, Entry::Attach));
    let mut backoff = Pauses::new(FIRST_BACKOFF, LONGEST_BACKOFF);
    let mut not_before = Instant::now();
    // Those that were asked in vain come last.
    let mut tried = Vec::new();
    loop {
        let may_seek = offer.is_none() && job.may_be_tried_again() && !follower.is_canceled();
        tokio::select! {
            verdict = &mut ending, if end.is_none() => {
                let is_last_word = verdict.is_last_word() || follower.is_canceled();
                match &offer {
                    // Another node may have taken it, and is given the word.
                    Some(_) if !is_last_word => end = Some(verdict),
                    _ => return Turn::Over(verdict),
                }
            }
            (next, answer) = answered(&mut offer) => {
                if let Some(goes_on) = conclude(orchestrator, job, &next, answer).await {
                    return Turn::HandedOver(Box::new(next), goes_on);
                }
                if let Some(verdict) = end {
                    return Turn::Over(verdict);
                }
                not_before = Instant::now() + backoff.take();
                tried.push(next.node_id);
            }
            () = lease.renewed(), if offer.is_some() && end.is_none() => {
                if let Some(Offer { job: next, .. }) = offer.take() {
                    conclude(orchestrator, job, &next, Answer::Unknown).await;
                }
            }
            chosen = sought(orchestrator, job, &lease, not_before, &tried, follower), if may_seek && end.is_none() => {
                offer = offer_to(orchestrator, job, chosen).await;
                if offer.is_none() {
                    not_before = Instant::now() + backoff.take();
                }
            }
        }
    }
}

/// Waits until the lease has run out and the scheduler has chosen another node.
async fn sought(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    lease: &Lease,
    not_before: Instant,
    tried: &[NodeId],
    follower: &Follower,
) -> Chosen {
    loop {
        tokio::time::sleep_until(not_before).await;
        lease.ended().await;
        let seeking = follower.seek(job, tried);
        orchestrator.wake.notify_one();
        tokio::select! {
            biased;
            () = lease.renewed() => {}
            chosen = seeking => return chosen,
        }
    }
}

/// Offers the next attempt to the node that was chosen. The scheduler waits until that is written.
async fn offer_to<'a>(
    orchestrator: &'a Orchestrator,
    job: &mut RunningJob,
    chosen: Chosen,
) -> Option<Offer<'a>> {
    let offered = orchestrator
        .store
        .job_offer(job.id, job.attempt, chosen.node)
        .await;
    match offered {
        Ok(next) => {
            let next = next?;
            job.last_attempt = next.attempt;
            job.offered_to = Some(next.node_id);
            Some(Offer::put(orchestrator, next, Entry::Run))
        }
        Err(error) => {
            let error = errors::chain(&error);
            tracing::warn!(job = %job.id, error, "an offer can't be written down now");
            None
        }
    }
}

/// Writes down what the other node answered; how it goes on there, where its attempt is the one that
/// counts now.
async fn conclude<'a>(
    orchestrator: &Orchestrator,
    job: &mut RunningJob,
    next: &RunningJob,
    answer: Answer<'a>,
) -> Option<Opening<'a>> {
    let store = &orchestrator.store;
    let refused = match answer {
        Answer::Taken(goes_on) => {
            let accept = || store.job_accept(next.id, next.attempt, Time::now());
            return stored(next, accept).await.then_some(goes_on);
        }
        Answer::Refused(verdict) => {
            avoid(orchestrator, next.node_id, &verdict);
            true
        }
        Answer::Unfit(reason) => {
            exclude(orchestrator, job, next, &reason).await;
            return None;
        }
        Answer::Unknown => false,
    };
    let withdraw = || store.job_withdraw(next.id, next.attempt, refused);
    if stored(next, withdraw).await && refused {
        job.last_attempt -= 1;
    }
    job.offered_to = None;
    if !refused {
        // Not before: until that is written what is offered there counts as awaited.
        orchestrator.leftovers.owe_end(next);
    }
    None
}

/// Takes an offer back for good from a node that can't run the job. The attempt ran nothing, and there may be
/// another one instead; its number is not given again, since the node has a record of it.
async fn exclude(
    orchestrator: &Orchestrator,
    job: &mut RunningJob,
    next: &RunningJob,
    reason: &str,
) {
    tracing::info!(job = %next.id, attempt = next.attempt, reason, "node refused an offered job");
    let write = async || {
        let (refusals, _) = refusals_with(orchestrator, next, reason).await?;
        orchestrator
            .store
            .job_exclude(next.id, next.attempt, refusals)
            .await
    };
    if let Some(placement) = stored(next, write).await {
        job.placement = placement;
        job.max_attempts += 1;
    }
    job.offered_to = None;
    orchestrator.leftovers.owe_end(next);
}

/// An attempt that another node is asked to take.
struct Offer<'a> {
    job: RunningJob,
    answer: BoxFuture<'a, Answer<'a>>,
}

/// What came of it.
enum Answer<'a> {
    /// It has started it, or, where it tells no events, lives and will answer at the end.
    Taken(Opening<'a>),
    /// It never began.
    Refused(Verdict),
    /// It never began, and never will, being what it is; for this reason.
    Unfit(String),
    /// Nobody can tell.
    Unknown,
}

impl<'a> Offer<'a> {
    fn put(orchestrator: &'a Orchestrator, job: RunningJob, entry: Entry) -> Self {
        let next = job.clone();
        Self {
            job,
            answer: async move { ask_to_take(orchestrator, &next, entry).await }.boxed(),
        }
    }
}

/// Waits for the answer to an offer, and takes it away then.
async fn answered<'a>(offer: &mut Option<Offer<'a>>) -> (RunningJob, Answer<'a>) {
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
async fn ask_to_take<'a>(
    orchestrator: &'a Orchestrator,
    next: &RunningJob,
    mut entry: Entry,
) -> Answer<'a> {
    let until = Instant::now() + orchestrator.settings.lease;
    let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let Trouble { reason, verdict } = match take(orchestrator, next, &mut entry).await {
            Ok(goes_on) => return Answer::Taken(goes_on),
            Err(trouble) => trouble,
        };
        tracing::debug!(job = %next.id, attempt = next.attempt, %reason, "a node does not take an offer");
        match verdict {
            Some(Verdict::Ended(last)) => {
                let error = last.result.error.as_ref();
                let error = error.filter(|error| error.kind.is_of_one_node());
                return error.map_or(Answer::Unknown, |error| {
                    Answer::Unfit(summary::cause(error))
                });
            }
            Some(Verdict::Lost(_) | Verdict::Unreadable(_)) => return Answer::Unknown,
            Some(verdict) => return Answer::Refused(verdict),
            None if Instant::now() >= until => return Answer::Unknown,
            None => tokio::time::sleep(pauses.take()).await,
        }
    }
}

/// Asks a node to take an attempt. One that lives and leaves the answer open has taken it: it answers at
/// the end.
async fn take<'a>(
    orchestrator: &'a Orchestrator,
    next: &RunningJob,
    entry: &mut Entry,
) -> Result<Opening<'a>, Trouble> {
    let node = node_of(orchestrator, next).await?;
    let client = client_of(orchestrator, &node, *entry)?;
    let entry = entry.take();
    let mut pending = ask(&client, next, entry, 0);
    let given_up = Instant::now() + node_client::SILENCE;
    loop {
        tokio::select! {
            biased;
            answer = &mut pending => {
                let answer = answer.map_err(|error| refused(&error, entry))?;
                let pending = Some(ready(Ok(begun(next, entry, answer).await?)).boxed());
                return Ok(Opening { entry, pending });
            }
            is_there = probe(&client) => {
                if is_there {
                    let pending = Some(pending);
                    return Ok(Opening { entry, pending });
                }
                if Instant::now() >= given_up {
                    return Err(Trouble::passing("it does not answer"));
                }
            }
        }
    }
}

/// Waits until a node that tells events has started an attempt, or has ended it with a result that is the
/// job's whatever another node would come to.
async fn begun(next: &RunningJob, entry: Entry, answer: JobAnswer) -> Result<JobAnswer, Trouble> {
    let JobAnswer::Events(mut events) = answer else {
        return Ok(answer);
    };
    match events.first().await {
        Ok(Some(JobEvent::Result(last))) => {
            let ended = Verdict::Ended(Box::new(check(next, (**last).clone())?));
            if !ended.is_last_word() {
                return Err(Trouble {
                    reason: "it ended before it started".into(),
                    verdict: Some(ended),
                });
            }
        }
        Ok(Some(_)) => {}
        Ok(None) => return Err(Trouble::passing("the events ended before the job started")),
        Err(error) => return Err(Trouble::unread(&error, entry)),
    }
    Ok(JobAnswer::Events(events))
}
