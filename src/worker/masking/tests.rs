//! Tests of the masks: whatever the pieces are in which output arrives, it is masked in the same way.

use super::*;
use crate::api::secrets::SecretValue;
use proptest::prelude::*;
use zeroize::Zeroizing;

fn masking(values: &[&str]) -> Masking {
    let values = values.iter().enumerate().map(|(n, value)| {
        let value = SecretValue::from(Zeroizing::new((*value).to_owned()));
        (format!("V{n}"), value)
    });
    Masking::new(&values.collect(), true)
}

/// Masked output of a stream that arrives in pieces.
fn masked<'a>(masking: &Masking, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut masks, mut output) = (masking.masks(), Vec::new());
    for piece in pieces {
        masks.push(Stream::Stdout, piece, |bytes| {
            output.extend_from_slice(bytes)
        });
    }
    masks.finish(|_, bytes| output.extend_from_slice(bytes));
    output
}

fn masked_text(values: &[&str], text: &str) -> String {
    String::from_utf8(masked(&masking(values), [text.as_bytes()])).unwrap()
}

#[test]
fn values_are_replaced() {
    assert_eq!(masked_text(&["swordfish"], "a swordfish b"), "a *** b");
    assert_eq!(masked_text(&["swordfish"], "swordfis"), "swordfis");
    assert_eq!(masked_text(&["aaaa"], "aaaaaab"), "***b");
    assert_eq!(masked_text(&["abcd", "cdef"], "xabcdefx"), "x***x");
    // The last character has bits of what follows.
    assert_eq!(
        masked_text(&["abcd"], "c3dvcmRmaXNoYWJjZA"),
        "c3dvcmRmaXNo***A"
    );
    assert_eq!(
        masked_text(&["swordfish"], "dG9rZW4c3dvcmRmaXNo"),
        "dG9rZW4***"
    );
    assert_eq!(masked_text(&["abc"], "abc"), "abc");
}

#[test]
fn masking_can_be_left_out() {
    let values: SecretValues = [(
        "A".to_owned(),
        SecretValue::from(Zeroizing::new("swordfish".to_owned())),
    )]
    .into_iter()
    .collect();
    let masking = Masking::new(&values, false);
    assert_eq!(masked(&masking, [&b"swordfish"[..]]), b"swordfish");
}

#[test]
fn only_beginning_of_value_waits() {
    let mut masks = masking(&["swordfish"]).masks();
    let mut taken = |text: &str| {
        let mut output = Vec::new();
        masks.push(Stream::Stdout, text.as_bytes(), |bytes| {
            output.extend_from_slice(bytes)
        });
        String::from_utf8(output).unwrap()
    };
    assert_eq!(taken("$ "), "$ ");
    assert_eq!(taken("a swo"), "a ");
    assert_eq!(taken("rm\n"), "sworm\n");
    assert_eq!(taken("sword"), "");
    assert_eq!(taken("fish"), "***");
    assert_eq!(taken("\n"), "\n");
}

#[test]
fn little_is_released_and_rest_masked() {
    let mut mask = StreamMask::new(&masking(&["swordfish"]));
    assert_eq!(mask.push(b"$ sw"), b"$ ");
    assert_eq!(mask.release(), b"sw");
    assert_eq!(mask.push(b"ordfis"), b"");
    assert_eq!(mask.push(b"h!"), b"***!");
    assert_eq!(mask.push(b"s"), b"");
    assert_eq!(mask.release(), b"s");
    assert_eq!(mask.push(b"o swordfish"), b"o ***");
}

#[test]
fn slow_value_is_masked_from_fourth_byte() {
    let mut masks = masking(&["swordfish"]).masks();
    let mut shown = String::new();
    for letter in "swordfish!".chars() {
        let mut show = |bytes: &[u8]| shown.push_str(std::str::from_utf8(bytes).unwrap());
        let letter = letter.to_string();
        masks.push(Stream::Stdout, letter.as_bytes(), &mut show);
        masks.release(Stream::Stdout, &mut show);
    }
    assert_eq!(shown, "swo***!");
}

#[test]
fn streams_are_masked_apart() {
    let mut masks = masking(&["swordfish"]).masks();
    let mut output = Vec::new();
    let mut write = |bytes: &[u8]| output.extend_from_slice(bytes);
    masks.push(Stream::Stdout, b"sword", &mut write);
    masks.push(Stream::Stderr, b"fish", &mut write);
    masks.finish(|_, bytes| write(bytes));
    assert_eq!(output, b"fishsword");
}

/// Output with values replaced, found one by one.
fn expected(values: &[&str], text: &[u8]) -> Vec<u8> {
    let mut is_covered = vec![false; text.len()];
    for form in values.iter().flat_map(|value| forms::of(value)) {
        for at in 0..text.len() {
            if text[at..].starts_with(&form) {
                is_covered[at..at + form.len()].fill(true);
            }
        }
    }
    let (mut output, mut is_in_mask) = (Vec::new(), false);
    for (byte, is_covered) in text.iter().zip(is_covered) {
        match is_covered {
            true if is_in_mask => {}
            true => output.extend_from_slice(MASK),
            false => output.push(*byte),
        }
        is_in_mask = is_covered;
    }
    output
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        values in prop::collection::vec("[ab]{4,8}", 1..4),
        text in "[abc]{0,80}",
        cuts in prop::collection::vec(0usize..80, 0..12),
    ) {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let masking = masking(&values);
        let whole = masked(&masking, [text.as_bytes()]);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]);
        let in_pieces = masked(&masking, pieces);
        prop_assert_eq!(&in_pieces, &whole);
        prop_assert_eq!(&whole, &expected(&values, text.as_bytes()));
        for form in values.iter().flat_map(|value| forms::of(value)) {
            let is_there = whole.windows(form.len()).any(|part| part == &form[..]);
            prop_assert!(!is_there, "{:?}", String::from_utf8_lossy(&whole));
        }
    }
}
