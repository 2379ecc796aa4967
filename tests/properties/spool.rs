//! A job's log on disk, with writers and readers at any pace, which may die at any time.

use cynode::{
    api::{
        JobId, TaskId,
        events::{
            EgressEvent, EgressVerdict, HEAD_LIMIT_BYTES, LogRecord, MAX_EGRESS_EVENTS,
            OUTPUT_LIMIT_BYTES, OutputLog, RecordContent, Stream, Utf8Decoder, omission_line,
        },
        time::Time,
    },
    spool::{AcceptedJob, JobEnd, JobRecorder, LogReader, Spool},
};
use proptest::prelude::*;
use std::{fs, path::Path};

/// Eight segments of the minimum size.
const LIMIT: u64 = 512 * 1024;

#[derive(Clone, Debug)]
enum Step {
    Print(Stream, usize),
    Status,
    /// A reader arrives.
    Open,
    /// A reader reads some output.
    Read(usize),
    /// The writer dies, perhaps in the middle of a record, and another one continues.
    Reopen(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    prop_oneof![
        6 => (stream, prop_oneof![1usize..9, 1usize..60_000]).prop_map(|(stream, n)| Step::Print(stream, n)),
        1 => Just(Step::Status),
        2 => Just(Step::Open),
        4 => any::<usize>().prop_map(Step::Read),
        1 => any::<bool>().prop_map(Step::Reopen),
    ]
}

/// Byte at an offset of a stream.
fn byte(at: u64) -> u8 {
    b'a' + (at % 23) as u8
}

/// A reader, and its position in each stream.
struct Listener {
    reader: LogReader,
    at: [u64; 2],
    last_seq: u64,
    /// Whether output was missing before the first event.
    missed_the_beginning: bool,
}

impl Listener {
    fn new(spool: &Path) -> Self {
        Self {
            reader: LogReader::open(spool.to_owned(), 0),
            at: [0; 2],
            last_seq: 0,
            missed_the_beginning: false,
        }
    }

    /// Reads about this many bytes; returns whether there was output.
    fn read(&mut self, enough: usize) -> bool {
        let records = self.reader.read(enough, true).unwrap();
        for record in &records {
            let seq = record.seq;
            assert!(seq > self.last_seq, "{seq} after {}", self.last_seq);
            self.last_seq = seq;
            match &record.content {
                RecordContent::Output(chunk) => self.hear(chunk.stream, &chunk.bytes),
                RecordContent::Gap { stream, bytes } => {
                    self.missed_the_beginning |= self.at == [0; 2];
                    self.at[*stream as usize] += bytes;
                }
                _ => {}
            }
        }
        !records.is_empty()
    }

    fn hear(&mut self, stream: Stream, data: &[u8]) {
        let at = &mut self.at[stream as usize];
        assert!(
            data.iter()
                .copied()
                .zip(*at..)
                .all(|(read, at)| read == byte(at)),
            "other text at {at}"
        );
        *at += data.len() as u64;
    }
}

/// Beginning and end of a result's text, and the size of what is missing between.
fn split_omission(text: &str) -> (&str, u64, &str) {
    let Some((head, rest)) = text.split_once("\n[... ") else {
        return (text, 0, "");
    };
    let missing = rest.split_once(' ').unwrap().0.parse().unwrap();
    let line = omission_line(missing);
    (head, missing, &text[head.len() + line.len()..])
}

fn tear(spool: &Path) {
    let newest = cynode::spool::log::segments(spool).unwrap().pop();
    if let Some(index) = newest {
        let path = cynode::spool::log::segment_path(spool, index);
        let mut torn = fs::read(&path).unwrap();
        torn.extend(b"o\xff\x00\x00\x00torn");
        fs::write(path, torn).unwrap();
    }
}

fn accepted() -> AcceptedJob {
    AcceptedJob {
        gpus: Vec::new(),
        orchestrator_id: None,
        inference: false,
        egress: None,
        has_secrets: false,
        task_id: TaskId::new(),
        job_id: JobId::new(),
        attempt: 7,
        image: "a".to_owned(),
        spec_sha256: String::new(),
        accepted_at: Time::from_millis(0),
    }
}

/// A node reports the progress of a pull through a new recorder each time.
#[test]
fn first_output_stays_in_result() {
    let home = tempfile::tempdir().unwrap();
    let spool = Spool::at(home.path().to_owned());
    let recorder = || JobRecorder::open(&spool, accepted(), LIMIT).unwrap();
    for _ in 0..20 {
        recorder().append_status("pulling");
    }
    let mut writer = recorder();
    let text: Vec<u8> = (0..2 * LIMIT).map(byte).collect();
    for piece in text.chunks(10_000) {
        writer.append_output(Stream::Stdout, piece);
    }
    let mut listener = Listener::new(home.path());
    while listener.read(10_000) {}
    assert_eq!(listener.at[0], 2 * LIMIT);
    assert!(!listener.missed_the_beginning);
}

/// Events of the proxy in a log, in order.
fn egress_events(spool: &Path, output: bool) -> Vec<EgressEvent> {
    let mut reader = LogReader::open(spool.to_owned(), 0);
    let records = reader.read(usize::MAX, output).unwrap().into_iter();
    let event = |record: LogRecord| match record.content {
        RecordContent::Egress(event) => Some(event).filter(|_| record.time.is_some()),
        _ => None,
    };
    records.filter_map(event).collect()
}

#[test]
fn events_of_proxy_are_no_output_and_end_with_a_sentence() {
    let home = tempfile::tempdir().unwrap();
    let spool = Spool::at(home.path().to_owned());
    let mut writer = JobRecorder::open(&spool, accepted(), LIMIT).unwrap();
    let event = |port| {
        let host = Some("a.example".to_owned());
        EgressEvent::new(EgressVerdict::Allowed, host, Some(port))
    };
    let wanted = u16::try_from(MAX_EGRESS_EVENTS).unwrap();
    for port in 0..wanted + 100 {
        if port == wanted / 2 {
            // The next writer goes on counting.
            writer = JobRecorder::open(&spool, accepted(), LIMIT).unwrap();
        }
        writer.append_egress(event(port));
        writer.append_output(Stream::Stdout, b"a");
    }
    let mut events = egress_events(home.path(), true);
    let last = events.pop().unwrap();
    assert!(last.detail.unwrap().contains("are only counted"));
    assert_eq!(events, (0..wanted - 1).map(event).collect::<Vec<_>>());
    assert!(egress_events(home.path(), false).is_empty());
    let last = writer.take_result(JobEnd::exited(0), None);
    let printed = "a".repeat(usize::from(wanted) + 100);
    assert_eq!((&last.result.stdout, &*last.result.stderr), (&printed, ""));
    assert_eq!(last.seq, u64::from(wanted) * 2 + 101);
    let restored = OutputLog::restore(&last.outline, &printed, "");
    assert_eq!(restored.text(Stream::Stdout), printed);
}

/// Texts of all events of a log after a number, and their bytes.
fn read_both(spool: &Path, after: u64) -> (String, Vec<u8>) {
    let mut reader = LogReader::open(spool.to_owned(), after);
    let (mut text, mut bytes) = (String::new(), Vec::new());
    for LogRecord { content, .. } in reader.read(usize::MAX, true).unwrap() {
        if let RecordContent::Output(chunk) = content {
            text.push_str(&chunk.text());
            bytes.extend(chunk.bytes);
        }
    }
    (text, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_output_comes_as_bytes_and_text(
        pieces in proptest::collection::vec(prop_oneof!["[aé€😀]{0,9}".prop_map(String::into_bytes), any::<Vec<u8>>()], 0..9),
        cut in 1usize..7,
        resume in 0u64..40,
    ) {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::at(home.path().to_owned());
        let mut writer = JobRecorder::open(&spool, accepted(), LIMIT).unwrap();
        let printed = pieces.concat();
        for (n, piece) in printed.chunks(cut).enumerate() {
            if n % 7 == 6 {
                writer = JobRecorder::open(&spool, accepted(), LIMIT).unwrap();
            }
            writer.append_output(Stream::Stdout, piece);
        }
        let result = writer.take_result(JobEnd::exited(0), None).result;
        let lossy = String::from_utf8_lossy(&printed);
        prop_assert_eq!(&result.stdout, &lossy);
        let (text, bytes) = read_both(home.path(), 0);
        prop_assert_eq!(&text, &lossy);
        prop_assert_eq!(&bytes, &printed);
        // A reader goes on anywhere, and misses nothing of what it has not got.
        let (rest_text, rest) = read_both(home.path(), resume);
        prop_assert!(text.ends_with(&rest_text));
        prop_assert!(bytes.ends_with(&rest));
        let mut decoder = Utf8Decoder::default();
        let mut whole = decoder.decode(&bytes[..bytes.len() - rest.len()]);
        whole.push_str(&rest_text);
        if rest.is_empty() && rest_text.is_empty() {
            whole.push_str(decoder.finish());
        }
        prop_assert_eq!(&whole, &lossy);
    }

    #[test]
    fn each_reader_gets_everything_or_gap_size(steps in proptest::collection::vec(step(), 1..60)) {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::at(home.path().to_owned());
        let accepted = accepted();
        let recorder = || JobRecorder::open(&spool, accepted.clone(), LIMIT).unwrap();
        let mut writer = recorder();
        let (mut printed, mut listeners) = ([0u64; 2], vec![Listener::new(home.path())]);
        for step in steps {
            match step {
                Step::Print(stream, n) => {
                    let at = &mut printed[stream as usize];
                    let text: Vec<u8> = (*at..).take(n).map(byte).collect();
                    writer.append_output(stream, &text);
                    *at += n as u64;
                }
                Step::Status => writer.append_status("pulling"),
                Step::Open => listeners.push(Listener::new(home.path())),
                Step::Read(which) => {
                    let which = which % listeners.len();
                    listeners[which].read(1000);
                }
                Step::Reopen(torn) => {
                    drop(writer);
                    if torn {
                        tear(home.path());
                    }
                    writer = recorder();
                }
            }
        }
        let result = writer.take_result(JobEnd::exited(3), None);
        let size: u64 = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        prop_assert!(size <= LIMIT + 100, "{}", size);
        listeners.push(Listener::new(home.path()));
        for listener in &mut listeners {
            while listener.read(10_000) {}
            prop_assert_eq!(listener.at, printed);
            prop_assert!(!listener.missed_the_beginning);
            prop_assert!(listener.last_seq < result.seq);
        }
        let (out, err) = (&result.result.stdout, &result.result.stderr);
        let again = OutputLog::restore(&result.outline, out, err);
        prop_assert_eq!(&again.outline(), &result.outline);
        for (text, printed) in [(out, printed[0]), (err, printed[1])] {
            prop_assert!(text.len() <= OUTPUT_LIMIT_BYTES);
            let (head, missing, tail) = split_omission(text);
            prop_assert!(head.bytes().zip(0..).all(|(kept, at)| kept == byte(at)));
            prop_assert!(tail.bytes().zip(printed - tail.len() as u64..).all(|(kept, at)| kept == byte(at)));
            prop_assert_eq!((head.len() + tail.len()) as u64 + missing, printed);
            prop_assert!(missing == 0 || head.len() <= HEAD_LIMIT_BYTES);
        }
    }
}
