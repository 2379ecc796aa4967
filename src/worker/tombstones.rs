//! Tombstones: ids and attempts of jobs that were forgotten, so that a request that was long under way
//! can't bring one back to life.
//!
//! [`Tombstones`] is the index in memory. [`TombstoneFile`] has a line per tombstone, which is appended and synced
//! before the caller learns that its job is forgotten. Tombstones that are too old or too many go when the file is
//! read at the next start, or has grown to twice the limit.

use crate::{
    api::{JobId, time::Time},
    files::{Durability, replace_file},
};
use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// Number of tombstones that are kept; the oldest go first.
const MAX_TOMBSTONES: usize = 100_000;

/// Index of all tombstones.
#[derive(Default)]
pub(super) struct Tombstones {
    attempts: HashMap<JobId, u32>,
    /// The oldest first.
    order: VecDeque<(Time, JobId, u32)>,
}

/// File with all tombstones.
pub(super) struct TombstoneFile {
    path: PathBuf,
    file: File,
    lines: usize,
}

impl Tombstones {
    /// Highest attempt of a job that has a tombstone.
    pub(super) fn highest_attempt(&self, job: JobId) -> Option<u32> {
        self.attempts.get(&job).copied()
    }

    /// Adds a tombstone of an attempt and all lower ones.
    pub(super) fn insert(&mut self, at: Time, job: JobId, attempt: u32) {
        self.attempts.insert(job, attempt);
        self.order.push_back((at, job, attempt));
        if self.order.len() > MAX_TOMBSTONES
            && let Some((_, oldest, attempt)) = self.order.pop_front()
            && self.attempts.get(&oldest) == Some(&attempt)
        {
            self.attempts.remove(&oldest);
        }
    }

    /// Content of the file that holds them.
    pub(super) fn to_text(&self) -> String {
        let tombstones = self.order.iter();
        tombstones
            .map(|&(at, job, attempt)| line(at, job, attempt))
            .collect()
    }
}

impl TombstoneFile {
    /// Opens the file, and reads the tombstones of an earlier process but those older than `retain`.
    pub(super) fn open(path: PathBuf, retain: Duration) -> io::Result<(Self, Tombstones)> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&bytes);
        // An incomplete last line was never confirmed.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let parsed: Vec<_> = text[..whole].lines().map(parse).collect();
        let damaged = parsed.iter().filter(|line| line.is_none()).count();
        if damaged > 0 {
            set_aside(&path, damaged)?;
        }
        let now = Time::now();
        let mut tombstones = Tombstones::default();
        for (at, job, attempt) in parsed.into_iter().flatten() {
            if now.since(at) < retain {
                tombstones.insert(at, job, attempt);
            }
        }
        if let Err(error) = replace_file(&path, tombstones.to_text().as_bytes(), Durability::Full) {
            // Such as on a full disk. The file goes on growing as it is.
            tracing::warn!(%error, "list of forgotten jobs not compacted");
        }
        let file = Self {
            file: File::options().append(true).create(true).open(&path)?,
            path,
            lines: tombstones.order.len(),
        };
        Ok((file, tombstones))
    }

    /// Appends a tombstone, which then survives a loss of power.
    pub(super) fn append(&mut self, at: Time, job: JobId, attempt: u32) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let text = line(at, job, attempt);
        let written = self.file.write_all(text.as_bytes());
        if let Err(error) = written.and_then(|()| self.file.sync_data()) {
            // Half a line would spoil the next one.
            self.file.set_len(length)?;
            return Err(error);
        }
        self.lines += 1;
        Ok(())
    }

    /// Whether most of the file is out of date.
    pub(super) fn is_oversized(&self) -> bool {
        self.lines > 2 * MAX_TOMBSTONES
    }

    /// Replaces the content by that of `text`, which is of [`Tombstones::to_text`].
    pub(super) fn compact(&mut self, text: &str) -> io::Result<()> {
        replace_file(&self.path, text.as_bytes(), Durability::Full)?;
        self.file = File::options().append(true).open(&self.path)?;
        self.lines = text.lines().count();
        Ok(())
    }
}

/// Keeps a damaged file beside the new one.
fn set_aside(path: &Path, damaged: usize) -> io::Result<()> {
    let kept = path.with_extension("damaged");
    fs::rename(path, &kept)?;
    tracing::error!(
        lines = damaged,
        kept = %kept.display(),
        "list of forgotten jobs is damaged; its readable lines are kept. A late request to run one of the lost jobs \
         would run it again; orchestrators send none once they have stored its result"
    );
    Ok(())
}

fn line(at: Time, job: JobId, attempt: u32) -> String {
    format!("{} {job} {attempt}\n", at.as_millis())
}

fn parse(line: &str) -> Option<(Time, JobId, u32)> {
    let mut words = line.split(' ');
    let at = words.next()?.parse().ok().map(Time::from_millis)?;
    Some((at, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn open(path: &Path, retain: Duration) -> Tombstones {
        TombstoneFile::open(path.to_owned(), retain).unwrap().1
    }

    #[test]
    fn tombstones_survive_restart() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tombstones");
        let (first, second) = (JobId::new(), JobId::new());
        let (mut file, _) = TombstoneFile::open(path.clone(), DAY).unwrap();
        for (job, attempt) in [(first, 1), (second, 2), (first, 3)] {
            file.append(Time::now(), job, attempt).unwrap();
        }
        // A process that was killed in the middle of a line.
        file.file.write_all(b"17 0198c0de-0000").unwrap();
        drop(file);
        let tombstones = open(&path, DAY);
        assert_eq!(
            [first, second, JobId::new()].map(|job| tombstones.highest_attempt(job)),
            [Some(3), Some(2), None]
        );
        assert!(!path.with_extension("damaged").exists());
        let tombstones = open(&path, Duration::ZERO);
        assert_eq!(tombstones.highest_attempt(first), None, "too old");
    }

    #[test]
    fn only_damaged_lines_are_lost() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tombstones");
        let (first, second) = (JobId::new(), JobId::new());
        let now = Time::now();
        let mut bytes = line(now, first, 1).into_bytes();
        bytes.extend(b"\xff\xfe\0 nonsense\n");
        bytes.extend(line(now, second, 2).into_bytes());
        fs::write(&path, &bytes).unwrap();
        for _ in 0..2 {
            let tombstones = open(&path, DAY);
            assert_eq!(
                [first, second].map(|job| tombstones.highest_attempt(job)),
                [Some(1), Some(2)]
            );
            assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), bytes);
        }
    }

    #[test]
    fn compacted_file_accepts_more_entries() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tombstones");
        let (first, second) = (JobId::new(), JobId::new());
        let (mut file, mut tombstones) = TombstoneFile::open(path.clone(), DAY).unwrap();
        file.append(Time::now(), JobId::new(), 1).unwrap();
        tombstones.insert(Time::now(), first, 1);
        file.compact(&tombstones.to_text()).unwrap();
        file.append(Time::now(), second, 2).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        let tombstones = open(&path, DAY);
        assert_eq!(tombstones.highest_attempt(first), Some(1));
        assert_eq!(tombstones.highest_attempt(second), Some(2));
    }
}
