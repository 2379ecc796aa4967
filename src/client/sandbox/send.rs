//! Copies into a sandbox: a file, a directory as an archive that is made while it is sent, or an archive from stdin.

use super::{
    copy::{Found, look},
    local::{SandboxPath, local_name},
    target::Target,
};
use crate::{
    client::{
        api_client::{ApiClient, Payload},
        paths,
        print::{clean, note},
        progress::Progress,
        upload::{ContentReader, Manifest, Upload, content_size},
    },
    exit::{Exit, Failure},
};
use http::Method;
use std::{
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};

/// Time for the answer once everything is sent: the sandbox may still be writing.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(10);

/// Copies a file or a directory of this machine. Returns the path in the sandbox.
pub(super) fn path(
    api: &mut ApiClient,
    target: &Target,
    from: &Path,
    to: &SandboxPath,
) -> Result<String, Failure> {
    let manifest = Manifest::scan_all(from)?;
    let place = place(api, target, from, to, manifest.is_archive)?;
    send(api, target, manifest, &place)?;
    Ok(place)
}

/// Copies what `--upload` names, but for what ignore files leave out.
pub(super) fn upload(api: &mut ApiClient, target: &Target, upload: &Upload) -> Result<(), Failure> {
    let place = SandboxPath::parse(&upload.dest).path;
    send(api, target, Manifest::scan(&upload.path)?, &place)
}

/// Sends a file or a directory to a path of the sandbox.
fn send(api: &ApiClient, target: &Target, manifest: Manifest, place: &str) -> Result<(), Failure> {
    let name = clean(&manifest.root.display().to_string());
    if manifest.skipped > 0 {
        note(&format!(
            "warning: {name}: {} fifos, sockets or devices are left out",
            manifest.skipped
        ));
    }
    let mode = manifest.entries.first().map_or(0o644, |entry| entry.mode);
    let mode = format!("{mode:04o}");
    let path = Some(place);
    let path = if manifest.is_archive {
        paths::with_query(&target.path("/archive"), &[("path", path)])
    } else {
        let query = [("path", path), ("mode", Some(mode.as_str()))];
        paths::with_query(&target.path("/files"), &query)
    };
    let manifest = Arc::new(manifest);
    let size = content_size(&manifest);
    let mut reader = ContentReader::open(&manifest, 0);
    // Before the call: the orchestrator does not wait long for the first byte.
    let usage = |error: io::Error| Failure::usage(error.to_string());
    reader.read_to_start().map_err(usage)?;
    let mut body = Body {
        inner: reader,
        progress: Progress::start("copy", &name, size),
        failure: None,
    };
    let sent = put(api, &path, Payload::Stream(&mut body, Some(size)));
    // A failure to read here looks like one of the connection.
    body.failure.map_or(sent, |error| Err(usage(error)))
}

/// Unpacks an archive from stdin. Returns the path in the sandbox.
pub(super) fn stdin(
    api: &mut ApiClient,
    target: &Target,
    to: &SandboxPath,
) -> Result<String, Failure> {
    let path = Some(to.path.as_str());
    let path = paths::with_query(&target.path("/archive"), &[("path", path)]);
    let mut body = io::stdin().lock();
    put(api, &path, Payload::Stream(&mut body, None))?;
    Ok(to.path.clone())
}

fn put(api: &ApiClient, path: &str, body: Payload<'_>) -> Result<(), Failure> {
    let mut api = api.with_patience(ANSWER_TIMEOUT);
    let answer = api.exchange(&Method::PUT, path, &[], body)?;
    api.check_status(answer).map(drop)
}

/// Path at which a file or a directory lands.
fn place(
    api: &mut ApiClient,
    target: &Target,
    from: &Path,
    to: &SandboxPath,
    is_directory: bool,
) -> Result<String, Failure> {
    let found = look(api, target, to)?;
    let shown = clean(&to.path);
    match found {
        Found::Directory => match local_name(from) {
            Some(name) => Ok(to.join(name)),
            None if is_directory => Ok(to.path.clone()),
            None => Err(Failure::usage("give the file a name in the sandbox")),
        },
        Found::File if is_directory || to.is_directory => {
            let text = format!(
                "{shown} is there in the sandbox, and is not a directory; name another place"
            );
            Err(Failure::new(Exit::Conflict, text))
        }
        Found::Nothing if !is_directory && to.is_directory => {
            let text = format!(
                "there is no directory {shown} in the sandbox; leave the slash out to name the file so, or make it with: \
                 cynode sandbox exec {} mkdir -p {shown}",
                target.word()
            );
            Err(Failure::new(Exit::NotFound, text))
        }
        Found::File | Found::Nothing => Ok(to.path.clone()),
    }
}

/// Body with its progress. Keeps a failure to read.
struct Body<R> {
    inner: R,
    progress: Progress,
    failure: Option<io::Error>,
}

impl<R: Read> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
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
