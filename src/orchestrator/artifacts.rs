//! Use cases of artifacts: upload, list, show, read, delete; and the contents of new tasks.
//!
//! An artifact is a row that names a content. A content is stored first and the row after it, while a
//! [pin](crate::contents::Pin) keeps the content from the clean-up in [`contents_gc`](super::contents_gc). Users see
//! their own artifacts, admins all. That the store has a content tells a user nothing: only their own artifacts make a
//! content theirs.

mod results;
mod room;

pub(super) use results::{ResultShare, ResultShares};
pub(super) use room::{Coming, intake, make_room};

use super::AppState;
use crate::{
    api::{
        ArtifactId,
        artifacts::{Artifact, ArtifactList},
        audit::{AuditAction, RequestOrigin},
        error::ApiError,
        jobs::files::{Content, ContentHash, JobFile, check_path},
        problem::{Problem, ProblemKind},
        size::ByteSize,
        tasks::{CheckedFile, InputSource, TaskInputs},
        time::Time,
    },
    background::run_to_end,
    contents::{ContentError, Pin, StoredContent},
    http::file::FileContent,
    identity::Caller,
    store::{ArtifactFilter, NewArtifact},
};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// Files of a task that are stored at the same time: each waits for the disk.
const MAX_CONCURRENT_FILES: usize = 8;
/// Seconds after which another call may have finished the same upload.
const BUSY_RETRY_SECONDS: u64 = 1;

/// Error of the store of contents, for a user.
pub(super) fn content_error(error: ContentError) -> ApiError {
    let invalid = |error: &ContentError| {
        let detail = format!("{error}; send it again");
        Problem::new(ProblemKind::InvalidRequest, detail)
    };
    let full = |detail: String| Problem::new(ProblemKind::InsufficientStorage, detail);
    match error {
        ContentError::WrongHash { .. } | ContentError::WrongSize { .. } => invalid(&error).into(),
        ContentError::QuotaExceeded { quota, used } => full(format!(
            "the orchestrator keeps at most {} of uploads and files of tasks, and {} are used; delete artifacts \
             (cynode artifacts rm) or finished tasks (cynode task rm), or ask the operator for a larger \
             --artifact-quota",
            ByteSize(quota),
            ByteSize(used)
        ))
        .into(),
        ContentError::DiskFull { .. } => full(
            "the disk of the orchestrator has too little room for this; delete artifacts (cynode artifacts rm) or finished tasks \
             (cynode task rm), or ask the operator to free space"
                .to_owned(),
        )
        .caused_by(error),
        ContentError::Busy => {
            let detail = "another call sends this upload at the moment; wait for it, or try again";
            Problem::new(ProblemKind::Conflict, detail)
                .retry_after(BUSY_RETRY_SECONDS)
                .into()
        }
        ContentError::WrongOffset { found, .. } => {
            let problem = Problem::new(ProblemKind::RangeNotSatisfiable, error.to_string());
            match received_range(found) {
                Some(range) => problem.with_header("range", range),
                None => problem,
            }
            .into()
        }
        ContentError::Io(_) => ApiError::internal(error),
    }
}

/// Value of the header `Range` that says how much of an upload is here; `None` for nothing.
pub(super) fn received_range(size: u64) -> Option<String> {
    size.checked_sub(1).map(|last| format!("bytes=0-{last}"))
}

/// Finishes an upload, of which all has arrived, and stores its row. A client that hangs up meanwhile, as one that
/// waited too long for a slow disk, does not come between.
pub(super) async fn finish_upload(
    state: &Arc<AppState>,
    caller: &Caller,
    name: String,
    finish: impl Future<Output = Result<StoredContent, ContentError>> + Send + 'static,
) -> Result<Artifact, ApiError> {
    let (state, caller) = (Arc::clone(state), caller.clone());
    let finished = run_to_end("finish_upload", async move {
        let stored = finish.await.map_err(content_error)?;
        add(&state, &caller, name, stored).await
    });
    finished.await.map_err(ApiError::internal)?
}

/// Stores the row of an artifact whose content is stored.
async fn add(
    state: &AppState,
    caller: &Caller,
    name: String,
    stored: StoredContent,
) -> Result<Artifact, ApiError> {
    let StoredContent { content, pin } = stored;
    let hash = content.sha256.clone();
    let new = NewArtifact {
        name,
        content,
        is_executable: false,
    };
    let added = state
        .store
        .artifact_add(caller.authority(), new, Time::now());
    let added = added.await;
    // Else the removal would find the content in use.
    drop(pin);
    if added.is_err() {
        state.contents_gc.suspect(hash);
    }
    Ok(added?)
}

/// Stores an artifact of a content that this user has already; `None` where they have not.
pub(super) async fn add_known(
    state: &Arc<AppState>,
    caller: &Caller,
    name: &str,
    content: &Content,
) -> Result<Option<Artifact>, ApiError> {
    let owner = caller.user.id;
    let size = state
        .store
        .artifact_content(content.sha256.clone(), owner)
        .await?;
    if size != Some(content.size_bytes) {
        return Ok(None);
    }
    let Some(pin) = pin(state, content.sha256.clone()).await? else {
        return Ok(None);
    };
    let content = content.clone();
    let stored = async { Ok(StoredContent { content, pin }) };
    let added = finish_upload(state, caller, name.to_owned(), stored);
    added.await.map(Some)
}

/// Pin of a content; `None` where it is not here.
pub(super) async fn pin(state: &AppState, hash: ContentHash) -> Result<Option<Pin>, ApiError> {
    let contents = state.contents.clone();
    let pinned = spawn_blocking(move || contents.pin(&hash)).await;
    pinned
        .map_err(ApiError::internal)?
        .map_err(ApiError::internal)
}

/// Shows an artifact. Fails with 404 where the caller may not see it.
pub(super) async fn show(
    state: &AppState,
    caller: &Caller,
    id: ArtifactId,
) -> Result<Artifact, ApiError> {
    let found = state.store.artifact_get(id, caller.visible_owner()).await?;
    Ok(found.ok_or_else(|| Problem::not_found("artifact"))?)
}

/// Opens the content of an artifact.
pub(super) async fn open(state: &AppState, artifact: &Artifact) -> Result<FileContent, ApiError> {
    let (contents, hash) = (state.contents.clone(), artifact.sha256.clone());
    let opened = spawn_blocking(move || {
        let file = contents.open_content(&hash)?;
        let size = file.metadata()?.len();
        Ok::<_, std::io::Error>((file, size))
    });
    let (file, size) = match opened.await.map_err(ApiError::internal)? {
        Ok(opened) => opened,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let detail = "the bytes of this artifact are missing, as after a backup that was restored without them; \
                          upload it again, or run its task again";
            return Err(Problem::new(ProblemKind::NotFound, detail).caused_by(error));
        }
        Err(error) => return Err(ApiError::internal(error)),
    };
    Ok(FileContent {
        file,
        size,
        sha256: Some(artifact.sha256.to_string()),
    })
}

/// Lists artifacts that the caller may see, newest first. `filter.owner` is set here.
pub(super) async fn list(
    state: &AppState,
    caller: &Caller,
    filter: ArtifactFilter,
) -> Result<ArtifactList, ApiError> {
    let limit = filter.limit as usize;
    let filter = ArtifactFilter {
        owner: caller.visible_owner(),
        ..filter
    };
    let mut artifacts = state.store.artifact_list(caller.user.id, filter).await?;
    let has_more = artifacts.len() > limit;
    artifacts.truncate(limit);
    let last = artifacts.last().filter(|_| has_more);
    Ok(ArtifactList {
        next_cursor: last.map_or_else(String::new, |last| last.artifact_id.to_string()),
        artifacts,
    })
}

/// Deletes an artifact. Tasks that need its content keep that until they have ended.
pub(super) async fn delete(
    state: &AppState,
    caller: &Caller,
    id: ArtifactId,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    let event = caller.audit_event(AuditAction::ArtifactDelete, origin);
    let (owner, authority) = (caller.visible_owner(), caller.authority());
    let deleted = state.store.artifact_delete(id, owner, authority, event);
    if !deleted.await? {
        return Err(Problem::not_found("artifact").into());
    }
    state.contents_gc.wake();
    Ok(())
}

/// Contents of a new task, pinned until the task is stored.
#[derive(Default)]
pub(super) struct StoredInputs {
    /// Files for the sandbox.
    pub(super) files: Vec<JobFile>,
    /// Content of stdin.
    pub(super) stdin: Option<Content>,
    pins: Vec<InputPin>,
}

impl StoredInputs {
    /// Releases the contents, to which the stored task refers now.
    pub(super) fn release(self) {
        for mut pin in self.pins {
            drop(pin.pin.take());
        }
    }
}

/// Pin of a content of a new task. Where it is dropped before it is released, as when the request is cut, the content is
/// removed, unless something else refers to it.
struct InputPin {
    state: Arc<AppState>,
    pin: Option<Pin>,
}

impl InputPin {
    fn new(state: &Arc<AppState>, pin: Pin) -> Self {
        Self {
            state: Arc::clone(state),
            pin: Some(pin),
        }
    }
}

impl Drop for InputPin {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            let hash = pin.hash().clone();
            // Else the removal would find the content in use.
            drop(pin);
            self.state.contents_gc.suspect(hash);
        }
    }
}

/// Stores the bytes that a new task brings, and finds the artifacts that it names.
pub(super) async fn store_inputs(
    state: &Arc<AppState>,
    caller: &Caller,
    inputs: TaskInputs,
) -> Result<StoredInputs, ApiError> {
    let mut stored = StoredInputs::default();
    let files = inputs.files.into_iter();
    // Boxed, since the compiler can't prove a stream of these futures `Send`.
    let files = files.map(|file| store_file(state, caller, file).boxed());
    let mut files = stream::iter(files).buffered(MAX_CONCURRENT_FILES);
    while let Some(file) = files.next().await {
        let (file, pin) = file?;
        stored.files.push(file);
        stored.pins.push(pin);
    }
    drop(files);
    if let Some(bytes) = inputs.stdin {
        let (content, pin) = put_bytes(state, caller, bytes).await?;
        stored.stdin = Some(content);
        stored.pins.push(pin);
    }
    Ok(stored)
}

/// Stores bytes that came with a task. A client that hangs up meanwhile leaves nothing.
async fn put_bytes(
    state: &Arc<AppState>,
    caller: &Caller,
    bytes: Vec<u8>,
) -> Result<(Content, InputPin), ApiError> {
    let coming = Coming {
        name: "",
        key: None,
        bytes: bytes.len() as u64,
    };
    make_room(state, caller, coming).await?;
    let state = Arc::clone(state);
    let stored = run_to_end("store_input", async move {
        let StoredContent { content, pin } = intake(&state).put_bytes(bytes).await?;
        Ok::<_, ContentError>((content, InputPin::new(&state, pin)))
    });
    let stored = stored.await.map_err(ApiError::internal)?;
    stored.map_err(content_error)
}

async fn store_file(
    state: &Arc<AppState>,
    caller: &Caller,
    file: CheckedFile,
) -> Result<(JobFile, InputPin), ApiError> {
    let (content, pin, name) = match file.source {
        InputSource::Inline(bytes) => {
            let (content, pin) = put_bytes(state, caller, bytes).await?;
            (content, pin, None)
        }
        InputSource::Artifact(id) => {
            let detail = "is not an artifact of yours; upload it (cynode artifacts upload), or list yours (cynode artifacts list)";
            let unknown = || Problem::field(&file.pointer, detail);
            let owner = caller.visible_owner();
            let artifact = state.store.artifact_get(id, owner).await?;
            let artifact = artifact.ok_or_else(unknown)?;
            let pin = pin(state, artifact.sha256.clone())
                .await?
                .ok_or_else(unknown)?;
            let content = Content {
                sha256: artifact.sha256,
                size_bytes: artifact.size_bytes,
            };
            (content, InputPin::new(state, pin), Some(artifact.name))
        }
    };
    let path = match (file.path, name) {
        (Some(path), _) => path,
        // An attachment has the name of its artifact, which may be any text.
        (None, name) => {
            let name = name.unwrap_or_default();
            check_path(&file.pointer, &name, false)?;
            name
        }
    };
    let file = JobFile {
        path,
        content,
        mode: file.mode,
        extract: file.extract,
    };
    Ok((file, pin))
}
