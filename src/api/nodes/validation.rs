//! Validation of slugs, labels, URLs and free texts of nodes.

use crate::api::problem::Problem;
use std::{net::Ipv6Addr, num::NonZeroU16};

/// Most labels of a node, and of a task.
pub const MAX_LABELS: usize = 64;
/// Longest free text, in bytes.
pub const MAX_TEXT_BYTES: usize = 256;
/// Longest URL, in bytes.
pub(super) const MAX_URL_BYTES: usize = 2048;

/// Shortest pre-shared key, in characters.
pub const MIN_PSK_CHARS: usize = 16;

/// Pattern of [`check_slug`], for schemas.
pub const SLUG_PATTERN: &str = "^[a-z0-9][a-z0-9-]{0,62}$";
/// Pattern of [`check_label`], for schemas.
pub const LABEL_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._/=-]{0,62}$";

/// Checks a slug: `[a-z0-9][a-z0-9-]{0,62}`.
pub fn check_slug(pointer: &str, slug: &str) -> Result<(), Problem> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let valid = (1..=63).contains(&slug.len())
        && plain(slug.as_bytes()[0])
        && slug.bytes().all(|b| plain(b) || b == b'-');
    if valid {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        "must be 1 to 63 lower-case letters, digits and '-', starting with a letter or digit",
    ))
}

/// Checks the length of a pre-shared key, without white space around it.
pub fn check_psk(psk: &str) -> Result<(), Problem> {
    let chars = psk.trim().chars().count();
    if chars >= MIN_PSK_CHARS {
        return Ok(());
    }
    let text = format!(
        "must have at least {MIN_PSK_CHARS} characters, got {chars}; generate one with: openssl rand -base64 32"
    );
    Err(Problem::field("", text))
}

/// Slug from a host name: lower case, `-` for every other character, at most 63 characters.
pub fn slug_from_host_name(name: &str) -> String {
    let slug: String = name
        .to_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                c
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    let slug = slug.trim_start_matches('-');
    if slug.is_empty() {
        "node".to_owned()
    } else {
        slug.to_owned()
    }
}

/// Checks a label: `[A-Za-z0-9][A-Za-z0-9._/=-]{0,62}`.
pub fn check_label(pointer: &str, label: &str) -> Result<(), Problem> {
    let valid = (1..=63).contains(&label.len())
        && label.as_bytes()[0].is_ascii_alphanumeric()
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._/=-".contains(&b));
    if valid {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        "is not a valid label: 1 to 63 of A-Z a-z 0-9 . _ / = -, starting with a letter or digit",
    ))
}

/// Checks the name of a model, such as `qwen3:0.6b` or `hf.co/owner/name:Q4_K_M`: 1 to 256 of
/// `[A-Za-z0-9._:/-]`, starting with a letter or digit.
pub fn check_model(pointer: &str, name: &str) -> Result<(), Problem> {
    let valid = (1..=MAX_TEXT_BYTES).contains(&name.len())
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b));
    if valid {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        format!(
            "is not a valid model name: 1 to {MAX_TEXT_BYTES} of A-Z a-z 0-9 . _ : / -, starting with a letter or digit"
        ),
    ))
}

/// Checks the length of a free text.
pub(super) fn check_text(pointer: &str, text: Option<&str>) -> Result<(), Problem> {
    match text {
        Some(text) if text.len() > MAX_TEXT_BYTES => Err(Problem::field(
            pointer,
            format!(
                "must have at most {MAX_TEXT_BYTES} bytes, got {}",
                text.len()
            ),
        )),
        _ => Ok(()),
    }
}

/// Checks a URL: `http://host[:port][/path]` or the same with `https`, without user, query or fragment.
pub fn check_url(pointer: &str, url: &str) -> Result<(), Problem> {
    let wrong = |detail: &str| Err(Problem::field(pointer, detail));
    if url.len() > MAX_URL_BYTES {
        return wrong("must have at most 2048 bytes");
    }
    // The parser accepts some characters outside ASCII.
    let parsed = url.parse::<http::Uri>().ok();
    let Some(uri) = parsed.filter(|_| url.bytes().all(|b| b.is_ascii_graphic())) else {
        return wrong("is not a valid URL; write it like http://host:12090");
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = uri.host().unwrap_or_default();
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    if !is_known || !is_host(host) || authority.contains('@') {
        return wrong("must be http://host[:port] or https://host[:port] without a user name");
    }
    // The parser ignores an invalid port, and the call would go to the default one.
    let port = authority.strip_prefix(host).unwrap_or_default();
    let is_port = |port: &str| port.parse::<NonZeroU16>().is_ok();
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return wrong("must have a port of 1 to 65535, or none");
    }
    if uri.query().is_some() || url.contains('#') {
        return wrong("must have no query and no fragment");
    }
    Ok(())
}

/// Same as [`check_url`], without encryption: Worker APIs speak no TLS.
pub fn check_plain_url(pointer: &str, url: &str) -> Result<(), Problem> {
    check_url(pointer, url)?;
    let uri = url.parse::<http::Uri>().ok();
    if uri.is_some_and(|uri| uri.scheme_str() == Some("http")) {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        "must be http://host[:port]; Worker APIs speak no TLS",
    ))
}

/// Checks the URL of a Worker API: `http://host[:port]`. The orchestrator adds the paths, so that a node can't
/// choose which one is called.
pub fn check_worker_url(pointer: &str, url: &str) -> Result<(), Problem> {
    check_plain_url(pointer, url)?;
    let path = url.parse::<http::Uri>().ok();
    if path.is_some_and(|uri| ["", "/"].contains(&uri.path())) {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        "must be http://host[:port] without a path",
    ))
}

/// Whether a host is a name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(plain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn node_urls_are_validated() {
        for good in [
            "http://10.0.0.2:12090",
            "http://box.local/x",
            "http://[::1]:1",
            "http://my_box-1",
            "https://box",
            "https://[::1]:12082/x",
        ] {
            assert!(check_url("/u", good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "box:1",
            "ftp://box",
            "https://u@box",
            "https://",
            "http://",
            "http://u@box",
            "http://box/?q",
            "/x",
            "http://a b",
            "http://box:",
            "http://$[::1]:1",
            "http://[::1]2:1",
            "http://[1]",
            "http://box:0",
            "http://box:65536",
            "http://box/é",
            "http://box/\u{7f}",
        ] {
            assert!(check_url("/u", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn worker_urls_have_no_path() {
        for good in ["http://box:1", "http://box:1/", "http://[::1]"] {
            assert!(check_worker_url("/u", good).is_ok(), "{good}");
        }
        for bad in [
            "https://box:1",
            "http://box:1/x",
            "http://box:1//",
            "http://box/?q",
            "http://u@box",
            "http://box:1/#x",
        ] {
            assert!(check_worker_url("/u", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn model_names_are_safe_everywhere() {
        let longest = "x".repeat(256);
        for good in ["qwen3:0.6b", "hf.co/owner/A_b-c:Q4_K_M", "7", &longest] {
            assert!(check_model("/m", good).is_ok(), "{good}");
        }
        let too_long = "x".repeat(257);
        for bad in [
            "", "-x", ":x", "/x", ".x", "a b", "a\n", "a,b", "é", "a@b", &too_long,
        ] {
            assert!(check_model("/m", bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn slug_is_derived_from_any_hostname(name in any::<String>()) {
            prop_assert!(check_slug("/s", &slug_from_host_name(&name)).is_ok());
        }
    }
}
