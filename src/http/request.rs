//! What a handler sees of a request: path parameters, query, bearer token, checked JSON.

use super::{
    MAX_BODY_BYTES, body,
    budget::{Account, BodyReservation},
    connection_limiter::ConnectionPermit,
    json_error::{self, JsonError},
    warnings::Warnings,
};
use crate::api::{
    audit::RequestOrigin,
    check_envelope_version,
    problem::{Problem, ProblemKind},
};
use http::{HeaderMap, header, request::Parts, uri::Authority};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::{Arc, OnceLock},
};

type JsonDeserializer<'a> = serde_json::Deserializer<serde_json::de::SliceRead<'a>>;

/// Both ends of the connection that a request came by.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionInfo {
    /// Who called.
    pub peer: SocketAddr,
    /// The address of ours that was called.
    pub local: SocketAddr,
    /// Where the request came from, as far as it can be believed.
    pub client: IpAddr,
}

/// How a request came.
pub(super) struct RequestContext {
    pub(super) connection: ConnectionInfo,
    /// What it calls us.
    pub(super) authority: Option<Authority>,
    /// The place of its connection.
    pub(super) place: Arc<ConnectionPermit>,
}

/// A request on its way into a handler.
pub struct Request {
    parts: Parts,
    body: Option<Incoming>,
    body_limit: usize,
    params: HashMap<String, String>,
    /// Where it came from.
    pub connection: ConnectionInfo,
    authority: Option<Authority>,
    place: Arc<ConnectionPermit>,
    /// Who has shown good credentials.
    account: OnceLock<Account>,
    /// Memory of the body, until the request is done.
    share: Option<BodyReservation>,
    /// Its id, which the answer bears, too.
    id: String,
    warnings: Warnings,
}

impl Request {
    pub(super) fn new(
        parts: Parts,
        body: Incoming,
        params: HashMap<String, String>,
        arrival: RequestContext,
        id: String,
        warnings: Warnings,
    ) -> Self {
        Self {
            parts,
            body: Some(body),
            body_limit: MAX_BODY_BYTES,
            params,
            connection: arrival.connection,
            authority: arrival.authority,
            place: arrival.place,
            account: OnceLock::new(),
            share: None,
            id,
            warnings,
        }
    }

    /// What is written down of where it came from.
    pub fn origin(&self) -> RequestOrigin {
        RequestOrigin {
            address: self.connection.client,
            request_id: self.id.clone(),
        }
    }

    /// The host and port that it calls us by, in its target or in `Host`.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_ref().map(Authority::as_str)
    }

    /// Notes that it has shown good credentials: its connection stays when others need room, once all of its
    /// body is there, and its body is charged to this account. Fails where that has too much under way.
    pub fn authorize(&self, account: Account) -> Result<(), Problem> {
        self.place.authorize_account(account)?;
        // The first one counts; a request has one caller.
        let _ = self.account.set(account);
        Ok(())
    }

    /// The same for the sole caller of a listener, for a call that takes a moment: it is let through also where
    /// that caller has as much under way as it may.
    pub fn authorize_sole_client(&self) {
        self.place.authorize_sole_client();
        let _ = self.account.set(Account::SoleClient);
    }

    /// Notes that it only reads along: its connection makes room for any other, and whoever reads comes back.
    pub fn mark_preemptible(&self) {
        self.place.mark_preemptible();
    }

    /// Notes good credentials that its body has shown.
    pub fn authorize_connection(&self) {
        self.place.authorize();
    }

    /// The header fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// A header's value, when it is there and plain text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// Whether `Accept` names this media type.
    pub fn accepts(&self, media_type: &str) -> bool {
        self.header("accept").is_some_and(|accept| {
            accept.split(',').any(|one| {
                one.split(';')
                    .next()
                    .is_some_and(|one| one.trim() == media_type)
            })
        })
    }

    /// The token of `Authorization: Bearer …`.
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self
            .header(header::AUTHORIZATION.as_str())?
            .split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// Has the answer say that `field` was ignored or changed, where that is a JSON object.
    pub fn warn(&self, field: &str, detail: impl Into<String>) {
        self.warnings.add(field, detail.into());
    }

    /// The path parameter `name`, decoded; one that can't be read names nothing that exists: 404 for `thing`.
    pub fn param<T: FromStr>(&self, name: &str, thing: &str) -> Result<T, Problem> {
        self.params
            .get(name)
            .and_then(|value| percent_decode(value, false).parse().ok())
            .ok_or_else(|| Problem::not_found(thing))
    }

    /// The query parameter `name`, decoded; `None` when absent.
    pub fn query(&self, name: &str) -> Option<String> {
        self.warnings.knows(name);
        query_value(self.parts.uri.query()?, name)
    }

    /// The query parameter `name` read as a `T`; `expected` tells the caller what would be right.
    pub fn query_as<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        self.query(name)
            .map(|value| {
                value.parse().map_err(|_| {
                    Problem::new(
                        ProblemKind::InvalidRequest,
                        format!("query parameter `{name}` must be {expected}, got {value:?}"),
                    )
                })
            })
            .transpose()
    }

    /// The body as JSON of the shape `T`.
    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        let bytes = self.bytes().await?;
        self.read(&bytes)
    }

    /// Like [`json`](Self::json), for what orchestrator and nodes send each other: the version of the
    /// payload is looked at before anything else.
    pub async fn payload<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        let bytes = self.bytes().await?;
        check_envelope_version(&bytes)?;
        self.read(&bytes)
    }

    /// Like [`json`](Self::json), with the default of `T` where there is no body at all.
    pub async fn json_or_default<T: DeserializeOwned + Default>(&mut self) -> Result<T, Problem> {
        let bytes = self.bytes().await?;
        if bytes.is_empty() {
            Ok(T::default())
        } else {
            self.read(&bytes)
        }
    }

    fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, Problem> {
        if bytes.is_empty() {
            return Err(Problem::new(
                ProblemKind::InvalidRequest,
                "the body must be a JSON object, got none",
            ));
        }
        let media_type = self
            .header(header::CONTENT_TYPE.as_str())
            .unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case("application/json") {
            return Err(Problem::new(
                ProblemKind::UnsupportedMediaType,
                "send the body as JSON, with Content-Type: application/json",
            ));
        }
        parse(bytes, |deserializer| {
            let mut ignored = |path: serde_ignored::Path<'_>| self.warnings.ignored(&path);
            serde_path_to_error::deserialize(serde_ignored::Deserializer::new(
                deserializer,
                &mut ignored,
            ))
        })
    }

    /// Takes no longer body than this, nor than any listener takes.
    pub fn limit_body(&mut self, bytes: usize) {
        self.body_limit = self.body_limit.min(bytes);
    }

    /// The whole body, within the limits of size, memory and time. Its memory counts until the request is
    /// dropped, since what is read from it is no smaller.
    pub async fn bytes(&mut self) -> Result<Vec<u8>, Problem> {
        let length = self
            .header(header::CONTENT_LENGTH.as_str())
            .and_then(|length| length.parse().ok());
        body::check_length(length, self.body_limit)?;
        let Some(body) = self.body.take() else {
            return Ok(Vec::new());
        };
        let account = self.account.get().copied();
        let account = account.unwrap_or_else(|| Account::anonymous(self.connection.client));
        let mut share = BodyReservation::open(account, self.body_limit, length.unwrap_or(0))?;
        let bytes = body::receive(body, self.body_limit, &mut share).await;
        self.place.receive();
        self.share = Some(share);
        bytes
    }
}

/// Bytes as a JSON object of the shape `T`; a wrong field is named by a JSON pointer.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    parse(bytes, |deserializer| {
        serde_path_to_error::deserialize(deserializer)
    })
}

/// The same, read by `read`.
fn parse<'a, T>(
    bytes: &'a [u8],
    read: impl FnOnce(&mut JsonDeserializer<'a>) -> Result<T, JsonError>,
) -> Result<T, Problem> {
    // serde would take the fields in their order from an array, which nobody has promised.
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

/// The first value of `name` in a query string, decoded; empty where it has none.
pub fn query_value(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decode(value, true))
    })
}

/// `%41`, and in a query `+` for a space; what isn't valid UTF-8 is replaced.
pub(super) fn percent_decode(text: &str, is_query: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if is_query && first == b'+' {
                    b' '
                } else {
                    first
                });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Deserialize, Debug)]
    #[allow(dead_code, reason = "only its shape matters")]
    struct Shape {
        list: Vec<HashMap<String, u8>>,
    }

    #[test]
    fn a_wrong_value_is_named_by_its_pointer() {
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

    proptest! {
        #[test]
        fn decoding_never_panics_and_undoes_encoding(text in any::<String>(), raw in "[ -~]{0,20}") {
            let _ = percent_decode(&raw, true);
            let encoded: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(percent_decode(&encoded, false), text);
        }

        #[test]
        fn garbage_is_a_problem_not_a_panic(bytes: Vec<u8>) {
            let _ = parse_json::<Shape>(&bytes);
        }
    }
}
