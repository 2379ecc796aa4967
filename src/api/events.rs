//! What a job printed, as numbered events and as the text that its result keeps.
//!
//! One [`OutputLog`] stands at the node, where it is filled from the sandbox's pipes, and
//! one at the orchestrator, where it is filled from the node's events. Both number events
//! from 1 in the same way, so a reader who has seen event *n* can go on after it at either
//! place, without a gap and without a double.
//!
//! A log keeps the first [`KEPT_BYTES`] of each stream as text; an event is a range of that
//! text, so a job that prints single bytes costs a few bytes more per event, not a string.
//! What passes the limit is counted and told by one `gap` event per stream at the end.

use super::jobs::{JobResult, Truncated};
use serde::{Deserialize, Serialize};

/// Bytes of UTF-8 text that are kept of each stream.
pub const KEPT_BYTES: usize = 256 * 1024;

/// One of a command's two output streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// One line of the Worker API's `application/x-ndjson` answer (contract, section 4).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEvent {
    /// The command runs.
    Started {
        /// Which attempt this is about.
        attempt: u32,
        /// Number of the event within the attempt, from 1.
        seq: u64,
    },
    /// The command printed on stdout.
    Stdout {
        /// Which attempt this is about.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
        /// What was printed; bytes that aren't UTF-8 are replaced by U+FFFD.
        data: String,
    },
    /// The command printed on stderr.
    Stderr {
        /// Which attempt this is about.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
        /// What was printed.
        data: String,
    },
    /// Output past the limit was dropped.
    Gap {
        /// Which attempt this is about.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
        /// Whose output.
        stream: Stream,
        /// How much of it, in bytes of UTF-8.
        bytes: u64,
    },
    /// The job has ended; the last event.
    Result(Box<ResultEvent>),
    /// Something that a later release may tell.
    #[serde(other)]
    Unknown,
}

/// The last event of a job: its result, numbered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResultEvent {
    /// Number of the event within the attempt.
    pub seq: u64,
    /// The result, its fields beside `event` and `seq`.
    #[serde(flatten)]
    pub result: JobResult,
}

#[derive(Clone, Copy)]
enum Mark {
    Started,
    Text {
        stream: Stream,
        start: u32,
        end: u32,
    },
    Gap(Stream),
}

/// The output of one attempt; see the module's text.
#[derive(Default)]
pub struct OutputLog {
    stdout: Kept,
    stderr: Kept,
    marks: Vec<Mark>,
}

#[derive(Default)]
struct Kept {
    text: String,
    undecoded: Vec<u8>,
    dropped: u64,
}

impl OutputLog {
    /// Notes that the command runs.
    pub fn started(&mut self) {
        self.mark(Mark::Started);
    }

    /// Takes bytes as a pipe delivers them, cut anywhere.
    pub fn push_bytes(&mut self, stream: Stream, bytes: &[u8]) {
        let text = self.kept_mut(stream).decode(bytes);
        self.push_text(stream, &text);
    }

    /// Takes text that is whole.
    pub fn push_text(&mut self, stream: Stream, text: &str) {
        if let Some((start, end)) = self.kept_mut(stream).keep(text) {
            self.mark(Mark::Text { stream, start, end });
        }
    }

    /// Notes `bytes` that somebody before us dropped.
    pub fn push_gap(&mut self, stream: Stream, bytes: u64) {
        let kept = self.kept_mut(stream);
        kept.dropped = kept.dropped.saturating_add(bytes);
        self.mark(Mark::Gap(stream));
    }

    /// Takes an event as the node numbered it; false when it was seen before, or leaves a hole.
    pub fn take(&mut self, event: &JobEvent) -> bool {
        let next = self.last_seq() + 1;
        match event {
            JobEvent::Started { seq, .. } if *seq == next => self.started(),
            JobEvent::Stdout { seq, data, .. } if *seq == next => {
                self.push_text(Stream::Stdout, data);
            }
            JobEvent::Stderr { seq, data, .. } if *seq == next => {
                self.push_text(Stream::Stderr, data);
            }
            JobEvent::Gap {
                seq, stream, bytes, ..
            } if *seq == next => self.push_gap(*stream, *bytes),
            // It has a number of its own, and nothing to show.
            JobEvent::Unknown => self.started(),
            _ => return false,
        }
        true
    }

    /// No more output will come: what is left undecoded is replaced, gaps are told.
    pub fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !std::mem::take(&mut self.kept_mut(stream).undecoded).is_empty() {
                self.push_text(stream, "\u{FFFD}");
            }
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            if self.kept(stream).dropped > 0 {
                self.mark(Mark::Gap(stream));
            }
        }
    }

    /// More events than bytes can only come from somebody who wants to fill our memory.
    fn mark(&mut self, mark: Mark) {
        if self.marks.len() < 2 * KEPT_BYTES + 16 {
            self.marks.push(mark);
        }
    }

    /// The number of the newest event, 0 while there is none.
    pub fn last_seq(&self) -> u64 {
        self.marks.len() as u64
    }

    /// Event number `seq`, once it exists.
    pub fn event(&self, attempt: u32, seq: u64) -> Option<JobEvent> {
        let index = usize::try_from(seq).ok()?.checked_sub(1)?;
        Some(match *self.marks.get(index)? {
            Mark::Started => JobEvent::Started { attempt, seq },
            Mark::Gap(stream) => JobEvent::Gap {
                attempt,
                seq,
                stream,
                bytes: self.kept(stream).dropped,
            },
            Mark::Text { stream, start, end } => {
                let data = self.kept(stream).text[start as usize..end as usize].to_owned();
                match stream {
                    Stream::Stdout => JobEvent::Stdout { attempt, seq, data },
                    Stream::Stderr => JobEvent::Stderr { attempt, seq, data },
                }
            }
        })
    }

    /// The shape of the log without its text: one `(kind, number)` per event, to be stored beside
    /// the two texts and given to [`restore`](Self::restore).
    pub fn outline(&self) -> Vec<(u8, u64)> {
        self.marks
            .iter()
            .map(|mark| match *mark {
                Mark::Started => (0, 0),
                Mark::Text { stream, start, end } => (1 + stream as u8, u64::from(end - start)),
                Mark::Gap(stream) => (3 + stream as u8, self.kept(stream).dropped),
            })
            .collect()
    }

    /// A log with the same events as the one that `outline` was made of. Where outline and texts
    /// don't belong together, each text becomes one event.
    pub fn restore(outline: &[(u8, u64)], stdout: &str, stderr: &str) -> Self {
        Self::assemble(outline, stdout, stderr).unwrap_or_else(|| {
            let mut log = Self::default();
            log.push_text(Stream::Stdout, stdout);
            log.push_text(Stream::Stderr, stderr);
            log
        })
    }

    fn assemble(outline: &[(u8, u64)], stdout: &str, stderr: &str) -> Option<Self> {
        let mut log = Self::default();
        let (mut stdout, mut stderr) = (stdout, stderr);
        let mut dropped = [0; 2];
        for &(kind, number) in outline {
            let (stream, rest) = if kind % 2 == 1 {
                (Stream::Stdout, &mut stdout)
            } else {
                (Stream::Stderr, &mut stderr)
            };
            match kind {
                0 => log.started(),
                1 | 2 => {
                    let (head, tail) = rest.split_at_checked(usize::try_from(number).ok()?)?;
                    log.push_text(stream, head);
                    *rest = tail;
                }
                // The number is of all that was dropped, however often and early that was told.
                3 | 4 => {
                    dropped[stream as usize] = number;
                    log.mark(Mark::Gap(stream));
                }
                _ => return None,
            }
        }
        [log.stdout.dropped, log.stderr.dropped] = dropped;
        (stdout.is_empty() && stderr.is_empty()).then_some(log)
    }

    /// All that is kept of a stream.
    pub fn text(&self, stream: Stream) -> &str {
        &self.kept(stream).text
    }

    /// Which streams lost something.
    pub fn truncated(&self) -> Truncated {
        Truncated {
            stdout: self.stdout.dropped > 0,
            stderr: self.stderr.dropped > 0,
        }
    }

    fn kept(&self, stream: Stream) -> &Kept {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn kept_mut(&mut self, stream: Stream) -> &mut Kept {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

impl Kept {
    /// Appends what still fits, cut between characters, and says where it stands.
    fn keep(&mut self, text: &str) -> Option<(u32, u32)> {
        // Once something was dropped, nothing behind it may be kept: the text would have a hole.
        let room = if self.dropped > 0 {
            0
        } else {
            KEPT_BYTES - self.text.len()
        };
        let fits = text.floor_char_boundary(room);
        self.dropped = self.dropped.saturating_add((text.len() - fits) as u64);
        let start = self.text.len();
        self.text.push_str(&text[..fits]);
        // KEPT_BYTES is far below u32::MAX.
        (fits > 0).then_some((start as u32, self.text.len() as u32))
    }

    /// Lossy UTF-8 decoding that waits for the rest of a character cut by a read.
    fn decode(&mut self, bytes: &[u8]) -> String {
        let joined;
        let mut rest = if self.undecoded.is_empty() {
            bytes
        } else {
            self.undecoded.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.undecoded);
            &joined
        };
        let mut text = String::with_capacity(rest.len());
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(bad) => {
                            text.push('\u{FFFD}');
                            rest = &after[bad..];
                        }
                        None => {
                            self.undecoded = after.to_vec();
                            return text;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(log: &OutputLog, after: u64) -> (String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        for seq in after + 1..=log.last_seq() {
            match log.event(1, seq).unwrap() {
                JobEvent::Stdout { data, .. } => out.push_str(&data),
                JobEvent::Stderr { data, .. } => err.push_str(&data),
                _ => {}
            }
        }
        (out, err)
    }

    #[test]
    fn a_gap_of_any_size_is_told_once_and_nothing_is_kept_behind_it() {
        let mut log = OutputLog::default();
        log.push_gap(Stream::Stdout, u64::MAX);
        log.push_text(Stream::Stdout, "x");
        log.push_gap(Stream::Stdout, 7);
        assert_eq!(log.text(Stream::Stdout), "");
        let again = OutputLog::restore(&[(3, 10), (1, 1), (3, 10)], "a", "");
        assert_eq!(replay(&again, 0).0, "a", "a gap of nothing came first");
        assert!(matches!(
            again.event(1, 3),
            Some(JobEvent::Gap { bytes: 10, .. })
        ));
    }

    #[test]
    fn keeps_the_first_bytes_up_to_a_character_and_tells_the_rest() {
        let mut log = OutputLog::default();
        log.started();
        log.push_text(Stream::Stderr, "e");
        log.push_text(Stream::Stdout, &"x".repeat(KEPT_BYTES - 1));
        log.push_bytes(Stream::Stdout, "é".as_bytes());
        log.push_bytes(Stream::Stdout, b"y");
        log.finish();
        assert_eq!(log.text(Stream::Stdout).len(), KEPT_BYTES - 1);
        assert_eq!(
            log.truncated(),
            Truncated {
                stdout: true,
                stderr: false
            }
        );
        assert!(matches!(
            log.event(1, log.last_seq()),
            Some(JobEvent::Gap {
                stream: Stream::Stdout,
                bytes: 3,
                ..
            })
        ));
        assert_eq!(replay(&log, 0).1, "e");
        assert!(log.event(1, 0).is_none() && log.event(1, log.last_seq() + 1).is_none());
    }
}
