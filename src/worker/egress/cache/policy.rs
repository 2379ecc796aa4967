//! Rules of the cache: which requests it may answer, which answers it may keep, and what of them. Pure.
//!
//! They are narrower than RFC 9111 allows: what is left out is fetched as without a cache.

use super::entry::Entry;
use crate::{digest::sha256_hex, worker::egress::request::Target};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request};

/// Headers of requests whose answers may be for one client alone, or be a part.
const OWN_REQUEST_HEADERS: [HeaderName; 3] = [header::AUTHORIZATION, header::COOKIE, header::RANGE];
/// Parts of the names of other headers that have credentials, such as `X-Api-Key` and `Private-Token`. Not of those that npm
/// sends with each request, `npm-session` and `npm-auth-type`.
const CREDENTIAL_PARTS: [&str; 7] = [
    "credential",
    "key",
    "password",
    "secret",
    "signature",
    "token",
    "x-auth",
];
/// Headers of answers that are not kept: for one client alone, or of a body that is not the whole.
const OWN_ANSWER_HEADERS: [HeaderName; 3] = [
    header::SET_COOKIE,
    header::TRANSFER_ENCODING,
    header::CONTENT_RANGE,
];
/// Headers of an answer that are kept with its bytes.
const KEPT_HEADERS: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::CONTENT_DISPOSITION,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    // Without it, a page of a list would look like the last one.
    header::LINK,
    header::ETAG,
    header::LAST_MODIFIED,
    header::CACHE_CONTROL,
];
/// Headers that say something of a body, and so nothing in an answer without one.
const BODY_HEADERS: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::TRANSFER_ENCODING,
];
/// Most bytes of headers that are kept.
const MAX_KEPT_BYTES: usize = 8 * 1024;

/// Where a request goes, and whether somebody else may have its answer.
pub(in crate::worker::egress) struct Origin<'a> {
    /// `http` or `https`.
    pub(in crate::worker::egress) scheme: &'static str,
    pub(in crate::worker::egress) target: &'a Target,
    /// Whether the proxy has put a secret into the request.
    pub(in crate::worker::egress) is_private: bool,
}

/// Name of a download: the SHA-256 of its URL and of what the client accepts, in hex.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Key(String);

impl Key {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a file has such a name.
    pub(super) fn is_one(name: &str) -> bool {
        name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

/// Name of what a request asks for; `None` where the cache has no part in it.
pub(super) fn key_of(parts: &request::Parts, has_body: bool, origin: &Origin<'_>) -> Option<Key> {
    let headers = &parts.headers;
    let is_own = OWN_REQUEST_HEADERS
        .iter()
        .any(|name| headers.contains_key(name));
    let has_credentials = headers.keys().any(|name| {
        let mut telling = CREDENTIAL_PARTS.iter();
        telling.any(|part| name.as_str().contains(*part))
    });
    // A client with conditions wants the host's word on a copy of its own.
    let has_condition = headers.keys().any(|name| name.as_str().starts_with("if-"));
    if parts.method != Method::GET || has_body || origin.is_private {
        return None;
    }
    if is_own || has_credentials || has_condition {
        return None;
    }
    if has_directive(headers, &["no-store"])? {
        return None;
    }
    let path = parts.uri.path_and_query()?.as_str();
    let encodings = words(headers, &header::ACCEPT_ENCODING)?.join(",");
    // Registries of images choose by it, don't say so in `Vary`, and answer 304 before they choose.
    let types = words(headers, &header::ACCEPT)?.join(",");
    let (scheme, target) = (origin.scheme, origin.target);
    // None of these parts has a line feed.
    Some(Key(sha256_hex(format!(
        "{scheme}://{target}{path}\n{encodings}\n{types}"
    ))))
}

/// What is kept of an answer; `None` where it is not kept. Of its bytes at most `max_bytes` are.
pub(super) fn entry_of(status: StatusCode, headers: &HeaderMap, max_bytes: u64) -> Option<Entry> {
    let is_own = OWN_ANSWER_HEADERS
        .iter()
        .any(|name| headers.contains_key(name));
    if status != StatusCode::OK || is_own {
        return None;
    }
    if has_directive(headers, &["no-store", "private"])? {
        return None;
    }
    let encodings = words(headers, &header::CONTENT_ENCODING)?;
    let varies_by = words(headers, &header::VARY)?;
    // `Accept-Encoding` is a part of the key.
    if encodings.iter().any(|coding| coding != "identity")
        || varies_by.iter().any(|name| name != "accept-encoding")
    {
        return None;
    }
    let etag = strong_etag(headers)?;
    let length = only(headers, &header::CONTENT_LENGTH)?
        .parse::<u64>()
        .ok()?;
    if length == 0 || length > max_bytes {
        return None;
    }
    let mut kept = Vec::new();
    for name in &KEPT_HEADERS {
        if headers.contains_key(name) {
            kept.push((name.as_str().to_owned(), only(headers, name)?.to_owned()));
        }
    }
    let bytes: usize = kept.iter().map(|(_, value)| value.len()).sum();
    (bytes <= MAX_KEPT_BYTES).then(|| Entry::new(etag.to_owned(), kept, length))
}

/// Whether an answer with 304 is about what the cache has. Hosts compare weakly (RFC 9110, section 13.1.2), and some make
/// the tag weak in an answer without a body: it is still the one that they were asked about.
pub(super) fn confirms(entry: &Entry, headers: &HeaderMap) -> bool {
    let mut tags = headers.get_all(header::ETAG).iter();
    let tag = tags.next();
    let is_same = |tag: &HeaderValue| {
        let tag = tag.as_bytes();
        tag.strip_prefix(b"W/").unwrap_or(tag) == entry.etag.as_bytes()
    };
    tags.next().is_none() && tag.is_none_or(is_same)
}

/// Headers of an answer from the cache: those of the host's 304, and what it leaves out. The body's are the kept ones.
pub(super) fn merged(entry: &Entry, mut headers: HeaderMap) -> HeaderMap {
    for name in &BODY_HEADERS {
        headers.remove(name);
    }
    for (name, value) in &entry.headers {
        if let Ok(name) = HeaderName::try_from(name.as_str())
            && let Ok(value) = HeaderValue::try_from(value.as_str())
            && !headers.contains_key(&name)
        {
            headers.insert(name, value);
        }
    }
    headers.insert(header::CONTENT_LENGTH, entry.length.into());
    headers
}

/// Entity tag that says that bytes are the same (RFC 9110, section 8.8.1).
fn strong_etag(headers: &HeaderMap) -> Option<&str> {
    let tag = only(headers, &header::ETAG)?;
    let inner = tag.strip_prefix('"')?.strip_suffix('"')?;
    (!inner.is_empty() && !inner.contains('"')).then_some(tag)
}

/// Value of a header that is there once, as text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Words of a list, in lower case; `None` where it is no text.
fn words(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for value in headers.get_all(name) {
        let parts = value.to_str().ok()?.split(',').map(str::trim);
        let parts = parts.filter(|part| !part.is_empty());
        found.extend(parts.map(str::to_ascii_lowercase));
    }
    Some(found)
}

/// Whether `Cache-Control` has one of these directives, with or without a value; `None` where it is no text.
fn has_directive(headers: &HeaderMap, wanted: &[&str]) -> Option<bool> {
    let directives = words(headers, &header::CACHE_CONTROL)?;
    let names = directives
        .iter()
        .filter_map(|directive| directive.split('=').next());
    let mut names = names.map(str::trim);
    Some(names.any(|name| wanted.contains(&name)))
}

#[cfg(test)]
mod tests;
