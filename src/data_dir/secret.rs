//! Secret files: texts that are made once and have to stay, such as keys.
//!
//! A file that is there is never overwritten: a damaged key that was replaced in silence would end every login
//! and lock out every node.

use crate::files::PRIVATE_MODE;
use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};
use zeroize::Zeroizing;

/// Mode bits by which other users may write.
const NOT_OWNER_WRITABLE: u32 = 0o022;
/// Mode bits by which other users may read or write.
const NOT_OWNER_ACCESS: u32 = 0o077;
/// Longest file that is read.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// A file with a text that is made once.
#[derive(Clone, Copy, Debug)]
pub struct SecretFile {
    /// Path below the data directory.
    pub name: &'static str,
    /// Checks the text; an error completes "its content …".
    pub validate: fn(&str) -> Result<(), &'static str>,
    /// Advice for a file that can't be used.
    pub advice: &'static str,
}

impl SecretFile {
    /// Text at `path`; `None` where there is none.
    pub(super) fn read(&self, path: &Path) -> io::Result<Option<Zeroizing<String>>> {
        let refuse = |what: &str| {
            let text = format!("{} {what}; {}", path.display(), self.advice);
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refuse(&format!("can't be read: {error}"))),
        };
        if !meta.is_file() || meta.len() > MAX_SECRET_BYTES {
            return Err(refuse(
                "is not a file of cynode (not a regular file, or too long)",
            ));
        }
        let is_ours = meta.uid() == rustix::process::geteuid().as_raw();
        // Root's files are trusted.
        if !is_ours && meta.uid() != 0 {
            let what = format!(
                "belongs to another user (uid {}), who may have changed it",
                meta.uid()
            );
            return Err(refuse(&what));
        }
        let mode = meta.permissions().mode();
        if mode & NOT_OWNER_WRITABLE != 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "other users can write to {path} and may have changed it; if its content is right, run: chmod 600 {path}; if not, {}",
                    self.advice,
                    path = path.display(),
                ),
            ));
        }
        let bytes = fs::read(path).map(Zeroizing::new);
        let bytes = bytes.map_err(|error| refuse(&format!("can't be read: {error}")))?;
        let text = std::str::from_utf8(&bytes).map_err(|_| refuse("is damaged: it is not text"))?;
        let text = Zeroizing::new(text.trim().to_owned());
        (self.validate)(&text)
            .map_err(|what| refuse(&format!("is damaged: its content {what}")))?;
        if mode & NOT_OWNER_ACCESS != 0 {
            tracing::warn!(path = %path.display(), "secret file was readable by other users; replace the secret if any of them may have read it");
            if is_ours {
                fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE_MODE))?;
            }
        }
        Ok(Some(text))
    }
}
