//! Handlers of the Worker API for contents that jobs need, and artifacts that they left.

use super::{api::Api, artifacts};
use crate::{
    api::{
        error::ApiError,
        jobs::files::{Content, ContentHash},
        problem::{Problem, ProblemKind},
    },
    http::{
        file::{FileContent, file},
        request::Request,
        response::{self, Reply},
    },
};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::{fs::File, io, path::Path, sync::Arc};
use tokio::task::spawn_blocking;

/// Stores a content.
pub(super) async fn put_content(api: Arc<Api>, mut request: Request) -> Reply {
    api.authorize_long(&request)?;
    let sha256: ContentHash = request.param("sha256", "content")?;
    api.ctx.verify_data_dir().await?;
    api.ctx.contents.receive(sha256, request.chunks()).await?;
    response::no_content()
}

/// Answers whether a content is here.
pub(super) async fn get_content(api: Arc<Api>, request: Request) -> Reply {
    api.authorize(&request)?;
    let sha256: ContentHash = request.param("sha256", "content")?;
    let size_bytes = api.ctx.contents.size_of(sha256.clone()).await?;
    let size_bytes = size_bytes.ok_or_else(|| Problem::not_found("content"))?;
    response::ok(&Content { sha256, size_bytes })
}

/// Sends an artifact of a job that has ended, by its place in the result.
pub(super) async fn get_artifact(api: Arc<Api>, request: Request) -> Reply {
    let job = api.job(&request).await?;
    let n: usize = request.param("n", "artifact")?;
    api.authorize_long(&request)?;
    let not_found = || Problem::not_found("artifact");
    let artifact = job.artifact(n).await.ok_or_else(not_found)?;
    let path = artifacts::path_in(job.spool.path(), &artifact);
    let opened = spawn_blocking(move || open(&path)).await;
    let (content, size) = match opened.map_err(io::Error::from).flatten() {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_found().into()),
        Err(error) => return Err(ApiError::internal(error)),
    };
    if size != artifact.size_bytes {
        let detail = "the artifact was damaged by a crash of this node, and is lost";
        return Err(Problem::new(ProblemKind::NotFound, detail).into());
    }
    let content = FileContent {
        file: content,
        size,
        sha256: None,
    };
    file(&request, content)
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("an artifact is not a regular file"));
    }
    Ok((file, meta.len()))
}
