//! Reader of a download, which releases bytes only where their sum is right: a client that goes on where an answer broke
//! off, as wget does, has no wrong ones among those that it got.

use super::{
    entry::{CHUNK_BYTES, Entry, MAX_HEAD_BYTES, SUM_BYTES, damaged},
    policy::Key,
    store::Store,
};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    sync::Arc,
    time::SystemTime,
};

/// Reader of a download. The file may be removed or replaced meanwhile.
pub(super) struct Reader {
    store: Arc<Store>,
    key: Key,
    file: BufReader<File>,
    hasher: Sha256,
    left: u64,
    /// Whether the use of the file was recorded.
    is_used: bool,
}

impl Reader {
    /// Reads what is known of a download. Fails with `InvalidData` where the file is damaged.
    pub(super) fn open(store: &Arc<Store>, key: &Key, file: File) -> io::Result<(Entry, Self)> {
        let size = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let mut line = Vec::new();
        file.by_ref()
            .take(MAX_HEAD_BYTES)
            .read_until(b'\n', &mut line)?;
        let entry = Entry::parse(&line)?;
        if size != entry.file_bytes(line.len()) {
            return Err(damaged("it has another length than was written"));
        }
        let mut hasher = Sha256::new();
        hasher.update(&line);
        let reader = Self {
            store: Arc::clone(store),
            key: key.clone(),
            file,
            hasher,
            left: entry.length,
            is_used: false,
        };
        Ok((entry, reader))
    }

    /// Name of the download.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Number of bytes that were not read.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Next bytes; none at the end. A file that turns out to be damaged is removed.
    pub(super) fn read(&mut self) -> io::Result<Bytes> {
        if !std::mem::replace(&mut self.is_used, true) {
            // One that can't be touched goes sooner.
            let _ = self.file.get_ref().set_modified(SystemTime::now());
        }
        let read = self.read_chunk();
        read.inspect_err(|error| self.store.remove_damaged(&self.key, error))
    }

    fn read_chunk(&mut self) -> io::Result<Bytes> {
        let length = usize::try_from(self.left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        if length == 0 {
            return Ok(Bytes::new());
        }
        let mut chunk = vec![0; length];
        self.file.read_exact(&mut chunk)?;
        let mut sum = [0; SUM_BYTES as usize];
        self.file.read_exact(&mut sum)?;
        self.hasher.update(&chunk);
        if self.hasher.clone().finalize()[..] != sum {
            return Err(damaged("its bytes are not those that were written"));
        }
        self.left -= length as u64;
        Ok(Bytes::from(chunk))
    }
}
