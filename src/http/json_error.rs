//! JSON that doesn't fit, in the words of those who write it: serde speaks of `u64`, maps and variants.

/// Explains why a value can't be what a field needs.
pub(super) fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = without_position(&text);
    let not = |expected: &str, found: &str| format!("expected {expected}, not {found}");
    for prefix in ["invalid type: ", "invalid value: "] {
        if let Some((found, expected)) = text
            .strip_prefix(prefix)
            .and_then(|rest| rest.rsplit_once(", expected "))
        {
            return not(&in_words(expected), &found_in_words(found));
        }
    }
    if let Some((variant, expected)) = text
        .strip_prefix("unknown variant `")
        .and_then(|rest| rest.rsplit_once("`, expected "))
    {
        return not(expected, &format!("{variant:?}"));
    }
    let field = |prefix| text.strip_prefix(prefix)?.strip_suffix('`');
    if let Some(name) = field("missing field `") {
        return format!("the field {name} is missing");
    }
    if let Some(name) = field("duplicate field `") {
        return format!("the field {name} is there twice");
    }
    text.to_owned()
}

/// Without ` at line 1 column 24`: whoever sent the body is told the field.
fn without_position(text: &str) -> &str {
    let is_position = |tail: &str| {
        let numbers = tail.split_once(" column ");
        let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        numbers.is_some_and(|(line, column)| is_number(line) && is_number(column))
    };
    match text.rsplit_once(" at line ") {
        Some((text, tail)) if is_position(tail) => text,
        _ => text,
    }
}

/// What a type of ours takes, by serde's name of it.
fn in_words(expected: &str) -> String {
    let whole = |from: &dyn std::fmt::Display, to: &dyn std::fmt::Display| {
        format!("a whole number from {from} to {to}")
    };
    match expected {
        "u8" => whole(&0, &u8::MAX),
        "u16" => whole(&0, &u16::MAX),
        "u32" => whole(&0, &u32::MAX),
        "u64" | "usize" => whole(&0, &u64::MAX),
        "i32" => whole(&i32::MIN, &i32::MAX),
        "i64" | "isize" => whole(&i64::MIN, &i64::MAX),
        "a nonzero u32" => whole(&1, &u32::MAX),
        "a nonzero u64" => whole(&1, &u64::MAX),
        "f32" | "f64" | "a JSON number" => "a number".to_owned(),
        "a string" | "a borrowed string" => "text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        "unit" => "null".to_owned(),
        other if other.starts_with("struct ") => "an object".to_owned(),
        other if other.starts_with("enum ") || other == "string or map" => {
            "one of the words that the documentation lists".to_owned()
        }
        other => other.to_owned(),
    }
}

/// What was found, by serde's name of it.
fn found_in_words(found: &str) -> String {
    let number = ["integer `", "floating point `", "number `", "boolean `"];
    if let Some(value) = number
        .iter()
        .find_map(|prefix| found.strip_prefix(prefix)?.strip_suffix('`'))
    {
        return value.to_owned();
    }
    if let Some(text) = found.strip_prefix("string ") {
        return format!("the text {text}");
    }
    match found {
        "sequence" => "a list".to_owned(),
        "map" => "an object".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Deserialize, Debug)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        One,
        Two,
    }

    fn explained<T: for<'a> Deserialize<'a> + std::fmt::Debug>(json: &str) -> String {
        explain(&serde_json::from_str::<T>(json).unwrap_err())
    }

    #[test]
    fn serde_errors_become_plain_words() {
        let range = "expected a whole number from 0 to 18446744073709551615";
        assert_eq!(explained::<u64>("-1"), format!("{range}, not -1"));
        assert_eq!(explained::<u64>("1.5"), format!("{range}, not 1.5"));
        assert_eq!(
            explained::<u64>("\"a at line 1 column 2\""),
            format!("{range}, not the text \"a at line 1 column 2\"")
        );
        assert_eq!(
            explained::<u8>("256"),
            "expected a whole number from 0 to 255, not 256"
        );
        assert_eq!(explained::<String>("[]"), "expected text, not a list");
        assert_eq!(explained::<String>("null"), "expected text, not null");
        assert_eq!(
            explained::<bool>("{}"),
            "expected true or false, not an object"
        );
        assert_eq!(explained::<Vec<u8>>("true"), "expected a list, not true");
        assert_eq!(
            explained::<BTreeMap<String, u8>>("\", expected u8\""),
            "expected an object, not the text \", expected u8\""
        );
        assert_eq!(
            explained::<Word>("\"three\""),
            "expected `one` or `two`, not \"three\""
        );
    }
}
