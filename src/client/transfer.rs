//! Calls that transfer contents: uploads in parts, and downloads of ranges.

use super::{
    api_client::{ApiClient, Payload, read_json},
    paths,
    patience::CallFailure,
};
use crate::{api::artifacts::Artifact, exit::Failure};
use http::{Method, header};
use std::io::Read;

/// Part of a content that the orchestrator has.
pub(super) enum Received {
    /// The whole content; it is this artifact now.
    All(Artifact),
    /// So many bytes from its beginning.
    Bytes(u64),
}

/// Outcome of sending the rest of a content.
pub(super) enum Sent {
    /// The content is complete.
    Done(Artifact),
    /// The orchestrator expects other bytes.
    Elsewhere,
}

impl ApiClient {
    /// Asks how much of a content of `size` bytes has arrived.
    pub(super) fn ask_upload(&mut self, path: &str, size: u64) -> Result<Received, CallFailure> {
        let range = format!("bytes */{size}");
        let headers = [("content-range", range.as_str())];
        let answer = self.exchange(&Method::POST, path, &headers, Payload::None)?;
        if answer.status() != 308 {
            return Ok(Received::All(read_json(self.check_answer(answer)?)?));
        }
        let range = answer.headers().get(header::RANGE);
        let range = range
            .and_then(|range| range.to_str().ok())
            .unwrap_or_default();
        let last = range
            .strip_prefix("bytes=0-")
            .and_then(|last| last.parse::<u64>().ok());
        Ok(Received::Bytes(
            last.map_or(0, |last| last.saturating_add(1)),
        ))
    }

    /// Sends the bytes of a content from `start` on, of `size` in all.
    pub(super) fn send_upload(
        &mut self,
        path: &str,
        body: &mut dyn Read,
        start: u64,
        size: u64,
    ) -> Result<Sent, CallFailure> {
        let range = format!("bytes {start}-{}/{size}", size.saturating_sub(1));
        let headers = [("content-range", range.as_str())];
        // An empty content has no range.
        let headers = if size == 0 { &[][..] } else { &headers };
        let body = Payload::Stream(body, Some(size.saturating_sub(start)));
        let answer = self.exchange(&Method::POST, path, headers, body)?;
        if answer.status() == 416 || answer.status() == 308 {
            return Ok(Sent::Elsewhere);
        }
        Ok(Sent::Done(read_json(self.check_answer(answer)?)?))
    }

    /// Artifact of this id.
    pub(super) fn artifact(&mut self, id: &str) -> Result<Artifact, Failure> {
        let headers = [("accept", "application/json")];
        let answer = self.exchange(&Method::GET, &paths::artifact(id), &headers, Payload::None)?;
        read_json(self.check_status(answer)?)
    }

    /// Bytes of an artifact from `start` on.
    pub(super) fn download(
        &mut self,
        path: &str,
        start: u64,
    ) -> Result<impl Read + use<>, CallFailure> {
        let range = format!("bytes={start}-");
        let headers = [("range", range.as_str())];
        let headers = if start == 0 { &[][..] } else { &headers };
        let answer = self.exchange(&Method::GET, path, headers, Payload::None)?;
        let answer = self.check_answer(answer)?;
        if start > 0 && answer.status() != 206 {
            let text = "the orchestrator did not continue the download";
            return Err(CallFailure::Lasting(Failure::internal(text)));
        }
        Ok(answer
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader())
    }
}
