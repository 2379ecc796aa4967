//! Tests of the directory of kept logs, and of its hostile files.

use super::*;
use crate::api::events::{
    EgressEvent, EgressVerdict, LogPart, LogRecord, OutputChunk, RecordContent, Stream, TailLines,
    write_end, write_record, write_start,
};

const MIB: u64 = 1024 * 1024;

fn archive(home: &Path, quota: u64) -> LogArchive {
    let retention = LogRetention { age: None, quota };
    LogArchive::open(home.join("logs"), retention, 0).unwrap()
}

/// Log of one stream, in records of these texts.
fn log(attempt: u32, texts: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_start(attempt, &mut bytes);
    for (seq, text) in (1..).zip(texts) {
        let record = LogRecord {
            seq,
            time: None,
            content: RecordContent::Output(OutputChunk::from_text(Stream::Stdout, *text)),
        };
        write_record(&record, &mut bytes);
    }
    write_end(texts.len() as u64, &mut bytes);
    bytes
}

fn keep(archive: &LogArchive, job: JobId, log: &[u8]) {
    let mut writer = archive.writer(job, 1).unwrap();
    for piece in log.chunks(1000) {
        writer.write(piece).unwrap();
    }
    let (size, replaced) = writer.finish().unwrap();
    archive.add(size, replaced).unwrap();
}

fn text(archive: &LogArchive, job: JobId, part: LogPart, after: u64) -> Option<String> {
    let mut reader = archive.reader(job, 1, part, after).unwrap()?;
    let mut text = String::new();
    loop {
        let records = reader.read().unwrap();
        if records.is_empty() {
            return Some(text);
        }
        for record in records {
            if let RecordContent::Output(chunk) = record.content {
                text.push_str(&chunk.text());
            }
        }
    }
}

/// Text that doesn't get smaller by compression.
fn noise(seed: u64, length: usize) -> String {
    let mut state = seed | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b' ' + (state >> 58) as u8)
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn kept_log_is_read_in_parts() {
    let home = tempfile::tempdir().unwrap();
    let archive = archive(home.path(), MIB);
    let job = JobId::new();
    assert_eq!(text(&archive, job, LogPart::default(), 0), None);
    keep(&archive, job, &log(1, &["a\nb", "c\nd\n", "e\n"]));
    let all = LogPart::default();
    assert_eq!(text(&archive, job, all, 0).unwrap(), "a\nbc\nd\ne\n");
    assert_eq!(text(&archive, job, all, 1).unwrap(), "c\nd\ne\n");
    let tail = LogPart {
        tail: Some(TailLines(3)),
        ..all
    };
    assert_eq!(text(&archive, job, tail, 0).unwrap(), "bc\nd\ne\n");
    assert_eq!(text(&archive, job, tail, 2).unwrap(), "e\n");
    assert!(archive.reader(job, 2, all, 0).unwrap().is_none());
    archive.remove(&[job, JobId::new()]);
    assert_eq!(text(&archive, job, all, 0), None);
    assert_eq!(*archive.total.lock(), 0);
}

#[test]
fn quota_removes_oldest_logs() {
    let home = tempfile::tempdir().unwrap();
    let kept = archive(home.path(), MIB);
    let jobs: Vec<JobId> = (0..5).map(|_| JobId::new()).collect();
    for (seed, job) in (1..).zip(&jobs) {
        keep(&kept, *job, &log(1, &[&noise(seed, 400_000)]));
    }
    let has = |archive: &LogArchive, job| text(archive, job, LogPart::default(), 0).is_some();
    let left: Vec<bool> = jobs.iter().map(|job| has(&kept, *job)).collect();
    assert!(!left[0] && left[4], "{left:?}");
    assert!(left.is_sorted(), "{left:?}");
    let total = *kept.total.lock();
    assert!(total <= MIB, "{total}");
    drop(kept);
    let again = archive(home.path(), MIB);
    assert_eq!(*again.total.lock(), total);
}

#[test]
fn only_whole_log_of_the_attempt_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let archive = archive(home.path(), MIB);
    let job = JobId::new();
    let whole = log(1, &["a\n"]);
    let mut cut = archive.writer(job, 1).unwrap();
    cut.write(&whole[..whole.len() - 1]).unwrap();
    assert!(cut.finish().is_err());
    assert!(archive.writer(job, 2).unwrap().write(&whole).is_err());
    assert!(
        archive
            .writer(job, 1)
            .unwrap()
            .write(b"{\"event\":\"stdout\"}\n")
            .is_err()
    );
    assert_eq!(fs::read_dir(&archive.directory).unwrap().count(), 0);
}

#[test]
fn few_long_texts_are_in_memory_at_a_time() {
    let home = tempfile::tempdir().unwrap();
    let archive = archive(home.path(), MIB);
    let text = || "x".repeat(100_000);
    let mut event = EgressEvent::new(EgressVerdict::Refused, Some(text()), None);
    event.detail = Some(text());
    for content in [RecordContent::Status(text()), RecordContent::Egress(event)] {
        let (job, mut log) = (JobId::new(), Vec::new());
        write_start(1, &mut log);
        for seq in 1..=20 {
            let (time, content) = (None, content.clone());
            write_record(&LogRecord { seq, time, content }, &mut log);
        }
        write_end(20, &mut log);
        keep(&archive, job, &log);
        let mut reader = archive.reader(job, 1, LogPart::default(), 0).unwrap();
        let (reader, mut read) = (reader.as_mut().unwrap(), 0);
        while read < 20 {
            let records = reader.read().unwrap().len();
            assert!((1..=2).contains(&records), "{records}");
            read += records;
        }
    }
}

#[test]
fn damaged_file_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    let archive = archive(home.path(), MIB);
    let job = JobId::new();
    keep(&archive, job, &log(1, &[&noise(1, 100_000)]));
    let path = archive.path(job);
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[50_000] ^= 1;
    // A file that claims a window of gigabytes.
    let greedy = [&[0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xFF][..], &[0; 64]].concat();
    for damaged in [&whole[..whole.len() - 1], &flipped, &greedy, b"", b"no log"] {
        fs::write(&path, damaged).unwrap();
        let read = archive.reader(job, 1, LogPart::default(), 0);
        assert!(read.is_err(), "{} bytes", damaged.len());
    }
}
