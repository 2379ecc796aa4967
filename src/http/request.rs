//! Request as a handler sees it: path parameters, query, bearer token, checked JSON.

pub use super::json_body::parse_json;

use super::{
    MAX_BODY_BYTES, UploadPart,
    body::{self, ArrivingBody, BodyChunks},
    budget::{Account, BodyReservation},
    connection_info::ConnectionInfo,
    connection_limiter::ConnectionPermit,
    json_body::{check_structure, parse},
    query::{decode, query_value, query_values},
    warnings::Warnings,
};
use crate::{
    api::{
        audit::RequestOrigin,
        check_envelope_version,
        problem::{Problem, ProblemKind},
    },
    text::clean_prefix,
};
use http::{
    HeaderMap, Method, header,
    request::Parts,
    uri::{Authority, PathAndQuery},
};
use serde::de::DeserializeOwned;
use std::{
    collections::HashMap,
    str::FromStr,
    sync::{Arc, OnceLock},
};

/// Longest part of a value that a problem quotes, in bytes.
const MAX_QUOTED_BYTES: usize = 64;

/// Context in which a request arrived.
pub(super) struct RequestContext {
    pub(super) connection: ConnectionInfo,
    /// Authority that the request names.
    pub(super) authority: Option<Authority>,
    /// Permit of its connection.
    pub(super) permit: Arc<ConnectionPermit>,
}

impl RequestContext {
    /// URL of this server by the scheme, host and port of the request.
    pub(super) fn base_url(&self) -> Option<String> {
        self.connection.base_url(self.authority.as_ref())
    }
}

/// Request for a handler.
pub struct Request {
    parts: Parts,
    body: ArrivingBody,
    body_limit: usize,
    params: HashMap<String, String>,
    /// Connection that it arrived on.
    pub connection: ConnectionInfo,
    authority: Option<Authority>,
    permit: Arc<ConnectionPermit>,
    /// Account whose credentials it has shown.
    account: OnceLock<Account>,
    /// Memory of the body, held until the request is done.
    reservation: Option<BodyReservation>,
    /// Request id, which the answer carries, too.
    id: String,
    warnings: Warnings,
}

impl Request {
    pub(super) fn new(
        parts: Parts,
        body: ArrivingBody,
        params: HashMap<String, String>,
        context: RequestContext,
        id: String,
        warnings: Warnings,
    ) -> Self {
        Self {
            parts,
            body,
            body_limit: MAX_BODY_BYTES,
            params,
            connection: context.connection,
            authority: context.authority,
            permit: context.permit,
            account: OnceLock::new(),
            reservation: None,
            id,
            warnings,
        }
    }

    /// Origin for the audit log: address of the client and request id.
    pub fn origin(&self) -> RequestOrigin {
        RequestOrigin {
            address: self.connection.client,
            request_id: self.id.clone(),
        }
    }

    /// URL of this server by the scheme of the connection, and by the host and port that the request names.
    pub fn base_url(&self) -> Option<String> {
        self.connection.base_url(self.authority.as_ref())
    }

    /// Marks the request as authorized: its connection is not evicted once its body is complete, and the body is
    /// charged to `account`. Fails with 503 where the account has too many requests in flight.
    pub fn authorize(&self, account: Account) -> Result<(), Problem> {
        self.permit.authorize_account(account)?;
        // The first account counts; a request has one caller.
        let _ = self.account.set(account);
        Ok(())
    }

    /// Marks the request as a short call of the listener's sole client, which is accepted also at that client's
    /// limit of requests in flight.
    pub fn authorize_sole_client(&self) {
        self.permit.authorize_sole_client();
        let _ = self.account.set(Account::SoleClient);
    }

    /// Marks the request as preemptible: its connection may be evicted for any other, and its client resumes.
    pub fn mark_preemptible(&self) {
        self.permit.mark_preemptible();
    }

    /// Marks an authorized request as one of a kind whose number the handler limits by itself.
    pub fn mark_limited_elsewhere(&self) {
        self.permit.mark_limited_elsewhere();
    }

    /// Marks the connection as authorized, by credentials in the body of the request.
    pub fn authorize_connection(&self) {
        self.permit.authorize();
    }

    /// Method.
    pub fn method(&self) -> &Method {
        &self.parts.method
    }

    /// Path and query as they were sent, to pass them on.
    pub fn path_and_query(&self) -> &str {
        let target = self.parts.uri.path_and_query();
        target.map_or("/", PathAndQuery::as_str)
    }

    /// Header fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// Value of a header; `None` where it is absent or not text.
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

    /// Token of `Authorization: Bearer …`.
    pub fn bearer(&self) -> Option<&str> {
        let credentials = self.header(header::AUTHORIZATION.as_str())?;
        let (scheme, token) = credentials.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// Adds a warning to the answer that `field` was ignored or changed.
    pub fn warn(&self, field: &str, detail: impl Into<String>) {
        self.warnings.add(field, detail.into());
    }

    /// Path parameter `name` as a `T`. One that can't be parsed names nothing that exists: 404 for `thing`.
    pub fn param<T: FromStr>(&self, name: &str, thing: &str) -> Result<T, Problem> {
        self.params
            .get(name)
            .and_then(|value| decode(value).parse().ok())
            .ok_or_else(|| Problem::not_found(thing))
    }

    /// Query parameter `name`, decoded; `None` where it is absent.
    pub fn query(&self, name: &str) -> Option<String> {
        self.warnings.mark_parameter_known(name);
        query_value(self.parts.uri.query()?, name)
    }

    /// Marks every query parameter as known, for a request that is passed on: it is known elsewhere.
    pub fn mark_parameters_known(&self) {
        let query = self.parts.uri.query().unwrap_or_default();
        self.warnings.mark_parameters_known(query);
    }

    /// Values of a query parameter `name` that may be repeated, decoded.
    pub fn query_all(&self, name: &str) -> Vec<String> {
        self.warnings.mark_parameter_known(name);
        let query = self.parts.uri.query().unwrap_or_default();
        query_values(query, name).collect()
    }

    /// Query parameter `name` as a `T`. Fails with 400; `expected` completes "must be …" in its text.
    pub fn query_as<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        self.query_if(name, expected, |_| true)
    }

    /// Same as [`query_as`](Self::query_as) for values that must also be valid.
    pub fn query_if<T: FromStr>(
        &self,
        name: &str,
        expected: &str,
        is_valid: impl FnOnce(&T) -> bool,
    ) -> Result<Option<T>, Problem> {
        let value = self.query(name);
        value
            .map(|value| parse_query(name, &value, expected, is_valid))
            .transpose()
    }

    /// Body as JSON of the shape of `T`. Fails with 400, 413, 415 or 503.
    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        let bytes = self.bytes().await?;
        if self.body_limit > MAX_BODY_BYTES {
            check_structure(&bytes)?;
        }
        self.read(&bytes)
    }

    /// Same as [`json`](Self::json) for versioned payloads between orchestrator and node: the version is checked
    /// before anything else.
    pub async fn payload<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        let bytes = self.bytes().await?;
        check_envelope_version(&bytes)?;
        self.read(&bytes)
    }

    /// Same as [`json`](Self::json), with the default of `T` for an empty body.
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
            let mut ignored =
                |path: serde_ignored::Path<'_>| self.warnings.add_unknown_field(&path);
            serde_path_to_error::deserialize(serde_ignored::Deserializer::new(
                deserializer,
                &mut ignored,
            ))
        })
    }

    /// Lowers the limit on the body to `bytes`.
    pub fn limit_body(&mut self, bytes: usize) {
        self.body_limit = self.body_limit.min(bytes);
    }

    /// Body as a stream of chunks, of any size. For authorized requests only: such a body counts against no memory,
    /// and its connection is not evicted for others while it arrives.
    pub fn chunks(&mut self) -> BodyChunks {
        self.permit.mark_received();
        BodyChunks::new(self.body.take())
    }

    /// Memory for the body of a call of a model, charged to the caller's account in the pool of such calls: at once
    /// for the `announced` bytes, so that a body that does not fit is refused before it is sent.
    pub fn reserve_for_models(&self, announced: usize) -> Result<BodyReservation, Problem> {
        BodyReservation::open_for_models(self.payer(), announced)
    }

    /// Memory of the body, for what is made of it and outlives the request.
    pub fn take_reservation(&mut self) -> Option<BodyReservation> {
        self.reservation.take()
    }

    /// Account that the body is charged to.
    fn payer(&self) -> Account {
        let account = self.account.get().copied();
        account.unwrap_or_else(|| Account::anonymous(self.connection.client))
    }

    /// Id of the request, which the answer carries, too.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Part of an upload that the body is, by its header `Content-Range`; `None` without one. Fails with 400.
    pub fn upload_part(&self) -> Result<Option<UploadPart>, Problem> {
        let name = header::CONTENT_RANGE;
        if !self.parts.headers.contains_key(&name) {
            return Ok(None);
        }
        let part = self.header(name.as_str()).and_then(UploadPart::parse);
        part.map(Some).ok_or_else(|| {
            let detail = "header Content-Range: must be such as \"bytes 0-99/1000\", or \"bytes */1000\" to ask how much has arrived";
            Problem::new(ProblemKind::InvalidRequest, detail)
        })
    }

    /// Raises the limit on the body to `bytes`, for an authorized request.
    pub fn allow_body(&mut self, bytes: usize) {
        self.body_limit = bytes;
    }

    /// Whole body, within the limits on size, memory and time. Its memory stays reserved until the request is
    /// dropped, since the values parsed from it are no smaller.
    pub async fn bytes(&mut self) -> Result<Vec<u8>, Problem> {
        let length = self.header(header::CONTENT_LENGTH.as_str());
        let length = length.and_then(|length| length.parse().ok());
        body::check_length(length, self.body_limit)?;
        let mut reservation =
            BodyReservation::open(self.payer(), self.body_limit, length.unwrap_or(0))?;
        let body = self.body.take();
        let bytes = body::receive(body, self.body_limit, &mut reservation).await;
        self.permit.mark_received();
        self.reservation = Some(reservation);
        bytes
    }
}

/// Value of query parameter `name`. The problem quotes its beginning.
fn parse_query<T: FromStr>(
    name: &str,
    value: &str,
    expected: &str,
    is_valid: impl FnOnce(&T) -> bool,
) -> Result<T, Problem> {
    let parsed = value.parse().ok().filter(is_valid);
    parsed.ok_or_else(|| {
        let quoted = clean_prefix(value, MAX_QUOTED_BYTES);
        let detail = format!("query parameter `{name}` must be {expected}, got {quoted:?}");
        Problem::new(ProblemKind::InvalidRequest, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_query_value_is_quoted_cut_and_clean() {
        let refused = |value: &str| {
            let parsed = parse_query("limit", value, "1 to 200", |limit: &u32| *limit > 0);
            parsed.unwrap_err().detail
        };
        let start = "query parameter `limit` must be 1 to 200, got ";
        for value in ["0", "-1", "x"] {
            assert_eq!(refused(value), format!("{start}\"{value}\""));
        }
        let long = refused(&"\u{1b}[2J".repeat(2000));
        assert!(long.starts_with(start) && long.len() < 200, "{long}");
        assert!(!long.contains("u{1b}"), "{long}");
    }
}
