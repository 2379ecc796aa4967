//! Calls of the model server of a node: passed on as they come, answered as it answers.

use super::{NodeClient, Tokens};
use crate::{
    api::INSTANCE_HEADER,
    http::client::{CallBody, CallError},
    inference::{Endpoint, relay},
};
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use std::io;

/// Media type of answers in a worker's own words.
const PROBLEM_JSON: &str = "application/problem+json";

/// Call of a model server.
pub(in crate::orchestrator) struct ModelRequest<'a> {
    pub(in crate::orchestrator) endpoint: Endpoint,
    /// Headers that pass.
    pub(in crate::orchestrator) headers: &'a HeaderMap,
    /// Length of the body, where it is known.
    pub(in crate::orchestrator) length: Option<u64>,
}

impl NodeClient<'_> {
    /// Passes a call on, and receives the head of an answer of any status, the worker's own ones included. `body` makes
    /// the body from its beginning. There is no timeout; dropping the answer ends the call at the model server.
    pub(in crate::orchestrator) async fn infer<S>(
        &self,
        request: &ModelRequest<'_>,
        body: impl Fn() -> S,
    ) -> Result<http::Response<Incoming>, CallError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let Tokens { newest, applied } = &self.tokens;
        let answer = self.send_model_call(request, newest, body()).await?;
        match applied {
            // A node that refuses the token has not acted.
            Some(applied)
                if answer.status() == StatusCode::UNAUTHORIZED && is_own_answer(&answer) =>
            {
                self.send_model_call(request, applied, body()).await
            }
            _ => Ok(answer),
        }
    }

    async fn send_model_call<S>(
        &self,
        request: &ModelRequest<'_>,
        token: &str,
        body: S,
    ) -> Result<http::Response<Incoming>, CallError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let path = request.endpoint.path();
        let url = format!("{}/v1/worker/inference{path}", self.base_url);
        let sent = self.build(request, token, &url, body);
        let sent = sent.map_err(|error| CallError::Malformed {
            reason: error.to_string(),
            url,
        })?;
        self.client.forward(sent).await
    }

    fn build<S>(
        &self,
        request: &ModelRequest<'_>,
        token: &str,
        url: &str,
        body: S,
    ) -> http::Result<http::Request<CallBody>>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let mut headers = request.headers.clone();
        let bearer = HeaderValue::try_from(format!("Bearer {token}"))?;
        headers.insert(header::AUTHORIZATION, bearer);
        headers.insert(INSTANCE_HEADER, HeaderValue::try_from(self.instance)?);
        relay::request(request.endpoint, url, headers, request.length, body)
    }
}

/// Whether an answer is in a worker's own words, not those of its model server.
pub(in crate::orchestrator) fn is_own_answer<B>(answer: &http::Response<B>) -> bool {
    let content_type = answer.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(PROBLEM_JSON.as_bytes()))
        || answer.headers().contains_key(relay::FAULT_HEADER)
}
