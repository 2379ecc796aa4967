//! Bodies without a client: work that needs one, readers of what is kept.

use super::*;
use crate::http::budget::Account;
use futures_util::FutureExt as _;
use proptest::prelude::*;
use std::{future::pending, pin::pin};

fn arriving() -> RequestBody {
    let reservation = BodyReservation::open(Account::SoleClient, MAX_REQUEST_BYTES, 0);
    RequestBody {
        received: Mutex::new(Received {
            kept: Kept::default(),
            reservation: reservation.unwrap(),
            state: BodyState::Arriving,
            stream: None,
        }),
        changed: watch::Sender::new(()),
        length: None,
    }
}

#[test]
fn invalid_body_ends_work_at_once() {
    let body = arriving();
    let place = Arc::new(());
    let held = Arc::clone(&place);
    let mut call = pin!(body.while_valid(async move {
        let _held = held;
        pending::<Result<(), ApiError>>().await
    }));
    assert!(call.as_mut().now_or_never().is_none());
    body.changed.send_replace(());
    assert!(call.as_mut().now_or_never().is_none(), "more has arrived");
    body.received.lock().state = BodyState::Failed(HeadError::TooLarge.problem());
    body.changed.send_replace(());
    let error = call.now_or_never().unwrap().unwrap_err();
    assert_eq!(Arc::strong_count(&place), 1);
    assert_eq!(error.problem().kind, ProblemKind::PayloadTooLarge);
    // Work that comes later does not even begin.
    let late = async { panic!("began") };
    let late: Result<(), _> = body.while_valid(late).now_or_never().unwrap();
    assert!(late.is_err());
}

#[test]
fn work_of_valid_body_has_its_output() {
    let body = arriving();
    let done = body.while_valid(async { Ok(1) }).now_or_never();
    assert_eq!(done.unwrap().unwrap(), 1);
    body.received.lock().state = BodyState::Complete;
    let failed = async { Err::<(), _>(too_slow().into()) };
    assert!(body.while_valid(failed).now_or_never().unwrap().is_err());
}

proptest! {
    #[test]
    fn readers_get_all_bytes_in_order(
        steps in prop::collection::vec((0..2 * CHUNK_BYTES, 0..3usize), 0..20),
    ) {
        let (mut kept, mut expected) = (Kept::default(), Vec::new());
        let mut readers = [(); 2].map(|()| (Place::default(), Vec::new()));
        for (length, reader) in steps {
            let sent: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            kept.append(&sent);
            expected.extend(sent);
            prop_assert_eq!(kept.len(), expected.len());
            if let Some((place, got)) = readers.get_mut(reader) {
                got.extend(kept.read(place).unwrap_or_default());
            }
        }
        for (mut place, mut got) in readers {
            while let Some(bytes) = kept.read(&mut place) {
                got.extend(bytes);
            }
            prop_assert!(got == expected);
        }
    }
}
