//! Removal of uploads that were not finished.

use super::{ContentStore, partial::PartialKey, sink::SYNC_BYTES};
use std::{
    fs::{self, File, Metadata},
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Upload that was not finished.
pub struct UnfinishedUpload {
    /// Key.
    pub key: String,
    /// Bytes that are here.
    pub size_bytes: u64,
    /// Whether no call sends it at the moment.
    pub is_idle: bool,
    modified: SystemTime,
}

impl ContentStore {
    /// Removes the upload `key`, where there is one and no call sends it. Returns whether it was removed.
    pub fn discard(&self, key: &str) -> io::Result<bool> {
        self.discard_if(key, |_| Ok(true))
    }

    /// Removes all uploads whose key begins with `prefix`, except those that a call sends. Returns their number.
    pub fn discard_all(&self, prefix: &str) -> io::Result<usize> {
        let mut removed = 0;
        for upload in self.unfinished(prefix)? {
            removed += usize::from(self.discard(&upload.key)?);
        }
        Ok(removed)
    }

    /// Cuts uploads whose key begins with `prefix` to what was certainly synced, since after a loss of power there may be
    /// holes behind it. For those whose hash nobody announced; before any of them goes on.
    pub fn cut_unsynced(&self, prefix: &str) -> io::Result<()> {
        for upload in self.unfinished(prefix)? {
            let path = self.shared.partial.join(&upload.key);
            let meta = fs::symlink_metadata(&path)?;
            if !meta.is_file() {
                continue;
            }
            let size = meta.len();
            // The file may have grown across a multiple of it and not been synced yet.
            let synced = (size / SYNC_BYTES).saturating_sub(1) * SYNC_BYTES;
            if synced == 0 {
                fs::remove_file(&path)?;
            } else {
                File::options().write(true).open(&path)?.set_len(synced)?;
            }
            self.shared.release(size - synced);
        }
        Ok(())
    }

    /// Removes the oldest uploads whose key begins with `prefix`, where there are more than `most`.
    pub fn discard_oldest(&self, prefix: &str, most: usize) -> io::Result<usize> {
        let uploads = self.unfinished(prefix)?;
        let mut removed = 0;
        for upload in &uploads[..uploads.len().saturating_sub(most)] {
            removed += usize::from(self.discard(&upload.key)?);
        }
        Ok(removed)
    }

    /// Removes the oldest uploads whose key begins with `prefix` until `enough` bytes are removed, except `kept` and
    /// those that a call sends. Returns the number of uploads.
    pub fn discard_bytes(&self, prefix: &str, kept: &str, enough: u64) -> io::Result<usize> {
        let (mut removed, mut bytes) = (0, 0);
        for upload in self.unfinished(prefix)? {
            if bytes >= enough {
                break;
            }
            if upload.key != kept && self.discard(&upload.key)? {
                bytes += upload.size_bytes;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes uploads whose last part arrived longer than `max_age` ago. Returns their number.
    pub fn remove_stale_uploads(&self, max_age: Duration) -> io::Result<usize> {
        let is_stale = |modified: SystemTime| {
            let age = SystemTime::now().duration_since(modified);
            age.is_ok_and(|age| age >= max_age)
        };
        let mut removed = 0;
        for upload in self.unfinished("")? {
            if is_stale(upload.modified) {
                // A part may have arrived since the directory was read.
                let still = self.discard_if(&upload.key, |meta| Ok(is_stale(meta.modified()?)));
                removed += usize::from(still?);
            }
        }
        Ok(removed)
    }

    /// Removes an upload that no call sends, and of which `condition` holds then.
    fn discard_if(
        &self,
        key: &str,
        condition: impl FnOnce(&Metadata) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let Ok((claim, _)) = PartialKey::claim(Arc::clone(&self.shared), key, 0) else {
            return Ok(false);
        };
        let path = claim.path();
        let meta = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            found => found?,
        };
        if !meta.is_file() || !condition(&meta)? {
            return Ok(false);
        }
        fs::remove_file(path)?;
        self.shared.release(meta.len());
        Ok(true)
    }

    /// Uploads whose key begins with `prefix`, the oldest first.
    pub fn unfinished(&self, prefix: &str) -> io::Result<Vec<UnfinishedUpload>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.shared.partial)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(key) = name.to_str().filter(|name| name.starts_with(prefix)) else {
                continue;
            };
            let meta = match entry.metadata() {
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            found.push(UnfinishedUpload {
                key: key.to_owned(),
                size_bytes: meta.len(),
                is_idle: self.shared.partials.claim_of(key).is_none(),
                modified: meta.modified()?,
            });
        }
        found.sort_by_key(|upload| upload.modified);
        Ok(found)
    }
}
