//! Secrets at the edge: those that a job never sees. Its variable holds a placeholder, and the proxy puts the value in its
//! place in requests to one host, in one header.

use super::SecretRef;
use crate::api::{
    egress::{EgressSpec, HTTPS_PORT},
    problem::Problem,
};

/// Header that gets a value where a request names none.
pub const DEFAULT_HEADER: &str = "authorization";
/// Pattern of names of headers, for schemas (RFC 9110, section 5.6.2).
pub(super) const HEADER_PATTERN: &str = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";
/// Longest name of a header, in bytes.
pub(super) const MAX_HEADER_BYTES: usize = 128;
/// Characters of a header's name beside letters and digits.
const SIGNS: &[u8] = b"!#$%&'*+-.^_`|~";
/// Headers that belong to the connection, or say where a request goes and how long it is.
const RESERVED: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Beginning of headers that are for proxies.
const RESERVED_PREFIX: &str = "proxy-";

/// Reason why a text is no header that can get a secret; a predicate about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidHeader {
    /// Not the name of a header.
    #[error("is not the name of a header; write one such as authorization or x-api-key")]
    Form,
    /// A header that the proxy sets itself.
    #[error(
        "is a header that the proxy sets itself; name another one, such as authorization or x-api-key"
    )]
    Reserved,
}

/// Name of a header that can get a secret, in lower case.
pub fn header_name(text: &str) -> Result<String, InvalidHeader> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || SIGNS.contains(&b);
    let has_form = (1..=MAX_HEADER_BYTES).contains(&text.len()) && text.bytes().all(is_token);
    let name = text.to_ascii_lowercase();
    if !has_form {
        Err(InvalidHeader::Form)
    } else if name.starts_with(RESERVED_PREFIX) || RESERVED.contains(&name.as_str()) {
        Err(InvalidHeader::Reserved)
    } else {
        Ok(name)
    }
}

/// Checks that the proxy can put each secret of a request into requests to its host. `egress` are the hosts of the job;
/// `pointer` names the secrets in the problem.
pub(in crate::api) fn check_hosts(
    pointer: &str,
    refs: &[SecretRef],
    egress: Option<&EgressSpec>,
) -> Result<(), Problem> {
    for (n, secret) in refs.iter().enumerate() {
        let Some(host) = &secret.host else { continue };
        let detail = match egress {
            None => format!(
                "names {host}, which the job can't reach; set network_policy \"allowlist\", and list the host in \
                 egress.allow"
            ),
            Some(egress) if !egress.has(host) => host.unlisted(),
            Some(egress) if host.port == HTTPS_PORT && !egress.terminate.contains(host) => format!(
                "names {host}, and the proxy can't see into its TLS; add {host} to egress.terminate"
            ),
            Some(_) => continue,
        };
        return Err(Problem::field(&format!("{pointer}/{n}/host"), detail));
    }
    Ok(())
}

/// Checks at a node that each secret has a host and a header, or neither. The list of the job may be shorter than it was when
/// the job was created, so whether it has the host is left to the proxy.
pub(in crate::api) fn check_sent(
    pointer: &str,
    refs: &[SecretRef],
    has_egress: bool,
) -> Result<(), Problem> {
    for (n, secret) in refs.iter().enumerate() {
        let at = format!("{pointer}/{n}");
        let (field, detail) = match (&secret.host, secret.header.as_deref()) {
            (None, None) => continue,
            (Some(_), _) if !has_egress => {
                ("/host", "needs network_policy \"allowlist\" and egress")
            }
            (Some(_), Some(header)) if header_name(header).as_deref() == Ok(header) => continue,
            (Some(_), Some(_)) => (
                "/header",
                "must be the name of a header that the proxy may set, in lower case",
            ),
            (Some(_), None) => ("", "must have a header where it has a host"),
            (None, Some(_)) => ("/header", "needs a host"),
        };
        return Err(Problem::field(&format!("{at}{field}"), detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
