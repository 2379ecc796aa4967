//! Logs of ended jobs, kept at the orchestrator: `<data-dir>/logs/<job id>.zst`.
//!
//! A file is the log of the attempt that counts, as its node sent it ([`FrameDecoder`]), compressed. It stands under its
//! name only once it is complete and on the disk, before the end of its job is stored: so whoever sees the end sees the
//! whole log. It goes with its task, at its age, and, oldest first, when all files together are larger than the quota.
//! Nothing depends on a file: without it readers get the part of the output that the result keeps.
//!
//! | file | part |
//! |---|---|
//! | [`fetch`] | from a node to a file |
//! | [`catch_up`] | logs whose fetch a stop of the orchestrator cut off |
//! | [`reader`] | from a file to readers |
//!
//! All calls here but those of [`fetch`] and [`catch_up`] read or write the disk and may block.

mod catch_up;
mod fetch;
pub(super) mod reader;
mod writer;

pub(in crate::orchestrator) use catch_up::catch_up;
pub(in crate::orchestrator) use fetch::start;

use crate::{
    api::{JobId, time::Time},
    data_dir::make_private_subdir,
    disk_space::free_bytes,
    files::remove_temporary_files,
    orchestrator::settings::LogRetention,
};
use catch_up::LateLogs;
use parking_lot::Mutex;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use writer::ArchiveWriter;

const SUFFIX: &str = ".zst";
/// Part of the quota that is freed beyond what is needed, so that not every further file is a search.
const SLACK_DIVISOR: u64 = 20;

/// Directory of kept logs.
pub(in crate::orchestrator) struct LogArchive {
    directory: PathBuf,
    retention: LogRetention,
    /// Free space on the disk that stays for the database, in bytes.
    reserve: u64,
    /// Size of all files, in bytes; also taken while files are removed.
    total: Mutex<u64>,
    late: LateLogs,
}

struct KeptFile {
    job: JobId,
    size: u64,
    modified: SystemTime,
}

impl LogArchive {
    /// Archive in `directory`, which is made where it is missing. Removes what a killed process left.
    pub(in crate::orchestrator) fn open(
        directory: PathBuf,
        retention: LogRetention,
        reserve: u64,
    ) -> io::Result<Self> {
        make_private_subdir(&directory)?;
        remove_temporary_files(&directory, Duration::ZERO);
        let archive = Self {
            directory,
            retention,
            reserve,
            total: Mutex::new(0),
            late: LateLogs::default(),
        };
        let total = archive.files()?.iter().map(|file| file.size).sum();
        *archive.total.lock() = total;
        Ok(archive)
    }

    fn path(&self, job: JobId) -> PathBuf {
        self.directory.join(format!("{job}{SUFFIX}"))
    }

    /// Writer of the log of a job's attempt.
    fn writer(&self, job: JobId, attempt: u32) -> io::Result<ArchiveWriter> {
        self.ensure_space()?;
        ArchiveWriter::create(&self.directory, self.path(job), attempt)
    }

    /// Fails where the disk has no room for a log beside what the database needs.
    fn ensure_space(&self) -> io::Result<()> {
        if free_bytes(&self.directory)? < self.reserve {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Counts a new file, and removes the oldest ones beyond the quota.
    fn add(&self, size: u64, replaced: u64) -> io::Result<()> {
        let quota = self.retention.quota;
        let mut total = self.total.lock();
        *total = (*total + size).saturating_sub(replaced);
        if *total <= quota {
            return Ok(());
        }
        let mut files = self.files()?;
        files.sort_by_key(|file| (file.modified, file.job));
        *total = files.iter().map(|file| file.size).sum();
        let wanted = quota - quota / SLACK_DIVISOR;
        let mut removed = 0;
        for file in files {
            if *total <= wanted {
                break;
            }
            remove(&self.path(file.job))?;
            *total -= file.size;
            removed += 1;
        }
        tracing::info!(removed, quota, "oldest kept logs removed, over --log-quota");
        Ok(())
    }

    /// Removes the logs of these jobs.
    pub(in crate::orchestrator) fn remove(&self, jobs: &[JobId]) {
        for job in jobs {
            let path = self.path(*job);
            let mut total = self.total.lock();
            let size = fs::metadata(&path).map_or(0, |file| file.len());
            match remove(&path) {
                Ok(()) => *total = total.saturating_sub(size),
                Err(error) => {
                    tracing::warn!(%job, %error, "kept log not removed; the next start tries again")
                }
            }
        }
    }

    /// Jobs whose logs are older than their retention.
    pub(in crate::orchestrator) fn expired(&self, now: Time) -> io::Result<Vec<JobId>> {
        let Some(age) = self.retention.age else {
            return Ok(Vec::new());
        };
        let oldest = now.minus(age).as_millis();
        let oldest = Duration::from_millis(u64::try_from(oldest).unwrap_or(0));
        let is_old = |file: &KeptFile| {
            let modified = file.modified.duration_since(SystemTime::UNIX_EPOCH);
            modified.is_ok_and(|modified| modified < oldest)
        };
        let expired = self.files()?.into_iter().filter(is_old);
        Ok(expired.map(|file| file.job).collect())
    }

    /// Jobs that have a log.
    pub(in crate::orchestrator) fn jobs(&self) -> io::Result<Vec<JobId>> {
        Ok(self.files()?.into_iter().map(|file| file.job).collect())
    }

    /// All files. Others than ours stay untouched.
    fn files(&self) -> io::Result<Vec<KeptFile>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let job = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            let Some(job) = job.and_then(|job| job.parse().ok()) else {
                continue;
            };
            match entry.metadata() {
                Ok(file) => files.push(KeptFile {
                    job,
                    size: file.len(),
                    modified: file.modified()?,
                }),
                // Removed just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }
}

/// Removes a file; one that is gone is as good.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
