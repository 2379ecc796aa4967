//! Problems for JSON that does not fit its type, in the words of the person who sends it.
//!
//! serde speaks of `u64`, maps and variants, and of lines and columns of a body that a client library
//! wrote. Here its errors become a [`Problem`] about one field: where it is, which form is expected, and
//! which one came. A value of the wrong type is not repeated: it may be a password in the wrong place.

use crate::api::problem::{Problem, ProblemKind};
use serde_json::error::Category;

/// Error of a deserializer that tracks the path of each field.
pub(super) type JsonError = serde_path_to_error::Error<serde_json::Error>;

/// Problem of a body that could not be read: not JSON at all, or a field of the wrong form.
pub(super) fn problem(error: JsonError) -> Problem {
    let pointer = pointer(error.path());
    let cause = error.into_inner();
    if cause.classify() == Category::Data {
        wrong_field(pointer, without_position(&cause.to_string()))
    } else {
        syntax(&cause)
    }
}

/// Problem of a body that is not JSON.
pub(super) fn syntax(error: &serde_json::Error) -> Problem {
    let (line, column, text) = (error.line(), error.column(), error.to_string());
    let reason = match error.classify() {
        Category::Eof => "it ends too early",
        _ => without_position(&text),
    };
    let detail = format!("the body is not valid JSON: {reason} (line {line}, column {column})");
    Problem::new(ProblemKind::InvalidRequest, detail)
}

/// Problem of a field whose value does not fit, from serde's text on it.
fn wrong_field(pointer: String, text: &str) -> Problem {
    let quoted = |prefix| text.strip_prefix(prefix)?.strip_suffix('`');
    if let Some(name) = quoted("missing field `") {
        return Problem::field(&format!("{pointer}/{}", escaped(name)), "is missing");
    }
    if let Some(name) = quoted("duplicate field `") {
        let detail = "is given twice; send it once";
        return Problem::field(&format!("{pointer}/{}", escaped(name)), detail);
    }
    let detail = detail(text);
    if pointer.is_empty() {
        return Problem::new(ProblemKind::InvalidRequest, format!("the body {detail}"));
    }
    Problem::field(&pointer, detail)
}

/// Predicate about a field, such as `must be a string, got an array`.
fn detail(text: &str) -> String {
    let parts = |prefix| text.strip_prefix(prefix)?.rsplit_once(", expected ");
    if let Some((found, expected)) = parts("invalid type: ") {
        let form = form(expected);
        let found = match type_name(found) {
            // A number in place of another one is no secret.
            "a number" if form.contains("number") => value(found),
            name => name,
        };
        return format!("must be {form}, got {found}");
    }
    if let Some((found, expected)) = parts("invalid value: ") {
        return format!("must be {}, got {}", form(expected), value(found));
    }
    if let Some((length, expected)) = parts("invalid length ") {
        let found = match form(expected).as_str() {
            "a JSON object" => "an array".to_owned(),
            _ => format!("{length} elements"),
        };
        return format!("must be {}, got {found}", form(expected));
    }
    if let Some((variant, names)) = parts("unknown variant `") {
        let (names, variant) = (names.replace('`', ""), variant.trim_end_matches('`'));
        return format!("must be {names}, got {variant:?}");
    }
    // Texts of our own deserializers say all of it.
    text.to_owned()
}

/// Text without ` at line 1 column 24`, which says less than the field does.
fn without_position(text: &str) -> &str {
    let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let is_position = |tail: &str| {
        let numbers = tail.split_once(" column ");
        numbers.is_some_and(|(line, column)| is_number(line) && is_number(column))
    };
    match text.rsplit_once(" at line ") {
        Some((text, tail)) if is_position(tail) => text,
        _ => text,
    }
}

/// Form that serde expects, by its name of it.
fn form(expected: &str) -> String {
    let between = |least: i64, most: u64| format!("a whole number from {least} to {most}");
    match expected {
        "u8" => between(0, u8::MAX.into()),
        "u16" => between(0, u16::MAX.into()),
        "u32" => between(0, u32::MAX.into()),
        "i32" => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        "u64" | "usize" => "a whole number of at least 0".to_owned(),
        "i64" | "isize" => "a whole number".to_owned(),
        "a nonzero u32" | "a nonzero u64" => "a whole number of at least 1".to_owned(),
        "f32" | "f64" | "a JSON number" => "a number".to_owned(),
        "a borrowed string" => "a string".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" => "a JSON object".to_owned(),
        "unit" => "null".to_owned(),
        other if other.starts_with("struct ") || other.starts_with("internally tagged enum ") => {
            "a JSON object".to_owned()
        }
        other if other.starts_with("a tuple of size ") => {
            other.replace("a tuple of size", "an array of")
        }
        other => other.to_owned(),
    }
}

/// Type of a value, by serde's description of it.
fn type_name(found: &str) -> &str {
    match found.split(' ').next().unwrap_or_default() {
        "string" | "character" => "a string",
        "integer" | "floating" | "number" => "a number",
        "boolean" => "a boolean",
        "sequence" => "an array",
        "map" => "an object",
        _ => found,
    }
}

/// Value of the right type that is not allowed, by serde's description of it.
fn value(found: &str) -> &str {
    let numbers = ["integer `", "floating point `", "number `", "boolean `"];
    let number = numbers
        .iter()
        .find_map(|prefix| found.strip_prefix(prefix)?.strip_suffix('`'));
    number
        .or_else(|| found.strip_prefix("string "))
        .unwrap_or(found)
}

/// JSON pointer (RFC 6901) of a path.
fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .fold(String::new(), |pointer, segment| match segment {
            Segment::Seq { index } => format!("{pointer}/{index}"),
            Segment::Map { key } => format!("{pointer}/{}", escaped(key)),
            Segment::Enum { .. } | Segment::Unknown => pointer,
        })
}

/// Name of a field as one segment of a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
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

    #[derive(Deserialize, Debug)]
    #[allow(dead_code, reason = "only its shape matters")]
    struct Shape {
        name: String,
    }

    fn explained<T: for<'a> Deserialize<'a> + std::fmt::Debug>(json: &str) -> String {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        problem(serde_path_to_error::deserialize::<_, T>(&mut deserializer).unwrap_err()).detail
    }

    #[test]
    fn form_and_type_are_named() {
        let number = "the body must be a whole number of at least 0, got";
        assert_eq!(explained::<u64>("-1"), format!("{number} -1"));
        assert_eq!(explained::<u64>("1.5"), format!("{number} 1.5"));
        assert_eq!(
            explained::<u64>("\"secret at line 1 column 2\""),
            format!("{number} a string")
        );
        for (found, expected) in [
            (
                explained::<u8>("256"),
                "a whole number from 0 to 255, got 256",
            ),
            (explained::<String>("[]"), "a string, got an array"),
            (explained::<String>("null"), "a string, got null"),
            (explained::<String>("12345678"), "a string, got a number"),
            (explained::<bool>("{}"), "true or false, got an object"),
            (explained::<Vec<u8>>("true"), "an array, got a boolean"),
            (explained::<Shape>("7"), "a JSON object, got a number"),
            (
                explained::<(u8, u8)>("[1]"),
                "an array of 2, got 1 elements",
            ),
            (
                explained::<BTreeMap<String, u8>>("\", expected u8\""),
                "a JSON object, got a string",
            ),
            (explained::<Word>("\"three\""), "one or two, got \"three\""),
        ] {
            assert_eq!(found, format!("the body must be {expected}"));
        }
    }

    #[test]
    fn missing_field_has_pointer() {
        let mut deserializer = serde_json::Deserializer::from_str("[{}]");
        let error = serde_path_to_error::deserialize::<_, Vec<Shape>>(&mut deserializer);
        let problem = problem(error.unwrap_err());
        assert_eq!(problem.errors[0].pointer, "#/0/name");
        assert_eq!(problem.errors[0].detail, "is missing");
        assert_eq!(
            explained::<Shape>(r#"{"name":"a","name":"b"}"#),
            "`name` is given twice; send it once"
        );
    }

    #[test]
    fn json_syntax_error_has_position() {
        assert_eq!(
            explained::<Shape>("{\"name\": tru}"),
            "the body is not valid JSON: expected ident (line 1, column 13)"
        );
        assert_eq!(
            explained::<Shape>("{\"name\""),
            "the body is not valid JSON: it ends too early (line 1, column 7)"
        );
    }
}
