//! Calls about the snapshots of a node. That which makes one [passes](super::SessionCall).

use super::{NodeCallError, NodeClient};
use crate::{
    api::{INSTANCE_HEADER, snapshots::StoredSnapshots},
    http::{
        client::{Call, CallBody, CallError},
        client_response::ByteStream,
        request::parse_json,
    },
};
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use std::convert::Infallible;

/// Most bytes of a list: some thousands of snapshots.
const MAX_LIST_BYTES: usize = 1024 * 1024;

impl<'a> NodeClient<'a> {
    /// Snapshots of all users. The caller limits the time.
    pub(in crate::orchestrator) async fn snapshots(
        &self,
    ) -> Result<StoredSnapshots, NodeCallError> {
        let request =
            |call: Call<'a>| async { Ok(bounded::<StoredSnapshots>(call.bytes().await?).await?) };
        self.call_to(Method::GET, "snapshots", request).await
    }

    /// Deletes a snapshot, and receives the head of an answer of any status. The caller limits the time.
    pub(in crate::orchestrator) async fn delete_snapshot(
        &self,
        image: &str,
    ) -> Result<http::Response<Incoming>, CallError> {
        let answer = self.send_delete(image, &self.tokens.newest).await?;
        match &self.tokens.applied {
            // A node that refuses the token has not acted.
            Some(applied) if answer.status() == StatusCode::UNAUTHORIZED => {
                self.send_delete(image, applied).await
            }
            _ => Ok(answer),
        }
    }

    async fn send_delete(
        &self,
        image: &str,
        token: &str,
    ) -> Result<http::Response<Incoming>, CallError> {
        // No character of an image needs an escape in a query.
        let url = format!("{}/v1/worker/snapshots?image={image}", self.base_url);
        let request = http::Request::builder()
            .method(Method::DELETE)
            .uri(&url)
            .body(empty());
        let authorized = request.and_then(|mut request| {
            let bearer = HeaderValue::try_from(format!("Bearer {token}"))?;
            let instance = HeaderValue::try_from(self.instance)?;
            let headers = request.headers_mut();
            headers.insert(header::AUTHORIZATION, bearer);
            headers.insert(INSTANCE_HEADER, instance);
            Ok(request)
        });
        let request = authorized.map_err(|error| CallError::Malformed {
            reason: error.to_string(),
            url,
        })?;
        self.client.forward(request).await
    }
}

fn empty() -> CallBody {
    let never = |error: Infallible| match error {};
    Empty::new().map_err(never).boxed_unsync()
}

/// Document of at most [`MAX_LIST_BYTES`].
async fn bounded<T: DeserializeOwned>(mut stream: ByteStream) -> Result<T, CallError> {
    let malformed = |stream: &ByteStream, reason: String| CallError::Malformed {
        url: stream.url().to_owned(),
        reason,
    };
    let mut document = Vec::new();
    while let Some(chunk) = stream.next().await? {
        document.extend_from_slice(&chunk);
        if document.len() > MAX_LIST_BYTES {
            let reason = format!("it is longer than {MAX_LIST_BYTES} bytes");
            return Err(malformed(&stream, reason));
        }
    }
    parse_json(&document).map_err(|problem| malformed(&stream, problem.detail))
}
