//! Oracles for the events of a job, as the orchestrator reads them.

use cynode::{
    api::{
        events::{JobEvent, MAX_SEQ, OUTPUT_LIMIT_BYTES, OutputLog, Stream},
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
        let before = log.last_seq();
        let taken = log.append(event);
        let news = event.seq().filter(|seq| *seq > before && *seq <= MAX_SEQ);
        assert_eq!(taken, news.is_some());
        assert_eq!(log.last_seq(), news.unwrap_or(before));
    }
    log.finish();
    kept(&log);
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
    let [stdout, stderr] = texts;
    let again = OutputLog::restore(&log.outline(), stdout, stderr);
    assert_eq!(
        format!("{:?}", events(&again)),
        format!("{:?}", events(log))
    );
    assert_eq!(replay(log), texts.map(str::to_owned));
}

/// All events, in the order of their numbers.
fn events(log: &OutputLog) -> Vec<JobEvent> {
    let (mut events, mut after) = (Vec::new(), 0);
    while let Some(event) = log.event_after(1, after) {
        let seq = event.seq().expect("a numbered event");
        assert!(after < seq && seq <= log.last_seq());
        after = seq;
        events.push(event);
    }
    events
}

/// Output of a reader of all events.
pub fn replay(log: &OutputLog) -> [String; 2] {
    let mut texts = [String::new(), String::new()];
    for event in events(log) {
        match event {
            JobEvent::Stdout { data, .. } => texts[0].push_str(&data),
            JobEvent::Stderr { data, .. } => texts[1].push_str(&data),
            _ => {}
        }
    }
    texts
}

/// Output of a job as a node records it: decoded, and cut at the result's limit.
pub fn print(log: &mut OutputLog, stream: Stream, text: &str) {
    let (kept, dropped) = text.split_at(log.room_for(stream, text));
    for part in [kept, dropped] {
        if !part.is_empty() {
            log.push(stream, part);
        }
    }
}
