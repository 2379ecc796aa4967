//! Jobs that were forgotten: their ids and attempts, so that a request that was long under way
//! can't bring one back to life.
//!
//! A line per job in one file, appended; what is too old or too much goes when the file is read
//! at the next start, or has grown to twice what is in it.

use crate::api::{JobId, time::Time};
use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// How many are kept; the oldest go first.
const MAX_TOMBSTONES: usize = 100_000;

/// The graveyard.
pub(super) struct Tombstones {
    path: PathBuf,
    file: File,
    lines: usize,
    attempts: HashMap<JobId, u32>,
    order: VecDeque<(Time, JobId, u32)>,
}

impl Tombstones {
    /// Reads what an earlier process left, but for what is older than `retain`.
    pub(super) fn open(path: PathBuf, retain: Duration) -> io::Result<Self> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&bytes);
        // A line that was written in part is the last one, and none.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let parsed: Vec<_> = text[..whole].lines().map(parse).collect();
        let damaged = parsed.iter().filter(|line| line.is_none()).count();
        if damaged > 0 {
            set_aside(&path, damaged)?;
        }
        let now = Time::now();
        let mut tombstones = Self {
            file: File::options().append(true).create(true).open(&path)?,
            path,
            lines: 0,
            attempts: HashMap::new(),
            order: VecDeque::new(),
        };
        for (at, job, attempt) in parsed.into_iter().flatten() {
            if now.since(at) < retain {
                tombstones.index(at, job, attempt);
            }
        }
        if let Err(error) = tombstones.compact() {
            // As on a full disk. It goes on growing where it is.
            tracing::warn!(%error, "the list of forgotten jobs can't be written anew");
        }
        Ok(tombstones)
    }

    /// The highest attempt of a job that is buried here.
    pub(super) fn highest_attempt(&self, job: JobId) -> Option<u32> {
        self.attempts.get(&job).copied()
    }

    /// Buries an attempt, and all lower ones.
    pub(super) fn insert(&mut self, job: JobId, attempt: u32) -> io::Result<()> {
        let now = Time::now();
        let length = self.file.metadata()?.len();
        if let Err(error) = self.file.write_all(line(now, job, attempt).as_bytes()) {
            // Half a line would spoil the next one.
            self.file.set_len(length)?;
            return Err(error);
        }
        self.lines += 1;
        self.index(now, job, attempt);
        if self.lines > 2 * MAX_TOMBSTONES {
            self.compact()?;
        }
        Ok(())
    }

    fn index(&mut self, at: Time, job: JobId, attempt: u32) {
        self.attempts.insert(job, attempt);
        self.order.push_back((at, job, attempt));
        if self.order.len() > MAX_TOMBSTONES
            && let Some((_, oldest, attempt)) = self.order.pop_front()
            && self.attempts.get(&oldest) == Some(&attempt)
        {
            self.attempts.remove(&oldest);
        }
    }

    fn compact(&mut self) -> io::Result<()> {
        let text: String = self
            .order
            .iter()
            .map(|&(at, job, attempt)| line(at, job, attempt))
            .collect();
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &self.path)?;
        self.file = File::options().append(true).open(&self.path)?;
        self.lines = self.order.len();
        Ok(())
    }
}

/// Keeps a damaged file beside the one that is written anew.
fn set_aside(path: &Path, damaged: usize) -> io::Result<()> {
    let kept = path.with_extension("damaged");
    fs::rename(path, &kept)?;
    tracing::error!(
        lines = damaged,
        kept = %kept.display(),
        "the list of forgotten jobs is damaged; the lines that can be read are used. A late request to run one of \
         the other jobs would run it again; orchestrators send none once they have stored its result"
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

    #[test]
    fn tombstones_outlive_restart() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tombstones");
        let day = Duration::from_secs(86_400);
        let (first, second) = (JobId::new(), JobId::new());
        let mut tombstones = Tombstones::open(path.clone(), day).unwrap();
        tombstones.insert(first, 1).unwrap();
        tombstones.insert(second, 2).unwrap();
        tombstones.insert(first, 3).unwrap();
        drop(tombstones);
        // A process that was killed in the middle of a line.
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"17 0198c0de-0000").unwrap();
        let tombstones = Tombstones::open(path.clone(), day).unwrap();
        assert_eq!(
            (
                tombstones.highest_attempt(first),
                tombstones.highest_attempt(second)
            ),
            (Some(3), Some(2))
        );
        assert_eq!(tombstones.highest_attempt(JobId::new()), None);
        drop(tombstones);
        assert!(!path.with_extension("damaged").exists());
        let tombstones = Tombstones::open(path, Duration::ZERO).unwrap();
        assert_eq!(tombstones.highest_attempt(first), None, "too old");
    }

    #[test]
    fn damaged_lines_cost_only_themselves() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tombstones");
        let day = Duration::from_secs(86_400);
        let (first, second) = (JobId::new(), JobId::new());
        let now = Time::now();
        let mut bytes = line(now, first, 1).into_bytes();
        bytes.extend(b"\xff\xfe\0 nonsense\n");
        bytes.extend(line(now, second, 2).into_bytes());
        fs::write(&path, &bytes).unwrap();
        for _ in 0..2 {
            let tombstones = Tombstones::open(path.clone(), day).unwrap();
            assert_eq!(
                (
                    tombstones.highest_attempt(first),
                    tombstones.highest_attempt(second)
                ),
                (Some(1), Some(2))
            );
            assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), bytes);
        }
    }
}
