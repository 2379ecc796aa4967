//! Transfer of an artifact from the orchestrator, which goes on after a cut.

use super::{
    api_client::ApiClient,
    paths,
    patience::{CallFailure, Patience},
    print::clean,
    progress::Progress,
};
use crate::{
    api::artifacts::Artifact,
    exit::{Exit, Failure},
    files::{Replacement, remove_unfinished_downloads},
    terminal::write_failure,
};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Exit code of a client that was interrupted.
pub(super) const EXIT_INTERRUPTED: u8 = 130;
/// Size of a piece.
const PIECE_BYTES: usize = 256 * 1024;

/// Whether the user wants no more.
static IS_STOPPED: AtomicBool = AtomicBool::new(false);

/// Has the transfer in progress end soon, without a trace.
pub(super) fn stop() {
    IS_STOPPED.store(true, Ordering::Relaxed);
}

/// Whether [`stop`] was called.
pub(super) fn is_stopped() -> bool {
    IS_STOPPED.load(Ordering::Relaxed)
}

/// Downloads an artifact to a file, which is replaced. Devices, pipes and directories are not.
pub(super) fn to_file(
    api: &mut ApiClient,
    artifact: &Artifact,
    path: &Path,
) -> Result<(), Failure> {
    let named = |error: io::Error| Failure::internal(format!("{}: {error}", path.display()));
    if is_special(path) {
        let text = format!(
            "is not written: {} is there and is not a regular file; name another place, or use: cynode artifacts \
             download {} --out -",
            clean(&path.display().to_string()),
            artifact.artifact_id
        );
        return Err(Failure::new(Exit::Conflict, text));
    }
    sweep(path);
    let mode = if artifact.executable { 0o777 } else { 0o666 };
    let mut file = Replacement::begin(path, mode).map_err(named)?;
    copy(api, artifact, &mut file)?;
    file.commit().map_err(named)
}

/// Whether there is something else than a file or a link in the place of a file.
pub(super) fn is_special(path: &Path) -> bool {
    let found = path.symlink_metadata();
    found.is_ok_and(|found| !found.is_file() && !found.is_symlink())
}

/// Removes what killed downloads left beside a file, once for each directory.
pub(super) fn sweep(path: &Path) {
    static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let directory = path.parent().unwrap_or(path);
    if SWEPT.lock().insert(directory.to_owned()) {
        remove_unfinished_downloads(path);
    }
}

/// Copies an artifact, and goes on after a cut. Fails where the bytes are not those that the orchestrator named.
pub(super) fn copy(
    api: &mut ApiClient,
    artifact: &Artifact,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let path = paths::artifact(&artifact.artifact_id.to_string());
    let mut progress = Progress::start("download", &artifact.name, artifact.size_bytes);
    let (mut hash, mut done, mut patience) = (Sha256::new(), 0, Patience::new());
    let mut buffer = vec![0; PIECE_BYTES];
    while done < artifact.size_bytes {
        let failure = match api.download(&path, done) {
            Ok(mut body) => loop {
                if is_stopped() {
                    return Err(Failure::silent(EXIT_INTERRUPTED));
                }
                let read = match body.read(&mut buffer) {
                    Ok(0) => break None,
                    Ok(read) => read,
                    Err(error) => break Some(Failure::new(Exit::Unreachable, error.to_string())),
                };
                hash.update(&buffer[..read]);
                out.write_all(&buffer[..read]).map_err(write_failure)?;
                done += read as u64;
                progress.add(read as u64);
            },
            Err(CallFailure::Passing(failure) | CallFailure::Busy(failure)) => Some(failure),
            Err(CallFailure::Lasting(failure)) => return Err(failure),
        };
        if is_stopped() {
            return Err(Failure::silent(EXIT_INTERRUPTED));
        }
        patience.reached(done);
        if done < artifact.size_bytes {
            let text = "the download does not go on; run the command again";
            patience.pause(|| failure.unwrap_or_else(|| Failure::new(Exit::Unreachable, text)))?;
        }
    }
    if done == artifact.size_bytes && format!("{:x}", hash.finalize()) == artifact.sha256.as_str() {
        return Ok(());
    }
    let text =
        "the bytes differ from those that the orchestrator named, so they are not kept; try again";
    Err(Failure::internal(text))
}
