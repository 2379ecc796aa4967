//! Query strings, ids, log cursors.

use crate::{near, oracles::queries};
use cynode::{
    api::tasks::{LogCursor, TaskStatus},
    http::query::query_value,
};
use proptest::prelude::*;

/// Encodes every byte of a value.
fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes()
        .map(|b| match b {
            b' ' => "+".to_owned(),
            b if plain(b) => char::from(b).to_string(),
            b => format!("%{b:02x}"),
        })
        .collect()
}

proptest! {
    #[test]
    fn any_query_is_decoded_or_ignored(text in near("name=&limit=%4%+a-1status=cursor=queued")) {
        queries::query(&text);
    }

    #[test]
    fn query_values_survive_round_trip(
        before in proptest::collection::vec(("[a-m]{1,3}", any::<String>()), 0..3),
        value in any::<String>(),
        later in any::<String>(),
    ) {
        let pair = |(name, value): &(String, String)| format!("{name}={}", encoded(value));
        let mut pairs: Vec<String> = before.iter().map(pair).collect();
        pairs.push(pair(&("name".to_owned(), value.clone())));
        pairs.push(pair(&("name".to_owned(), later)));
        prop_assert_eq!(query_value(&pairs.join("&"), "name"), Some(value));
        prop_assert_eq!(query_value(&pairs.join("&"), "none"), None);
    }

    #[test]
    fn ids_have_one_form(text in prop_oneof![
        near("0aF-"),
        "[0-9a-fA-F]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-fA-F]{12}",
        "(urn:uuid:|\\{)?[0-9a-f]{32}\\}?",
    ]) {
        queries::id(&text);
    }

    #[test]
    fn connection_permits_are_returned(attempt: u32, seq: u64, text in near("0123-+ ")) {
        let place = LogCursor { attempt, seq };
        prop_assert_eq!(place.to_string().parse::<LogCursor>(), Ok(place));
        queries::place(&text);
    }
}

#[test]
fn only_issued_log_cursors_are_valid() {
    for wrong in [
        "",
        "-",
        "1",
        "1-",
        "-1",
        "1-2-3",
        "+1-2",
        "1-+2",
        "01-2",
        "1- 2",
        "4294967296-1",
    ] {
        assert!(wrong.parse::<LogCursor>().is_err(), "{wrong:?}");
    }
}

#[test]
fn status_names_round_trip() {
    for status in TaskStatus::ALL {
        assert_eq!(status.as_str().parse(), Ok(*status));
        assert!(
            status
                .as_str()
                .to_uppercase()
                .parse::<TaskStatus>()
                .is_err()
        );
    }
}
