//! Every pair of state and event, and random walks against a model of the store.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const BOTH: [bool; 2] = [false, true];
const ANSWERS: [Answer; 4] = [
    Answer::Accepted,
    Answer::Refused,
    Answer::Ineligible,
    Answer::Unknown,
];

/// All transitions except those that wait in the same state.
const TRANSITIONS: &str = "\
Held, LeaseExpired: Seeking, Seek
Held, Canceled: Pinned, Wait
Held, Ended { is_final: false }: Ended, Finish
Held, Ended { is_final: true }: Ended, Finish
Pinned, Ended { is_final: false }: Ended, Finish
Pinned, Ended { is_final: true }: Ended, Finish
Seeking, NodeAnswered: Held, StopSeeking
Seeking, Canceled: Pinned, StopSeeking
Seeking, Assigned: Offering, StoreOffer
Seeking, Ended { is_final: false }: Ended, Finish
Seeking, Ended { is_final: true }: Ended, Finish
Offering, OfferStored: Offered { ended: false }, AskNode
Offering, OfferFailed { may_retry: false }: Pinned, Wait
Offering, OfferFailed { may_retry: true }: Held, Wait
Offered { ended: false }, NodeAnswered: Withdrawing { ended: false }, StoreWithdrawal { answer: Unknown }
Offered { ended: false }, Answered(Accepted): Accepting { ended: false }, StoreAcceptance
Offered { ended: false }, Answered(Refused): Withdrawing { ended: false }, StoreWithdrawal { answer: Refused }
Offered { ended: false }, Answered(Ineligible): Withdrawing { ended: false }, StoreWithdrawal { answer: Ineligible }
Offered { ended: false }, Answered(Unknown): Withdrawing { ended: false }, StoreWithdrawal { answer: Unknown }
Offered { ended: false }, Ended { is_final: false }: Offered { ended: true }, Wait
Offered { ended: false }, Ended { is_final: true }: Ended, Finish
Offered { ended: true }, Answered(Accepted): Accepting { ended: true }, StoreAcceptance
Offered { ended: true }, Answered(Refused): Withdrawing { ended: true }, StoreWithdrawal { answer: Refused }
Offered { ended: true }, Answered(Ineligible): Withdrawing { ended: true }, StoreWithdrawal { answer: Ineligible }
Offered { ended: true }, Answered(Unknown): Withdrawing { ended: true }, StoreWithdrawal { answer: Unknown }
Accepting { ended: false }, AcceptanceStored: HandedOff, HandOff
Accepting { ended: false }, OfferLapsed { may_retry: false }: Pinned, Wait
Accepting { ended: false }, OfferLapsed { may_retry: true }: Held, Wait
Accepting { ended: true }, AcceptanceStored: HandedOff, HandOff
Accepting { ended: true }, OfferLapsed { may_retry: false }: Ended, Finish
Accepting { ended: true }, OfferLapsed { may_retry: true }: Ended, Finish
Withdrawing { ended: false }, Withdrawn { may_retry: false }: Pinned, Wait
Withdrawing { ended: false }, Withdrawn { may_retry: true }: Held, Wait
Withdrawing { ended: true }, Withdrawn { may_retry: false }: Ended, Finish
Withdrawing { ended: true }, Withdrawn { may_retry: true }: Ended, Finish
";

fn states() -> Vec<State> {
    let plain = [State::Held, State::Pinned, State::Seeking, State::Offering];
    let mut states = plain.to_vec();
    states.extend(BOTH.map(|ended| State::Offered { ended }));
    states.extend(BOTH.map(|ended| State::Accepting { ended }));
    states.extend(BOTH.map(|ended| State::Withdrawing { ended }));
    states.extend([State::HandedOff, State::Ended]);
    states
}

fn events() -> Vec<Event> {
    let mut events = vec![
        Event::LeaseExpired,
        Event::NodeAnswered,
        Event::Canceled,
        Event::Assigned,
        Event::OfferStored,
        Event::AcceptanceStored,
    ];
    events.extend(ANSWERS.map(Event::Answered));
    events.extend(BOTH.map(|is_final| Event::Ended { is_final }));
    events.extend(BOTH.map(|may_retry| Event::OfferFailed { may_retry }));
    events.extend(BOTH.map(|may_retry| Event::OfferLapsed { may_retry }));
    events.extend(BOTH.map(|may_retry| Event::Withdrawn { may_retry }));
    events
}

#[test]
fn every_state_and_event_is_decided() {
    let mut found = BTreeSet::new();
    for state in states() {
        for event in events() {
            let (next, action) = state.on(event);
            if (next, action) != (state, Action::Wait) {
                found.insert(format!("{state:?}, {event:?}: {next:?}, {action:?}"));
            }
        }
    }
    let expected: BTreeSet<_> = TRANSITIONS.lines().map(str::to_owned).collect();
    assert_eq!(found, expected);
}

/// The store and the nodes, as far as a reschedule changes them.
struct Model {
    state: State,
    /// Attempt that counts.
    current: u32,
    /// Attempt that is offered.
    offered: Option<u32>,
    /// Highest attempt that any node may have.
    last: u32,
    /// Attempts that the reconciler removes from their nodes.
    superseded: BTreeSet<u32>,
    /// Attempts that any node may have started.
    started: BTreeSet<u32>,
    max_attempts: u32,
    is_canceled: bool,
}

impl Model {
    fn new(max_attempts: u32) -> Self {
        Self {
            state: State::new(false, max_attempts > 1),
            current: 1,
            offered: None,
            last: 1,
            superseded: BTreeSet::new(),
            started: BTreeSet::from([1]),
            max_attempts,
            is_canceled: false,
        }
    }

    fn may_retry(&self) -> bool {
        self.last < self.max_attempts && !self.is_canceled
    }

    /// Takes an event of the world, and all that follows from it in the store, where `works` or not.
    fn step(&mut self, event: Event, works: bool) {
        self.is_canceled |= event == Event::Canceled;
        let mut event = Some(event);
        while let Some(next) = event.take() {
            let (state, action) = self.state.on(next);
            self.state = state;
            event = self.perform(action, works);
        }
    }

    fn perform(&mut self, action: Action, works: bool) -> Option<Event> {
        match action {
            Action::Wait | Action::Seek | Action::StopSeeking | Action::HandOff => None,
            Action::AskNode => {
                self.started.extend(self.offered);
                None
            }
            Action::StoreOffer => {
                assert_eq!(self.offered, None, "one offer at a time");
                if !works || self.last == self.max_attempts {
                    let may_retry = self.may_retry();
                    return Some(Event::OfferFailed { may_retry });
                }
                self.last += 1;
                self.offered = Some(self.last);
                Some(Event::OfferStored)
            }
            Action::StoreAcceptance => {
                let offered = self.offered.take().unwrap();
                if !works {
                    self.superseded.insert(offered);
                    let may_retry = self.may_retry();
                    return Some(Event::OfferLapsed { may_retry });
                }
                self.superseded.insert(self.current);
                self.current = offered;
                Some(Event::AcceptanceStored)
            }
            Action::StoreWithdrawal { answer } => {
                let offered = self.offered.take().unwrap();
                if answer == Answer::Refused {
                    self.started.remove(&offered);
                    self.last -= 1;
                } else {
                    self.superseded.insert(offered);
                }
                let may_retry = self.may_retry();
                Some(Event::Withdrawn { may_retry })
            }
            Action::Finish => {
                self.superseded.extend(self.offered.take());
                None
            }
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::HandedOff | State::Ended)
    }
}

/// Behaviour of nodes, users and the scheduler.
fn world() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::LeaseExpired),
        2 => Just(Event::NodeAnswered),
        1 => Just(Event::Canceled),
        3 => Just(Event::Assigned),
        1 => any::<bool>().prop_map(|is_final| Event::Ended { is_final }),
        4 => prop::sample::select(ANSWERS.to_vec()).prop_map(Event::Answered),
        2 => Just(Event::Answered(Answer::Accepted)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn one_attempt_counts_none_is_lost(
        max_attempts in 1..5_u32,
        events in prop::collection::vec((world(), prop::bool::weighted(0.7)), 1..60),
    ) {
        let mut model = Model::new(max_attempts);
        for (event, works) in events {
            let before = (model.current, model.state);
            model.step(event, works);
            let owners: Vec<_> = model.started.difference(&model.superseded).collect();
            let expected: Vec<_> = [Some(model.current), model.offered].into_iter().flatten().collect();
            prop_assert_eq!(owners, expected.iter().collect::<Vec<_>>(), "an attempt without an owner");
            prop_assert!(model.last <= max_attempts);
            let is_moved = model.current != before.0;
            prop_assert_eq!(is_moved, model.state == State::HandedOff, "only a stored acceptance moves a job");
            prop_assert!(!is_moved || event == Event::Answered(Answer::Accepted));
            if model.state == State::Ended && before.1 != State::Ended {
                let ended = matches!(event, Event::Ended { .. })
                    || matches!(before.1, State::Offered { ended: true });
                prop_assert!(ended, "{:?} ended the attempt", event);
            }
            if model.is_over() {
                prop_assert_eq!(model.offered, None);
                break;
            }
        }
    }

    #[test]
    fn failed_offer_returns_to_old_attempt(
        answer in prop::sample::select(ANSWERS[1..].to_vec()),
        is_back in any::<bool>(),
    ) {
        let mut model = Model::new(3);
        model.step(Event::LeaseExpired, true);
        model.step(Event::Assigned, true);
        model.step(if is_back { Event::NodeAnswered } else { Event::Answered(answer) }, true);
        prop_assert_eq!((model.state, model.current, model.offered), (State::Held, 1, None));
        prop_assert!(!model.superseded.contains(&1));
        model.step(Event::Ended { is_final: false }, true);
        prop_assert_eq!((model.state, model.current), (State::Ended, 1));
    }
}

#[test]
fn last_or_canceled_attempt_stays_at_its_node() {
    for (max_attempts, canceled) in [(1, false), (3, true)] {
        let mut model = Model::new(max_attempts);
        if canceled {
            model.step(Event::Canceled, true);
        }
        for event in [
            Event::LeaseExpired,
            Event::Assigned,
            Event::Answered(Answer::Accepted),
        ] {
            model.step(event, true);
        }
        assert_eq!((model.state, model.current), (State::Pinned, 1));
    }
}
