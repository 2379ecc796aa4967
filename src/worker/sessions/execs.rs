//! Execs as their shim records them, which this process only reads.
//!
//! An exec without an end on record runs as long as its sandbox does; after that it is lost.

use crate::{
    api::{
        ExecId,
        error::ApiError,
        events::RecordContent,
        problem::{Problem, ProblemKind},
        sandboxes::exec::{Exec, ExecResult, ExecStatus, MAX_ANSWER_BYTES},
    },
    spool::ExecSpool,
    worker::ledger::Job,
};
use std::{cmp::Reverse, io, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Bytes of output that are read at a time.
const READ_BYTES: usize = 256 * 1024;
/// Shortest and longest pause between two looks at an exec, while its sandbox writes all the time.
const MIN_LOOK_PAUSE: Duration = Duration::from_millis(1);
const MAX_LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Part of its age that an exec is looked at later than it could be.
const LOOK_DELAY_PART: u32 = 50;

/// Answer about an exec that was found, and whose record was removed since.
pub(super) const RECORD_GONE: &str = "the record of this exec is no longer kept; read the output of an exec while it runs, or soon after its end";

/// Exec of a sandbox that is followed: each look at it waits for something new.
pub(super) struct ExecFollower {
    job: Arc<Job>,
    spool: ExecSpool,
    exec: Exec,
    changed: watch::Receiver<()>,
    began_at: Instant,
    looked_at: Instant,
}

impl ExecFollower {
    /// Follower of an exec that was started.
    pub(super) fn new(job: Arc<Job>, exec: Exec) -> Self {
        let now = Instant::now();
        Self {
            changed: job.subscribe(),
            spool: ExecSpool::at(job.spool.path(), exec.exec_id),
            job,
            exec,
            began_at: now,
            looked_at: now,
        }
    }

    /// The exec as it was when it was found.
    pub(super) fn exec(&self) -> &Exec {
        &self.exec
    }

    /// Records of the exec.
    pub(super) fn spool(&self) -> &ExecSpool {
        &self.spool
    }

    /// Number of the sandbox's attempt.
    pub(super) fn attempt(&self) -> u32 {
        self.job.accepted.attempt
    }

    /// Reads the exec's records, on a thread that may block, after a look whether the exec has ended: all output is
    /// in the log before there is an end. Fails with `NotFound` where the record of the exec is no longer kept.
    pub(super) async fn look<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(&ExecSpool, Option<&Exec>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<(T, Option<Exec>)> {
        // Before the look, so that no change is missed.
        self.changed.mark_unchanged();
        self.looked_at = Instant::now();
        let is_over = self.job.has_ended();
        let (spool, started) = (self.spool.clone(), self.exec.clone());
        let looked = self.job.with_spool(move |_| {
            let end = match spool.ended()? {
                None if is_over => Some(lost(started)),
                None if !spool.is_kept()? => return Err(io::ErrorKind::NotFound.into()),
                end => end,
            };
            read(&spool, end.as_ref()).map(|read| (read, end))
        });
        looked.await.flatten()
    }

    /// Waits until there may be more to see. An exec whose sandbox writes all the time is looked at with pauses.
    pub(super) async fn changed(&mut self) {
        // The sender lives in the job.
        let _ = self.changed.changed().await;
        let pause = (self.began_at.elapsed() / LOOK_DELAY_PART).min(MAX_LOOK_PAUSE);
        // A timer takes a millisecond or two, however short: most execs have ended by then.
        if pause >= MIN_LOOK_PAUSE {
            sleep_until(self.looked_at + pause).await;
        }
    }

    /// Waits for the end of the exec.
    pub(super) async fn ended(mut self) -> io::Result<Exec> {
        loop {
            if let ((), Some(exec)) = self.look(|_, _| Ok(())).await? {
                return Ok(exec);
            }
            self.changed().await;
        }
    }

    /// Waits for the end of the exec. Returns it with its first output.
    pub(super) async fn result(mut self) -> io::Result<ExecResult> {
        loop {
            let read = |spool: &ExecSpool, end: Option<&Exec>| match end {
                Some(_) => first_output(spool).map(Some),
                None => Ok(None),
            };
            if let (Some((stdout, stderr, truncated)), Some(exec)) = self.look(read).await? {
                return Ok(ExecResult {
                    exec,
                    stdout,
                    stderr,
                    truncated,
                });
            }
            self.changed().await;
        }
    }
}

/// Error of a look at an exec: 410 where the record of that is no longer kept.
pub(super) fn look_error(error: io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::NotFound => Problem::new(ProblemKind::Gone, RECORD_GONE).into(),
        _ => ApiError::internal(error),
    }
}

/// Exec of a sandbox as it is now. Fails with 404.
pub(super) async fn find(job: &Arc<Job>, id: ExecId) -> Result<Exec, ApiError> {
    let is_over = job.has_ended();
    let read = job.with_spool(move |spool| read_exec(spool.path(), id, is_over));
    let exec = read.await.flatten().map_err(ApiError::internal)?;
    exec.ok_or_else(|| Problem::not_found("exec").into())
}

/// All execs of a sandbox, the newest first.
pub(super) async fn list(job: &Arc<Job>) -> Result<Vec<Exec>, ApiError> {
    let is_over = job.has_ended();
    let read = job.with_spool(move |spool| {
        let mut execs = Vec::new();
        for id in ExecSpool::list(spool.path())? {
            execs.extend(read_exec(spool.path(), id, is_over)?);
        }
        execs.sort_by_key(|exec| Reverse((exec.started_at, exec.exec_id)));
        Ok(execs)
    });
    read.await.flatten().map_err(ApiError::internal)
}

fn read_exec(job: &Path, id: ExecId, is_over: bool) -> io::Result<Option<Exec>> {
    let spool = ExecSpool::at(job, id);
    if let Some(ended) = spool.ended()? {
        return Ok(Some(ended));
    }
    let started = spool.started()?;
    // It may have ended since the first look, also where the sandbox ended since.
    Ok(match spool.ended()? {
        None if is_over => started.map(lost),
        None => started,
        ended => ended,
    })
}

fn lost(exec: Exec) -> Exec {
    Exec {
        status: ExecStatus::Lost,
        ..exec
    }
}

/// First output of both streams as text, and whether there is more.
fn first_output(spool: &ExecSpool) -> io::Result<(String, String, bool)> {
    let mut reader = spool.log(0);
    let (mut texts, mut is_full) = ([String::new(), String::new()], [false; 2]);
    let mut truncated = false;
    while is_full != [true; 2] {
        let records = reader.read(READ_BYTES, true)?;
        if records.is_empty() {
            break;
        }
        for record in records {
            let chunk = match record.content {
                RecordContent::Output(chunk) => chunk,
                RecordContent::Gap { .. } => {
                    truncated = true;
                    continue;
                }
                RecordContent::Status(_) | RecordContent::Started | RecordContent::Egress(_) => {
                    continue;
                }
            };
            let stream = chunk.stream as usize;
            let text = chunk.text();
            if is_full[stream] || text.is_empty() {
                truncated |= is_full[stream];
                continue;
            }
            let room = MAX_ANSWER_BYTES - texts[stream].len();
            let end = text.floor_char_boundary(room);
            texts[stream].push_str(&text[..end]);
            is_full[stream] = end < text.len();
            truncated |= is_full[stream];
        }
    }
    let [stdout, stderr] = texts;
    Ok((stdout, stderr, truncated))
}
