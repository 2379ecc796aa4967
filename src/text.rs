//! Untrusted text, made fit for a terminal and a log.

/// Text with a space in place of each character that controls a terminal, or that hides or reorders others.
pub(crate) fn clean(text: &str) -> String {
    let shown = |c: char| if is_printable(c) { c } else { ' ' };
    text.chars().map(shown).collect()
}

/// Text of several lines, through [`clean`], with its line breaks and tabs.
pub(crate) fn clean_lines(text: &str) -> String {
    let is_shown = |c: char| is_printable(c) || matches!(c, '\n' | '\t');
    let shown = |c: char| if is_shown(c) { c } else { ' ' };
    text.chars().map(shown).collect()
}

/// Beginning of a text, at most `max_bytes` long, through [`clean`].
pub(crate) fn clean_prefix(text: &str, max_bytes: usize) -> String {
    clean(&text[..text.floor_char_boundary(max_bytes)])
}

/// Whether a character is shown as it is. The joiners, which letters and emoji need, count as such.
fn is_printable(c: char) -> bool {
    !(c.is_control()
        || matches!(
            c,
            '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_spaces() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{9b}d\u{202e}e"), "a [2Jb c d e");
        assert_eq!(clean("\u{200b}\u{feff}\u{2066}"), "   ");
        let kept = "é 👩\u{200d}💻 می\u{200c}خواهم";
        assert_eq!(clean(kept), kept);
        assert_eq!(
            clean_lines("a\n\tb\r\n\u{1b}[1mc\u{202e}"),
            "a\n\tb \n [1mc "
        );
    }
}
