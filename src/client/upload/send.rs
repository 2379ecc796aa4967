//! Transfer of a content to the orchestrator, which goes on after a cut.

use super::{ContentReader, Manifest, hash_of, read_failure};
use crate::{
    api::artifacts::Artifact,
    client::{
        api_client::ApiClient,
        paths,
        patience::{CallFailure, Patience},
        print::clean,
        progress::Progress,
        transfer::{Received, Sent},
    },
    exit::{Exit, Failure},
};
use http::Method;
use std::{
    io::{self, Read},
    sync::Arc,
    time::Instant,
};

/// Artifact of this content, where the orchestrator has the content of this user already.
pub(super) fn find(
    api: &mut ApiClient,
    name: &str,
    sha256: &str,
    size: u64,
) -> Result<Option<Artifact>, CallFailure> {
    let query = [("name", Some(name)), ("sha256", Some(sha256))];
    let path = paths::with_query("/v1/artifacts", &query);
    Ok(match api.ask_upload(&path, size)? {
        Received::All(artifact) => Some(artifact),
        Received::Bytes(_) => None,
    })
}

/// Sends a content; returns its artifact and its hash.
pub(super) fn send(
    api: &mut ApiClient,
    manifest: &Arc<Manifest>,
    name: &str,
    key: &str,
    size: u64,
) -> Result<(Artifact, String), Failure> {
    let query = [("name", Some(name)), ("key", Some(key))];
    let mut transfer = Transfer {
        manifest,
        name,
        path: paths::with_query("/v1/artifacts", &query),
        size,
        progress: Progress::start("upload", name, size),
        patience: Patience::new(),
        sha256: None,
        is_again: false,
    };
    let mut is_noted = false;
    loop {
        let (failure, note) = match transfer.attempt(api) {
            Ok(Some(sent)) => return Ok(sent),
            Ok(None) => (None, "interrupted; retrying"),
            Err(CallFailure::Lasting(failure)) => return Err(failure),
            Err(CallFailure::Passing(failure)) => (Some(failure), "interrupted; retrying"),
            Err(CallFailure::Busy(failure)) => {
                // Once the other call is through, the content is known by its hash.
                transfer.hash()?;
                (Some(failure), "waits for another one of the same files")
            }
        };
        if !is_noted {
            let note = format!("upload of {} {note}", clean(name));
            transfer.progress.note(&note);
            is_noted = true;
        }
        transfer.patience.reached(transfer.progress.position());
        transfer.patience.pause(|| {
            let text = "the upload does not go on; run the command again to continue it";
            failure.unwrap_or_else(|| Failure::new(Exit::Unreachable, text))
        })?;
    }
}

/// Transfer of one content.
struct Transfer<'a> {
    manifest: &'a Arc<Manifest>,
    name: &'a str,
    /// Path of the upload, with its key.
    path: String,
    size: u64,
    progress: Progress,
    patience: Patience,
    /// Hash, once everything was sent or read.
    sha256: Option<String>,
    /// Whether the content is sent again because other bytes had arrived.
    is_again: bool,
}

impl Transfer<'_> {
    /// One attempt, from where the orchestrator stands; `None` where another one is to follow.
    fn attempt(&mut self, api: &mut ApiClient) -> Result<Option<(Artifact, String)>, CallFailure> {
        // Where everything was sent and the answer was lost, or where another call sends, the content may be there.
        if let Some(sha256) = self.sha256.clone()
            && let Some(artifact) = find(api, self.name, &sha256, self.size)?
        {
            return Ok(Some((artifact, sha256)));
        }
        let start = match api.ask_upload(&self.path, self.size)? {
            Received::All(artifact) => return self.check(api, artifact),
            Received::Bytes(start) => start.min(self.size),
        };
        self.progress.set(start);
        if start == self.size && start > 0 {
            // All has arrived, and is not stored yet.
            self.hash()?;
            return Ok(None);
        }
        let mut reader = ContentReader::open(self.manifest, start);
        let begin = Instant::now();
        // Before the call: the orchestrator does not wait long for the first byte.
        reader.read_to_start().map_err(read_failure)?;
        self.patience.excuse(begin.elapsed());
        let mut body = Body {
            reader,
            left: self.size - start,
            failure: None,
            progress: &mut self.progress,
        };
        let sent = api.send_upload(&self.path, &mut body, start, self.size);
        if let Some(error) = body.failure {
            return Err(read_failure(error).into());
        }
        if body.left == 0 {
            self.sha256 = Some(body.reader.finish().map_err(read_failure)?);
        }
        match sent? {
            Sent::Done(artifact) => self.check(api, artifact),
            Sent::Elsewhere => Ok(None),
        }
    }

    /// Takes an artifact that has the bytes of the content. Deletes another one, as a crash of the orchestrator may
    /// leave it, and has the content sent again, once.
    fn check(
        &mut self,
        api: &mut ApiClient,
        artifact: Artifact,
    ) -> Result<Option<(Artifact, String)>, CallFailure> {
        let sha256 = self.hash()?;
        if artifact.sha256.as_str() == sha256 {
            return Ok(Some((artifact, sha256)));
        }
        let path = paths::artifact(&artifact.artifact_id.to_string());
        api.done(Method::DELETE, &path, None::<&()>)?;
        if self.is_again {
            let text = "the orchestrator has other bytes than were sent; try again";
            return Err(Failure::internal(text).into());
        }
        self.is_again = true;
        self.sha256 = None;
        self.patience = Patience::new();
        Ok(None)
    }

    /// Hash of the content, which is read where it was not sent.
    fn hash(&mut self) -> Result<String, Failure> {
        if let Some(sha256) = &self.sha256 {
            return Ok(sha256.clone());
        }
        let begin = Instant::now();
        let sha256 = hash_of(self.manifest)?;
        self.patience.excuse(begin.elapsed());
        self.sha256 = Some(sha256.clone());
        Ok(sha256)
    }
}

/// Body of an upload. Keeps a failure to read, which would look like one of the connection.
struct Body<'a> {
    reader: ContentReader,
    left: u64,
    failure: Option<io::Error>,
    progress: &'a mut Progress,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(read) => {
                self.left = self.left.saturating_sub(read as u64);
                self.progress.add(read as u64);
                Ok(read)
            }
            Err(error) => {
                self.failure = Some(error);
                Err(io::Error::other("the content can't be read"))
            }
        }
    }
}
