//! A job's log on disk, with writers and readers at any pace, which may die at any time.

use cynode::{
    api::{
        JobId, TaskId,
        events::{JobEvent, OUTPUT_LIMIT_BYTES, OutputLog, Stream},
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
            reader: LogReader::open(spool.to_owned(), 7, 0),
            at: [0; 2],
            last_seq: 0,
            missed_the_beginning: false,
        }
    }

    /// Reads about this many bytes; returns whether there was output.
    fn read(&mut self, enough: usize) -> bool {
        let events = self.reader.read(enough, true).unwrap();
        for event in &events {
            let seq = event.seq().unwrap();
            assert!(seq > self.last_seq, "{seq} after {}", self.last_seq);
            assert_eq!(event.attempt(), Some(7));
            self.last_seq = seq;
            match event {
                JobEvent::Stdout { data, .. } => self.hear(Stream::Stdout, data),
                JobEvent::Stderr { data, .. } => self.hear(Stream::Stderr, data),
                JobEvent::Gap { stream, bytes, .. } => {
                    self.missed_the_beginning |= self.at == [0; 2];
                    self.at[*stream as usize] += bytes;
                }
                _ => {}
            }
        }
        !events.is_empty()
    }

    fn hear(&mut self, stream: Stream, data: &str) {
        let at = &mut self.at[stream as usize];
        assert!(
            data.bytes().zip(*at..).all(|(read, at)| read == byte(at)),
            "other text at {at}"
        );
        *at += data.len() as u64;
    }
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

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
            prop_assert!(text.bytes().zip(0..).all(|(kept, at)| kept == byte(at)));
            prop_assert!(text.len() as u64 == printed || text.len() <= OUTPUT_LIMIT_BYTES);
        }
    }
}
