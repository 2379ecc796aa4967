//! Plain HTTP at a port that speaks TLS: the words of the answer, by which clients recognize it.

use http::StatusCode;

/// Begin of the answer of a cynode.
pub(super) const TLS_ONLY: &str = "this port speaks TLS only";
/// Words in the answers of reverse proxies: nginx, programs in Go such as Caddy, and Apache.
const WORDS_OF_PROXIES: [&str; 3] = [
    "plain HTTP request was sent to HTTPS port",
    "HTTP request to an HTTPS server",
    "speaking plain HTTP to an SSL-enabled server port",
];

/// Whether an answer to a call of an `http://` URL says that the server speaks TLS there.
pub fn is_tls_only(status: StatusCode, body: &str) -> bool {
    let mut words = WORDS_OF_PROXIES.into_iter().chain([TLS_ONLY]);
    status == StatusCode::BAD_REQUEST && words.any(|words| body.contains(words))
}

/// Reason of a refusal whose body is no problem of cynode's.
pub(super) fn unknown_reason(status: StatusCode, body: &[u8]) -> String {
    if is_tls_only(status, &String::from_utf8_lossy(body)) {
        return format!("{TLS_ONLY}; write https:// in the URL");
    }
    "no reason given; check that this is the address of a cynode".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refused_plain_http_counts() {
        let bad = StatusCode::BAD_REQUEST;
        for (status, body, expected) in [
            (bad, "{\"detail\":\"this port speaks TLS only: use\"}", true),
            (
                bad,
                "<center>The plain HTTP request was sent to HTTPS port</center>",
                true,
            ),
            (
                bad,
                "Client sent an HTTP request to an HTTPS server.\n",
                true,
            ),
            (bad, "the request is invalid", false),
            (StatusCode::OK, "this port speaks TLS only", false),
        ] {
            assert_eq!(is_tls_only(status, body), expected, "{status} {body}");
        }
    }
}
