//! Transfer of a content to the orchestrator, which goes on after a cut.

use super::{ContentReader, Manifest, read_failure};
use crate::{
    api::artifacts::Artifact,
    client::{
        api_client::ApiClient,
        paths,
        print::clean,
        progress::Progress,
        transfer::{Received, Sent},
    },
    exit::{Exit, Failure},
};
use std::{
    io::{self, Read},
    sync::Arc,
    time::{Duration, Instant},
};

/// Time for which an upload tries to go on without any progress.
const RESUME_TIMEOUT: Duration = Duration::from_mins(5);
/// Pause between two attempts.
const RESUME_INTERVAL: Duration = Duration::from_secs(1);

/// Artifact of this content, where the orchestrator has the content of this user already.
pub(super) fn find(
    api: &mut ApiClient,
    name: &str,
    sha256: &str,
    size: u64,
) -> Result<Option<Artifact>, Failure> {
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
    let path = paths::with_query("/v1/artifacts", &query);
    let mut transfer = Transfer {
        manifest,
        size,
        progress: Progress::start("upload", name, size),
        sha256: None,
    };
    let (mut last_progress, mut furthest, mut is_noted) = (Instant::now(), 0, false);
    loop {
        // Where everything was sent and the answer was lost, the content may be there.
        let sent = match transfer.sha256.clone() {
            Some(sha256) => find(api, name, &sha256, size).map(|found| Some((found?, sha256))),
            None => Ok(None),
        };
        let sent = match sent {
            Ok(None) => transfer.attempt(api, &path),
            sent => sent,
        };
        let interrupted = match sent {
            Ok(Some(sent)) => return Ok(sent),
            Ok(None) => None,
            Err(failure) if failure.exit == Exit::Unreachable => Some(failure),
            Err(failure) => return Err(failure),
        };
        let progress = &transfer.progress;
        if progress.position() > furthest {
            furthest = progress.position();
            last_progress = Instant::now();
        }
        if last_progress.elapsed() > RESUME_TIMEOUT {
            let text = "the upload does not go on; run the command again to continue it";
            return Err(interrupted.unwrap_or_else(|| Failure::new(Exit::Unreachable, text)));
        }
        if !is_noted {
            progress.note(&format!("upload of {} interrupted; retrying", clean(name)));
            is_noted = true;
        }
        std::thread::sleep(RESUME_INTERVAL);
    }
}

/// Transfer of one content.
struct Transfer<'a> {
    manifest: &'a Arc<Manifest>,
    size: u64,
    progress: Progress,
    /// Hash, once everything was sent.
    sha256: Option<String>,
}

impl Transfer<'_> {
    /// One attempt, from where the orchestrator stands; `None` where it stands elsewhere now.
    fn attempt(
        &mut self,
        api: &mut ApiClient,
        path: &str,
    ) -> Result<Option<(Artifact, String)>, Failure> {
        let start = match api.ask_upload(path, self.size)? {
            Received::Bytes(start) => start.min(self.size),
            Received::All(artifact) => {
                let sha256 = artifact.sha256.to_string();
                return Ok(Some((artifact, sha256)));
            }
        };
        self.progress.set(start);
        let mut body = Body {
            reader: ContentReader::open(self.manifest, start),
            left: self.size - start,
            failure: None,
            progress: &mut self.progress,
        };
        let sent = api.send_upload(path, &mut body, start, self.size);
        if let Some(error) = body.failure {
            return Err(read_failure(error));
        }
        if body.left == 0 {
            self.sha256 = Some(body.reader.finish()?);
        }
        match (sent?, self.sha256.clone()) {
            (Sent::Done(artifact), Some(sha256)) if artifact.sha256.as_str() == sha256 => {
                Ok(Some((artifact, sha256)))
            }
            (Sent::Done(_), _) => {
                let text = "the orchestrator has other bytes than were sent; try again";
                Err(Failure::internal(text))
            }
            (Sent::Elsewhere, _) => Ok(None),
        }
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
