//! Hints for paths that have no route and look like those of OpenAI's or Anthropic's API, whose clients show only errors in
//! the shape of their API. Most of them have a wrong base URL.

use crate::{
    http::router::PathHint,
    inference::{Family, error::renderer},
};

/// Ends of the paths of OpenAI's API that are served, below `/v1`.
const OPENAI_CALLS: [&str; 4] = [
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/responses",
];
/// Begins of the paths of OpenAI's API that are not served.
const OPENAI_UNSERVED: [&str; 2] = ["/images/", "/audio/"];

/// Hint for a path without a route, for a client that reached this server at `base_url`.
pub(super) fn hint(path: &str, base_url: &str) -> Option<PathHint> {
    let mut call = path;
    while let Some(rest) = call
        .strip_prefix("/v1")
        .filter(|rest| rest.starts_with('/'))
    {
        call = rest;
    }
    let (detail, family) = if OPENAI_UNSERVED.iter().any(|begin| call.starts_with(begin)) {
        (
            "images and audio of OpenAI's API are not served here".to_owned(),
            Family::OpenAi,
        )
    } else if call == "/messages/count_tokens" && path.starts_with("/v1/messages/") {
        (
            "count_tokens of Anthropic's API is not served here".to_owned(),
            Family::Anthropic,
        )
    } else if ["/messages", "/messages/count_tokens"].contains(&call) {
        (
            format!(
                "there is no such path; for Anthropic's API the base URL is {base_url}, without /v1"
            ),
            Family::Anthropic,
        )
    } else if call == "/models" || OPENAI_CALLS.iter().any(|end| call.ends_with(end)) {
        (
            format!(
                "there is no such path; OpenAI's API is at /v1: set the base URL to {base_url}/v1"
            ),
            Family::OpenAi,
        )
    } else {
        return None;
    };
    Some(PathHint {
        detail,
        render: renderer(family),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_base_urls_are_explained() {
        for (path, expected) in [
            ("/chat/completions", "http://h:1/v1"),
            ("/v1/v1/chat/completions", "http://h:1/v1"),
            ("/models", "http://h:1/v1"),
            ("/openai/embeddings", "http://h:1/v1"),
            ("/v1/v1/messages", "http://h:1, without /v1"),
            ("/v1/v1/messages/count_tokens", "http://h:1, without /v1"),
            ("/v1/messages/count_tokens", "not served here"),
            ("/v1/images/generations", "not served here"),
            ("/v1/audio/speech", "not served here"),
        ] {
            let detail = hint(path, "http://h:1").unwrap().detail;
            assert!(detail.contains(expected), "{path}: {detail}");
        }
        for path in [
            "/",
            "/v1",
            "/v1/",
            "/v1x/messages",
            "/v1/task",
            "/v1/nodes/a/images",
        ] {
            assert!(hint(path, "http://h:1").is_none(), "{path}");
        }
    }
}
