//! Data directory: the directory in which a role keeps its state, and the rules for its files.
//!
//! The directory has mode 0700 and every file 0600, also those that existed before. Files are
//! replaced in one piece ([`files`](crate::files)). A lock per role keeps a second process of the same role out.
//!
//! All calls here read or write the disk and may block.

mod anchors;
mod secret;
mod validation;

pub use anchors::{DataDirMoved, PathAnchors};
pub use secret::SecretFile;
pub use validation::{DataDirError, ensure_usable};

use crate::files::{Durability, PRIVATE_MODE, STALE_AGE, remove_temporary_files, replace_file};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io,
    net::SocketAddr,
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

/// An opened data directory.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

/// Lock of a role, held until it is dropped: other processes of the same role can't start.
#[derive(Debug)]
pub struct RoleLock {
    _file: File,
    path: PathBuf,
}

impl RoleLock {
    /// Path of the lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Content of `addresses.json`: the addresses that are bound.
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
    /// Opens the directory at `path`, which is made where it is missing, and closes it to all other users. Fails,
    /// and changes nothing, where it holds other things.
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

    /// Path of a file inside.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Directory inside, of mode 0700, made where it is missing.
    pub fn subdir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.join(name);
        make_private_dir(&path)?;
        Ok(path)
    }

    /// Takes the lock of `role`, whose own directories inside are `subdirs`, and removes what killed processes left
    /// there. Fails while another process has it.
    pub fn lock(&self, role: &str, subdirs: &[&str]) -> io::Result<RoleLock> {
        let path = self.join(format!("{role}.lock"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(PRIVATE_MODE)
            .open(&path)?;
        file.try_lock().map_err(|_| {
            io::Error::other(format!(
                "another cynode {role} uses {}; stop it, or give this one its own --data-dir",
                self.0.display()
            ))
        })?;
        // Other roles also write to the directory itself.
        remove_temporary_files(&self.0, STALE_AGE);
        for name in subdirs {
            remove_temporary_files(&self.join(name), Duration::ZERO);
        }
        Ok(RoleLock { _file: file, path })
    }

    /// Content of a file; `None` where there is none.
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

    /// Replaces a file in one piece, with mode 0600.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        write_private(&self.join(name), content)
    }

    /// Reads a secret, or makes it with `generate` the first time. Returns whether it was made now. Fails where the
    /// file is there and can't be used.
    pub fn secret(
        &self,
        file: SecretFile,
        generate: impl FnOnce() -> Zeroizing<String>,
    ) -> io::Result<(Zeroizing<String>, bool)> {
        if let Some(text) = file.read(&self.join(file.name))? {
            return Ok((text, false));
        }
        let text = generate();
        self.write(file.name, text.as_bytes())?;
        Ok((text, true))
    }

    /// Reads a secret; `None` where there is none. Fails where the file is there and can't be used.
    pub fn secret_if_there(&self, file: SecretFile) -> io::Result<Option<Zeroizing<String>>> {
        file.read(&self.join(file.name))
    }

    /// Changes `addresses.json`, and keeps the addresses of other roles in it. The file is for scripts. No role needs
    /// it, so a damaged one, or one that can't be written, is logged and stops no start.
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
                "addresses.json not written; find the addresses in this log"
            );
            // Rather no file than the addresses of an earlier start.
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "addresses.json of an earlier start not removed; its addresses are out of date");
            }
        }
    }
}

/// Addresses in a file; none where the file is missing or damaged.
fn read_addresses(path: &Path) -> Addresses {
    let read = fs::read(path).and_then(|text| Ok(serde_json::from_slice(&text)?));
    read.unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(%error, "addresses.json unreadable; replaced");
        }
        Addresses::default()
    })
}

/// Sets the mode of all files of a directory to 0600.
fn make_files_private(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Of the entry itself: the target of a link may be anywhere.
        let changed = entry.file_type().and_then(|kind| {
            if kind.is_file() {
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(PRIVATE_MODE))
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

/// Makes a directory of mode 0700, with its parents, where it is missing.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Makes a directory of mode 0700 where it is missing. Fails without its parent.
pub fn make_private_subdir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Fails where `path` is there and is not a directory of this user, such as a symbolic link.
pub fn check_owner(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(meta) if !meta.is_dir() => Err(io::Error::other("it is not a directory")),
        Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => Err(io::Error::other(
            format!("it belongs to another user (uid {})", meta.uid()),
        )),
        Ok(_) => Ok(()),
    }
}

/// Replaces a file in one piece, with mode 0600; the new content survives a loss of power.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_file(path, content, Durability::Full).map_err(|error| {
        let text = format!("can't write {}: {error}", path.display());
        io::Error::new(error.kind(), text)
    })
}
