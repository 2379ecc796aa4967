//! Tests of the kept output.

use super::*;

fn replay(log: &OutputLog, mut after: u64) -> Vec<LogRecord> {
    let mut records = Vec::new();
    while let Some(record) = log.record_after(after) {
        after = record.seq;
        records.push(record);
    }
    records
}

fn text(log: &mut OutputLog, stream: Stream, text: &str) {
    log.push(stream, text, text.len());
}

fn gap(seq: u64, bytes: u64) -> LogRecord {
    LogRecord {
        seq,
        time: None,
        content: RecordContent::Gap {
            stream: Stream::Stdout,
            bytes,
        },
    }
}

#[test]
fn gap_drops_tail_before_it() {
    let mut log = OutputLog::default();
    assert!(log.append(&gap(4, u64::MAX)));
    assert!(!log.append(&gap(4, 1)), "the gap is a duplicate");
    text(&mut log, Stream::Stdout, "x");
    assert!(log.append(&gap(9, 7)));
    text(&mut log, Stream::Stdout, "y");
    assert_eq!(
        log.text(Stream::Stdout),
        format!("{}y", omission_line(u64::MAX))
    );
    let replayed = replay(&log, 0);
    assert_eq!(replayed.len(), 2, "{replayed:?}");
    assert_eq!(replayed[0], gap(9, u64::MAX));
    assert_eq!(replayed[1].seq, 10);
}

#[test]
fn short_stream_is_kept_whole() {
    let mut log = OutputLog::default();
    for piece in [
        "x".repeat(HEAD_LIMIT_BYTES),
        "y".repeat(OUTPUT_LIMIT_BYTES - HEAD_LIMIT_BYTES),
    ] {
        text(&mut log, Stream::Stdout, &piece);
    }
    assert_eq!(log.text(Stream::Stdout).len(), OUTPUT_LIMIT_BYTES);
    assert_eq!(log.truncated(), Truncated::default());
}

#[test]
fn long_stream_keeps_head_and_tail() {
    let mut log = OutputLog::default();
    log.mark_started();
    text(&mut log, Stream::Stderr, "e");
    let line = |n: usize| format!("{n:09}\n");
    let count = 100_000;
    for n in 0..count {
        text(&mut log, Stream::Stdout, &line(n));
    }
    text(&mut log, Stream::Stderr, "f");
    log.skip_event();
    let kept = log.text(Stream::Stdout);
    let missing = replay(&log, 0)
        .into_iter()
        .find_map(|record| match record.content {
            RecordContent::Gap { bytes, .. } => Some((record.seq, bytes)),
            _ => None,
        });
    let (gap_seq, missing) = missing.unwrap();
    let (head, tail) = kept.split_once(&omission_line(missing)).unwrap();
    assert!(head.starts_with(&line(0)) && head.len() > HEAD_LIMIT_BYTES - 10);
    assert!(tail.ends_with(&line(count - 1)) && tail.len() > TAIL_LIMIT_BYTES - 10);
    assert_eq!(head.len() + tail.len() + missing as usize, 10 * count);
    assert!(kept.len() <= OUTPUT_LIMIT_BYTES);
    assert!(log.truncated().stdout && !log.truncated().stderr);
    let seqs: Vec<u64> = replay(&log, gap_seq - 1)
        .iter()
        .map(|record| record.seq)
        .collect();
    assert_eq!(
        seqs[..2],
        [gap_seq, gap_seq + 1],
        "the tail follows the gap"
    );
    let again = OutputLog::restore(&log.outline(), &kept, "ef");
    assert_eq!(replay(&again, 0), replay(&log, 0));
    assert_eq!(again.text(Stream::Stdout), kept);
}

#[test]
fn memory_of_endless_output_is_bounded() {
    let mut log = OutputLog::default();
    for _ in 0..3_000_000 {
        text(&mut log, Stream::Stdout, "x");
    }
    let kept = &log.streams[0];
    assert!(kept.tail.capacity() <= 4 * OUTPUT_LIMIT_BYTES);
    assert!(kept.tail_marks.len() + kept.head_marks.len() <= OUTPUT_LIMIT_BYTES);
    assert_eq!(
        kept.dropped as usize,
        3_000_000 - HEAD_LIMIT_BYTES - TAIL_LIMIT_BYTES
    );
}

/// Outline as the previous release stored it: with the gap at the end.
#[test]
fn older_outline_is_readable() {
    let log = OutputLog::restore(&[(0, 0), (1, 1), (2, 1), (3, 10)], "a", "b");
    let replayed = replay(&log, 0);
    assert_eq!(replayed.len(), 4);
    assert_eq!(replayed[3], gap(4, 10));
}
