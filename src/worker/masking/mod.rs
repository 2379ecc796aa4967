//! Masking of secrets in the output of commands, before it is written down: the values that a job was given, and the forms
//! in which programs commonly print them ([`forms`]), become `***`.
//!
//! It is done in the shim, the first process that has the output, so that neither the log on disk nor any reader of it
//! ever has the value. It guards against accidents, such as a token in an error message. A job that wants to show its
//! secret can: it may print it letter by letter, or write it to a file.
//!
//! A value may arrive in pieces, so bytes that could be the beginning of one wait for what follows: never more than the
//! longest form less one byte, and nothing waits where the output can't be the beginning of any. What waits at the end of
//! the output is written then.
//!
//! At a terminal, up to three bytes wait for a moment only: else a letter that is typed would show late where it is the first
//! of a value. A value that arrives so slowly is masked from its fourth byte on.

mod automaton;
mod forms;
mod recording;

pub(super) use recording::Recording;

use crate::api::{events::Stream, secrets::SecretValues};
use automaton::{Automaton, Cursor};
use std::sync::Arc;

/// Text in place of a value.
const MASK: &[u8] = b"***";
/// Most bytes of a value that a terminal shows before the rest is there.
const MAX_RELEASED_BYTES: u32 = 3;

/// Values that are masked in the output of the commands of one sandbox; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Masking(Option<Arc<Automaton>>);

impl Masking {
    /// Masking of these values; of none where `is_wanted` is false, or where they are all too short.
    pub(super) fn new(values: &SecretValues, is_wanted: bool) -> Self {
        let values = values.iter().filter(|_| is_wanted);
        let forms: Vec<Vec<u8>> = values.flat_map(|(_, value)| forms::of(value)).collect();
        Self((!forms.is_empty()).then(|| Arc::new(Automaton::new(&forms))))
    }

    /// Masks of both output streams of a command.
    pub(super) fn masks(&self) -> Masks {
        Masks([StreamMask::new(self), StreamMask::new(self)])
    }
}

/// Masks of the output streams of one command.
pub(super) struct Masks([StreamMask; 2]);

impl Masks {
    /// Takes output of a stream, and hands on what is certain to hold no value.
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8], mut write: impl FnMut(&[u8])) {
        let mask = &mut self.0[stream as usize];
        if mask.masking.0.is_none() {
            return write(bytes);
        }
        let ready = mask.push(bytes);
        if !ready.is_empty() {
            write(&ready);
        }
    }

    /// Whether a stream holds back so little that it may be handed on for a person who waits for it.
    fn may_release(&self, stream: Stream) -> bool {
        self.0[stream as usize].may_release()
    }

    /// Hands on what a stream holds back, though it may turn out to be the beginning of a value, whose rest is masked then.
    fn release(&mut self, stream: Stream, write: impl FnOnce(&[u8])) {
        if self.may_release(stream) {
            let released = self.0[stream as usize].release();
            if !released.is_empty() {
                write(&released);
            }
        }
    }

    /// Hands on what waits at the end of the output.
    pub(super) fn finish(&mut self, mut write: impl FnMut(Stream, &[u8])) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = self.0[stream as usize].finish();
            if !rest.is_empty() {
                write(stream, &rest);
            }
        }
    }
}

/// Mask of one stream.
///
/// Positions count from the start of the stream. All bytes of values that have ended so far are in `covered`, as
/// ranges that are in order and do not touch; a value that began before the waiting bytes can't end any more.
struct StreamMask {
    masking: Masking,
    cursor: Cursor,
    /// Bytes that may be part of a value, and their position.
    waiting: Vec<u8>,
    start: u64,
    covered: Vec<(u64, u64)>,
    /// Whether the last byte that was handed on belonged to a value, whose mask was written then.
    is_in_mask: bool,
}

impl StreamMask {
    fn new(masking: &Masking) -> Self {
        Self {
            masking: masking.clone(),
            cursor: Cursor::default(),
            waiting: Vec::new(),
            start: 0,
            covered: Vec::new(),
            is_in_mask: false,
        }
    }

    /// Takes bytes, and returns those that no later byte can make part of a value.
    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Some(automaton) = self.masking.0.clone() else {
            return bytes.to_vec();
        };
        let mut position = self.start + self.waiting.len() as u64;
        self.waiting.extend_from_slice(bytes);
        for byte in bytes {
            position += 1;
            if let Some(length) = automaton.advance(&mut self.cursor, *byte) {
                self.cover(position - u64::from(length), position);
            }
        }
        let depth = u64::from(automaton.depth(self.cursor));
        // Some of what waits may have been handed on before it was known to be part of another value.
        let safe = (position - depth).max(self.start);
        // A value that is complete needs no wait, though it may be the beginning of a longer one.
        let is_reached = |(from, to): &&(u64, u64)| *from <= safe && safe < *to;
        let value = self.covered.iter().find(is_reached);
        let until = value.map_or(safe, |(_, to)| *to);
        self.take(until)
    }

    /// Whether what waits may be released. All bytes of a possible value count, also those that were released before: else a
    /// value that arrives letter by letter would be shown letter by letter.
    fn may_release(&self) -> bool {
        let automaton = self.masking.0.as_ref();
        let depth = automaton.map_or(0, |automaton| automaton.depth(self.cursor));
        !self.waiting.is_empty() && depth <= MAX_RELEASED_BYTES
    }

    /// Returns what waits, and goes on to look for the values that it may begin.
    fn release(&mut self) -> Vec<u8> {
        self.take(self.start + self.waiting.len() as u64)
    }

    /// Returns what waits, at the end of the stream.
    fn finish(&mut self) -> Vec<u8> {
        self.cursor = Cursor::default();
        self.take(self.start + self.waiting.len() as u64)
    }

    /// Marks a range that ends behind all others as that of a value.
    fn cover(&mut self, mut from: u64, to: u64) {
        while let Some((start, _)) = self.covered.pop_if(|(_, end)| *end >= from) {
            from = from.min(start);
        }
        self.covered.push((from, to));
    }

    /// Removes the bytes before `until` from those that wait, and returns them with values replaced.
    fn take(&mut self, until: u64) -> Vec<u8> {
        let mut ready = Vec::new();
        let mut at = self.start;
        for (from, to) in &self.covered {
            let (from, to) = ((*from).max(at), (*to).min(until));
            if from >= to {
                continue;
            }
            if from > at {
                ready.extend_from_slice(self.slice(at, from));
                self.is_in_mask = false;
            }
            if !self.is_in_mask {
                ready.extend_from_slice(MASK);
                self.is_in_mask = true;
            }
            at = to;
        }
        if until > at {
            ready.extend_from_slice(self.slice(at, until));
            self.is_in_mask = false;
        }
        self.waiting.drain(..(until - self.start) as usize);
        self.start = until;
        self.covered.retain(|(_, to)| *to > until);
        ready
    }

    fn slice(&self, from: u64, to: u64) -> &[u8] {
        &self.waiting[(from - self.start) as usize..(to - self.start) as usize]
    }
}

#[cfg(test)]
mod tests;
