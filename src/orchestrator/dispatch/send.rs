//! Contents that a node lacks, sent before it can take an attempt.
//!
//! A node names them in its refusal of `jobs:run`; it has nothing of the attempt then, so the attempt is sent again
//! when it has them. Only contents of the job itself are sent, whatever the node asks for. A node that can't take them
//! has not started the attempt, which goes back to the queue.

use super::{
    lease::Lease,
    outcome::{AttemptError, AttemptOutcome},
};
use crate::{
    api::{
        jobs::{
            SandboxSpec,
            files::{Content, ContentHash},
        },
        tasks::TaskStatus,
    },
    orchestrator::{
        AppState,
        node_client::{self, NodeCallError, NodeCallErrorKind, NodeClient, SendProgress},
        reason::Reason,
        sends::Sending,
        task_watch::{TaskState, TaskWatch},
    },
    store::RunningJob,
};
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::spawn_blocking;

/// Times that a node may name missing contents of one attempt: its cache may lose some while others arrive.
pub(super) const MAX_ROUNDS: usize = 4;
/// Times that one content is sent, should the connection break.
const MAX_TRIES: usize = 4;
/// Bytes that are read at a time of a content that a node has found to be another one.
const CHECKED_BYTES: usize = 256 * 1024;
/// Interval at which users see how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Progress of sending, for those who wait for the task.
pub(super) struct Observers<'a> {
    pub(super) lease: &'a Lease,
    pub(super) watch: &'a TaskWatch,
    /// Seconds for which files were sent, which the time limit of the attempt does not count.
    pub(super) seconds: &'a AtomicU64,
}

/// Sends the contents of a job that its node lacks.
pub(super) async fn send_contents(
    state: &AppState,
    client: &NodeClient<'_>,
    job: &RunningJob,
    missing: &[ContentHash],
    observers: Option<Observers<'_>>,
) -> Result<(), AttemptError> {
    let spec = state.store.task_sandbox(job.task_id).await;
    let spec = spec.map_err(AttemptError::of_sandbox)?;
    let wanted = wanted(&spec, missing).ok_or_else(|| {
        not_started("it asks for contents that are not the job's; check that it is a cynode node")
    })?;
    let total: u64 = wanted.iter().map(|content| content.size_bytes).sum();
    let mut sent = 0;
    for content in wanted {
        let sending = state.jobs.sends.join(client.slug(), &content.sha256);
        let sent_one = send_one(state, client, &content, &sending);
        match &observers {
            Some(observers) => tokio::select! {
                done = sent_one => done?,
                () = report(state, observers, job, &sending.progress, (sent, total)) => {
                    return Err(not_sent("the task was canceled while its files were sent"));
                }
            },
            None => sent_one.await?,
        }
        sent += content.size_bytes;
    }
    tracing::debug!(bytes = total, "contents sent to the node");
    Ok(())
}

/// Contents of the job that are missing, in its order; `None` where others are asked for, or none.
fn wanted(spec: &SandboxSpec, missing: &[ContentHash]) -> Option<Vec<Content>> {
    let files = spec.files.iter().map(|file| &file.content);
    let mut wanted: Vec<Content> = Vec::new();
    for content in files.chain(&spec.stdin) {
        let is_new = wanted.iter().all(|known| known.sha256 != content.sha256);
        if is_new && missing.contains(&content.sha256) {
            wanted.push(content.clone());
        }
    }
    let is_known = |hash: &ContentHash| wanted.iter().any(|content| content.sha256 == *hash);
    (!missing.is_empty() && missing.iter().all(is_known)).then_some(wanted)
}

async fn send_one(
    state: &AppState,
    client: &NodeClient<'_>,
    content: &Content,
    sending: &Sending,
) -> Result<(), AttemptError> {
    let Err(error) = transfer(state, client, content, sending).await else {
        return Ok(());
    };
    Err(match error {
        SendError::Node(error, file) => refused(content, file, error).await,
        SendError::Broken(_) => damaged("can't be read"),
        SendError::Unreadable(error) => {
            tracing::error!(%error, sha256 = %content.sha256, "content of a task can't be read");
            match error.kind() {
                io::ErrorKind::NotFound => damaged("is not there any more"),
                // Such as too many open files.
                _ => not_sent("a file of the task can't be read at the orchestrator; see its log"),
            }
        }
    })
}

/// Failure to send a content.
pub(in crate::orchestrator) enum SendError {
    /// The content can't be opened here.
    Unreadable(io::Error),
    /// A part of the content can't be read here.
    Broken(io::Error),
    /// The node did not take it; with the content's file.
    Node(NodeCallError, Arc<File>),
}

/// Sends a content to a node, again where the connection breaks. While another job sends it there, waits for that one.
pub(in crate::orchestrator) async fn transfer(
    state: &AppState,
    client: &NodeClient<'_>,
    content: &Content,
    sending: &Sending,
) -> Result<(), SendError> {
    let mut has_arrived = sending.turn.lock().await;
    if *has_arrived {
        return Ok(());
    }
    let progress = &sending.progress;
    let (store, hash) = (state.contents.clone(), content.sha256.clone());
    let opened = spawn_blocking(move || store.open_content(&hash)).await;
    let file = opened.map_err(io::Error::from).flatten();
    let file = Arc::new(file.map_err(SendError::Unreadable)?);
    let mut backoff = node_client::retry_backoff();
    for tries in 1.. {
        let Err(error) = client.put_content(content, &file, progress).await else {
            *has_arrived = true;
            return Ok(());
        };
        if progress.has_read_failed() {
            let error = "a part of a content can't be read; the log has the cause above";
            return Err(SendError::Broken(io::Error::other(error)));
        }
        let may_pass = matches!(
            error.kind,
            NodeCallErrorKind::Unclear | NodeCallErrorKind::Unreachable
        );
        if !may_pass || tries == MAX_TRIES {
            return Err(SendError::Node(error, file));
        }
        tracing::debug!(%error, "content not sent; retrying");
        tokio::time::sleep(backoff.next_delay()).await;
    }
    Ok(())
}

/// Meaning of a content that could not be sent. Where the fault is here, no node is to blame.
async fn refused(content: &Content, file: Arc<File>, error: NodeCallError) -> AttemptError {
    // The node says that the bytes have another hash, which may also be its own fault or that of the way to it.
    if error.kind == NodeCallErrorKind::Invalid && !is_intact(content, file).await {
        tracing::error!(sha256 = %content.sha256, "content of a task is damaged");
        return damaged("is damaged");
    }
    let reason = error
        .reason
        .map(|reason| format!("the job's files could not be sent to it: {reason}"));
    let outcome = match error.kind {
        NodeCallErrorKind::NoRoom => AttemptOutcome::NoRoom,
        // Another node may have a larger disk.
        NodeCallErrorKind::TooLarge => AttemptOutcome::Rejected,
        NodeCallErrorKind::Unhealthy => AttemptOutcome::NodeUnhealthy,
        _ => AttemptOutcome::NotStarted,
    };
    AttemptError {
        outcome: Some(outcome(reason.clone())),
        ..AttemptError::transient(reason)
    }
}

/// Whether a file has the bytes of a content.
async fn is_intact(content: &Content, file: Arc<File>) -> bool {
    let hashed = spawn_blocking(move || {
        let (mut hasher, mut block, mut start) = (Sha256::new(), vec![0; CHECKED_BYTES], 0);
        loop {
            match file.read_at(&mut block, start)? {
                0 => return Ok::<_, io::Error>((start, hasher.finalize().into())),
                length => {
                    hasher.update(&block[..length]);
                    start += length as u64;
                }
            }
        }
    });
    let hashed = hashed.await.map_err(io::Error::from).flatten();
    hashed.is_ok_and(|(size, digest)| {
        size == content.size_bytes && ContentHash::from_digest(&digest) == content.sha256
    })
}

fn damaged(how: &str) -> AttemptError {
    let reason = format!("a file of the task {how} at the orchestrator; see its log");
    let reason = Reason::from(reason.as_str());
    AttemptError {
        outcome: Some(AttemptOutcome::Damaged(reason.clone())),
        ..AttemptError::transient(reason)
    }
}

/// Error of an attempt that was not sent, for a reason that is not the node's.
fn not_sent(reason: &str) -> AttemptError {
    AttemptError {
        outcome: Some(AttemptOutcome::NotSent(reason.into())),
        ..AttemptError::transient(reason)
    }
}

/// Error of a node that has not started the attempt.
pub(super) fn not_started(reason: &str) -> AttemptError {
    AttemptError {
        outcome: Some(AttemptOutcome::NotStarted(reason.into())),
        ..AttemptError::transient(reason)
    }
}

/// Shows how far it is, and that the node is alive, while bytes move. Ends when the task is canceled.
async fn report(
    state: &AppState,
    observers: &Observers<'_>,
    job: &RunningJob,
    progress: &SendProgress,
    (sent, total): (u64, u64),
) {
    let mut last = None;
    while !state.jobs.active.is_canceled(job.id) {
        let bytes = progress.bytes();
        if last.replace(bytes) != Some(bytes) {
            observers.lease.renew();
        }
        let percent = (sent + bytes).saturating_mul(100) / total.max(1);
        observers.watch.publish(TaskState {
            sending: u8::try_from(percent.min(100))
                .ok()
                .map(|percent| (job.node_id, percent)),
            ..TaskState::new(TaskStatus::Running, job.attempt)
        });
        tokio::time::sleep(REPORT_INTERVAL).await;
        let seconds = REPORT_INTERVAL.as_secs();
        observers.seconds.fetch_add(seconds, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_contents_of_job_are_sent() {
        let hash = |digit: &str| -> ContentHash { digit.repeat(64).parse().unwrap() };
        let content = |digit: &str| serde_json::json!({"sha256": hash(digit), "size_bytes": 1});
        let file =
            |path: &str, digit: &str| serde_json::json!({"path": path, "content": content(digit)});
        let spec: SandboxSpec = serde_json::from_value(serde_json::json!({
            "image": "i", "command": ["c"], "stdin": content("c"),
            "files": [file("a", "a"), file("again", "a"), file("b", "b")],
        }))
        .unwrap();
        let hashes = |missing: &[ContentHash]| {
            let wanted = wanted(&spec, missing)?;
            Some(
                wanted
                    .iter()
                    .map(|one| one.sha256.clone())
                    .collect::<Vec<_>>(),
            )
        };
        let [a, b, c, other] = ["a", "b", "c", "d"].map(hash);
        assert_eq!(hashes(&[c.clone(), a.clone()]), Some(vec![a.clone(), c]));
        assert_eq!(hashes(&[b, other]), None, "another user's content");
        assert_eq!(hashes(&[]), None);
    }
}
