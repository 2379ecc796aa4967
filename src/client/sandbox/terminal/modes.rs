//! Modes that a program has set at the terminal, as far as they have to be undone when it can't do so itself.
//!
//! A program that is killed, or that goes on elsewhere, leaves its terminal on the alternate screen, without a cursor,
//! or with a mouse that types. The sequences that set these modes (ECMA-48, and xterm's private modes) are followed in
//! the output, across the pieces in which it comes.

use std::collections::BTreeSet;

const ESCAPE: u8 = 0x1b;
/// Longest sequence that is read; a longer one is none of ours.
const MAX_PARAMETER_BYTES: usize = 64;
/// Modes of the alternate screen.
const ALTERNATE_SCREEN: [u16; 3] = [47, 1047, 1049];
/// Modes that are off in a terminal without changes: keys of the cursor, reports of the mouse and of the focus,
/// brackets around what is pasted.
const USUALLY_OFF: [u16; 12] = [
    1, 9, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004,
];
/// Modes that are on: lines wrap, and the cursor is shown.
const USUALLY_ON: [u16; 2] = [7, 25];

/// Position in a sequence.
#[derive(Default, PartialEq, Eq, Debug)]
enum Position {
    #[default]
    Text,
    /// After an escape.
    Escape,
    /// In the parameters of a control sequence.
    Parameters(Vec<u8>),
}

/// Modes that differ from those of a terminal without changes.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct ScreenModes {
    position: Position,
    changed: BTreeSet<u16>,
    has_keypad: bool,
}

impl ScreenModes {
    /// Follows output.
    pub(super) fn follow(&mut self, output: &[u8]) {
        for byte in output {
            self.position = match (std::mem::take(&mut self.position), byte) {
                (_, &ESCAPE) => Position::Escape,
                (Position::Escape, b'[') => Position::Parameters(Vec::new()),
                (Position::Escape, b'c') => {
                    *self = Self::default();
                    Position::Text
                }
                (Position::Escape, b'=' | b'>') => {
                    self.has_keypad = *byte == b'=';
                    Position::Text
                }
                (Position::Parameters(mut parameters), 0x20..=0x3f)
                    if parameters.len() < MAX_PARAMETER_BYTES =>
                {
                    parameters.push(*byte);
                    Position::Parameters(parameters)
                }
                (Position::Parameters(parameters), b'h' | b'l') => {
                    self.set(&parameters, *byte == b'h');
                    Position::Text
                }
                _ => Position::Text,
            };
        }
    }

    fn set(&mut self, parameters: &[u8], is_on: bool) {
        let Some(parameters) = parameters.strip_prefix(b"?") else {
            return;
        };
        let numbers = parameters.split(|byte| *byte == b';');
        for mode in numbers.filter_map(|number| str::from_utf8(number).ok()?.parse().ok()) {
            let is_usual = if ALTERNATE_SCREEN.contains(&mode) || USUALLY_OFF.contains(&mode) {
                !is_on
            } else if USUALLY_ON.contains(&mode) {
                is_on
            } else {
                continue;
            };
            if is_usual {
                self.changed.remove(&mode);
            } else {
                self.changed.insert(mode);
            }
        }
    }

    /// Whether a program has the whole screen, so that a line in between would destroy its picture.
    pub(super) fn is_full_screen(&self) -> bool {
        ALTERNATE_SCREEN
            .iter()
            .any(|mode| self.changed.contains(mode))
    }

    /// Output that makes the modes what they were.
    pub(super) fn reset(&self) -> Vec<u8> {
        let mut text = String::new();
        if self.has_keypad {
            text.push_str("\x1b>");
        }
        // The alternate screen has the highest numbers of those that matter here, but for pasting; its order is free.
        for mode in &self.changed {
            let end = if USUALLY_ON.contains(mode) { 'h' } else { 'l' };
            text.push_str(&format!("\x1b[?{mode}{end}"));
        }
        if !text.is_empty() {
            text.push_str("\x1b[0m");
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(output: &[u8]) -> ScreenModes {
        let mut modes = ScreenModes::default();
        modes.follow(output);
        modes
    }

    #[test]
    fn modes_are_set_and_undone() {
        let editor = b"\x1b[?1049h\x1b[22;0;0t\x1b[?1h\x1b=\x1b[?25l\x1b[?2004;1006h text \x1b[4h";
        let modes = after(editor);
        assert!(modes.is_full_screen());
        let reset = modes.reset();
        let undone = after(&[&editor[..], &reset].concat());
        assert!(!undone.is_full_screen());
        assert_eq!(undone.reset(), b"");
        for usual in [
            &b""[..],
            b"plain \x1b[31mred\x1b[0m",
            b"\x1b[?1049h\x1b[?1049l",
            b"\x1b[?25l\x1b[?25h",
            b"\x1b[?1049h\x1bc",
            b"[?1049h",
            b"\x1b[1049h",
        ] {
            assert_eq!(after(usual).reset(), b"", "{usual:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            parts in prop::collection::vec(prop::sample::select(vec![
                &b"\x1b[?1049h"[..], b"\x1b[?25l", b"\x1b[?1049l", b"\x1b=", b"\x1b[", b"?1;", b"\x1b", b"c", b"x",
            ]), 0..12),
            cut in 0..100_usize,
        ) {
            let output = parts.concat();
            let cut = cut.min(output.len());
            let mut modes = after(&output[..cut]);
            modes.follow(&output[cut..]);
            prop_assert_eq!(&modes, &after(&output));
            let reset = modes.reset();
            modes.follow(&reset);
            prop_assert_eq!(modes.reset(), Vec::<u8>::new());
        }
    }
}
