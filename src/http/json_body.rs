//! JSON bodies as values of the shape that a call takes.

use super::json_error::{self, JsonError};
use crate::api::problem::{Problem, ProblemKind};
use serde::de::DeserializeOwned;

/// Most values of a body that may be larger than others.
const MAX_LARGE_BODY_VALUES: usize = 700_000;

type JsonDeserializer<'a> = serde_json::Deserializer<serde_json::de::SliceRead<'a>>;

/// Refuses a body that is large by its number of values and not by its texts: each takes more memory than it has bytes.
pub(super) fn check_structure(bytes: &[u8]) -> Result<(), Problem> {
    let (mut is_text, mut is_escaped, mut count) = (false, false, 0);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b',' | b':' | b'[' | b'{' if !is_text => count += 1,
            _ => {}
        }
    }
    if count <= MAX_LARGE_BODY_VALUES {
        return Ok(());
    }
    let detail = format!("the body has more than {MAX_LARGE_BODY_VALUES} values; send fewer");
    Err(Problem::new(ProblemKind::PayloadTooLarge, detail))
}

/// JSON object of the shape of `T`. The problem names a wrong field by its JSON pointer.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    parse(bytes, |deserializer| {
        serde_path_to_error::deserialize(deserializer)
    })
}

/// Same as [`parse_json`], with a deserializer of the caller's choice.
pub(super) fn parse<'a, T>(
    bytes: &'a [u8],
    read: impl FnOnce(&mut JsonDeserializer<'a>) -> Result<T, JsonError>,
) -> Result<T, Problem> {
    // serde would fill the fields from an array in their order, which is no part of the contract.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(Problem::new(
            ProblemKind::InvalidRequest,
            "the body must be a JSON object, got an array",
        ));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = read(&mut deserializer).map_err(json_error::problem)?;
    deserializer
        .end()
        .map_err(|error| json_error::syntax(&error))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(serde::Deserialize, Debug)]
    #[allow(dead_code, reason = "only its shape matters")]
    struct Shape {
        list: Vec<HashMap<String, u8>>,
    }

    #[test]
    fn invalid_value_is_named_by_pointer() {
        let problem = parse_json::<Shape>(br#"{"list":[{"a/b":1},{"c":"x"}]}"#).unwrap_err();
        assert_eq!(problem.errors[0].pointer, "#/list/1/c");
        assert!(
            parse_json::<Shape>(b"{\"list\":[]} x")
                .unwrap_err()
                .detail
                .contains("not valid JSON")
        );
        assert!(parse_json::<Shape>(b"{").unwrap_err().errors.is_empty());
        assert!(parse_json::<Shape>(b" [[]]").is_err());
    }

    #[test]
    fn values_of_large_bodies_are_counted() {
        let many = ",".repeat(MAX_LARGE_BODY_VALUES + 1);
        assert!(check_structure(format!("[{many}]").as_bytes()).is_err());
        let text = format!("{{\"a\":\"\\\"{many}\"}}");
        assert!(check_structure(text.as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn garbage_body_is_problem_not_panic(bytes: Vec<u8>) {
            let _ = parse_json::<Shape>(&bytes);
        }
    }
}
