//! Oracles for the head of a request: query strings, ids, log cursors.

use cynode::{
    api::{
        TaskId,
        tasks::{LogCursor, TaskStatus},
    },
    http::query::query_value,
};

/// Parameters that the gateway and the Worker API read.
const NAMES: [&str; 7] = [
    "limit", "offset", "status", "name", "cursor", "stream", "after",
];

/// A value is found at its name, and is no longer than its encoded form.
pub fn query(text: &str) {
    for name in NAMES {
        let Some(value) = query_value(text, name) else {
            let named = |pair: &str| pair == name || pair.starts_with(&format!("{name}="));
            assert!(!text.split('&').any(named), "{name} in {text:?}");
            continue;
        };
        assert!(text.contains(name));
        // An invalid UTF-8 byte becomes three valid ones.
        assert!(value.len() <= 3 * text.len());
        id(&value);
        place(&value);
        status(&value);
    }
}

/// An id has one normal form: lower case, with hyphens.
pub fn id(text: &str) {
    let Ok(id) = text.parse::<TaskId>() else {
        return;
    };
    let normal = id.to_string();
    assert_eq!(normal.parse::<TaskId>().ok(), Some(id));
    let groups: Vec<&str> = normal.split('-').collect();
    assert_eq!(
        groups.iter().map(|group| group.len()).collect::<Vec<_>>(),
        [8, 4, 4, 4, 12]
    );
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    assert!(groups.concat().chars().all(hex), "{normal}");
    let json = serde_json::to_string(&id).expect("an id is JSON");
    assert_eq!(json, format!("\"{normal}\""));
    assert_eq!(serde_json::from_str::<TaskId>(&json).ok(), Some(id));
}

/// An accepted cursor is written as it was read: digits, a hyphen, digits.
pub fn place(text: &str) {
    let Ok(place) = text.parse::<LogCursor>() else {
        return;
    };
    assert_eq!(place.to_string(), text);
    let (attempt, seq) = text.split_once('-').expect("two numbers");
    for number in [attempt, seq] {
        assert!(
            !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()),
            "{text}"
        );
    }
}

fn status(text: &str) {
    if let Ok(status) = text.parse::<TaskStatus>() {
        assert_eq!(status.as_str(), text);
    }
}
