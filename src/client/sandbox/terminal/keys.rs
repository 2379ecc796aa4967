//! Ctrl-P Ctrl-Q, the keys that leave a terminal while its program goes on.
//!
//! Ctrl-P is a key of many programs, so it is held back only for a moment. Ctrl-Q detaches right after it, also where it
//! has been passed on meanwhile.

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// State of Ctrl-P.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Last {
    /// The last key was another one.
    #[default]
    Other,
    /// The last key was Ctrl-P, and is held back.
    Held,
    /// The last key was Ctrl-P, and was passed on.
    Passed,
}

/// Filter of what is typed.
#[derive(Default)]
pub(super) struct DetachKeys(Last);

/// Keys that are passed on, and whether to detach after them.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Typed {
    pub(super) bytes: Vec<u8>,
    pub(super) is_detach: bool,
}

impl DetachKeys {
    /// Takes what was typed. What follows the keys that detach is dropped.
    pub(super) fn take(&mut self, typed: &[u8]) -> Typed {
        let mut bytes = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            if *byte == CTRL_Q && self.0 != Last::Other {
                self.0 = Last::Other;
                let is_detach = true;
                return Typed { bytes, is_detach };
            }
            bytes.extend(self.release());
            self.0 = Last::Other;
            if *byte == CTRL_P {
                self.0 = Last::Held;
            } else {
                bytes.push(*byte);
            }
        }
        let is_detach = false;
        Typed { bytes, is_detach }
    }

    /// Whether a key is held back.
    pub(super) fn is_holding(&self) -> bool {
        self.0 == Last::Held
    }

    /// Key that was held back, which is passed on now.
    pub(super) fn release(&mut self) -> Option<u8> {
        if self.0 != Last::Held {
            return None;
        }
        self.0 = Last::Passed;
        Some(CTRL_P)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn typed(bytes: &[u8], is_detach: bool) -> Typed {
        let bytes = bytes.to_vec();
        Typed { bytes, is_detach }
    }

    #[test]
    fn only_both_keys_detach() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.take(b"a\x11b"), typed(b"a\x11b", false));
        assert_eq!(keys.take(b"a\x10"), typed(b"a", false));
        assert!(keys.is_holding());
        assert_eq!(keys.take(b"b"), typed(b"\x10b", false));
        assert_eq!(keys.take(b"\x10\x10"), typed(b"\x10", false));
        assert_eq!(keys.take(b"\x11rest"), typed(b"", true));
        assert_eq!(keys.take(b"\x11"), typed(b"\x11", false));
    }

    #[test]
    fn slow_keys_detach_too() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.take(b"\x10"), typed(b"", false));
        assert_eq!(keys.release(), Some(CTRL_P));
        assert_eq!(keys.release(), None);
        assert_eq!(keys.take(b"\x11"), typed(b"", true));
    }

    proptest! {
        #[test]
        fn other_keys_pass_as_they_are(chunks in prop::collection::vec(prop::collection::vec(prop_oneof![Just(CTRL_P), Just(b'a'), any::<u8>()], 0..4), 0..8)) {
            let all: Vec<u8> = chunks.concat();
            let detach = all.windows(2).position(|two| two == [CTRL_P, CTRL_Q]);
            let mut keys = DetachKeys::default();
            let (mut passed, mut is_detach) = (Vec::new(), false);
            for chunk in &chunks {
                let typed = keys.take(chunk);
                passed.extend(typed.bytes);
                if typed.is_detach {
                    is_detach = true;
                    break;
                }
            }
            passed.extend(keys.release());
            prop_assert_eq!(is_detach, detach.is_some());
            prop_assert_eq!(&passed[..], &all[..detach.unwrap_or(all.len())]);
        }
    }
}
