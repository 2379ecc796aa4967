//! Lexer against a whole parser, and strategies for tests of its users.

use super::*;
use proptest::prelude::*;
use serde_json::Value;

/// JSON values of every kind, some with keys that are read.
pub(in crate::inference) fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        "[\"\\\\/\n\u{1}é]{0,4}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        "\\PC{0,4}",
        Just("model".to_owned()),
        Just("stream".to_owned()),
        Just("usage".to_owned()),
        Just("prompt_tokens".to_owned()),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Splits `text` into chunks at these places.
pub(in crate::inference) fn chunks<'a>(
    text: &'a [u8],
    places: &[prop::sample::Index],
) -> Vec<&'a [u8]> {
    let mut cuts: Vec<_> = places.iter().map(|at| at.index(text.len() + 1)).collect();
    cuts.extend([0, text.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect()
}

/// Text of the tokens, and whether the lexer accepts the whole.
fn lex(chunks: &[&[u8]]) -> (Vec<String>, bool) {
    let (mut lexer, mut found) = (Lexer::new(64), Vec::new());
    let mut fed = Ok(());
    for chunk in chunks {
        let mut sink = |token: Token<'_>| {
            found.push(format!("{token:?}"));
            Ok::<_, LexError>(())
        };
        fed = fed.and_then(|()| lexer.feed(chunk, &mut sink));
    }
    // A number at the top ends with the white space.
    let fed = fed.and_then(|()| lexer.feed(b" ", &mut |_| Ok::<_, LexError>(())));
    (found, fed.is_ok() && lexer.is_complete())
}

proptest! {
    #[test]
    fn every_json_is_accepted(value in value(), pretty: bool) {
        let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) };
        prop_assert!(lex(&[&text.unwrap()]).1);
    }

    #[test]
    fn cuts_change_nothing(value in value(), at in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let text = serde_json::to_vec(&value).unwrap();
        prop_assert_eq!(lex(&[&text]), lex(&chunks(&text, &at)));
    }

    #[test]
    fn incomplete_json_is_not_complete(value in value(), at: prop::sample::Index) {
        let text = serde_json::to_vec(&serde_json::json!([value])).unwrap();
        prop_assert!(!lex(&[&text[..at.index(text.len())]]).1);
    }

    #[test]
    fn refused_texts_are_no_json(text in "[\\[\\]{}:,\"a1e.tru\\\\ -]{0,12}") {
        if serde_json::from_str::<Value>(&text).is_ok() {
            prop_assert!(lex(&[text.as_bytes()]).1, "{}", text);
        }
    }
}

#[test]
fn broken_json_is_refused() {
    for text in [
        "",
        " ",
        "{",
        "{]",
        "[1 2]",
        "[,]",
        "[1,]",
        "{\"a\"}",
        "{\"a\" 1}",
        "{\"a\":}",
        "{a:1}",
        "{\"a\":1,}",
        "{1:2}",
        "'a'",
        "[tru]",
        "[nul]",
        "[truex]",
        "[-]",
        "[\"\\x\"]",
        "[\"\\u12g4\"]",
        "[\"\n\"]",
        "{} {}",
        "[]]",
        "\u{feff}{}",
        "[NaN]",
        "[.5]",
    ] {
        assert!(!lex(&[text.as_bytes()]).1, "{text}");
    }
}

#[test]
fn depth_and_memory_are_bounded() {
    let deep = "[".repeat(1 << 20);
    let mut lexer = Lexer::new(64);
    let fed = lexer.feed(deep.as_bytes(), &mut |_| Ok::<_, LexError>(()));
    assert_eq!(fed, Err(LexError::TooDeep));
    let long = format!("[\"{}\"", "x".repeat(1 << 20));
    let mut lexer = Lexer::new(64);
    let mut lengths = Vec::new();
    let mut sink = |token: Token<'_>| {
        if let Token::String(text) = token {
            lengths.push((text.raw.len(), text.is_cut));
        }
        Ok::<_, LexError>(())
    };
    lexer.feed(long.as_bytes(), &mut sink).unwrap();
    assert_eq!(lengths, [(KEPT_BYTES, true)]);
    assert!(lexer.kept.capacity() <= 2 * KEPT_BYTES);
}
