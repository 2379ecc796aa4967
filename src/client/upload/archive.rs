//! Bytes of an upload: those of a file, or a tar archive that depends only on what was found.
//!
//! The archive is in GNU format: entries in the order of their paths, owner 0, no names of users, times in seconds.
//! Its size is known before a file is read, and it is made while it is sent: nothing is spooled, and memory stays
//! constant.

use super::scan::{Entry, Kind, Manifest};
use crate::archive::{BLOCK_BYTES, END_BYTES, EntryFields, header_blocks};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};
use tar::EntryType;

/// Size of a piece.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that are read ahead.
const READ_AHEAD: usize = 4;

/// Number of bytes of the content.
pub(in crate::client) fn content_size(manifest: &Manifest) -> u64 {
    if !manifest.is_archive {
        return manifest.entries.iter().map(|entry| entry.size).sum();
    }
    let size = |entry: &Entry| head(entry).len() as u64 + entry.size.next_multiple_of(BLOCK_BYTES);
    manifest.entries.iter().map(size).sum::<u64>() + END_BYTES as u64
}

/// Blocks of an entry before its bytes.
fn head(entry: &Entry) -> Vec<u8> {
    let mut path = entry.path.clone();
    if entry.kind == Kind::Directory {
        path.push(b'/');
    }
    let (kind, target) = match &entry.kind {
        Kind::File => (EntryType::Regular, &[][..]),
        Kind::Directory => (EntryType::Directory, &[][..]),
        Kind::Link(target) => (EntryType::Symlink, &target[..]),
    };
    header_blocks(&EntryFields {
        kind,
        path: &path,
        target,
        mode: entry.mode,
        owner: (0, 0),
        size: entry.size,
        modified: entry.modified.0,
    })
}

/// Content, read and hashed ahead by threads of its own.
pub(in crate::client) struct ContentReader {
    pieces: Receiver<io::Result<Bytes>>,
    piece: Bytes,
    /// Bytes that the receiver has already; they are read and hashed, but not returned.
    skip: u64,
    hash: JoinHandle<String>,
}

impl ContentReader {
    /// Reader of the content, from the byte `skip` on.
    pub(in crate::client) fn open(manifest: &Arc<Manifest>, skip: u64) -> Self {
        let (to_reader, pieces) = sync_channel(READ_AHEAD);
        let (to_hash, hashed) = sync_channel::<Bytes>(READ_AHEAD);
        let hash = thread::spawn(move || {
            let mut hash = Sha256::new();
            while let Ok(piece) = hashed.recv() {
                hash.update(&piece);
            }
            format!("{:x}", hash.finalize())
        });
        let manifest = Arc::clone(manifest);
        thread::spawn(move || {
            let mut pipe = Pipe {
                to_reader,
                to_hash,
                buffer: Vec::with_capacity(PIECE_BYTES),
            };
            if let Err(error) = pipe.write_content(&manifest) {
                // The reader may be gone; then nobody needs the error.
                let _ = pipe.to_reader.send(Err(error));
            }
        });
        Self {
            pieces,
            piece: Bytes::new(),
            skip,
            hash,
        }
    }

    /// Reads up to the first byte that is to be returned, so that it is at hand.
    pub(in crate::client) fn read_to_start(&mut self) -> io::Result<()> {
        while self.piece.is_empty() {
            match self.pieces.recv() {
                Ok(piece) => self.piece = piece?,
                Err(_) => return Ok(()),
            }
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX);
            let skipped = skipped.min(self.piece.len());
            self.skip -= skipped as u64;
            drop(self.piece.split_to(skipped));
        }
        Ok(())
    }

    /// SHA-256 of the whole content, once it was read to its end.
    pub(super) fn finish(self) -> io::Result<String> {
        drop(self.pieces);
        self.hash
            .join()
            .map_err(|_| io::Error::other("the hash was not computed"))
    }
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_to_start()?;
        let length = self.piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// Sending side: collects small writes into pieces.
struct Pipe {
    to_reader: SyncSender<io::Result<Bytes>>,
    to_hash: SyncSender<Bytes>,
    buffer: Vec<u8>,
}

impl Pipe {
    fn write_content(&mut self, manifest: &Manifest) -> io::Result<()> {
        for entry in &manifest.entries {
            if manifest.is_archive {
                self.write(&head(entry))?;
            }
            if entry.kind == Kind::File {
                let path = match &entry.path[..] {
                    [] => manifest.root.clone(),
                    path => manifest.root.join(OsStr::from_bytes(path)),
                };
                self.write_file(entry, path, !manifest.is_open)?;
            }
            if manifest.is_archive {
                let padding = entry.size.next_multiple_of(BLOCK_BYTES) - entry.size;
                self.write(&[0; BLOCK_BYTES as usize][..padding as usize])?;
            }
        }
        if manifest.is_archive {
            self.write(&[0; END_BYTES])?;
        }
        self.flush()
    }

    /// Writes exactly the bytes that were found, or fails.
    fn write_file(&mut self, entry: &Entry, path: PathBuf, is_named: bool) -> io::Result<()> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let changed = || {
            let text = format!("{} changed while it was read; try again", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        // Neither a link nor a fifo that took the place of the file may hold the upload up.
        let flags = if is_named {
            libc::O_NOFOLLOW | libc::O_NONBLOCK
        } else {
            0
        };
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&path)
            .map_err(named)?;
        if !entry.is_same(&file.metadata().map_err(named)?) {
            return Err(changed());
        }
        let mut left = entry.size;
        while left > 0 {
            let most = PIECE_BYTES - self.buffer.len();
            let most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.fill(&mut file, most).map_err(named)?;
            if read == 0 {
                return Err(changed());
            }
            left -= read as u64;
            // The last bytes are held back until the file was checked again.
            if self.buffer.len() == PIECE_BYTES && left > 0 {
                self.flush()?;
            }
        }
        if entry.is_same(&file.metadata().map_err(named)?) {
            Ok(())
        } else {
            Err(changed())
        }
    }

    fn fill(&mut self, file: &mut File, most: usize) -> io::Result<usize> {
        let start = self.buffer.len();
        self.buffer.resize(start + most, 0);
        let read = file.read(&mut self.buffer[start..]);
        self.buffer.truncate(start + *read.as_ref().unwrap_or(&0));
        read
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let length = bytes.len().min(PIECE_BYTES - self.buffer.len());
            self.buffer.extend(&bytes[..length]);
            bytes = &bytes[length..];
            if self.buffer.len() == PIECE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::replace(
            &mut self.buffer,
            Vec::with_capacity(PIECE_BYTES),
        ));
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader is gone");
        self.to_hash.send(piece.clone()).map_err(|_| gone(()))?;
        self.to_reader.send(Ok(piece)).map_err(|_| gone(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::sha256_hex;
    use std::{fs, os::unix::fs::symlink, path::Path};

    fn read_from(root: &Path, skip: u64) -> (Vec<u8>, String, u64) {
        let manifest = Arc::new(Manifest::scan(root).unwrap());
        let mut reader = ContentReader::open(&manifest, skip);
        reader.read_to_start().unwrap();
        assert_eq!(reader.skip, 0);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        (bytes, reader.finish().unwrap(), content_size(&manifest))
    }

    #[test]
    fn archive_is_deterministic_and_complete() {
        let home = tempfile::tempdir().unwrap();
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
        fs::create_dir(home.path().join("d".repeat(120))).unwrap();
        let files = [
            ("a", 0),
            ("b", 511),
            ("c", 512),
            ("e", PIECE_BYTES * 3 + 7),
            (&long, 5),
        ];
        for (path, size) in files {
            fs::write(home.path().join(path), vec![7; size]).unwrap();
        }
        symlink("x".repeat(150), home.path().join("link")).unwrap();
        let (bytes, hash, size) = read_from(home.path(), 0);
        assert_eq!(size, bytes.len() as u64);
        assert_eq!(hash, sha256_hex(&bytes));
        assert_eq!(read_from(home.path(), 0).0, bytes);
        let (rest, same, _) = read_from(home.path(), 300_000);
        assert_eq!((&rest[..], same), (&bytes[300_000..], hash));

        let mut archive = tar::Archive::new(&bytes[..]);
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            if entry.header().entry_type().is_symlink() {
                let target = entry.link_name().unwrap().unwrap().into_owned();
                assert_eq!(target, Path::new(&"x".repeat(150)));
                continue;
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.push((path, content.len()));
        }
        let mut expected: Vec<_> = files.map(|(path, size)| (path.to_owned(), size)).to_vec();
        expected.push((format!("{}/", "d".repeat(120)), 0));
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn single_file_is_sent_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("a");
        for content in ["", "hello"] {
            fs::write(&file, content).unwrap();
            let (bytes, hash, size) = read_from(&file, 0);
            assert_eq!(
                (&bytes[..], size),
                (content.as_bytes(), content.len() as u64)
            );
            assert_eq!(hash, sha256_hex(content));
        }
    }

    #[test]
    fn changed_file_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("a");
        for change in ["", "longer than before"] {
            fs::write(&file, "before").unwrap();
            let manifest = Arc::new(Manifest::scan(home.path()).unwrap());
            fs::write(&file, change).unwrap();
            let mut reader = ContentReader::open(&manifest, 0);
            let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains("a changed while"), "{error}");
        }
        fs::write(&file, "before").unwrap();
        let manifest = Arc::new(Manifest::scan(home.path()).unwrap());
        fs::remove_file(&file).unwrap();
        symlink("/etc/passwd", &file).unwrap();
        let mut reader = ContentReader::open(&manifest, 0);
        reader.read_to_end(&mut Vec::new()).unwrap_err();
    }
}
