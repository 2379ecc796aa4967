//! Collection of a job's artifacts: files that match its patterns, and everything below `/workspace/artifacts`.
//!
//! It happens once every process of the sandbox is dead and before the result is written, whatever the end was. The
//! workspace is hostile: names may be anything, trees deep and wide, files sparse and huge. So the walk ([`walk`])
//! is relative to descriptors and bounded, no link is followed, only regular files are taken, and a file counts with
//! the length that a reader would get.
//!
//! ```text
//! <spool>/collect.json       patterns and limits, written before the command begins
//! <spool>/artifacts.json     the list of files to take; the result names the same ones
//! <spool>/artifacts/<name>   the files, by the SHA-256 of their path
//! ```
//!
//! Files are renamed where the spool and the workspace share a file system, and copied otherwise. The list is written
//! before the first file is moved, so that a collection that was cut short is completed by the next one. Rootless,
//! files of a job's users may belong to subordinate ids: where the walk is denied access, it runs again inside podman's
//! user namespace.

mod skips;
mod transfer;
mod walk;

use super::{context::WorkerContext, ledger::Job};
use crate::{
    api::{
        events::ResultEvent,
        jobs::{
            JobArtifact, JobErrorKind, Outcome, SandboxSpec, SkippedArtifacts,
            artifacts::ARTIFACTS_DIRECTORY, patterns::Patterns,
        },
    },
    backoff::Backoff,
    data_dir::make_private_subdir,
    digest::sha256_hex,
    engine::{Engine, EngineError},
    files::{Durability, replace_file},
    spool::Spool,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use skips::Skips;
use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::spawn_blocking;
use transfer::Terms;
use walk::{Denial, Found, Limits};

/// First argument that makes the binary collect the artifacts of a spool, inside podman's user namespace.
pub(crate) const COLLECT_ARGUMENT: &str = "__collect-artifacts";
/// Name of the directory in a workspace whose files are always collected.
pub(in crate::worker) const DIRECTORY: &str = ARTIFACTS_DIRECTORY;

const REQUEST_FILE: &str = "collect.json";
const LIST_FILE: &str = "artifacts.json";
/// Time for a collection inside podman's user namespace, which may have to copy.
const COLLECT_TIMEOUT: Duration = Duration::from_mins(30);
/// Most tries to collect there, and the shortest and longest pause between two.
const MAX_TRIES: u32 = 5;
const MIN_RETRY_INTERVAL: Duration = Duration::from_secs(1);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Request of a collection: patterns and limits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CollectRequest {
    patterns: Vec<String>,
    limit: u64,
    /// Bytes that stay free on the disk where files are copied.
    min_free: u64,
}

/// Result of a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Collection {
    /// Files that were collected.
    pub(crate) artifacts: Vec<JobArtifact>,
    /// Files that were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<SkippedArtifacts>,
}

impl Collection {
    fn of_none(skipped: SkippedArtifacts) -> Self {
        Self {
            artifacts: Vec::new(),
            skipped: Some(skipped),
        }
    }
}

impl CollectRequest {
    /// Request of a job, within the limit of its node.
    pub(super) fn new(spec: &SandboxSpec, limit: u64, min_free: u64) -> Self {
        let wanted = spec.artifact_limit.map_or(limit, |wanted| wanted.0);
        Self {
            patterns: spec.artifacts.clone(),
            limit: wanted.min(limit),
            min_free,
        }
    }

    /// Writes it to the spool, before the command begins.
    pub(super) fn write(&self, spool: &Path) -> io::Result<()> {
        write(spool, REQUEST_FILE, self)
    }
}

/// Path of an artifact in its spool.
pub(super) fn path_in(spool: &Path, artifact: &JobArtifact) -> PathBuf {
    spool.join(DIRECTORY).join(file_name(&artifact.path))
}

fn file_name(path: &str) -> String {
    sha256_hex(path)
}

/// Makes the directory for artifacts in a new workspace, for the user that gets the workspace. A file of the job's in
/// its place is left alone.
pub(super) fn make_directory(workspace: &Path) -> io::Result<()> {
    let path = workspace.join(DIRECTORY);
    match fs::create_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // The umask must not narrow it.
        made => made.and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755))),
    }
}

/// Removes what an earlier shim has collected, before another one runs the command.
pub(super) fn remove_earlier(spool: &Spool) -> io::Result<()> {
    let path = spool.path();
    let removed = [
        spool.remove_ended(),
        fs::remove_file(path.join(LIST_FILE)),
        fs::remove_dir_all(path.join(DIRECTORY)),
    ];
    removed.into_iter().try_for_each(|removed| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
}

/// Collects the artifacts of a job that has ended, and names them in its result. The end is recorded before, so that
/// it is known should this be cut short.
pub(super) async fn collect_into(
    result: &mut ResultEvent,
    engine: &Engine,
    init: &Path,
    spool: &Spool,
) {
    let (path, ended) = (spool.path().to_owned(), result.clone());
    let recorded = spawn_blocking(move || {
        let has_request = path.join(REQUEST_FILE).exists();
        if has_request {
            Spool::at(path).write_ended(&ended)?;
        }
        Ok::<_, io::Error>(has_request)
    });
    match recorded.await.map_err(io::Error::from).flatten() {
        Ok(false) => return,
        Ok(true) => {}
        // Such as on a full disk, where files can still be renamed.
        Err(error) => tracing::warn!(%error, "end of a job not recorded before its artifacts"),
    }
    let Collection { artifacts, skipped } = collect(engine, init, spool.path()).await;
    result.result.artifacts = artifacts;
    result.result.artifacts_skipped = skipped;
}

/// Completes the end of a job whose shim was killed while it collected artifacts. Returns false where there is none.
pub(super) async fn finish_recorded(ctx: &WorkerContext, job: &Arc<Job>) -> bool {
    let ended = job.with_spool(Spool::ended).await.flatten();
    let mut result = match ended {
        Ok(Some(result)) => result,
        Ok(None) => return false,
        Err(error) => {
            tracing::warn!(%error, "recorded end of a job can't be read");
            return false;
        }
    };
    collect_into(&mut result, &ctx.engine, ctx.init.path(), &job.spool).await;
    let written = job.spool.write_result_with_retry(result).await;
    if let Err(error) = &written {
        tracing::warn!(%error, "recorded end of a job can't be written");
    }
    written.is_ok()
}

/// Collects the artifacts of a spool, from inside podman's user namespace where that is necessary. `init` is a copy
/// of our binary. A failure is part of the answer: it must not keep the job from its end.
pub(super) async fn collect(engine: &Engine, init: &Path, spool: &Path) -> Collection {
    let denial = if engine.is_rootless() {
        Denial::IsError
    } else {
        Denial::IsSkipped
    };
    let direct = {
        let path = spool.to_owned();
        let collected = spawn_blocking(move || collect_blocking(&path, denial)).await;
        collected.map_err(io::Error::from).flatten()
    };
    let is_denied = |error: &io::Error| denial.ends(error);
    let collected = if direct.as_ref().is_err_and(is_denied) {
        collect_inside(engine, init, spool).await
    } else {
        direct.map_err(|error| error.to_string())
    };
    let error = match collected {
        Ok(collected) => return collected,
        Err(error) => error,
    };
    tracing::warn!(error, "artifacts not collected");
    let reason = format!("artifacts could not be collected: {error}");
    let skipped = SkippedArtifacts::new(0, reason);
    let (path, none) = (spool.to_owned(), Collection::of_none(skipped.clone()));
    let taken = spawn_blocking(move || taken_before(&path, skipped)).await;
    taken.unwrap_or(none)
}

/// Collects the artifacts of a spool inside podman's user namespace. Podman may fail for a moment, such as where a
/// machine has no more processes.
async fn collect_inside(engine: &Engine, init: &Path, spool: &Path) -> Result<Collection, String> {
    let mut backoff = Backoff::new(MIN_RETRY_INTERVAL, MAX_RETRY_INTERVAL);
    for _ in 1..MAX_TRIES {
        let answer = engine.unshare(init, COLLECT_ARGUMENT, spool, COLLECT_TIMEOUT);
        match answer.await {
            Err(error) if !matches!(error, EngineError::TimedOut { .. }) => {
                tracing::warn!(%error, "artifacts not collected; retrying");
                tokio::time::sleep(backoff.next_delay()).await;
            }
            answer => return read_answer(answer),
        }
    }
    let answer = engine.unshare(init, COLLECT_ARGUMENT, spool, COLLECT_TIMEOUT);
    read_answer(answer.await)
}

fn read_answer(answer: Result<String, EngineError>) -> Result<Collection, String> {
    let answer = answer.map_err(|error| error.to_string())?;
    serde_json::from_str(&answer).map_err(|error| error.to_string())
}

/// Files that a failed collection has moved; the rest of its list is skipped.
fn taken_before(spool: &Path, mut skipped: SkippedArtifacts) -> Collection {
    let Ok(Some(list)) = read::<Collection>(spool, LIST_FILE) else {
        return Collection::of_none(skipped);
    };
    let (artifacts, missing): (Vec<_>, Vec<_>) = list
        .artifacts
        .into_iter()
        .partition(|artifact| transfer::is_whole(&path_in(spool, artifact), artifact));
    skipped.count = missing.len() as u64;
    Collection {
        artifacts,
        skipped: Some(match list.skipped {
            Some(before) => before.and(skipped),
            None => skipped,
        }),
    }
}

/// Collects the artifacts of a spool and returns what the helper process prints.
pub(crate) fn collect_from_argument(spool: &Path) -> io::Result<String> {
    let collected = collect_blocking(spool, Denial::IsSkipped)?;
    Ok(serde_json::to_string(&collected)?)
}

fn collect_blocking(spool: &Path, denial: Denial) -> io::Result<Collection> {
    let file = match File::open(spool.join(REQUEST_FILE)) {
        // Its command never began, or an earlier release accepted it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Collection::default()),
        opened => opened?,
    };
    // One collection at a time: the helper of a shim that was killed goes on.
    file.lock()?;
    let request: CollectRequest = serde_json::from_reader(io::BufReader::new(&file))?;
    let (found, mut skips) = match read::<Collection>(spool, LIST_FILE)? {
        Some(list) => (list, Skips::default()),
        None => {
            let (patterns, invalid) = Patterns::new(&request.patterns);
            let workspace = spool.join("workspace");
            let limits = Limits::of_bytes(request.limit);
            let Found {
                artifacts,
                mut skips,
            } = walk::find(&workspace, &patterns, limits, denial)?;
            skips.add_invalid_patterns(invalid);
            let skipped = skips.summary();
            let list = Collection { artifacts, skipped };
            if !list.artifacts.is_empty() {
                write(spool, LIST_FILE, &list)?;
            }
            (list, Skips::default())
        }
    };
    if found.artifacts.is_empty() {
        return Ok(found);
    }
    make_private_subdir(&spool.join(DIRECTORY))?;
    let terms = Terms {
        min_free: request.min_free,
        may_have_filled_disk: may_have_filled_disk(spool),
        denial,
    };
    let moved = transfer::take(spool, found.artifacts, terms, &mut skips)?;
    let skipped = match (found.skipped, skips.summary()) {
        (Some(before), Some(now)) => Some(before.and(now)),
        (before, now) => before.or(now),
    };
    Ok(Collection {
        artifacts: moved,
        skipped,
    })
}

/// Whether the job may have been ended for what it had on the disk. One that was being stopped already, and filled the
/// disk in its grace, keeps its first reason; one whose end could not even be recorded found the disk full.
fn may_have_filled_disk(spool: &Path) -> bool {
    let Ok(Some(ended)) = Spool::at(spool.to_owned()).ended() else {
        return true;
    };
    let kind = ended.result.error.map(|error| error.kind);
    matches!(
        (ended.result.status, kind),
        (Outcome::Canceled | Outcome::Timeout, _)
            | (
                _,
                Some(JobErrorKind::OutOfDisk | JobErrorKind::WorkspaceLimit)
            )
    )
}

fn read<T: DeserializeOwned>(spool: &Path, name: &str) -> io::Result<Option<T>> {
    match File::open(spool.join(name)) {
        Ok(file) => Ok(Some(serde_json::from_reader(io::BufReader::new(file))?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(spool: &Path, name: &str, content: &impl Serialize) -> io::Result<()> {
    replace_file(
        &spool.join(name),
        &serde_json::to_vec(content)?,
        Durability::Process,
    )
}

#[cfg(test)]
mod tests;
