//! Uploads: in one go, and in parts.

mod permits;

use super::{ACCESS, AppState, authenticate};
use crate::{
    api::{
        artifacts::{Artifact, DEFAULT_NAME, check_name},
        error::ApiError,
        jobs::files::{Content, ContentHash},
        problem::{Problem, ProblemKind},
    },
    contents::{ContentError, Expected, PartialUpload},
    http::{
        UploadPart,
        body::BodyChunks,
        request::Request,
        response::{self, Reply},
    },
    identity::Caller,
    orchestrator::artifacts::{self, Coming, content_error, intake, make_room, received_range},
};
use http::{HeaderValue, StatusCode, header};
use permits::UploadPermit;
use std::{ops::Range, sync::Arc};

/// Most uploads of a user that wait for their next part.
const MAX_WAITING_UPLOADS: usize = 100;
/// Longest key of an upload, in bytes.
const MAX_KEY_BYTES: usize = 128;
/// Pattern of the key of an upload.
pub(in crate::orchestrator::gateway) const KEY_PATTERN: &str = "^[A-Za-z0-9_-]{1,128}$";

/// Upload, as its query describes it.
struct Upload {
    name: String,
    sha256: Option<ContentHash>,
    /// Name of its partial file; `None` where neither hash nor key is given.
    key: Option<String>,
}

impl Upload {
    fn of(request: &Request, caller: &Caller) -> Result<Self, Problem> {
        let name = request
            .query("name")
            .unwrap_or_else(|| DEFAULT_NAME.to_owned());
        check_name(&name)?;
        let expected = "a SHA-256 as 64 lowercase hexadecimal digits";
        let sha256: Option<ContentHash> = request.query_as("sha256", expected)?;
        let expected = format!("1 to {MAX_KEY_BYTES} letters, digits, - or _");
        let is_key = |key: &String| {
            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(is_allowed)
        };
        let key: Option<String> = request.query_if("key", &expected, is_key)?;
        let user = caller.user.id;
        let key = match (&sha256, key) {
            (_, Some(key)) => Some(format!("{user}-key-{key}")),
            (Some(sha256), None) => Some(format!("{user}-sha256-{sha256}")),
            (None, None) => None,
        };
        Ok(Self { name, sha256, key })
    }

    /// Name of the partial file. Fails with 400 where nothing identifies the upload.
    fn key(&self) -> Result<&str, Problem> {
        self.key.as_deref().ok_or_else(|| {
            let detail = "an upload in parts needs a name by which its parts are put together: add the query parameter \
                          sha256 (the hash of the whole) or key (one of your own)";
            Problem::new(ProblemKind::InvalidRequest, detail)
        })
    }

    /// Upload of which `bytes` have not arrived.
    fn coming(&self, bytes: u64) -> Coming<'_> {
        Coming {
            name: &self.name,
            key: self.key.as_deref(),
            bytes,
        }
    }

    fn expected(&self, size: Option<u64>) -> Expected {
        Expected {
            sha256: self.sha256.clone(),
            size,
        }
    }
}

pub(in crate::orchestrator::gateway) async fn upload(
    state: Arc<AppState>,
    mut request: Request,
) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let mut body = request.chunks();
    receive(&state, &caller, &request, &mut body).await
}

async fn receive(
    state: &Arc<AppState>,
    caller: &Caller,
    request: &Request,
    body: &mut BodyChunks,
) -> Reply {
    let upload = Upload::of(request, caller)?;
    let part = request.upload_part()?;
    if let Some(UploadPart::Query { total }) = part {
        return query(state, caller, upload, total).await;
    }
    let _permit = UploadPermit::acquire(caller.user.id).await?;
    match part {
        Some(UploadPart::Bytes { range, total }) => {
            self::part(state, caller, upload, (range, total), body).await
        }
        _ => whole(state, caller, upload, body).await,
    }
}

/// Takes an upload in one go.
async fn whole(
    state: &Arc<AppState>,
    caller: &Caller,
    upload: Upload,
    body: &mut BodyChunks,
) -> Reply {
    let size = body.announced_size();
    make_room(state, caller, upload.coming(size.unwrap_or(0))).await?;
    let writer = intake(state).writer(upload.expected(size)).await;
    let mut writer = writer.map_err(content_error)?;
    while let Some(chunk) = body.next().await? {
        writer.write(&chunk).await.map_err(content_error)?;
    }
    let artifact = artifacts::finish_upload(state, caller, upload.name, writer.finish());
    created(&artifact.await?)
}

/// Answers how much of an upload is here. Makes an artifact at once of a content that this user has, and of an upload
/// whose last part has arrived.
async fn query(state: &Arc<AppState>, caller: &Caller, upload: Upload, total: u64) -> Reply {
    if let Some(sha256) = upload.sha256.clone() {
        let content = Content {
            sha256,
            size_bytes: total,
        };
        let known = artifacts::add_known(state, caller, &upload.name, &content).await?;
        if let Some(artifact) = known {
            return created(&artifact);
        }
    }
    let key = upload.key()?;
    state.contents.take_over(key).await;
    let mut size = partial_size(state, key, total).await?;
    if size == total {
        let expected = upload.expected(Some(total));
        let resumed = intake(state).resume(key, total, expected).await;
        let partial = resumed.map_err(content_error)?;
        let (name, finish) = (upload.name.clone(), partial.finish());
        match artifacts::finish_upload(state, caller, name, finish).await {
            Ok(artifact) => return created(&artifact),
            Err(error) => {
                size = partial_size(state, key, total).await?;
                // Bytes that are not what was announced are gone, and to be sent again.
                if size == total {
                    return Err(error);
                }
            }
        }
    }
    // Rather now than after the client has sent it all.
    make_room(state, caller, upload.coming(total - size)).await?;
    incomplete(size)
}

/// Bytes that are here of an upload of `total` bytes. More are those of another, and removed.
async fn partial_size(state: &AppState, key: &str, total: u64) -> Result<u64, ApiError> {
    let (contents, key) = (state.contents.clone(), key.to_owned());
    let size = tokio::task::spawn_blocking(move || {
        let size = contents.partial_size(&key)?;
        if size > total {
            contents.discard(&key)?;
            return Ok(0);
        }
        Ok::<_, std::io::Error>(size)
    });
    let size = size.await.map_err(ApiError::internal)?;
    size.map_err(ApiError::internal)
}

/// Takes a part of an upload.
async fn part(
    state: &Arc<AppState>,
    caller: &Caller,
    upload: Upload,
    (range, total): (Range<u64>, u64),
    body: &mut BodyChunks,
) -> Reply {
    let length = range.end - range.start;
    if let Some(announced) = body.announced_size().filter(|size| *size != length) {
        let detail = format!(
            "header Content-Range: names {length} bytes, but the body has {announced}; make them agree"
        );
        return Err(Problem::new(ProblemKind::InvalidRequest, detail).into());
    }
    if range.start == 0 {
        discard_oldest(state, caller).await?;
    }
    make_room(state, caller, upload.coming(total - range.start)).await?;
    let expected = upload.expected(Some(total));
    let resumed = intake(state)
        .resume(upload.key()?, range.start, expected)
        .await;
    let mut partial = resumed.map_err(content_error)?;
    let received = receive_part(&mut partial, body, range.end).await;
    let size = partial.size();
    if received.is_ok() && size == total {
        let artifact = artifacts::finish_upload(state, caller, upload.name, partial.finish());
        return created(&artifact.await?);
    }
    // Kept, so that the beginning of a part that was cut is not sent again.
    let paused = partial.pause().await.map_err(content_error);
    received?;
    paused?;
    if size < range.end {
        let detail = format!(
            "{length} bytes were announced, and fewer arrived; the upload has {size} bytes now"
        );
        return Err(Problem::new(ProblemKind::InvalidRequest, detail).into());
    }
    incomplete(size)
}

/// Removes the oldest uploads of a user that wait for their next part, where there are too many.
async fn discard_oldest(state: &AppState, caller: &Caller) -> Result<(), ApiError> {
    let (contents, prefix) = (state.contents.clone(), format!("{}-", caller.user.id));
    let removed =
        tokio::task::spawn_blocking(move || contents.discard_oldest(&prefix, MAX_WAITING_UPLOADS));
    let removed = removed.await.map_err(ApiError::internal)?;
    removed.map(drop).map_err(ApiError::internal)
}

/// Appends a body to an upload. Fails where it goes beyond `end`, and where another call goes on with the upload.
async fn receive_part(
    partial: &mut PartialUpload,
    body: &mut BodyChunks,
    end: u64,
) -> Result<(), ApiError> {
    loop {
        let chunk = tokio::select! {
            chunk = body.next() => chunk?,
            () = partial.taken_over() => return Err(content_error(ContentError::Busy)),
        };
        let Some(chunk) = chunk else { return Ok(()) };
        if partial.size() + chunk.len() as u64 > end {
            let detail =
                "the body has more bytes than its header Content-Range names; make them agree";
            return Err(Problem::new(ProblemKind::InvalidRequest, detail).into());
        }
        partial.write(&chunk).await.map_err(content_error)?;
    }
}

/// 201 with an artifact.
fn created(artifact: &Artifact) -> Reply {
    let mut answer = response::json(StatusCode::CREATED, artifact)?;
    let location = format!("/v1/artifacts/{}", artifact.artifact_id);
    if let Ok(location) = HeaderValue::from_str(&location) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    Ok(answer)
}

/// 308 for an upload of which the next part is expected; `Range` says what is here.
fn incomplete(size: u64) -> Reply {
    let mut answer = response::text(StatusCode::PERMANENT_REDIRECT, "");
    if let Some(Ok(range)) = received_range(size).map(HeaderValue::try_from) {
        answer.headers_mut().insert(header::RANGE, range);
    }
    Ok(answer)
}
