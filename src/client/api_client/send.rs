//! Requests of the client, and failures to get an answer.

use super::ApiClient;
use crate::{client::connection, exit::Failure};
use http::{Method, header};
use std::io::Read;
use ureq::{Body, SendBody};

/// Reason for which a call has no answer.
pub(super) enum CallFault {
    /// The request could not be made.
    NoRequest(http::Error),
    /// The gateway did not answer.
    NoAnswer(ureq::Error),
}

/// Body of a request.
pub(in crate::client) enum Payload<'a> {
    None,
    /// Bytes of a media type.
    Bytes(&'a [u8], &'static str),
    /// Bytes that are read while they are sent, and their number where it is known.
    Stream(&'a mut dyn Read, Option<u64>),
}

impl<'a> Payload<'a> {
    pub(super) fn json(bytes: Option<&'a [u8]>) -> Self {
        bytes.map_or(Self::None, |bytes| Self::Bytes(bytes, "application/json"))
    }

    pub(super) fn reborrow(&mut self) -> Payload<'_> {
        match self {
            Self::None => Payload::None,
            Self::Bytes(bytes, kind) => Payload::Bytes(bytes, kind),
            Self::Stream(reader, length) => Payload::Stream(reader, *length),
        }
    }
}

impl ApiClient {
    /// Sends a call; fails where there is no answer.
    pub(super) fn send(
        &self,
        method: &Method,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: Payload<'_>,
    ) -> Result<http::Response<Body>, Failure> {
        self.run(method, path, token, headers, body)
            .map_err(|fault| match fault {
                CallFault::NoRequest(error) => Failure::internal(error),
                CallFault::NoAnswer(error) => connection::failure(&self.url, &error),
            })
    }

    pub(super) fn run(
        &self,
        method: &Method,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: Payload<'_>,
    ) -> Result<http::Response<Body>, CallFault> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = match body {
            Payload::Bytes(body, kind) => {
                let request = request.header(header::CONTENT_TYPE, kind).body(body);
                self.agent.run(request.map_err(CallFault::NoRequest)?)
            }
            Payload::Stream(mut body, length) => {
                if let Some(length) = length {
                    request = request.header(header::CONTENT_LENGTH, length);
                }
                let request = request
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::EXPECT, "100-continue")
                    .body(SendBody::from_reader(&mut body));
                self.agent.run(request.map_err(CallFault::NoRequest)?)
            }
            Payload::None => self
                .agent
                .run(request.body(()).map_err(CallFault::NoRequest)?),
        };
        answer.map_err(CallFault::NoAnswer)
    }
}
