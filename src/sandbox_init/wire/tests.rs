//! Messages between shim and init: round trips, splits, and unknown types.

use super::*;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = OsString> {
    proptest::collection::vec(any::<u8>(), 0..20).prop_map(OsString::from_vec)
}

fn streams() -> impl Strategy<Value = ExecStreams> {
    let terminal = |(cols, rows)| ExecStreams::Terminal(Size { cols, rows });
    prop_oneof![
        Just(ExecStreams::Sandbox),
        Just(ExecStreams::Own),
        any::<(u16, u16)>().prop_map(terminal),
    ]
}

fn report() -> impl Strategy<Value = Report> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        Just(Report::Refused(InitRefusal::SharedNamespace)),
        Just(Report::Refused(InitRefusal::PathIsLink)),
        Just(Report::Refused(InitRefusal::UnsupportedVersion)),
        bytes().prop_map(|upper| Report::Ready { upper }),
        bytes().prop_map(Report::View),
        Just(Report::Started),
        any::<i32>().prop_map(|n| Report::Ended(ExecEnd::Exited(n))),
        any::<i32>().prop_map(|n| Report::Ended(ExecEnd::Killed(n))),
        any::<i32>().prop_map(|n| Report::Ended(ExecEnd::NotStarted(n))),
        any::<u8>().prop_map(Report::Unsupported),
        any::<u32>().prop_map(Report::StdinTaken),
        Just(Report::StdinClosed),
        Just(Report::Signaled),
    ]
}

proptest! {
    #[test]
    fn requests_survive_round_trip(
        command in proptest::collection::vec(text(), 0..5),
        env in proptest::collection::vec((text(), text()), 0..5),
        stdin in proptest::collection::vec(any::<u8>(), 0..40),
        authority in proptest::collection::vec(any::<u8>(), 0..40),
        flags: [bool; 4],
        cwd in text(),
        streams in streams(),
        signal: i32,
        exec: u32,
    ) {
        let exec = ExecNumber(exec);
        let [has_stdin, has_inference, has_egress, is_detached] = flags;
        let spec = ExecSpec {
            command, env, has_stdin, has_inference, has_egress, authority, cwd, streams, is_detached,
        };
        for request in [
            InitRequest::Run(spec),
            InitRequest::Kill,
            InitRequest::Inspect,
            InitRequest::Stdin(stdin),
            InitRequest::Signal(signal),
            InitRequest::Resize(Size { cols: signal as u16, rows: exec.0 as u16 }),
        ] {
            let read = InitRequest::read(&mut request.encode(exec).as_slice()).unwrap();
            prop_assert_eq!(read, (exec, request));
        }
    }

    #[test]
    fn hellos_survive_round_trip(version: u8, device: u64, inode: u64) {
        let hello = Hello { version, pid_namespace: (device, inode) };
        prop_assert_eq!(Hello::read(&mut hello.encode().as_slice()).unwrap(), hello);
    }

    #[test]
    fn reports_survive_any_cut(
        reports in proptest::collection::vec((report(), any::<u32>()), 0..6),
        piece in 1usize..12,
    ) {
        let sent: Vec<_> = reports.into_iter().map(|(report, exec)| (ExecNumber(exec), report)).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(|(exec, report)| report.encode(*exec)).collect();
        let (mut read, mut taken) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            read.extend_from_slice(piece);
            while let Some(report) = take_report(&mut read).unwrap() {
                taken.push(report);
            }
        }
        prop_assert_eq!(taken, sent);
        prop_assert!(read.is_empty());
    }
}

#[test]
fn unknown_types_are_skipped_by_length() {
    let exec = ExecNumber::FIRST;
    let mut bytes = message(200, exec, b"of a later release");
    let mut read = bytes.clone();
    bytes.extend(InitRequest::Kill.encode(exec));
    let mut rest = bytes.as_slice();
    let unknown = InitRequest::Unknown(200);
    assert_eq!(InitRequest::read(&mut rest).unwrap(), (exec, unknown));
    assert_eq!(
        InitRequest::read(&mut rest).unwrap(),
        (exec, InitRequest::Kill)
    );

    read.extend(Report::Started.encode(exec));
    assert_eq!(
        take_report(&mut read).unwrap(),
        Some((exec, Report::Started))
    );
    assert_eq!(take_report(&mut read).unwrap(), None);
}

#[test]
fn malformed_reports_are_refused() {
    let exec = ExecNumber::FIRST;
    let huge = [&[2, 0, 0, 0, 0][..], &u32::MAX.to_le_bytes()].concat();
    for mut bytes in [
        message(5, exec, b"short"[..4].as_ref()),
        message(5, exec, &[9, 0, 0, 0, 0]),
        message(1, exec, &[0]),
        message(4, exec, b"x"),
        message(9, exec, b"x"),
        message(11, exec, b"x"),
        huge,
    ] {
        take_report(&mut bytes).unwrap_err();
    }
}
