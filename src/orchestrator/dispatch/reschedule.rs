//! Reschedule: another node for a job whose node is silent, without an attempt that no node runs and without
//! two that count.
//!
//! [`State`] decides; this file takes events from the nodes, the scheduler and the user, and carries the actions
//! out. A node that accepts an offer answers before the job starts, and may still lack its image. So the attempt of
//! the silent node counts until the other node reports a start, and that is stored.
//!
//! The store says at any time which attempt counts: after a crash between two steps the next start of the
//! orchestrator finds the offer, and asks the other node about it.

mod machine;
mod offer;

use super::{
    InitialRequest, Start,
    attempt::follow_attempt,
    finalize::{back_off_node, collect_refusals, write_with_retry},
    lease::Lease,
    outcome::AttemptOutcome,
    request::node_slug,
    transition::INITIAL_ATTEMPT_BACKOFF,
};
use crate::{
    api::{NodeId, tasks::TaskStatus, time::Time},
    backoff::Backoff,
    errors,
    orchestrator::{
        AppState,
        active_jobs::{Assignment, Cancellation, JobHandle},
        task_watch::{TaskState, TaskWatch},
    },
    store::{MAX_BACKOFF, Placement, RunningJob},
    wait,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use machine::{Action, Answer, Event, State};
use offer::{Offer, Reply};
use std::pin::pin;
use tokio::{sync::watch, time::Instant};

/// End of the attempt that counted.
pub(super) enum Followed<'a> {
    /// The attempt has an outcome.
    Ended(AttemptOutcome),
    /// The next attempt counts; its node has accepted it.
    HandedOff(Box<RunningJob>, InitialRequest<'a>),
}

/// Follows the attempt that counts until it has an outcome or another attempt counts.
pub(super) async fn follow<'a>(
    state: &'a AppState,
    job: &mut RunningJob,
    request: InitialRequest<'a>,
    watch: &TaskWatch,
    handle: &JobHandle,
) -> Followed<'a> {
    let ran = job.started_at.map(|started| Time::now().since(started));
    let lease = Lease::new(state.settings.lease, ran.unwrap_or_default());
    let (current, cancellation) = (job.clone(), handle.cancellation());
    let attempt = follow_attempt(state, &current, request, watch, cancellation, &lease);
    let mut attempt = pin!(attempt);
    let mut reschedule = Reschedule::new(state, job, watch, handle, &lease);
    loop {
        let event = tokio::select! {
            outcome = &mut attempt, if reschedule.outcome.is_none() => {
                reschedule.record_outcome(outcome)
            }
            event = reschedule.next_event() => event,
        };
        if let Some(followed) = reschedule.handle(event).await {
            return followed;
        }
    }
}

/// Search for another node, beside the attempt that counts.
struct Reschedule<'a, 'j> {
    state: &'a AppState,
    job: &'j mut RunningJob,
    watch: &'j TaskWatch,
    handle: &'j JobHandle,
    lease: &'j Lease,
    cancellation: watch::Receiver<Cancellation>,
    machine: State,
    /// Outcome of the attempt that counts.
    outcome: Option<AttemptOutcome>,
    /// Request to the scheduler.
    seeking: Option<BoxFuture<'static, Assignment>>,
    /// Answer of the scheduler, which waits until the offer is stored.
    assignment: Option<Assignment>,
    offer: Option<Offer<'a>>,
    /// Time before which the job is not offered again.
    not_before: Instant,
    backoff: Backoff,
    /// Nodes that were asked without success; the scheduler takes them last.
    tried: Vec<NodeId>,
}

impl<'a, 'j> Reschedule<'a, 'j> {
    fn new(
        state: &'a AppState,
        job: &'j mut RunningJob,
        watch: &'j TaskWatch,
        handle: &'j JobHandle,
        lease: &'j Lease,
    ) -> Self {
        let offered = job.offered_attempt();
        let machine = State::new(offered.is_some(), job.may_retry());
        Self {
            state,
            job,
            watch,
            handle,
            lease,
            cancellation: handle.cancellation(),
            machine,
            outcome: None,
            seeking: None,
            assignment: None,
            // From before a restart: the other node may have the attempt.
            offer: offered.map(|next| Offer::new(state, next, Start::Attach)),
            not_before: Instant::now(),
            backoff: Backoff::new(INITIAL_ATTEMPT_BACKOFF, MAX_BACKOFF),
            tried: Vec::new(),
        }
    }

    /// Keeps the outcome of the attempt that counts.
    fn record_outcome(&mut self, outcome: AttemptOutcome) -> Event {
        let is_final = outcome.is_final() || self.handle.is_cancel_requested();
        self.outcome = Some(outcome);
        Event::Ended { is_final }
    }

    /// Waits for the next event that means something in the present state. Cancel safe.
    async fn next_event(&mut self) -> Event {
        let lease = self.lease;
        match self.machine {
            State::Held => tokio::select! {
                () = canceled(&mut self.cancellation) => Event::Canceled,
                () = expired(lease, self.not_before) => Event::LeaseExpired,
            },
            State::Seeking => tokio::select! {
                biased;
                () = canceled(&mut self.cancellation) => Event::Canceled,
                () = lease.renewed() => Event::NodeAnswered,
                assignment = assigned(&mut self.seeking) => {
                    self.assignment = Some(assignment);
                    Event::Assigned
                }
            },
            State::Offered { ended } => tokio::select! {
                answer = answered(&mut self.offer) => Event::Answered(answer),
                () = lease.renewed(), if !ended => Event::NodeAnswered,
            },
            _ => std::future::pending().await,
        }
    }

    /// Takes an event and carries out all that follows from it.
    async fn handle(&mut self, event: Event) -> Option<Followed<'a>> {
        let mut event = Some(event);
        while let Some(next) = event.take() {
            let (machine, action) = self.machine.on(next);
            self.machine = machine;
            match action {
                Action::Wait | Action::AskNode => {}
                Action::Seek => self.seek(),
                Action::StopSeeking => self.seeking = None,
                Action::StoreOffer => event = Some(self.store_offer().await),
                Action::StoreAcceptance => event = Some(self.store_acceptance().await),
                Action::StoreWithdrawal { answer } => {
                    event = Some(self.store_withdrawal(answer).await);
                }
                Action::HandOff => return self.hand_off().await,
                Action::Finish => return self.outcome.take().map(Followed::Ended),
            }
        }
        None
    }

    /// Whether there may be another attempt.
    fn may_retry(&self) -> bool {
        self.job.may_retry() && !self.handle.is_cancel_requested()
    }

    /// Asks the scheduler for another node.
    fn seek(&mut self) {
        let assignment = self.handle.request_reschedule(self.job, &self.tried);
        self.seeking = Some(assignment.boxed());
        self.state.jobs.wake.notify_one();
    }

    /// Lets some time pass before the job is offered again.
    fn back_off(&mut self) {
        self.not_before = Instant::now() + self.backoff.next_delay();
    }

    /// Stores the offer of the next attempt to the node that the scheduler chose.
    async fn store_offer(&mut self) -> Event {
        self.seeking = None;
        let mut offered = None;
        if let Some(assignment) = self.assignment.take() {
            let (job, to) = (&self.job, assignment.node);
            match self.state.store.job_offer(job.id, job.attempt, to).await {
                Ok(next) => offered = next,
                Err(error) => {
                    let error = errors::chain(&error);
                    tracing::warn!(error, "offer of a job can't be stored; retrying");
                }
            }
        }
        let Some(next) = offered else {
            self.back_off();
            let may_retry = self.may_retry();
            return Event::OfferFailed { may_retry };
        };
        self.job.last_attempt = next.attempt;
        self.job.offered_to = Some(next.node_id);
        self.offer = Some(Offer::new(self.state, next, Start::Run));
        Event::OfferStored
    }

    /// Stores that the other node has started the next attempt, which counts from then on.
    async fn store_acceptance(&mut self) -> Event {
        if let Some(Offer { job: next, .. }) = &self.offer {
            let store = &self.state.store;
            let accept = || store.job_accept(next.id, next.attempt, Time::now());
            if write_with_retry("store the acceptance of an offer", accept).await {
                return Event::AcceptanceStored;
            }
        }
        self.close_offer(true);
        let may_retry = self.may_retry();
        Event::OfferLapsed { may_retry }
    }

    /// Takes the offer back.
    async fn store_withdrawal(&mut self, answer: Answer) -> Event {
        let mut may_have_started = true;
        if let Some(Offer {
            job: next, reply, ..
        }) = &self.offer
        {
            if let Some(Reply::Ineligible(reason)) = reply {
                let placement = exclude_node(self.state, next, reason).await;
                if let Some(placement) = placement {
                    self.job.placement = placement;
                    // The attempt ran nothing, and its number is not given out again.
                    self.job.max_attempts += 1;
                }
            } else {
                let is_refused = answer == Answer::Refused;
                if let Some(Reply::Refused(outcome)) = reply {
                    back_off_node(self.state, next, outcome);
                }
                let store = &self.state.store;
                let withdraw = || store.job_withdraw(next.id, next.attempt, is_refused);
                let is_withdrawn = write_with_retry("withdraw an offer", withdraw).await;
                if is_refused && is_withdrawn {
                    self.job.last_attempt -= 1;
                }
                may_have_started = !is_refused;
            }
        }
        self.close_offer(may_have_started);
        let may_retry = self.may_retry();
        Event::Withdrawn { may_retry }
    }

    /// Forgets an offer that is closed in the store.
    fn close_offer(&mut self, may_have_started: bool) {
        self.job.offered_to = None;
        let Some(offer) = self.offer.take() else {
            return;
        };
        if may_have_started {
            // Only after the write: until then the reconciler keeps an offered attempt.
            self.state.nodes.reconciler.mark_superseded(&offer.job);
        }
        if offer.reply.is_some() {
            self.back_off();
            self.tried.push(offer.job.node_id);
        }
    }

    /// Continues with the next attempt.
    async fn hand_off(&mut self) -> Option<Followed<'a>> {
        let Offer {
            job: next, reply, ..
        } = self.offer.take()?;
        let Some(Reply::Accepted(request)) = reply else {
            return None;
        };
        let to = node_slug(self.state, next.node_id).await;
        tracing::warn!(
            next_attempt = next.attempt,
            to,
            "job handed off: its node is silent"
        );
        self.state.nodes.reconciler.mark_superseded(self.job);
        self.watch
            .publish(TaskState::new(TaskStatus::Running, next.attempt));
        Some(Followed::HandedOff(Box::new(next), request))
    }
}

/// Withdraws an offer from a node that can't run the job, which is not offered to it again. Returns what the job
/// asks of a node then; `None` where the offer was not open any more.
async fn exclude_node(state: &AppState, next: &RunningJob, reason: &str) -> Option<Placement> {
    tracing::info!(
        next_attempt = next.attempt,
        reason,
        "node refused an offered job"
    );
    let exclude = || async {
        let (refusals, _) = collect_refusals(state, next, reason).await?;
        let store = &state.store;
        store.job_exclude(next.id, next.attempt, refusals).await
    };
    write_with_retry("exclude a node from a job", exclude).await
}

async fn canceled(cancellation: &mut watch::Receiver<Cancellation>) {
    let requested = wait::until(cancellation, |request| *request > Cancellation::None);
    if requested.await.is_err() {
        // The job is not registered any more, so no cancel can come.
        std::future::pending().await
    }
}

async fn expired(lease: &Lease, not_before: Instant) {
    tokio::time::sleep_until(not_before).await;
    lease.expired().await;
}

async fn assigned(seeking: &mut Option<BoxFuture<'static, Assignment>>) -> Assignment {
    match seeking {
        Some(assignment) => assignment.await,
        None => std::future::pending().await,
    }
}

async fn answered(offer: &mut Option<Offer<'_>>) -> Answer {
    match offer {
        Some(offer) => offer.answer().await,
        None => std::future::pending().await,
    }
}
