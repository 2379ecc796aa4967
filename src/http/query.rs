//! Query strings (`application/x-www-form-urlencoded`) and percent-encoding.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Characters that are escaped: all but the unreserved ones (RFC 3986, section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// First value of `name` in a query string, decoded; empty where the name stands without one.
pub fn query_value(query: &str, name: &str) -> Option<String> {
    query_values(query, name).next()
}

/// Every value of `name` in a query string, in the same form.
pub(super) fn query_values(query: &str, name: &str) -> impl Iterator<Item = String> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| decode_form(value))
    })
}

/// Name or value of a query string, decoded: `+` is a space.
pub(super) fn decode_form(text: &str) -> String {
    decode(&text.replace('+', " "))
}

/// Segment of a path, decoded. Bytes that are not UTF-8 become U+FFFD.
pub(super) fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Segment of a path, or value of a query string, encoded.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_undoes_encoding(text in any::<String>(), raw in "[ -~]{0,20}") {
            let _ = decode_form(&raw);
            prop_assert_eq!(decode(&encode(&text)), text.clone());
            prop_assert_eq!(decode_form(&encode(&text)), text);
        }
    }
}
