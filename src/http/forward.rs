//! Requests of others that are passed on: to another role, or to a model server.

use super::{
    call_error::CallError,
    client::{CallBody, Client},
};
use hyper::body::Incoming;

impl Client {
    /// Passes a request on as it is, and receives the head of an answer of any status. Dropping the future, or the body
    /// of the answer, ends the request at the peer. There is no timeout.
    pub async fn forward(
        &self,
        request: http::Request<CallBody>,
    ) -> Result<http::Response<Incoming>, CallError> {
        // Without the query, which may be a command line or the path of a file: errors reach the log.
        let mut url = request.uri().to_string();
        url.truncate(url.find('?').unwrap_or(url.len()));
        self.request(&url, request).await
    }
}
