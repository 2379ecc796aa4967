//! Output of a job as far as its result keeps it, with the numbers of its events.
//!
//! A log keeps the first [`OUTPUT_LIMIT_BYTES`] of each stream as text. An event is a range of that text, so that
//! a job that prints single bytes costs a few bytes per event, not a string. Output beyond the limit is counted,
//! and becomes one gap per stream.

use super::{JobEvent, OUTPUT_LIMIT_BYTES, Stream};
use crate::api::jobs::Truncated;

/// Events of an output log without their texts: `(kind, number)` pairs in order. Kind 0 is the start; 1 and 2 are
/// `number` bytes of stdout and stderr; 3 and 4 a gap of `number` bytes in them; 5 is `number` event numbers of
/// which nothing is kept.
pub type Outline = Vec<(u8, u64)>;

/// Largest event number: 18 digits.
pub const MAX_SEQ: u64 = 999_999_999_999_999_999;

#[derive(Clone, Copy)]
enum MarkKind {
    Started,
    Text {
        stream: Stream,
        start: u32,
        end: u32,
    },
    Gap(Stream),
}

#[derive(Clone, Copy)]
struct EventMark {
    seq: u64,
    what: MarkKind,
}

/// Kept output of one attempt.
#[derive(Default)]
pub struct OutputLog {
    stdout: KeptText,
    stderr: KeptText,
    marks: Vec<EventMark>,
    last_seq: u64,
    has_started: bool,
}

#[derive(Default)]
struct KeptText {
    text: String,
    dropped: u64,
    /// Number of the last event whose output was dropped.
    last_dropped: u64,
}

impl OutputLog {
    /// Records the start of the command as the next event.
    pub fn mark_started(&mut self) {
        let seq = self.number();
        self.start(seq);
    }

    /// Appends output as the next event.
    pub fn push(&mut self, stream: Stream, text: &str) {
        let seq = self.number();
        self.keep(seq, stream, text);
    }

    /// Skips the number of an event of which nothing is kept.
    pub fn skip_event(&mut self) {
        self.number();
    }

    /// Number of bytes of `text` that would be kept. A caller that numbers events splits one that would be kept in
    /// part, so that each event is kept whole or not at all.
    pub fn room_for(&self, stream: Stream, text: &str) -> usize {
        self.kept(stream).fits(text)
    }

    /// Appends an event as the node numbered it; `false` where its number was seen before or is invalid.
    pub fn append(&mut self, event: &JobEvent) -> bool {
        let Some(seq) = event
            .seq()
            .filter(|seq| (self.last_seq + 1..=MAX_SEQ).contains(seq))
        else {
            return false;
        };
        self.last_seq = seq;
        match event {
            JobEvent::Started { .. } => self.start(seq),
            JobEvent::Stdout { data, .. } => self.keep(seq, Stream::Stdout, data),
            JobEvent::Stderr { data, .. } => self.keep(seq, Stream::Stderr, data),
            JobEvent::Gap { stream, bytes, .. } => self.drop_bytes(seq, *stream, *bytes),
            JobEvent::Status { .. } | JobEvent::Result(_) | JobEvent::Alive | JobEvent::Unknown => {
            }
        }
        true
    }

    /// Ends the log: records the gaps.
    pub fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let kept = self.kept(stream);
            if kept.dropped > 0 {
                let seq = kept.last_dropped;
                let at = self.marks.partition_point(|mark| mark.seq < seq);
                self.marks.insert(
                    at,
                    EventMark {
                        seq,
                        what: MarkKind::Gap(stream),
                    },
                );
            }
        }
    }

    /// Records the start once; a second one is ignored.
    fn start(&mut self, seq: u64) {
        if !std::mem::replace(&mut self.has_started, true) {
            self.mark(seq, MarkKind::Started);
        }
    }

    fn number(&mut self) -> u64 {
        self.last_seq = self.last_seq.saturating_add(1);
        self.last_seq
    }

    /// Keeps a text whole, or drops it.
    fn keep(&mut self, seq: u64, stream: Stream, text: &str) {
        let kept = self.kept_mut(stream);
        if kept.fits(text) < text.len() {
            self.drop_bytes(seq, stream, text.len() as u64);
            return;
        }
        // OUTPUT_LIMIT_BYTES is far below u32::MAX.
        let start = kept.text.len() as u32;
        kept.text.push_str(text);
        let end = kept.text.len() as u32;
        if end > start {
            self.mark(seq, MarkKind::Text { stream, start, end });
        }
    }

    fn drop_bytes(&mut self, seq: u64, stream: Stream, bytes: u64) {
        let kept = self.kept_mut(stream);
        kept.dropped = kept.dropped.saturating_add(bytes);
        kept.last_dropped = seq;
    }

    /// Adds a mark. More marks than bytes can only come from an attempt to fill the memory.
    fn mark(&mut self, seq: u64, what: MarkKind) {
        if self.marks.len() < 2 * OUTPUT_LIMIT_BYTES + 16 {
            self.marks.push(EventMark { seq, what });
        }
    }

    /// Number of the newest event; 0 while there is none.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// First event after the number `after`.
    pub fn event_after(&self, attempt: u32, after: u64) -> Option<JobEvent> {
        let at = self.marks.partition_point(|mark| mark.seq <= after);
        let EventMark { seq, what } = *self.marks.get(at)?;
        Some(match what {
            MarkKind::Started => JobEvent::Started { attempt, seq },
            MarkKind::Gap(stream) => {
                let bytes = self.kept(stream).dropped;
                JobEvent::Gap {
                    attempt,
                    seq,
                    stream,
                    bytes,
                }
            }
            MarkKind::Text { stream, start, end } => {
                let data = self.kept(stream).text[start as usize..end as usize].to_owned();
                JobEvent::output(attempt, seq, stream, data)
            }
        })
    }

    /// Outline of the log, to be stored beside its two texts for [`restore`](Self::restore).
    pub fn outline(&self) -> Outline {
        let mut outline = Outline::new();
        let mut last = 0;
        for &EventMark { seq, what } in &self.marks {
            if seq > last + 1 {
                outline.push((5, seq - last - 1));
            }
            last = seq;
            outline.push(match what {
                MarkKind::Started => (0, 0),
                MarkKind::Text { stream, start, end } => (1 + stream as u8, u64::from(end - start)),
                MarkKind::Gap(stream) => (3 + stream as u8, self.kept(stream).dropped),
            });
        }
        outline
    }

    /// Log with the same events as the one that `outline` was made of. Where outline and texts do not match, each
    /// text becomes one event.
    pub fn restore(outline: &[(u8, u64)], stdout: &str, stderr: &str) -> Self {
        Self::assemble(outline, stdout, stderr).unwrap_or_else(|| {
            let mut log = Self::default();
            log.push(Stream::Stdout, stdout);
            log.push(Stream::Stderr, stderr);
            log
        })
    }

    fn assemble(outline: &[(u8, u64)], stdout: &str, stderr: &str) -> Option<Self> {
        let mut log = Self::default();
        let (mut stdout, mut stderr) = (stdout, stderr);
        for &(kind, number) in outline {
            let (stream, rest) = if kind % 2 == 1 {
                (Stream::Stdout, &mut stdout)
            } else {
                (Stream::Stderr, &mut stderr)
            };
            match kind {
                0 if !log.has_started => log.mark_started(),
                1 | 2 if number > 0 => {
                    let (head, tail) = rest.split_at_checked(usize::try_from(number).ok()?)?;
                    if log.room_for(stream, head) < head.len() {
                        return None;
                    }
                    log.push(stream, head);
                    *rest = tail;
                }
                3 | 4 if log.kept(stream).dropped == 0 => {
                    let seq = log.number();
                    log.drop_bytes(seq, stream, number.max(1));
                    log.mark(seq, MarkKind::Gap(stream));
                }
                5 => {
                    let last = log.last_seq.checked_add(number)?;
                    log.last_seq = Some(last).filter(|last| *last <= MAX_SEQ)?;
                }
                _ => return None,
            }
        }
        (stdout.is_empty() && stderr.is_empty()).then_some(log)
    }

    /// Kept text of a stream.
    pub fn text(&self, stream: Stream) -> &str {
        &self.kept(stream).text
    }

    /// Streams whose output is incomplete.
    pub fn truncated(&self) -> Truncated {
        Truncated {
            stdout: self.stdout.dropped > 0,
            stderr: self.stderr.dropped > 0,
        }
    }

    fn kept(&self, stream: Stream) -> &KeptText {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn kept_mut(&mut self, stream: Stream) -> &mut KeptText {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

impl KeptText {
    /// Number of bytes of `text` that fit, cut between characters. Once output was dropped nothing more is kept, or
    /// the text would have a hole.
    fn fits(&self, text: &str) -> usize {
        if self.dropped > 0 {
            return 0;
        }
        text.floor_char_boundary(OUTPUT_LIMIT_BYTES - self.text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(log: &OutputLog, mut after: u64) -> Vec<JobEvent> {
        let mut events = Vec::new();
        while let Some(event) = log.event_after(1, after) {
            after = event.seq().unwrap();
            events.push(event);
        }
        events
    }

    #[test]
    fn gap_is_reported_once_and_ends_log() {
        let mut log = OutputLog::default();
        let gap = |seq, bytes| JobEvent::Gap {
            attempt: 1,
            seq,
            stream: Stream::Stdout,
            bytes,
        };
        assert!(log.append(&gap(4, u64::MAX)));
        assert!(!log.append(&gap(4, 1)), "the gap is a duplicate");
        log.push(Stream::Stdout, "x");
        assert!(log.append(&gap(9, 7)));
        log.finish();
        assert_eq!(log.text(Stream::Stdout), "");
        let replayed = replay(&log, 0);
        assert!(
            matches!(
                replayed[..],
                [JobEvent::Gap {
                    bytes: u64::MAX,
                    seq: 9,
                    ..
                }]
            ),
            "{replayed:?}"
        );
    }

    #[test]
    fn output_keeps_first_bytes_and_reports_end() {
        let mut log = OutputLog::default();
        log.mark_started();
        log.push(Stream::Stderr, "e");
        log.push(Stream::Stdout, &"x".repeat(OUTPUT_LIMIT_BYTES - 1));
        assert_eq!(log.room_for(Stream::Stdout, "é"), 0);
        log.push(Stream::Stdout, "é");
        log.push(Stream::Stderr, "f");
        log.push(Stream::Stdout, "y");
        log.skip_event();
        log.finish();
        assert_eq!(log.text(Stream::Stdout).len(), OUTPUT_LIMIT_BYTES - 1);
        assert_eq!(
            log.truncated(),
            Truncated {
                stdout: true,
                stderr: false
            }
        );
        assert_eq!(log.last_seq(), 7);
        let replayed: Vec<_> = replay(&log, 0).iter().filter_map(JobEvent::seq).collect();
        assert_eq!(
            replayed,
            [1, 2, 3, 5, 6],
            "the last number is of nothing that was dropped"
        );
        assert!(matches!(
            log.event_after(1, 5),
            Some(JobEvent::Gap {
                stream: Stream::Stdout,
                bytes: 3,
                ..
            })
        ));
        let again = OutputLog::restore(&log.outline(), log.text(Stream::Stdout), "ef");
        assert_eq!(
            format!("{:?}", replay(&again, 0)),
            format!("{:?}", replay(&log, 0))
        );
    }

    /// Outline as the previous release stored it: with the gap at the end.
    #[test]
    fn older_outline_is_readable() {
        let log = OutputLog::restore(&[(0, 0), (1, 1), (2, 1), (3, 10)], "a", "b");
        let replayed = replay(&log, 0);
        assert_eq!(replayed.len(), 4);
        assert!(matches!(
            replayed[3],
            JobEvent::Gap {
                seq: 4,
                bytes: 10,
                ..
            }
        ));
    }
}
