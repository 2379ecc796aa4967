//! An exec of a sandbox on disk. Written by its shim alone, read by the worker.
//!
//! ```text
//! <job's directory>/execs/<exec id>/
//!   exec.json      the exec as it was started; a directory without it is none yet
//!   log.0 …        its output (see [`log`](super::log))
//!   ended.json     the exec with its end
//! ```
//!
//! None of it is synced: an exec ends with its sandbox, and no sandbox outlives its machine. So what has to survive is a
//! process that is killed, and an exec that a machine took with it is never run again because there is no sandbox to run
//! it in.

use super::{
    LogReader,
    log::{self, RecordKind},
    writer::{LogWriter, record_length},
};
use crate::{
    api::{
        ExecId,
        events::{OutputChunk, Stream, Utf8Decoder},
        sandboxes::exec::Exec,
        time::Time,
    },
    files::{Durability, replace_file},
};
use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

const DIRECTORY: &str = "execs";
const EXEC_FILE: &str = "exec.json";
const ENDED_FILE: &str = "ended.json";

/// Directory of an exec.
#[derive(Clone, Debug)]
pub struct ExecSpool {
    path: PathBuf,
}

impl ExecSpool {
    /// Directory of an exec of the job with this directory, whether it exists or not.
    pub fn at(job: &Path, id: ExecId) -> Self {
        Self {
            path: job.join(DIRECTORY).join(id.to_string()),
        }
    }

    /// Directory of the exec, which has its log.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ids of the execs of a job, in no order.
    pub fn list(job: &Path) -> io::Result<Vec<ExecId>> {
        let entries = match fs::read_dir(job.join(DIRECTORY)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            ids.extend(
                entry?
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<ExecId>().ok()),
            );
        }
        Ok(ids)
    }

    /// Records an exec that is to be started; false where there is one.
    pub fn create(&self, exec: &Exec) -> io::Result<bool> {
        let mut private = DirBuilder::new();
        private.mode(0o700);
        if let Some(parent) = self.path.parent() {
            private.recursive(true).create(parent)?;
        }
        match private.recursive(false).create(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            created => created?,
        }
        let written = self.write(EXEC_FILE, exec);
        if written.is_err() {
            // A later exec with this id is the first one.
            self.remove()?;
        }
        written.map(|()| true)
    }

    /// Records the end of the exec.
    pub fn write_end(&self, exec: &Exec) -> io::Result<()> {
        self.write(ENDED_FILE, exec)
    }

    fn write(&self, name: &str, exec: &Exec) -> io::Result<()> {
        let content = serde_json::to_vec(exec)?;
        replace_file(&self.path.join(name), &content, Durability::Process)
    }

    /// The exec as it was started; `None` where there is none.
    pub fn started(&self) -> io::Result<Option<Exec>> {
        self.read(EXEC_FILE)
    }

    /// Whether there still is a record of the exec: those of old ones are removed.
    pub fn is_kept(&self) -> io::Result<bool> {
        self.path.join(EXEC_FILE).try_exists()
    }

    /// The exec with its end; `None` where that is not on record.
    pub fn ended(&self) -> io::Result<Option<Exec>> {
        self.read(ENDED_FILE)
    }

    fn read(&self, name: &str) -> io::Result<Option<Exec>> {
        match fs::read(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            content => Ok(Some(serde_json::from_slice(&content?)?)),
        }
    }

    /// Reader of its output after the record with this number.
    pub fn log(&self, after: u64) -> LogReader {
        LogReader::open(self.path.clone(), after)
    }

    /// Recorder of its output, of which the first and the last bytes are kept, `limit` in all.
    pub fn recorder(&self, limit: u64) -> io::Result<ExecRecorder> {
        Ok(ExecRecorder {
            writer: LogWriter::open(self.path.clone(), limit)?,
            decoders: [Utf8Decoder::default(), Utf8Decoder::default()],
        })
    }

    /// Size of the log, in bytes.
    pub fn log_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for index in log::segments(&self.path)? {
            bytes += log::segment_path(&self.path, index).metadata()?.len();
        }
        Ok(bytes)
    }

    /// Removes the log. The exec and its end stay on record.
    pub fn remove_log(&self) -> io::Result<()> {
        for index in log::segments(&self.path)? {
            fs::remove_file(log::segment_path(&self.path, index))?;
        }
        Ok(())
    }

    /// Removes the exec. Its start goes first: what has no end any more is then not taken for one that runs.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(self.path.join(EXEC_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        fs::remove_dir_all(&self.path)
    }
}

/// The only writer of an exec's log.
pub struct ExecRecorder {
    writer: LogWriter,
    decoders: [Utf8Decoder; 2],
}

impl ExecRecorder {
    /// Records that the command runs.
    pub fn mark_started(&mut self) {
        let now = Time::now().as_millis().to_le_bytes();
        self.writer.append(RecordKind::Started, &now);
    }

    /// Appends a message about the sandbox.
    pub fn append_status(&mut self, detail: &str) {
        self.writer.append(RecordKind::Status, detail.as_bytes());
    }

    /// Appends output, in records that end between characters where that is possible.
    pub fn append_output(&mut self, stream: Stream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (record, rest) = bytes.split_at(record_length(bytes));
            self.push(stream, record, false);
            bytes = rest;
        }
    }

    /// Appends what an incomplete character at the end stands for.
    pub fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.decoders[stream as usize].pending().is_empty() {
                self.push(stream, &[], true);
            }
        }
    }

    fn push(&mut self, stream: Stream, bytes: &[u8], is_last: bool) {
        let decoder = &mut self.decoders[stream as usize];
        let chunk = OutputChunk {
            stream,
            carry: decoder.pending().to_vec(),
            bytes: bytes.to_vec(),
            is_last,
        };
        decoder.decode(bytes);
        if is_last {
            decoder.finish();
        }
        self.writer.append_output(&chunk, Time::now());
    }
}
