//! Calls about the snapshots of a node. That which makes one [passes](super::SessionCall).

use super::{NodeCallError, NodeClient};
use crate::{
    api::snapshots::StoredSnapshots,
    http::client::{Call, CallError, whole},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::body::Incoming;

impl<'a> NodeClient<'a> {
    /// Snapshots of all users. The caller limits the time.
    pub(in crate::orchestrator) async fn snapshots(
        &self,
    ) -> Result<StoredSnapshots, NodeCallError> {
        let request = |call: Call<'a>| async { Ok(call.receive::<StoredSnapshots>().await?) };
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
        let path = format!("snapshots?image={image}");
        let mut request = http::Request::new(whole(Bytes::new()));
        *request.method_mut() = Method::DELETE;
        self.forward(&path, token, request).await
    }
}
