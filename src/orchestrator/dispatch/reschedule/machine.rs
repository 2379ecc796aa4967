//! Decision of a reschedule: a pure state machine, one for each attempt that counts.
//!
//! ```text
//!           lease expired      assigned       offer stored        accepted         stored
//!   Held ─────────────▶ Seeking ────▶ Offering ────▶ Offered ────────▶ Accepting ────▶ HandedOff
//!    ▲  ◀─────────────     │             │              │ refused, no answer, │ the offer
//!    │   node answers      │             │ not stored   │ or the node is back │ had lapsed
//!    │                     │             ▼              ▼                     │
//!    └─────────────────────┴──────── (next try) ◀── Withdrawing ◀─────────────┘
//! ```
//!
//! The attempt that counts ends in one of two ways: its own outcome, or the stored acceptance of the next
//! attempt. While an offer is open, an outcome that another attempt could improve waits for the answer to
//! the offer. [`State::on`] takes an event and returns the next state and one action; the effects are in
//! [`super`].

/// Progress of the attempt that counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// The attempt belongs to its node, which answers or is within its lease.
    Held,
    /// The attempt belongs to its node for good: the job is to be canceled, or this is its last attempt.
    Pinned,
    /// The lease expired; the scheduler is asked for another node.
    Seeking,
    /// The offer of the next attempt is being stored.
    Offering,
    /// The offer is stored, and the other node is asked to take it.
    Offered {
        /// Whether the attempt that counts has ended; its outcome is kept for the case of a refusal.
        ended: bool,
    },
    /// The other node has started the next attempt; the acceptance is being stored.
    Accepting {
        /// As in [`Self::Offered`].
        ended: bool,
    },
    /// The offer is being taken back in the store.
    Withdrawing {
        /// As in [`Self::Offered`].
        ended: bool,
    },
    /// Another attempt counts now.
    HandedOff,
    /// The outcome of this attempt is the one to store.
    Ended,
}

/// Input of the state machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// The node has been silent for a whole lease, and the pause after the last offer is over.
    LeaseExpired,
    /// The node answers again.
    NodeAnswered,
    /// A user canceled the job.
    Canceled,
    /// The attempt has an outcome.
    Ended {
        /// Whether no other attempt could improve it.
        is_final: bool,
    },
    /// The scheduler chose another node.
    Assigned,
    /// The offer is committed.
    OfferStored,
    /// The store did not take the offer.
    OfferFailed {
        /// Whether the job may have another attempt.
        may_retry: bool,
    },
    /// The answer of the other node, or the lack of one.
    Answered(Answer),
    /// The acceptance is committed: the next attempt counts.
    AcceptanceStored,
    /// The offer was not open any more, so that the acceptance changed nothing.
    OfferLapsed {
        /// Whether the job may have another attempt.
        may_retry: bool,
    },
    /// The withdrawal is committed.
    Withdrawn {
        /// Whether the job may have another attempt.
        may_retry: bool,
    },
}

/// Answer of a node to an offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The node started the attempt.
    Accepted,
    /// The node did not start the attempt at this time.
    Refused,
    /// The node can't run this job, such as for want of its image.
    Ineligible,
    /// Unknown: the node may have started the attempt.
    Unknown,
}

/// Output of the state machine: one effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Wait for the next event.
    Wait,
    /// Ask the scheduler for another node.
    Seek,
    /// Take that request back.
    StopSeeking,
    /// Store the offer of the next attempt.
    StoreOffer,
    /// Ask the other node to take the attempt.
    AskNode,
    /// Store the acceptance.
    StoreAcceptance,
    /// Store the withdrawal of the offer. The next offer has the same number where the node never started
    /// this one; otherwise the number is used up, and the reconciler removes what that node has of it.
    StoreWithdrawal {
        /// Reason for it.
        answer: Answer,
    },
    /// Continue with the next attempt; the reconciler removes what the old node has.
    HandOff,
    /// Store the outcome; an open offer ends with it, and the reconciler removes what that node has.
    Finish,
}

impl State {
    /// State at the start of an attempt, with its next attempt `is_offered` already or not.
    pub(super) const fn new(is_offered: bool, may_retry: bool) -> Self {
        if is_offered {
            Self::Offered { ended: false }
        } else {
            Self::held(may_retry)
        }
    }

    const fn held(may_retry: bool) -> Self {
        if may_retry { Self::Held } else { Self::Pinned }
    }

    /// Next state, and what to do. An event that means nothing in this state changes nothing.
    pub(super) const fn on(self, event: Event) -> (Self, Action) {
        match (self, event) {
            (Self::Held, Event::LeaseExpired) => (Self::Seeking, Action::Seek),
            (Self::Held, Event::Canceled) => (Self::Pinned, Action::Wait),
            (Self::Seeking, Event::NodeAnswered) => (Self::Held, Action::StopSeeking),
            (Self::Seeking, Event::Canceled) => (Self::Pinned, Action::StopSeeking),
            (Self::Seeking, Event::Assigned) => (Self::Offering, Action::StoreOffer),
            (Self::Held | Self::Pinned | Self::Seeking, Event::Ended { .. }) => {
                (Self::Ended, Action::Finish)
            }
            (Self::Offering, Event::OfferStored) => {
                (Self::Offered { ended: false }, Action::AskNode)
            }
            (Self::Offering, Event::OfferFailed { may_retry }) => {
                (Self::held(may_retry), Action::Wait)
            }
            (Self::Offered { ended: false }, Event::Ended { is_final: false }) => {
                (Self::Offered { ended: true }, Action::Wait)
            }
            (Self::Offered { ended: false }, Event::Ended { is_final: true }) => {
                (Self::Ended, Action::Finish)
            }
            (Self::Offered { ended: false }, Event::NodeAnswered) => {
                let answer = Answer::Unknown;
                let action = Action::StoreWithdrawal { answer };
                (Self::Withdrawing { ended: false }, action)
            }
            (Self::Offered { ended }, Event::Answered(Answer::Accepted)) => {
                (Self::Accepting { ended }, Action::StoreAcceptance)
            }
            (Self::Offered { ended }, Event::Answered(answer)) => (
                Self::Withdrawing { ended },
                Action::StoreWithdrawal { answer },
            ),
            (Self::Accepting { .. }, Event::AcceptanceStored) => (Self::HandedOff, Action::HandOff),
            (Self::Accepting { ended: true }, Event::OfferLapsed { .. })
            | (Self::Withdrawing { ended: true }, Event::Withdrawn { .. }) => {
                (Self::Ended, Action::Finish)
            }
            (Self::Accepting { ended: false }, Event::OfferLapsed { may_retry })
            | (Self::Withdrawing { ended: false }, Event::Withdrawn { may_retry }) => {
                (Self::held(may_retry), Action::Wait)
            }
            (state, _) => (state, Action::Wait),
        }
    }
}

#[cfg(test)]
mod tests;
