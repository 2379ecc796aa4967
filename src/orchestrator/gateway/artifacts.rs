//! Artifacts: upload, list, get, delete; and those of a task.

mod upload;

pub(super) use upload::{KEY_PATTERN, upload};

use super::{AppState, authenticate, cursor, page_size, tasks::DEFAULT_PAGE_SIZE};
use crate::{
    api::{api_keys::Scope, artifacts::DEFAULT_NAME},
    http::{
        file,
        query::encode,
        request::Request,
        response::{self, Reply},
    },
    identity::Access,
    orchestrator::{artifacts, tasks},
    store::ArtifactFilter,
};
use http::{HeaderValue, header};
use std::sync::Arc;

/// Keys that may make these calls.
const ACCESS: Access = Access::Scope(Scope::Tasks);
/// Size of a page of a task's artifacts, which mostly are few.
const TASK_PAGE_SIZE: u32 = 1000;
/// Longest file name in `Content-Disposition`, in bytes.
const MAX_FILE_NAME_BYTES: usize = 255;
pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
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
    let caller = authenticate(&state, &request, ACCESS).await?;
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
    let caller = authenticate(&state, &request, ACCESS).await?;
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
    let caller = authenticate(&state, &request, ACCESS).await?;
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
