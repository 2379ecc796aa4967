//! The directory in which a role keeps its state, and the rules for what lies there.
//!
//! The directory is 0700 and every file 0600, also those that existed before. A file is
//! replaced by rename, so that a reader never sees half of one. A lock per role keeps a
//! second process of the same role out.

mod anchors;
mod secret;
mod validation;

pub use anchors::{DataDirMoved, PathAnchors};
pub use secret::SecretFile;
pub use validation::{DataDirError, ensure_usable};

use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// An opened data directory.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

/// Keeps other processes of the same role out while it lives.
#[derive(Debug)]
pub struct RoleLock {
    _file: File,
    path: PathBuf,
}

impl RoleLock {
    /// Path of the lock.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// `addresses.json`: what was really bound.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Addresses {
    /// The User API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<SocketAddr>,
    /// The Node API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<SocketAddr>,
    /// The Worker API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<SocketAddr>,
}

impl DataDir {
    /// Opens `path`, makes it when missing, and closes it to everybody else. One that isn't empty and was
    /// no data directory before is left as it is.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source: io::Error| DataDirError::Io {
            path: path.to_owned(),
            source,
        };
        let dir = Self(std::path::absolute(path).map_err(failed)?);
        ensure_usable(&dir.0)?;
        make_private_dir(&dir.0)
            .and_then(|()| make_files_private(&dir.0))
            .map_err(failed)?;
        Ok(dir)
    }

    /// A path inside.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// The path itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A directory inside, made when missing, 0700.
    pub fn subdir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.join(name);
        make_private_dir(&path)?;
        Ok(path)
    }

    /// Takes the lock of `role`.
    pub fn lock(&self, role: &str) -> io::Result<RoleLock> {
        let path = self.join(format!("{role}.lock"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)?;
        file.try_lock().map_err(|_| {
            io::Error::other(format!(
                "another cynode {role} uses {}; stop it, or give this one its own --data-dir",
                self.0.display()
            ))
        })?;
        Ok(RoleLock { _file: file, path })
    }

    /// Reads a file; `None` when there is none.
    pub fn read(&self, name: &str) -> io::Result<Option<Zeroizing<String>>> {
        match fs::read_to_string(self.join(name)) {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!("{}: {error}", self.join(name).display()),
            )),
        }
    }

    /// Writes a file, 0600, whole or not at all.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        write_private(&self.join(name), content)
    }

    /// Reads a secret, or makes it with `fresh` the first time; true when it was made now. One that is there
    /// and can't be used is an error.
    pub fn secret(
        &self,
        file: SecretFile,
        fresh: impl FnOnce() -> Zeroizing<String>,
    ) -> io::Result<(Zeroizing<String>, bool)> {
        if let Some(text) = file.read(&self.join(file.name))? {
            return Ok((text, false));
        }
        let text = fresh();
        self.write(file.name, text.as_bytes())?;
        Ok((text, true))
    }

    /// Changes `addresses.json`, leaving to other roles what is theirs. The file is for scripts: no role
    /// needs it, so one that is damaged or can't be written is logged and stops no start.
    pub fn update_addresses(&self, change: impl FnOnce(&mut Addresses)) {
        let path = self.join("addresses.json");
        let mut addresses = read_addresses(&path);
        change(&mut addresses);
        let written = serde_json::to_string(&addresses)
            .map_err(io::Error::from)
            .and_then(|text| write_private(&path, format!("{text}\n").as_bytes()));
        if let Err(error) = written {
            tracing::warn!(
                %error,
                "addresses.json not updated; the addresses are in this log, and scripts can't read them from the file"
            );
            // Rather none than those of an earlier start.
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "addresses.json of an earlier start not removed");
            }
        }
    }
}

/// Addresses in a file; none where it is missing or damaged.
fn read_addresses(path: &Path) -> Addresses {
    let read = fs::read(path).and_then(|text| Ok(serde_json::from_slice(&text)?));
    read.unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(%error, "addresses.json can't be read; it is written again");
        }
        Addresses::default()
    })
}

/// Gives all files of a directory that existed before a mode of 0600.
fn make_files_private(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // The kind of the entry itself: a link's target is none of ours.
        let changed = entry.file_type().and_then(|kind| {
            if kind.is_file() {
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600))
            } else {
                Ok(())
            }
        });
        match changed {
            // Another role of this directory has just renamed or removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            changed => changed?,
        }
    }
    Ok(())
}

/// A directory of mode 0700, made with its parents when missing.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// A directory of mode 0700, made when missing; the one above has to be there.
pub fn make_private_subdir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Fails where something is at `path` that is no directory of this user, such as a link.
pub fn check_owner(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(meta) if !meta.is_dir() => Err(io::Error::other("it is no directory")),
        Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => Err(io::Error::other(
            format!("it belongs to uid {}, and not to us", meta.uid()),
        )),
        Ok(_) => Ok(()),
    }
}

/// Writes a file of mode 0600 beside its place, makes it durable, and renames it there.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let failed = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("can't write {}: {error}", path.display()),
        )
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent()
            .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed(error)
    })
}
