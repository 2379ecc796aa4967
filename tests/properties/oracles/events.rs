//! Oracles for the events of a job, as the orchestrator reads them.

use cynode::{
    api::{
        events::{
            JobEvent, LogRecord, MAX_SEQ, OUTPUT_LIMIT_BYTES, OutputChunk, OutputData, OutputLog,
            RecordContent, Stream, omission_line,
        },
        jobs::{JobResult, Outcome},
    },
    http::lines::LineBuffer,
};

/// Lines are the same however they are split; the log of them is bounded, and survives a round trip.
pub fn stream(bytes: &[u8]) {
    let (events, fault) = read(bytes, bytes.len().max(1));
    let (pieces, again) = read(bytes, 7);
    assert_eq!(format!("{events:?}"), format!("{pieces:?}"));
    assert_eq!(fault, again);
    assert!(fault.is_none_or(|fault| fault.len() < 8 * 1024));
    let mut log = OutputLog::default();
    for event in &events {
        one(event);
        let Some(record) = record(event) else {
            continue;
        };
        let before = log.last_seq();
        let taken = log.append(&record);
        let is_new = record.seq > before && record.seq <= MAX_SEQ;
        assert_eq!(taken, is_new);
        assert_eq!(log.last_seq(), if is_new { record.seq } else { before });
    }
    kept(&log);
}

/// Record that an event was made of.
fn record(event: &JobEvent) -> Option<LogRecord> {
    let output = |stream, data: &OutputData| match data {
        OutputData::Text(text) => Some(RecordContent::Output(OutputChunk::from_text(stream, text))),
        OutputData::Base64(_) => None,
    };
    let content = match event {
        JobEvent::Started { .. } => RecordContent::Started,
        JobEvent::Stdout { data, .. } => output(Stream::Stdout, data)?,
        JobEvent::Stderr { data, .. } => output(Stream::Stderr, data)?,
        JobEvent::Gap { stream, bytes, .. } => RecordContent::Gap {
            stream: *stream,
            bytes: *bytes,
        },
        _ => return None,
    };
    Some(LogRecord {
        seq: event.seq()?,
        time: None,
        content,
    })
}

/// Events up to the first unreadable line, and its fault.
fn read(bytes: &[u8], piece: usize) -> (Vec<JobEvent>, Option<String>) {
    let (mut lines, mut events) = (LineBuffer::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        lines.push(piece);
        loop {
            match lines.take_line() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(fault) => return (events, Some(fault)),
            }
        }
    }
    (events, None)
}

fn one(event: &JobEvent) {
    let json = serde_json::to_value(event).expect("an event is JSON");
    let again: JobEvent =
        serde_json::from_value(json.clone()).expect("an event survives a round trip");
    assert_eq!(serde_json::to_value(again).ok(), Some(json));
    if let JobEvent::Result(last) = event
        && last.result.is_valid()
    {
        sound(&last.result);
    }
}

/// Validated content of a result.
fn sound(result: &JobResult) {
    assert_eq!(result.version, 1);
    assert!(result.stdout.len() <= OUTPUT_LIMIT_BYTES && result.stderr.len() <= OUTPUT_LIMIT_BYTES);
    let ended = matches!(result.status, Outcome::Completed | Outcome::Failed);
    match result.exit_code {
        Some(0) => assert_eq!(result.status, Outcome::Completed),
        Some(code) => {
            assert!((1..=255).contains(&code));
            assert_eq!(result.status, Outcome::Failed);
        }
        None => assert!(!ended || result.error.is_some()),
    }
    assert!(result.exit_code.is_none() || result.error.is_none());
    let rest = JobResult {
        stdout: String::new(),
        stderr: String::new(),
        ..result.clone()
    };
    let size = serde_json::to_vec(&rest).expect("a result is JSON").len();
    assert!(size < 128 * 1024, "{size} bytes beside the output");
}

/// A log within its limits, whose events make up its texts, and which can be stored and restored.
pub fn kept(log: &OutputLog) {
    let texts = [Stream::Stdout, Stream::Stderr].map(|stream| log.text(stream));
    assert!(texts.iter().all(|text| text.len() <= OUTPUT_LIMIT_BYTES));
    let [stdout, stderr] = &texts;
    let again = OutputLog::restore(&log.outline(), stdout, stderr);
    assert_eq!(records(&again), records(log));
    assert_eq!(replay(log), texts);
}

/// All records, in the order of their numbers.
fn records(log: &OutputLog) -> Vec<LogRecord> {
    let (mut records, mut after) = (Vec::new(), 0);
    while let Some(record) = log.record_after(after) {
        assert!(after < record.seq && record.seq <= log.last_seq());
        after = record.seq;
        records.push(record);
    }
    records
}

/// Output of a reader of all records, with the line of a result for what is missing.
pub fn replay(log: &OutputLog) -> [String; 2] {
    let mut texts = [String::new(), String::new()];
    for record in records(log) {
        match record.content {
            RecordContent::Output(chunk) => texts[chunk.stream as usize].push_str(&chunk.text()),
            RecordContent::Gap { stream, bytes } => {
                texts[stream as usize].push_str(&omission_line(bytes));
            }
            _ => {}
        }
    }
    texts
}

/// Output of a job as a node records it: cut at the end of the result's head.
pub fn print(log: &mut OutputLog, stream: Stream, text: &str) {
    let room = log.head_room(stream);
    let cut = if room == 0 {
        text.len()
    } else {
        text.floor_char_boundary(room)
    };
    let (head, rest) = text.split_at(cut);
    for part in [head, rest] {
        if !part.is_empty() {
            log.push(stream, part, part.len());
        }
    }
}
