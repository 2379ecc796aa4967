//! Answer of a node about a job: a stream of events, or one document.

use super::{NodeCallError, SILENCE_TIMEOUT};
use crate::{
    api::{events::JobEvent, job_document::JobDocument},
    background,
    http::{
        client::{Call, CallError},
        client_response::{ClientResponse, JsonLines},
    },
};
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Media types of an answer about a job, events rather than a document.
const ACCEPTED_TYPES: &str = "application/x-ndjson, application/json;q=0.5";

/// Wait for the end of a stream after its last event.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams that are read to their end at a time.
static FINISHING: Semaphore = Semaphore::const_new(64);

/// Answer about a job that has not come yet.
pub(in crate::orchestrator) type PendingResponse<'a> =
    BoxFuture<'a, Result<JobResponse, NodeCallError>>;

/// Answer about a job.
pub(in crate::orchestrator) enum JobResponse {
    /// Events, as they come.
    Stream(NodeEvents),
    /// One document, from a worker without events.
    Document(PendingDocument),
}

/// Event stream of a job.
pub(in crate::orchestrator) struct NodeEvents {
    lines: JsonLines,
    url: String,
    /// Event that was peeked at, and is the next one.
    peeked: Option<JobEvent>,
}

impl NodeEvents {
    /// Next event; `None` at the end of the stream. Fails after [`SILENCE_TIMEOUT`] without a line. Cancel safe.
    pub(in crate::orchestrator) async fn next(
        &mut self,
    ) -> Result<Option<JobEvent>, NodeCallError> {
        if let Some(event) = self.peeked.take() {
            return Ok(Some(event));
        }
        match tokio::time::timeout(SILENCE_TIMEOUT, self.lines.next()).await {
            Ok(event) => Ok(event?),
            Err(_) => Err(CallError::timed_out(&self.url, SILENCE_TIMEOUT).into()),
        }
    }

    /// Reads the end of the stream in the background, so that its connection is used for the next call: one that is
    /// dropped before its end is closed.
    pub(in crate::orchestrator) fn finish(mut self) {
        // A node that never ends its streams can hold no more than this.
        let Ok(permit) = FINISHING.try_acquire() else {
            return;
        };
        background::spawn("finish_events", async move {
            // Whatever comes, or fails, ends the wait.
            let _ = tokio::time::timeout(FINISH_TIMEOUT, self.next()).await;
            drop(permit);
        });
    }

    /// First event that says more than that the node is alive; it stays the next one.
    pub(in crate::orchestrator) async fn peek_first(
        &mut self,
    ) -> Result<Option<&JobEvent>, NodeCallError> {
        while let Some(event) = self.next().await? {
            if event.seq().is_some() {
                return Ok(Some(self.peeked.insert(event)));
            }
        }
        Ok(None)
    }
}

/// Document about a job, of which only the head has come.
pub(in crate::orchestrator) struct PendingDocument(ClientResponse);

impl PendingDocument {
    /// Whole document. There is no time limit: some workers send it when the job ends.
    pub(in crate::orchestrator) async fn read(self) -> Result<JobDocument, NodeCallError> {
        Ok(self.0.document().await?)
    }
}

/// Makes the call and receives the head of the answer.
pub(super) async fn receive_response(call: Call<'_>) -> Result<JobResponse, NodeCallError> {
    let response = call.open(ACCEPTED_TYPES).await?;
    Ok(if response.has_lines() {
        JobResponse::Stream(NodeEvents {
            url: response.url().to_owned(),
            lines: response.lines(),
            peeked: None,
        })
    } else {
        JobResponse::Document(PendingDocument(response))
    })
}
