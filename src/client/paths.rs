//! Paths of the User API, with what users type as encoded segments.

use crate::http::query::encode;

/// Path of a task; `id` is an id, the beginning of one, or a name.
pub(super) fn task(id: &str, rest: &str) -> String {
    format!("/v1/tasks/{}{rest}", encode(id))
}

/// Path of an artifact's bytes.
pub(super) fn artifact(id: &str) -> String {
    format!("/v1/artifacts/{}", encode(id))
}

/// Path of a node.
pub(super) fn node(slug: &str, rest: &str) -> String {
    format!("/v1/nodes/{}{rest}", encode(slug))
}

/// Path with the parameters that have a value as its query.
pub(super) fn with_query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let pairs = parameters.iter().filter_map(|(name, value)| {
        let value = encode((*value)?);
        Some(format!("{name}={value}"))
    });
    let pairs: Vec<String> = pairs.collect();
    format!("{path}?{}", pairs.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_and_values_are_encoded() {
        assert_eq!(task("a b/é", "/logs"), "/v1/tasks/a%20b%2F%C3%A9/logs");
        let parameters = [
            ("limit", Some("5")),
            ("status", None),
            ("name", Some("a&b")),
        ];
        assert_eq!(
            with_query("/v1/tasks", &parameters),
            "/v1/tasks?limit=5&name=a%26b"
        );
    }
}
