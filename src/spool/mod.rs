//! One attempt of a job on a node's disk, which worker and shim both write and read.
//!
//! ```text
//! <jobs>/<job id>-<attempt>/
//!   job.json       the accepted job; a directory without it was never acknowledged
//!   request.json   the command and its environment; deleted before the command can have begun
//!   container      name of its container
//!   stdin …        what its command reads (see `stdin.rs`)
//!   log.0 …        its output (see [`log`])
//!   ended.json     its result without artifacts, while these are collected
//!   result.json    its result
//!   egress.json    sums of what it sent and received through the proxy, written by the worker alone
//!   stdin          content of stdin
//!   artifacts/     files that were collected; beside it collect.json and artifacts.json (see `worker::artifacts`)
//!   execs/         commands beside it, or in a sandbox that stays (see `exec.rs`)
//!   workspace/, shim.sock, session.sock, shim.log    the sandbox's, while there is one
//! ```
//!
//! After a crash these files tell how far a job came: with a result, it has ended; with a shim that answers, it runs;
//! with a request, it has not begun and may be started; with none of these its end is unknown, and it is lost. Only
//! files that the job can't reach are ever read. Two facts are synced, so that they survive a loss of power: that the
//! command may have begun, and the result.

mod exec;
pub mod log;
mod reader;
mod recorder;
mod stdin;
mod writer;

pub use exec::{ExecRecorder, ExecSpool};
pub use reader::LogReader;
pub use recorder::{JobEnd, JobRecorder};
pub use stdin::{Piece, PieceOutcome, StdinReader};

use crate::{
    api::{
        JobId, OrchestratorId, TaskId,
        egress::{EgressSpec, EgressTotals},
        events::ResultEvent,
        jobs::SandboxSpec,
        time::Time,
    },
    backoff::Backoff,
    files::{Durability, replace_file},
    retry::retry_if,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::task::spawn_blocking;

const JOB_FILE: &str = "job.json";
const REQUEST_FILE: &str = "request.json";
const RESULT_FILE: &str = "result.json";
const ENDED_FILE: &str = "ended.json";
const EGRESS_FILE: &str = "egress.json";
const STDIN_FILE: &str = "stdin";
const CONTAINER_FILE: &str = "container";
/// Shortest and longest pause before a result is written again for which there was no room.
const MIN_RETRY_INTERVAL: Duration = Duration::from_millis(100);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Job that a worker has accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AcceptedJob {
    /// Task of the job.
    pub task_id: TaskId,
    /// Id of the job.
    pub job_id: JobId,
    /// Number of the attempt.
    pub attempt: u32,
    /// Image, in normal form.
    pub image: String,
    /// Hash of the request, by which a repeated one is recognised without keeping it.
    pub spec_sha256: String,
    /// Time of the acceptance.
    pub accepted_at: Time,
    /// Orchestrator that sent it; unknown where that sent no identity, or an earlier release accepted the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orchestrator_id: Option<OrchestratorId>,
    /// Ids of the graphics processors that no other job has until this one has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// Whether its sandbox may use models.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inference: bool,
    /// Hosts that its sandbox may reach through the proxy; `None` where it may reach none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressSpec>,
    /// Whether it was given secrets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_secrets: bool,
}

/// Directory of one attempt. [`remove_on_drop`](Self::remove_on_drop) makes it go with the last reference.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    is_removed_on_drop: AtomicBool,
}

impl Spool {
    /// Spool at `path`, whether it exists or not.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            is_removed_on_drop: AtomicBool::new(false),
        }
    }

    /// Name of the directory of an attempt.
    pub fn dir_name(job: JobId, attempt: u32) -> String {
        format!("{job}-{attempt}")
    }

    /// Creates the directory with the accepted job and its request.
    pub fn create(&self, accepted: &AcceptedJob, request: &SandboxSpec) -> io::Result<()> {
        crate::data_dir::make_private_subdir(&self.path)?;
        if request.interactive {
            stdin::create_live(&self.path)?;
        }
        self.write(REQUEST_FILE, request)?;
        self.write(JOB_FILE, accepted)
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Directory that the job sees as `/workspace`.
    pub fn workspace(&self) -> PathBuf {
        self.path.join("workspace")
    }

    /// Reader of the job's stdin; `None` where it has none.
    pub fn stdin_reader(&self) -> io::Result<Option<StdinReader>> {
        StdinReader::open(&self.path)
    }

    /// Receives a piece of live stdin; the offset behind all that was received comes with the answer. Only one call at
    /// a time.
    pub fn receive_stdin(&self, piece: &Piece) -> io::Result<(PieceOutcome, u64)> {
        stdin::receive(&self.path, piece)
    }

    /// Removes the stdin of a job that has ended.
    pub fn remove_stdin(&self) -> io::Result<()> {
        stdin::remove(&self.path)
    }

    /// Accepted job; `None` where none was.
    pub fn accepted(&self) -> io::Result<Option<AcceptedJob>> {
        self.read(JOB_FILE)
    }

    /// Command and its environment; `None` once the command may have begun.
    pub fn request(&self) -> io::Result<Option<SandboxSpec>> {
        self.read(REQUEST_FILE)
    }

    /// Whether the command can't have begun.
    pub fn has_request(&self) -> bool {
        self.path.join(REQUEST_FILE).try_exists().unwrap_or(true)
    }

    /// Records that the command may begin from now on. Fails where the request is gone already.
    pub fn mark_started(&self) -> io::Result<()> {
        fs::remove_file(self.path.join(REQUEST_FILE))?;
        File::open(&self.path)?.sync_all()
    }

    /// Whether the log says that the command has begun.
    pub fn has_started(&self) -> bool {
        let mut reader = LogReader::open(self.path.clone(), 0);
        // Only progress of the preparation stands before it. A log that can't be read says nothing.
        let _ = reader.read(1 << 20, false);
        reader.started_at().is_some()
    }

    /// Records the name of the job's container, before there can be one.
    pub fn write_container_name(&self, name: &str) -> io::Result<()> {
        self.write(CONTAINER_FILE, &name)
    }

    /// Name of the job's container, once there may be one.
    pub fn container_name(&self) -> Option<String> {
        self.read(CONTAINER_FILE).ok().flatten()
    }

    /// Time at which the name was recorded, and so about that of the container's start.
    pub fn container_named_at(&self) -> Option<SystemTime> {
        fs::metadata(self.path.join(CONTAINER_FILE))
            .ok()?
            .modified()
            .ok()
    }

    /// Result, with the sums of the proxy; `None` while there is none.
    pub fn result(&self) -> io::Result<Option<ResultEvent>> {
        let mut result: Option<ResultEvent> = self.read(RESULT_FILE)?;
        let effective = result
            .as_mut()
            .and_then(|last| last.result.effective.as_mut());
        // Sums that can't be read keep nobody from the result.
        if let Some(effective) = effective
            && let Ok(Some(totals)) = self.egress_totals()
        {
            effective.egress = Some(totals);
        }
        Ok(result)
    }

    /// Records the sums of the proxy. They are no part of `result.json`, which the shim writes: only the worker counts.
    pub fn write_egress_totals(&self, totals: &EgressTotals) -> io::Result<()> {
        self.write(EGRESS_FILE, totals)
    }

    /// Sums of the proxy; `None` where the job had none, or none were recorded.
    pub fn egress_totals(&self) -> io::Result<Option<EgressTotals>> {
        self.read(EGRESS_FILE)
    }

    /// Records the end of the command, before its artifacts are collected: should that be cut short, the end is known.
    pub fn write_ended(&self, result: &ResultEvent) -> io::Result<()> {
        self.write(ENDED_FILE, result)
    }

    /// Recorded end of a command whose artifacts were being collected.
    pub fn ended(&self) -> io::Result<Option<ResultEvent>> {
        self.read(ENDED_FILE)
    }

    /// Removes the recorded end, where there is one.
    pub fn remove_ended(&self) -> io::Result<()> {
        match fs::remove_file(self.path.join(ENDED_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Content of stdin, where the job has one.
    pub fn stdin(&self) -> PathBuf {
        self.path.join(STDIN_FILE)
    }

    /// Writes the result, in one piece, and deletes a request that is left.
    pub fn write_result(&self, result: &ResultEvent) -> io::Result<()> {
        self.write(RESULT_FILE, result)?;
        self.remove_ended()?;
        self.delete_request()
    }

    /// Writes the result on a thread that may block, and tries again until it succeeds: after a failure without the
    /// log, whose room it may need. Fails only where the directory is gone, because then the job was forgotten.
    pub async fn write_result_with_retry(&self, result: ResultEvent) -> io::Result<()> {
        let backoff = Backoff::new(MIN_RETRY_INTERVAL, MAX_RETRY_INTERVAL);
        let is_there = |error: &io::Error| error.kind() != io::ErrorKind::NotFound;
        let result = Arc::new(result);
        retry_if(backoff, "write the result of a job", is_there, async || {
            let (spool, result) = (Self::at(self.path.clone()), Arc::clone(&result));
            let written = spawn_blocking(move || spool.write_result_or_make_room(&result));
            written.await.map_err(io::Error::from).flatten()
        })
        .await
    }

    fn write_result_or_make_room(&self, result: &ResultEvent) -> io::Result<()> {
        self.write_result(result).inspect_err(|_| {
            if let Err(error) = self.delete_log() {
                tracing::warn!(path = %self.path.display(), %error, "log can't be deleted");
            }
        })
    }

    /// Deletes a request that is left.
    pub fn delete_request(&self) -> io::Result<()> {
        match self.mark_started() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the result survive a loss of power. Readers may have seen it before: to lose power in between is no worse
    /// than a little earlier.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Removes the directory when this value is dropped.
    pub fn remove_on_drop(&self) {
        self.is_removed_on_drop.store(true, Ordering::Release);
    }

    /// Deletes the log, which takes the most room.
    pub fn delete_log(&self) -> io::Result<()> {
        for index in log::segments(&self.path)? {
            fs::remove_file(log::segment_path(&self.path, index))?;
        }
        Ok(())
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match File::open(self.path.join(name)) {
            Ok(file) => Ok(serde_json::from_reader(BufReader::new(file))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, name: &str, content: &impl Serialize) -> io::Result<()> {
        // Without that, a result's name could survive a loss of power, and its content not.
        let durability = if name == RESULT_FILE {
            Durability::Content
        } else {
            Durability::Process
        };
        let content = serde_json::to_vec(content)?;
        replace_file(&self.path.join(name), &content, durability)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // The job's own files need more than this to be removed; the next start does it.
        if !*self.is_removed_on_drop.get_mut() || self.workspace().exists() {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "job's directory can't be removed; the next start tries again");
        }
    }
}
