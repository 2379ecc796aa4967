//! Live stdin on disk: any sequence of senders, repeats, lies and restarts gives the command the bytes once, in order.

use super::*;
use proptest::prelude::*;

fn piece(offset: u64, bytes: &[u8], is_last: bool) -> Piece {
    Piece {
        offset,
        bytes: bytes.to_vec(),
        is_last,
    }
}

fn live() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    create_live(dir.path()).unwrap();
    dir
}

#[test]
fn repeated_piece_is_accepted_once() {
    let dir = live();
    let send = |offset, bytes: &[u8], is_last| {
        receive(dir.path(), &piece(offset, bytes, is_last)).unwrap()
    };
    assert_eq!(send(0, b"one", false), (PieceOutcome::Accepted, 3));
    assert_eq!(send(0, b"one", false), (PieceOutcome::Accepted, 3));
    assert_eq!(send(0, b"two", false), (PieceOutcome::Misplaced, 3));
    assert_eq!(send(0, b"on", false), (PieceOutcome::Misplaced, 3));
    assert_eq!(send(7, b"x", false), (PieceOutcome::Misplaced, 3));
    assert_eq!(send(u64::MAX, b"x", true), (PieceOutcome::Misplaced, 3));
    assert_eq!(send(3, b"", false), (PieceOutcome::Accepted, 3));
    assert_eq!(send(0, b"one", true), (PieceOutcome::Accepted, 3));
    assert_eq!(send(0, b"one", true), (PieceOutcome::Accepted, 3));
    assert_eq!(send(3, b"more", false), (PieceOutcome::Ended, 3));
    let reader = StdinReader::open(dir.path()).unwrap().unwrap();
    assert_eq!(reader.available().unwrap(), (3, true));
    assert_eq!(reader.read(0, 3).unwrap(), b"one");
}

#[test]
fn piece_after_end_finds_no_stdin() {
    let dir = live();
    let more = piece(0, b"more", false);
    // The command ends: first the bytes go.
    fs::remove_file(path(dir.path())).unwrap();
    assert_eq!(receive(dir.path(), &more).unwrap().0, PieceOutcome::Ended);
    remove(dir.path()).unwrap();
    assert_eq!(receive(dir.path(), &more).unwrap().0, PieceOutcome::NotLive);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn full_and_closed_stdin_take_nothing() {
    let dir = live();
    let half = vec![7; usize::try_from(MAX_WAITING_BYTES / 2).unwrap()];
    let size = half.len() as u64;
    for n in [0, 1] {
        let sent = receive(dir.path(), &piece(n * size, &half, false)).unwrap();
        assert_eq!(sent.0, PieceOutcome::Accepted);
    }
    let more = piece(2 * size, b"x", false);
    assert_eq!(receive(dir.path(), &more).unwrap().0, PieceOutcome::Full);
    // An end needs no room.
    let mut reader = StdinReader::open(dir.path()).unwrap().unwrap();
    reader.record_passed(size).unwrap();
    assert_eq!(
        receive(dir.path(), &more).unwrap().0,
        PieceOutcome::Accepted
    );
    reader.record_closed().unwrap();
    let later = piece(2 * size + 1, b"x", false);
    assert_eq!(receive(dir.path(), &later).unwrap().0, PieceOutcome::Closed);
    remove(dir.path()).unwrap();
    assert_eq!(
        receive(dir.path(), &later).unwrap().0,
        PieceOutcome::NotLive
    );
}

#[test]
fn whole_stdin_ends_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    assert!(StdinReader::open(dir.path()).unwrap().is_none());
    fs::write(path(dir.path()), b"whole").unwrap();
    let reader = StdinReader::open(dir.path()).unwrap().unwrap();
    assert_eq!(reader.available().unwrap(), (5, true));
    let sent = receive(dir.path(), &piece(5, b"x", false)).unwrap();
    assert_eq!(sent.0, PieceOutcome::NotLive);
}

proptest! {
    #[test]
    fn accepted_bytes_arrive_once_and_in_order(
        sends in proptest::collection::vec((0u8..6, 0u64..12, proptest::collection::vec(any::<u8>(), 0..5)), 0..40),
    ) {
        let dir = live();
        let mut expected = Vec::new();
        let mut last: Option<(u64, Vec<u8>)> = None;
        for (kind, lie, bytes) in sends {
            let (offset, bytes) = match (kind, &last) {
                (0, _) => (lie, bytes),
                (1, Some((offset, bytes))) => (*offset, bytes.clone()),
                _ => (expected.len() as u64, bytes),
            };
            let is_next = offset == expected.len() as u64;
            let is_repeat = last.as_ref() == Some(&(offset, bytes.clone()));
            let (outcome, total) = receive(dir.path(), &piece(offset, &bytes, false)).unwrap();
            prop_assert_eq!(outcome == PieceOutcome::Accepted, is_next || is_repeat);
            if outcome == PieceOutcome::Accepted && !is_repeat && !bytes.is_empty() {
                expected.extend_from_slice(&bytes);
                last = Some((offset, bytes));
            }
            prop_assert_eq!(total, expected.len() as u64);
        }
        let reader = StdinReader::open(dir.path()).unwrap().unwrap();
        prop_assert_eq!(reader.available().unwrap(), (expected.len() as u64, false));
        prop_assert_eq!(reader.read(0, expected.len()).unwrap(), expected);
    }
}
