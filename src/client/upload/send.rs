//! Transfer of a content to the orchestrator, which goes on after a cut.

use super::{ContentReader, Manifest, read_failure};
use crate::{
    client::{
        api_client::ApiClient,
        artifact::Artifact,
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
    let mut progress = Progress::start("upload", name, size);
    let (mut last_progress, mut furthest, mut is_noted) = (Instant::now(), 0, false);
    loop {
        let interrupted = match try_send(api, manifest, &path, size, &mut progress) {
            Ok(Some(sent)) => return Ok(sent),
            Ok(None) => None,
            Err(failure) if failure.exit == Exit::Unreachable => Some(failure),
            Err(failure) => return Err(failure),
        };
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

/// One attempt, from where the orchestrator stands; `None` where it stands elsewhere now.
fn try_send(
    api: &mut ApiClient,
    manifest: &Arc<Manifest>,
    path: &str,
    size: u64,
    progress: &mut Progress,
) -> Result<Option<(Artifact, String)>, Failure> {
    let start = match api.ask_upload(path, size)? {
        Received::Bytes(start) => start,
        // Complete, but for the answer that was lost; the content was sent by this user, from this manifest.
        Received::All(artifact) => {
            let sha256 = artifact.sha256.clone();
            return Ok(Some((artifact, sha256)));
        }
    };
    progress.set(start);
    let mut body = Body {
        reader: ContentReader::open(manifest, start),
        failure: None,
        progress,
    };
    let sent = api.send_upload(path, &mut body, start, size);
    if let Some(error) = body.failure.take() {
        return Err(read_failure(error));
    }
    match sent? {
        Sent::Done(artifact) => {
            let sha256 = body.reader.finish()?;
            if artifact.sha256 != sha256 {
                let text = "the orchestrator has other bytes than were sent; try again";
                return Err(Failure::internal(text));
            }
            Ok(Some((artifact, sha256)))
        }
        Sent::Elsewhere => Ok(None),
    }
}

/// Body of an upload. Keeps a failure to read, which would look like one of the connection.
struct Body<'a> {
    reader: ContentReader,
    failure: Option<io::Error>,
    progress: &'a mut Progress,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(read) => {
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
