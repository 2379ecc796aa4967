//! Search for many texts at once in a stream of bytes (Aho and Corasick, 1975): one step for each byte, whatever the
//! texts and the stream are. So a job can't slow its node down by what it prints.
//!
//! Texts are long and few, so most states have one successor. It is the next state in the list, and only the others
//! stand in a map: a state takes 14 bytes, where a table would take a thousand.

use std::collections::{HashMap, VecDeque};

/// First state, in which nothing has matched.
const ROOT: u32 = 0;
/// Label of a state whose next state is not its successor.
const NO_BYTE: u16 = 256;

/// Searcher of texts.
pub(super) struct Automaton {
    /// Byte by which each state goes on to the next in the list.
    next: Vec<u16>,
    /// Further successors of states that have several.
    others: HashMap<u32, Vec<(u8, u32)>>,
    /// State of the longest shorter text that ends as this one does.
    fallback: Vec<u32>,
    /// Bytes that have matched.
    depth: Vec<u32>,
    /// Length of the longest text that ends here; 0 for none.
    found: Vec<u32>,
    /// Successors of the first state, in which most bytes are read.
    from_root: Box<[u32; 256]>,
}

/// Position of a search: the state after the bytes so far.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Cursor(u32);

impl Automaton {
    /// Searcher of these texts, none of which is empty.
    pub(super) fn new(texts: &[Vec<u8>]) -> Self {
        let mut automaton = Self {
            next: vec![NO_BYTE],
            others: HashMap::new(),
            fallback: vec![ROOT],
            depth: vec![0],
            found: vec![0],
            from_root: Box::new([ROOT; 256]),
        };
        for text in texts {
            automaton.insert(text);
        }
        for byte in 0..=u8::MAX {
            let successor = automaton.successor(ROOT, byte).unwrap_or(ROOT);
            automaton.from_root[usize::from(byte)] = successor;
        }
        automaton.link();
        automaton
    }

    fn insert(&mut self, text: &[u8]) {
        let mut state = ROOT;
        for byte in text {
            state = match self.successor(state, *byte) {
                Some(next) => next,
                None => self.add(state, *byte),
            };
        }
        self.found[state as usize] = self.depth[state as usize];
    }

    /// Adds a state behind `state`.
    fn add(&mut self, state: u32, byte: u8) -> u32 {
        let new = self.next.len() as u32;
        // Only the last state can be followed by the new one in the list.
        if new == state + 1 && self.next[state as usize] == NO_BYTE {
            self.next[state as usize] = byte.into();
        } else {
            self.others.entry(state).or_default().push((byte, new));
        }
        self.next.push(NO_BYTE);
        self.fallback.push(ROOT);
        self.depth.push(self.depth[state as usize] + 1);
        self.found.push(0);
        new
    }

    fn successor(&self, state: u32, byte: u8) -> Option<u32> {
        if self.next[state as usize] == u16::from(byte) {
            return Some(state + 1);
        }
        let others = self.others.get(&state)?;
        let found = others.iter().find(|(label, _)| *label == byte);
        found.map(|(_, next)| *next)
    }

    /// Sets the fallbacks, from short to long: that of a text needs those of shorter ones.
    fn link(&mut self) {
        let mut queue = VecDeque::from([ROOT]);
        while let Some(state) = queue.pop_front() {
            for (byte, next) in self.successors(state) {
                let fallback = match state {
                    ROOT => ROOT,
                    _ => self.step(self.fallback[state as usize], byte),
                };
                self.fallback[next as usize] = fallback;
                if self.found[next as usize] == 0 {
                    self.found[next as usize] = self.found[fallback as usize];
                }
                queue.push_back(next);
            }
        }
    }

    fn successors(&self, state: u32) -> Vec<(u8, u32)> {
        let first = u8::try_from(self.next[state as usize]).ok();
        let first = first.map(|byte| (byte, state + 1));
        let others = self.others.get(&state).into_iter().flatten().copied();
        first.into_iter().chain(others).collect()
    }

    /// State after `state` and a byte.
    fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            if state == ROOT {
                return self.from_root[usize::from(byte)];
            }
            if let Some(next) = self.successor(state, byte) {
                return next;
            }
            state = self.fallback[state as usize];
        }
    }

    /// Reads a byte. Returns the length of the longest text that ends with it, where one does.
    pub(super) fn advance(&self, cursor: &mut Cursor, byte: u8) -> Option<u32> {
        cursor.0 = self.step(cursor.0, byte);
        let length = self.found[cursor.0 as usize];
        (length > 0).then_some(length)
    }

    /// Number of the last bytes that may be the beginning of a text.
    pub(super) fn depth(&self, cursor: Cursor) -> u32 {
        self.depth[cursor.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ends and lengths of the longest texts, found one by one.
    fn expected(texts: &[Vec<u8>], bytes: &[u8]) -> Vec<(usize, u32)> {
        let ends = 1..=bytes.len();
        let longest = |end: usize| {
            let ending = texts.iter().filter(|text| bytes[..end].ends_with(text));
            let longest = ending.map(Vec::len).max();
            longest.map(|length| (end, length as u32))
        };
        ends.filter_map(longest).collect()
    }

    fn found(texts: &[Vec<u8>], bytes: &[u8]) -> Vec<(usize, u32)> {
        let (automaton, mut cursor) = (Automaton::new(texts), Cursor::default());
        let steps = bytes.iter().enumerate();
        let found = steps.filter_map(|(at, byte)| {
            let length = automaton.advance(&mut cursor, *byte);
            length.map(|length| (at + 1, length))
        });
        found.collect()
    }

    #[test]
    fn overlapping_texts_are_found() {
        let texts = ["he", "she", "hers", "his"].map(|text| text.as_bytes().to_vec());
        assert_eq!(found(&texts, b"ushers"), [(4, 3), (6, 4)]);
    }

    proptest! {
        #[test]
        fn search_finds_what_comparison_finds(
            texts in prop::collection::vec(prop::collection::vec(0u8..3, 1..6), 1..6),
            bytes in prop::collection::vec(0u8..3, 0..60),
        ) {
            prop_assert_eq!(found(&texts, &bytes), expected(&texts, &bytes));
        }
    }
}
