//! Frames of the shim's socket: round trips, splits, and bytes of the release before.

use super::*;
use proptest::prelude::*;

fn requests() -> [StopRequest; 3] {
    let excess = |of| Excess {
        of,
        used: 5 << 30,
        reserve: 1 << 29,
    };
    [
        StopReason::OutOfDisk(excess(Resource::Bytes)),
        StopReason::Canceled,
        StopReason::OutOfDisk(excess(Resource::Inodes)),
    ]
    .map(StopRequest::new)
}

fn take_stop(read: &mut BytesMut) -> io::Result<Option<StopRequest>> {
    match take_owner_message(read)? {
        Some(OwnerMessage::Stop(request)) => Ok(Some(request)),
        None => Ok(None),
        Some(OwnerMessage::Stdin | OwnerMessage::Assign(_) | OwnerMessage::Note(_)) => {
            panic!("no stop")
        }
    }
}

#[test]
fn overuse_survives_frames() {
    let overuse = Overuse {
        used: u64::MAX,
        limit: 1 << 30,
    };
    for reason in [
        StopReason::OutOfMemory(overuse),
        StopReason::WorkspaceLimit(overuse),
    ] {
        let request = StopRequest::new(reason);
        let mut read = BytesMut::from(encode_stop(request, Protocol::Framed).as_slice());
        assert_eq!(take_stop(&mut read).unwrap(), Some(request));
        assert_eq!(request.max_grace, Duration::ZERO);
    }
}

#[test]
fn close_of_node_is_cancel_without_frames() {
    let grace = Duration::from_secs(3);
    let request = StopRequest::within(StopReason::Closing, grace);
    let taken = |protocol| {
        let mut read = BytesMut::from(encode_stop(request, protocol).as_slice());
        take_stop(&mut read).unwrap()
    };
    assert_eq!(taken(Protocol::Framed), Some(request));
    let canceled = StopRequest::new(StopReason::Canceled);
    assert_eq!(taken(Protocol::Unframed), Some(canceled));
}

#[test]
fn overuse_is_out_of_disk_without_frames() {
    let overuse = Overuse { used: 5, limit: 4 };
    for reason in [
        StopReason::OutOfMemory(overuse),
        StopReason::WorkspaceLimit(overuse),
    ] {
        let stop = encode_stop(StopRequest::new(reason), Protocol::Unframed);
        let taken = take_stop(&mut BytesMut::from(stop.as_slice())).unwrap();
        let reason = taken.map(|request| request.reason);
        assert!(
            matches!(reason, Some(StopReason::OutOfDisk(_))),
            "{reason:?}"
        );
    }
}

fn taken_bytewise<T>(
    bytes: &[u8],
    take: impl Fn(&mut BytesMut) -> io::Result<Option<T>>,
) -> Vec<T> {
    let (mut read, mut taken) = (BytesMut::new(), Vec::new());
    for byte in bytes {
        read.put_u8(*byte);
        while let Some(message) = take(&mut read).unwrap() {
            taken.push(message);
        }
    }
    taken
}

#[test]
fn stops_of_both_protocols_survive_any_cut() {
    for protocol in [Protocol::Framed, Protocol::Unframed] {
        let bytes: Vec<u8> = requests()
            .into_iter()
            .flat_map(|request| encode_stop(request, protocol))
            .collect();
        assert_eq!(taken_bytewise(&bytes, take_stop), requests());
    }
}

#[test]
fn notice_of_stdin_goes_only_to_shims_with_frames() {
    let bytes = encode_stdin(Protocol::Framed);
    let taken = taken_bytewise(&bytes, take_owner_message);
    assert_eq!(taken, [OwnerMessage::Stdin]);
    assert!(encode_stdin(Protocol::Unframed).is_empty());
}

#[test]
fn notes_survive_where_they_are_short_and_understood() {
    let longest = vec![b'n'; MAX_NOTE_BYTES];
    let bytes = [
        encode_note(b"", Protocol::Framed),
        encode_note(&longest, Protocol::Framed),
    ];
    let taken = taken_bytewise(&bytes.concat(), take_owner_message);
    let expected = [Bytes::new(), Bytes::from(longest.clone())];
    assert_eq!(taken, expected.map(OwnerMessage::Note));
    assert!(encode_note(b"note", Protocol::Unframed).is_empty());
    let long = [&longest[..], b"n"].concat();
    assert!(encode_note(&long, Protocol::Framed).is_empty());
    let sent = [frame(NOTE, &long), encode_stdin(Protocol::Framed)].concat();
    let taken = taken_bytewise(&sent, take_owner_message);
    assert_eq!(taken, [OwnerMessage::Stdin], "skipped");
}

#[test]
fn shortened_grace_survives() {
    for request in requests() {
        for seconds in [0, 3] {
            let limit = Duration::from_secs(seconds);
            let short = StopRequest::within(request.reason, limit);
            let bytes = encode_stop(short, Protocol::Framed);
            assert_eq!(taken_bytewise(&bytes, take_stop), [short]);
        }
    }
}

#[test]
fn framed_stop_of_earlier_release_is_understood() {
    let canceled = StopRequest::new(StopReason::Canceled);
    assert_eq!(
        taken_bytewise(&frame(STOP, &[CANCELED]), take_stop),
        [canceled]
    );
}

#[test]
fn unframed_stops_work_with_old_shims() {
    let [bytes, canceled, inodes] =
        requests().map(|request| encode_stop(request, Protocol::Unframed));
    let numbers = [(5u64 << 30).to_le_bytes(), (1u64 << 29).to_le_bytes()].concat();
    assert_eq!(canceled, b"x");
    assert_eq!(bytes, [b"d", numbers.as_slice()].concat());
    assert_eq!(inodes, [b"i", numbers.as_slice()].concat());
}

#[test]
fn first_message_identifies_protocol() {
    let hello = |protocol| ShimMessage::Hello(protocol);
    let bytes = [ShimMessage::hello(), ShimMessage::update()].concat();
    let framed = taken_bytewise(&bytes, ShimMessage::take);
    assert_eq!(framed, [hello(Protocol::Framed), ShimMessage::Update]);
    let mut unframed = BytesMut::from(&b"!!!"[..]);
    let taken = ShimMessage::take(&mut unframed).unwrap();
    assert_eq!(taken, Some(hello(Protocol::Unframed)));
    assert!(unframed.is_empty());
}

#[test]
fn later_versions_are_skipped_or_stop() {
    let later = |kind: u8, content: &[u8]| {
        let mut bytes = frame(kind, content);
        bytes[0] = VERSION + 1;
        bytes
    };
    let mut read = BytesMut::from(&later(99, b"unknown")[..]);
    read.extend_from_slice(&later(STOP, &[99, 1, 2]));
    let canceled = StopRequest::new(StopReason::Canceled);
    assert_eq!(take_stop(&mut read).unwrap(), Some(canceled));
    let bytes = [later(99, b"unknown"), later(UPDATE, b"more")].concat();
    assert_eq!(
        taken_bytewise(&bytes, ShimMessage::take),
        [ShimMessage::Update]
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut read = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = take_owner_message(&mut read) {}
        let mut read = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = ShimMessage::take(&mut read) {}
    }
}
