//! Backup: a copy of the database in one file, also while an orchestrator works on it.
//!
//! The copy holds the commits until one moment, without free pages and without a log beside it. It gets its
//! name once it is complete and on the disk, and never replaces another file. The copying is one long read,
//! during which the log of a busy database grows; it is truncated afterwards.

use super::{BUSY_TIMEOUT, BackupError, BackupSummary, migrate, space};
use rusqlite::{
    Connection, ErrorCode, OpenFlags,
    types::{ToSqlOutput, ValueRef},
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

impl From<rusqlite::Error> for BackupError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Copies the database at `path` to a new file `target` of mode 0600.
pub fn backup(path: &Path, target: &Path) -> Result<BackupSummary, BackupError> {
    let directory = check_target(target)?;
    let connection = open(path)?;
    let schema = check_schema(&connection, path)?;
    let copy = Temporary::beside(target)?;
    // Lets the copy of an older database shrink, too. The statement fails on a read-only connection, but it
    // takes effect for copies.
    let _ = space::enable_incremental_vacuum(&connection);
    let name = ValueRef::Text(copy.0.as_os_str().as_bytes());
    let copied = connection.execute("VACUUM INTO ?1", [ToSqlOutput::Borrowed(name)]);
    copied.map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => BackupError::Full(target.to_owned()),
        Some(ErrorCode::DatabaseCorrupt) => BackupError::Damaged(path.to_owned()),
        _ => error.into(),
    })?;
    let bytes = copy.keep(target, &directory)?;
    Ok(BackupSummary { bytes, schema })
}

fn of_file(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    |source| BackupError::File {
        path: path.to_owned(),
        source,
    }
}

/// Directory of a target that can be created.
fn check_target(target: &Path) -> Result<PathBuf, BackupError> {
    let target = std::path::absolute(target).map_err(of_file(target))?;
    if target.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(target));
    }
    let directory = target.parent().unwrap_or(&target).to_owned();
    if !directory.is_dir() {
        return Err(BackupError::NoDirectory(directory));
    }
    Ok(directory)
}

fn open(path: &Path) -> Result<Connection, BackupError> {
    match fs::metadata(path) {
        Ok(file) if file.is_file() => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(of_file(path)(error)),
        _ => return Err(BackupError::NoDatabase(path.to_owned())),
    }
    // SQLite reports every failure as a file that can't be opened.
    File::open(path).map_err(of_file(path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

fn check_schema(connection: &Connection, path: &Path) -> Result<i64, BackupError> {
    let (path, known) = (path.to_owned(), migrate::VERSION);
    match migrate::version(connection) {
        Ok(found) if found > known => Err(BackupError::TooNew { path, found, known }),
        Ok(found) if found > 0 => Ok(found),
        Err(error) if error.sqlite_error_code() != Some(ErrorCode::NotADatabase) => {
            Err(error.into())
        }
        _ => Err(BackupError::NoDatabase(path)),
    }
}

/// File that is deleted when dropped, together with its journal.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(target: &Path) -> Result<Self, BackupError> {
        let mut name = std::path::absolute(target)
            .map_err(of_file(target))?
            .into_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        let path = PathBuf::from(name);
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        made.map_err(of_file(&path))?;
        Ok(Self(path))
    }

    /// Syncs the file and gives it its name, unless the name was taken meanwhile; the size of the file.
    fn keep(self, target: &Path, directory: &Path) -> Result<u64, BackupError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(target.to_owned()),
            io::ErrorKind::StorageFull => BackupError::Full(target.to_owned()),
            _ => of_file(target)(error),
        };
        let file = File::open(&self.0).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        // Some file systems have no links, others no renaming without replacing.
        match fs::hard_link(&self.0, target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                renameat_with(CWD, &self.0, CWD, target, RenameFlags::NOREPLACE)
                    .map_err(|error| failed(error.into()))?;
            }
            linked => linked.map_err(failed)?,
        }
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)?;
        Ok(file.metadata().map_err(failed)?.len())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut journal = self.0.clone().into_os_string();
        journal.push("-journal");
        for path in [&self.0, Path::new(&journal)] {
            let _ = fs::remove_file(path);
        }
    }
}
