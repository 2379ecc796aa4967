//! Contents that are sent to a node, and artifacts that are fetched from it.
//!
//! Both may take hours, so no time limit applies to the whole: a transfer without progress is cut.

use super::{NodeCallError, NodeCallErrorKind, NodeClient, SILENCE_TIMEOUT};
use crate::{
    api::{
        JobId, PAYLOAD_VERSION,
        images::{LoadImages, LoadedImages},
        jobs::files::{Content, ContentHash},
    },
    http::client::{Call, CallError},
    http::client_response::ByteStream,
    orchestrator::reason::sanitize,
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::Method;
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::spawn_blocking;

/// Bytes that are read of a content at a time.
const BLOCK_BYTES: u64 = 256 * 1024;
/// Time without a further block after which sending is given up. After the last one a node writes all to its disk.
const STALL_TIMEOUT: Duration = Duration::from_mins(1);

/// Bytes of a content that were handed to the connection.
#[derive(Clone, Default)]
pub(in crate::orchestrator) struct SendProgress(Arc<Sent>);

#[derive(Default)]
struct Sent {
    bytes: AtomicU64,
    has_read_failed: AtomicBool,
}

impl SendProgress {
    pub(in crate::orchestrator) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Whether sending broke off because the content could not be read here.
    pub(in crate::orchestrator) fn has_read_failed(&self) -> bool {
        self.0.has_read_failed.load(Ordering::Relaxed)
    }

    fn begin(&self) {
        self.0.bytes.store(0, Ordering::Relaxed);
        self.0.has_read_failed.store(false, Ordering::Relaxed);
    }

    fn record(&self, bytes: u64, read: &io::Result<Bytes>) {
        match read {
            Ok(_) => self.0.bytes.store(bytes, Ordering::Relaxed),
            Err(error) => {
                tracing::error!(%error, "content of a task can't be read");
                self.0.has_read_failed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Waits until no further block was sent for a while.
    async fn stalled(&self) {
        loop {
            let before = self.bytes();
            tokio::time::sleep(STALL_TIMEOUT).await;
            if self.bytes() == before {
                return;
            }
        }
    }
}

/// Artifact that is being fetched.
pub(in crate::orchestrator) struct ArtifactBytes(ByteStream);

impl ArtifactBytes {
    /// Whether these are the bytes from the one on that was asked for, rather than all.
    pub(in crate::orchestrator) fn is_part(&self) -> bool {
        self.0.is_part()
    }

    /// Next chunk; `None` at the end. Fails after [`SILENCE_TIMEOUT`] without one.
    pub(in crate::orchestrator) async fn next(&mut self) -> Result<Option<Bytes>, NodeCallError> {
        match tokio::time::timeout(SILENCE_TIMEOUT, self.0.next()).await {
            Ok(chunk) => Ok(chunk?),
            Err(_) => Err(CallError::timed_out(self.0.url(), SILENCE_TIMEOUT).into()),
        }
    }
}

impl<'a> NodeClient<'a> {
    /// Sends a content.
    pub(in crate::orchestrator) async fn put_content(
        &self,
        content: &Content,
        file: &Arc<File>,
        progress: &SendProgress,
    ) -> Result<(), NodeCallError> {
        let sent = self
            .put_with(&self.tokens.newest, content, file, progress)
            .await;
        match (sent, &self.tokens.applied) {
            (Err(error), Some(applied)) if error.kind == NodeCallErrorKind::UnknownToken => {
                self.put_with(applied, content, file, progress).await
            }
            (sent, _) => sent,
        }
    }

    async fn put_with(
        &self,
        token: &str,
        content: &Content,
        file: &Arc<File>,
        progress: &SendProgress,
    ) -> Result<(), NodeCallError> {
        let path = format!("contents/{}", content.sha256);
        let call = self.authorized_call_to(Method::PUT, &path, token);
        progress.begin();
        let blocks = blocks(Arc::clone(file), content.size_bytes, progress.clone());
        let sent = call.stream(content.size_bytes, blocks).sent();
        tokio::select! {
            sent = sent => Ok(sent?),
            () = progress.stalled() => {
                Err(CallError::timed_out(&self.base_url, STALL_TIMEOUT).into())
            }
        }
    }

    /// Has the node load an image from a content that is an archive; the names of what it loaded. No time limit applies.
    pub(in crate::orchestrator) async fn load_image(
        &self,
        sha256: &ContentHash,
    ) -> Result<Vec<String>, NodeCallError> {
        let sent = self.load_with(&self.tokens.newest, sha256).await;
        match (sent, &self.tokens.applied) {
            (Err(error), Some(applied)) if error.kind == NodeCallErrorKind::UnknownToken => {
                self.load_with(applied, sha256).await
            }
            (sent, _) => sent,
        }
    }

    async fn load_with(
        &self,
        token: &str,
        sha256: &ContentHash,
    ) -> Result<Vec<String>, NodeCallError> {
        let body = LoadImages {
            version: PAYLOAD_VERSION,
            sha256: sha256.clone(),
        };
        let call = self.authorized_call_to(Method::POST, "images:load", token);
        let answer = call.json(&body).open("application/json").await?;
        let loaded: LoadedImages = answer.document().await?;
        Ok(loaded
            .images
            .into_iter()
            .map(|name| sanitize(&name))
            .collect())
    }

    /// Opens artifact `n` of an attempt that has ended, from byte `first` on.
    pub(in crate::orchestrator) async fn open_artifact(
        &self,
        (job, attempt): (JobId, u32),
        n: usize,
        first: u64,
    ) -> Result<ArtifactBytes, NodeCallError> {
        let path = format!("/{job}/artifacts/{n}?attempt={attempt}");
        let request = |call: Call<'a>| async move { Ok(call.from_byte(first).bytes().await?) };
        self.call(Method::GET, &path, request)
            .await
            .map(ArtifactBytes)
    }
}

/// Blocks of a file, each read on a blocking thread once the one before is taken.
fn blocks(
    file: Arc<File>,
    size: u64,
    progress: SendProgress,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(0, move |start| {
        let (file, progress) = (Arc::clone(&file), progress.clone());
        async move {
            let length = (size - start).min(BLOCK_BYTES);
            if length == 0 {
                return None;
            }
            let read = spawn_blocking(move || {
                let mut block = vec![0; usize::try_from(length).map_err(io::Error::other)?];
                file.read_exact_at(&mut block, start)?;
                Ok(Bytes::from(block))
            });
            let block = read.await.map_err(io::Error::from).flatten();
            progress.record(start + length, &block);
            Some((block, start + length))
        }
    })
}
