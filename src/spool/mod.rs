//! One attempt of a job on a node's disk: what worker and shim both write and read.
//!
//! ```text
//! <jobs>/<job id>-<attempt>/
//!   job.json       what was accepted; a directory without it was never told to anybody
//!   request.json   what to run; gone before the command can have begun
//!   workspace/     what the job sees as /workspace; gone once its container is
//!   log.0 …        what the job printed (see [`log`])
//!   container      what its container is called
//!   result.json    how it ended
//!   shim.sock      where its shim listens, while there is one
//!   shim.log       what its shim had to complain about
//! ```
//!
//! So whoever comes after a crash can tell: with a result, the job has ended; with a shim that
//! answers, it goes on; with its request, it has not begun and may be started; with none of these
//! nobody can know, and it is lost. Only files that the job can't reach are ever read. Two things have to
//! outlast a loss of power, and are synced: that the command may have begun, and how it ended.

pub mod log;
mod reader;
mod recorder;
mod writer;

pub use reader::LogReader;
pub use recorder::{JobEnd, JobRecorder};

use crate::{
    api::{JobId, OrchestratorId, TaskId, events::ResultEvent, jobs::SandboxSpec, time::Time},
    backoff::Backoff,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

const JOB_FILE: &str = "job.json";
const REQUEST_FILE: &str = "request.json";
const RESULT_FILE: &str = "result.json";
const CONTAINER_FILE: &str = "container";
/// Between tries to write a result for which there is no room.
const MIN_RETRY_INTERVAL: Duration = Duration::from_millis(100);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// What was accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AcceptedJob {
    /// Whose job it is.
    pub task_id: TaskId,
    /// Which job.
    pub job_id: JobId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Its image, in normal form.
    pub image: String,
    /// By this a repeated request is known, without keeping what it asked for.
    pub spec_sha256: String,
    /// When it was accepted.
    pub accepted_at: Time,
    /// The orchestrator that sent it; unknown where that sent no identity, or an older release accepted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orchestrator_id: Option<OrchestratorId>,
}

/// The directory of one attempt. Goes with the last one who holds it, once it is
/// [is_removed_on_drop](Self::remove_on_drop).
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    is_removed_on_drop: AtomicBool,
}

impl Spool {
    /// The directory at `path`, whether it exists or not.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            is_removed_on_drop: AtomicBool::new(false),
        }
    }

    /// The name of the directory of an attempt.
    pub fn dir_name(job: JobId, attempt: u32) -> String {
        format!("{job}-{attempt}")
    }

    /// Makes the directory, with what was accepted in it.
    pub fn create(&self, accepted: &AcceptedJob, request: &SandboxSpec) -> io::Result<()> {
        crate::data_dir::make_private_subdir(&self.path)?;
        self.write(REQUEST_FILE, request)?;
        self.write(JOB_FILE, accepted)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the job sees as `/workspace`.
    pub fn workspace(&self) -> PathBuf {
        self.path.join("workspace")
    }

    /// Where the shim complains.
    pub fn shim_log(&self) -> PathBuf {
        self.path.join("shim.log")
    }

    /// What was accepted; `None` where nothing was.
    pub fn accepted(&self) -> io::Result<Option<AcceptedJob>> {
        self.read(JOB_FILE)
    }

    /// What to run; `None` once it may have begun.
    pub fn request(&self) -> io::Result<Option<SandboxSpec>> {
        self.read(REQUEST_FILE)
    }

    /// From here on the command may have begun.
    pub fn mark_started(&self) -> io::Result<()> {
        fs::remove_file(self.path.join(REQUEST_FILE))?;
        File::open(&self.path)?.sync_all()
    }

    /// Whether the command is known to have begun.
    pub fn has_started(&self) -> bool {
        let mut reader = LogReader::open(self.path.clone(), 0, 0);
        // Before it there is only what was done for it. A log that can't be read tells nothing.
        let _ = reader.read(1 << 20, false);
        reader.started_at().is_some()
    }

    /// Notes what its container is called.
    pub fn write_container_name(&self, name: &str) -> io::Result<()> {
        self.write(CONTAINER_FILE, &name)
    }

    /// What its container is called, once there may be one.
    pub fn container_name(&self) -> Option<String> {
        self.read(CONTAINER_FILE).ok().flatten()
    }

    /// How it ended; `None` while it hasn't.
    pub fn result(&self) -> io::Result<Option<ResultEvent>> {
        self.read(RESULT_FILE)
    }

    /// Writes down how it ended; in one piece, so that nobody reads half of it. What is left of the
    /// request is not needed any more.
    pub fn write_result(&self, result: &ResultEvent) -> io::Result<()> {
        self.write(RESULT_FILE, result)?;
        self.delete_request()
    }

    /// The same, as often as it takes; better without the log than not at all. Fails only where the
    /// directory is gone: then nobody asks for it any more.
    pub async fn write_result_with_retry(&self, result: &ResultEvent) -> io::Result<()> {
        let mut backoff = Backoff::new(MIN_RETRY_INTERVAL, MAX_RETRY_INTERVAL);
        loop {
            match self.write_result(result) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::error!(path = %self.path.display(), %error, "an end can't be written down yet; trying again");
                }
                done => return done,
            }
            if let Err(error) = self.delete_log() {
                tracing::warn!(path = %self.path.display(), %error, "a log can't be removed");
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Removes what is left of a request that is not needed any more.
    pub fn delete_request(&self) -> io::Result<()> {
        match self.mark_started() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Has the result outlast a loss of power. It is told before: power that fails just then is no
    /// worse than a moment earlier.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// The path of the shim's socket, short enough for the kernel wherever the directory is, as
    /// long as the file that comes with it is open.
    pub fn shim_socket(&self) -> io::Result<(File, PathBuf)> {
        let directory = File::open(&self.path)?;
        let path = format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd());
        Ok((directory, path.into()))
    }

    /// Has the directory removed once nobody holds it any more.
    pub fn remove_on_drop(&self) {
        self.is_removed_on_drop.store(true, Ordering::Release);
    }

    /// Removes the log, which needs the most room.
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
        let temporary = self.path.join(format!(".{name}"));
        let mut file = BufWriter::new(File::create(&temporary)?);
        serde_json::to_writer(&mut file, content)?;
        file.flush()?;
        if name == RESULT_FILE {
            // Else its name could outlast a loss of power, and its content not.
            file.get_ref().sync_all()?;
        }
        fs::rename(temporary, self.path.join(name))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // While the job's own files are there, this is not for us to remove; the next start does.
        if !*self.is_removed_on_drop.get_mut() || self.workspace().exists() {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a job's directory could not be removed; the next start tries again");
        }
    }
}
