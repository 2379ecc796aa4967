//! Forms in which programs print a value: as it is, line by line, in base64, percent-encoded, and as a JSON string.
//!
//! Base64 depends on what stands before the value: three bytes become four characters, so there are three texts, and the
//! characters at their ends also depend on the neighbours and are left out.

use crate::api::secrets::MIN_MASKED_BYTES;
use base64::{
    Engine as _,
    engine::{
        GeneralPurpose,
        general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
    },
};
use std::collections::BTreeSet;

/// Shortest line of a value that is masked by itself.
const MIN_LINE_BYTES: usize = 8;
/// Lengths of lines in which programs wrap base64: of base64(1), and of PEM.
const BASE64_LINE_CHARS: [usize; 2] = [76, 64];

/// Texts to mask for a value; none for one that is too short.
pub(super) fn of(value: &str) -> BTreeSet<Vec<u8>> {
    let mut forms = BTreeSet::new();
    // A shell cuts the end of line off that a file has.
    for value in [value, value.trim_end_matches(['\r', '\n'])] {
        if value.len() >= MIN_MASKED_BYTES {
            add_forms(&mut forms, value);
        }
    }
    // A terminal ends lines in another way, and a tool may print one line alone.
    for line in value.lines() {
        let line = line.trim();
        if line.len() >= MIN_LINE_BYTES {
            forms.insert(line.as_bytes().to_vec());
        }
    }
    forms
}

fn add_forms(forms: &mut BTreeSet<Vec<u8>>, value: &str) {
    forms.insert(value.as_bytes().to_vec());
    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        for before in 0..3 {
            let text = base64_within(engine, before, value.as_bytes());
            if before == 0 {
                add_lines(forms, &text);
            }
            forms.insert(text.into_bytes());
        }
    }
    for is_plain in [is_unreserved as fn(u8) -> bool, is_plain_in_path] {
        for is_upper in [true, false] {
            forms.insert(percent_encoded(value, is_plain, is_upper));
        }
    }
    // With the quotes.
    if let Ok(json) = serde_json::to_string(value) {
        forms.insert(json.as_bytes()[1..json.len() - 1].to_vec());
    }
}

/// Characters of base64 that a value has behind `before` other bytes, whatever these and those behind it are.
fn base64_within(engine: &GeneralPurpose, before: usize, value: &[u8]) -> String {
    let mut bytes = vec![0; before];
    bytes.extend_from_slice(value);
    let mut text = engine.encode(&bytes);
    if !bytes.len().is_multiple_of(3) {
        // It has bits of what follows.
        text.pop();
    }
    // With bits of what stands before: of one byte two characters, of two bytes three.
    let first = if before == 0 { 0 } else { before + 1 };
    text.split_off(first)
}

/// Adds the lines of a text that was wrapped.
fn add_lines(forms: &mut BTreeSet<Vec<u8>>, text: &str) {
    for length in BASE64_LINE_CHARS {
        if text.len() > length {
            let lines = text.as_bytes().chunks(length);
            let lines = lines.filter(|line| line.len() >= MIN_LINE_BYTES);
            forms.extend(lines.map(<[u8]>::to_vec));
        }
    }
}

fn percent_encoded(value: &str, is_plain: fn(u8) -> bool, is_upper: bool) -> Vec<u8> {
    let mut text = Vec::with_capacity(3 * value.len());
    for byte in value.bytes() {
        if is_plain(byte) {
            text.push(byte);
        } else if is_upper {
            text.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            text.extend_from_slice(format!("%{byte:02x}").as_bytes());
        }
    }
    text
}

/// Characters that no URL needs to encode (RFC 3986, section 2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Same in a path, whose parts are not encoded each for itself.
fn is_plain_in_path(byte: u8) -> bool {
    is_unreserved(byte) || byte == b'/'
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::prelude::*;

    fn has(value: &str, text: &str) -> bool {
        of(value).contains(text.as_bytes())
    }

    #[test]
    fn value_has_its_usual_forms() {
        let value = "a b/c+\"d\"é";
        for form in [
            "a b/c+\"d\"é",
            "a%20b%2Fc%2B%22d%22%C3%A9",
            "a%20b%2fc%2b%22d%22%c3%a9",
            "a%20b/c%2B%22d%22%C3%A9",
            "a b/c+\\\"d\\\"é",
        ] {
            assert!(has(value, form), "{form}");
        }
    }

    #[test]
    fn short_value_is_not_masked() {
        assert!(of("abc").is_empty() && of("abc\n").iter().all(|form| form.len() >= 4));
        assert!(has("abcd\n", "abcd"));
    }

    #[test]
    fn long_lines_are_masked_by_themselves() {
        let value = "-----BEGIN KEY-----\nMIIBOgIBAAJ\nx\n";
        assert!(has(value, "MIIBOgIBAAJ") && !has(value, "x"));
        let wrapped = STANDARD.encode("x".repeat(100));
        assert!(has(&"x".repeat(100), &wrapped[..76]) && has(&"x".repeat(100), &wrapped[64..128]));
    }

    proptest! {
        /// Base64 of any text with the value in it has one of the forms, at every alignment.
        #[test]
        fn base64_of_surroundings_is_found(
            before in prop::collection::vec(any::<u8>(), 0..7),
            value in "[ -~]{4,40}",
            after in prop::collection::vec(any::<u8>(), 0..7),
        ) {
            let forms = of(&value);
            let bytes = [&before[..], value.as_bytes(), &after[..]].concat();
            for text in [STANDARD.encode(&bytes), URL_SAFE.encode(&bytes)] {
                let found = forms.iter().any(|form| {
                    text.as_bytes().windows(form.len()).any(|part| part == &form[..])
                });
                prop_assert!(found, "{}", text);
            }
        }
    }
}
