//! Artifacts: upload, list, get, delete; and those of a task.

use super::{AppState, authenticate, cursor, page_size, tasks::DEFAULT_PAGE_SIZE};
use crate::{
    api::{
        artifacts::{Artifact, DEFAULT_NAME, check_name},
        error::ApiError,
        jobs::files::{Content, ContentHash},
        problem::{Problem, ProblemKind},
    },
    contents::{Expected, PartialUpload},
    http::{
        UploadPart,
        body::BodyChunks,
        file,
        query::encode,
        request::Request,
        response::{self, Reply},
    },
    identity::Caller,
    orchestrator::{
        artifacts::{self, content_error, received_range},
        tasks,
    },
    store::ArtifactFilter,
};
use http::{HeaderValue, StatusCode, header};
use std::{ops::Range, sync::Arc};

/// Size of a page of a task's artifacts, which mostly are few.
const TASK_PAGE_SIZE: u32 = 1000;
/// Longest key of an upload, in bytes.
const MAX_KEY_BYTES: usize = 128;
/// Longest file name in `Content-Disposition`, in bytes.
const MAX_FILE_NAME_BYTES: usize = 255;
/// Pattern of the key of an upload.
pub(super) const KEY_PATTERN: &str = "^[A-Za-z0-9_-]{1,128}$";

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

    fn expected(&self, size: Option<u64>) -> Expected {
        Expected {
            sha256: self.sha256.clone(),
            size,
        }
    }
}

pub(super) async fn upload(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    let mut body = request.chunks();
    let reply = receive(&state, &caller, &request, &mut body).await;
    if reply.is_err() {
        body.drain().await;
    }
    reply
}

async fn receive(
    state: &AppState,
    caller: &Caller,
    request: &Request,
    body: &mut BodyChunks,
) -> Reply {
    let upload = Upload::of(request, caller)?;
    match request.upload_part()? {
        None => whole(state, caller, upload, body).await,
        Some(UploadPart::Query { total }) => query(state, caller, upload, total).await,
        Some(UploadPart::Bytes { range, total }) => {
            part(state, caller, upload, (range, total), body).await
        }
    }
}

/// Takes an upload in one go.
async fn whole(state: &AppState, caller: &Caller, upload: Upload, body: &mut BodyChunks) -> Reply {
    let expected = upload.expected(body.announced_size());
    let mut writer = state
        .contents
        .writer(expected)
        .await
        .map_err(content_error)?;
    while let Some(chunk) = body.next().await? {
        writer.write(&chunk).await.map_err(content_error)?;
    }
    let stored = writer.finish().await.map_err(content_error)?;
    created(&artifacts::add(state, caller, upload.name, stored).await?)
}

/// Answers how much of an upload is here, and makes an artifact at once of a content that this user has.
async fn query(state: &AppState, caller: &Caller, upload: Upload, total: u64) -> Reply {
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
    let (contents, key) = (state.contents.clone(), upload.key()?.to_owned());
    let size = tokio::task::spawn_blocking(move || contents.partial_size(&key)).await;
    let size = size.map_err(ApiError::internal)?;
    let size = size.map_err(ApiError::internal)?;
    // Rather now than after the client has sent it all.
    let room = state.contents.ensure_room(total.saturating_sub(size)).await;
    room.map_err(content_error)?;
    incomplete(size)
}

/// Takes a part of an upload.
async fn part(
    state: &AppState,
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
    let expected = upload.expected(Some(total));
    let resumed = state.contents.resume(upload.key()?, range.start, expected);
    let mut partial = resumed.await.map_err(content_error)?;
    let received = receive_part(&mut partial, body, range.end).await;
    let size = partial.size();
    if received.is_ok() && size == total {
        let stored = partial.finish().await.map_err(content_error)?;
        return created(&artifacts::add(state, caller, upload.name, stored).await?);
    }
    // What has arrived of a part that was cut is not sent again.
    partial.pause().await.map_err(content_error)?;
    received?;
    if size < range.end {
        let detail = format!(
            "{length} bytes were announced, and fewer arrived; the upload has {size} bytes now"
        );
        return Err(Problem::new(ProblemKind::InvalidRequest, detail).into());
    }
    incomplete(size)
}

/// Appends a body to an upload. Fails where it goes beyond `end`.
async fn receive_part(
    partial: &mut PartialUpload,
    body: &mut BodyChunks,
    end: u64,
) -> Result<(), ApiError> {
    while let Some(chunk) = body.next().await? {
        if partial.size() + chunk.len() as u64 > end {
            let detail =
                "the body has more bytes than its header Content-Range names; make them agree";
            return Err(Problem::new(ProblemKind::InvalidRequest, detail).into());
        }
        partial.write(&chunk).await.map_err(content_error)?;
    }
    Ok(())
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

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    let filter = ArtifactFilter {
        owner: None,
        name: request.query("name"),
        task: None,
        before: cursor(&request)?,
        limit: page_size(&request, DEFAULT_PAGE_SIZE)?,
    };
    response::ok(&artifacts::list(&state, &caller, filter).await?)
}

pub(super) async fn list_of_task(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    let task = tasks::find(&state, &caller, request.param("id", "task")?).await?;
    let filter = ArtifactFilter {
        owner: None,
        name: None,
        task: Some(task.id),
        before: cursor(&request)?,
        limit: page_size(&request, TASK_PAGE_SIZE)?,
    };
    response::ok(&artifacts::list(&state, &caller, filter).await?)
}

/// Bytes of an artifact, or, for a client that accepts JSON, what is known of it.
pub(super) async fn get(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    let id = request.param("id", "artifact")?;
    let artifact = artifacts::show(&state, &caller, id).await?;
    if request.accepts("application/json") {
        return response::ok(&artifact);
    }
    let content = artifacts::open(&state, &artifact).await?;
    let mut answer = file::file(&request, content)?;
    if let Ok(disposition) = HeaderValue::from_str(&disposition(&artifact.name)) {
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(answer)
}

/// `Content-Disposition` (RFC 6266) for a name of any text: the last part of its path, as a file to be saved.
fn disposition(name: &str) -> String {
    let last = name.trim_end_matches('/').rsplit('/').next();
    let last = last.unwrap_or_default().trim_start_matches('.');
    let last = match last {
        "" => DEFAULT_NAME,
        last => &last[..last.floor_char_boundary(MAX_FILE_NAME_BYTES)],
    };
    let plain = |c: char| match c {
        c if c.is_ascii_alphanumeric() || "-_. ".contains(c) => c,
        _ => '_',
    };
    let plain: String = last.chars().map(plain).collect();
    format!(
        "attachment; filename=\"{plain}\"; filename*=UTF-8''{}",
        encode(last)
    )
}

pub(super) async fn delete(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    let id = request.param("id", "artifact")?;
    artifacts::delete(&state, &caller, id, &request.origin()).await?;
    response::no_content()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn file_names_of_downloads() {
        for (name, plain) in [
            ("model.bin", "model.bin"),
            ("out/a b.txt", "a b.txt"),
            ("../../etc/passwd", "passwd"),
            ("..", "artifact"),
            ("x/", "x"),
            ("a\"; filename=evil\r\nX: y", "a__ filename_evil__X_ y"),
        ] {
            let expected = format!("attachment; filename=\"{plain}\"; ");
            let disposition = disposition(name);
            assert!(disposition.starts_with(&expected), "{disposition}");
        }
        assert!(disposition("é").ends_with("filename*=UTF-8''%C3%A9"));
    }

    proptest! {
        #[test]
        fn any_name_makes_valid_header(name in ".{0,300}") {
            let text = disposition(&name);
            prop_assert!(HeaderValue::from_str(&text).is_ok());
            let file = text.split("''").nth(1).unwrap();
            prop_assert!(!file.is_empty() && !file.contains(['/', '"', ';']));
        }
    }
}
