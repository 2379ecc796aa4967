//! Reader of tar archives, plain or compressed by gzip or zstd, in bounded memory.
//!
//! Only headers are interpreted here. Names and sizes come from ustar headers, GNU long names and pax records.
//! Formats that would give half a file as if it were whole are refused: sparse files, parts of several volumes, and
//! archives without their end mark.

use super::BLOCK_BYTES;
use std::io::{self, BufReader, Read};
use tar::{EntryType, Header};

/// Buffer between a content and its decoder.
const BUFFER_BYTES: usize = 256 << 10;
/// Longest record about the next entry: names, and attributes that are ignored.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Records about one entry.
const MAX_EXTENSIONS: usize = 16;
/// Bytes of all records: about 2 KiB for each of the most entries.
const MAX_EXTENSIONS_BYTES: u64 = 4 << 30;
/// Bytes that are read after the end mark, so that the checksum of the compression is checked.
const MAX_TRAILER_BYTES: u64 = 1 << 20;
/// Reason of a content that is something else.
const NOT_TAR: &str = "is not a tar archive, plain or compressed by gzip or zstd, or is damaged";
/// Largest window of zstd, as a power of two: memory of the decoder.
const MAX_WINDOW_LOG: u32 = 25;

/// Reason for which an archive can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// The archive is damaged, or has an entry that is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// The archive ends early, or its compression is damaged.
    #[error("is damaged or ends early: {0}")]
    Read(#[from] io::Error),
}

fn invalid<T>(reason: impl Into<String>) -> Result<T, ArchiveError> {
    Err(ArchiveError::Invalid(reason.into()))
}

/// Type of an entry that can be extracted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EntryKind {
    File,
    Directory,
    Symlink,
    Link,
}

/// Header of one entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryKind,
    pub(crate) mode: u32,
    pub(crate) size: u64,
    /// Time of the last change, in seconds since 1970.
    pub(crate) modified: Option<i64>,
    /// Target of a link.
    pub(crate) target: Vec<u8>,
}

/// Archive that is read from its beginning to its end.
pub(crate) struct Archive<'a> {
    input: Box<dyn Read + 'a>,
    /// Bytes of the current entry that are not read yet.
    left: u64,
    /// Bytes after it, up to the next header.
    padding: u64,
    /// Whether there was a header.
    has_entries: bool,
    /// Bytes of records that may still come.
    extensions_left: u64,
}

/// Fields that records before an entry give it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<i64>,
}

impl<'a> Archive<'a> {
    /// Begins to read an archive, whose compression its first bytes tell.
    pub(crate) fn open(mut content: impl Read + 'a) -> Result<Self, ArchiveError> {
        let mut start = Vec::new();
        content.by_ref().take(4).read_to_end(&mut start)?;
        let whole = io::Cursor::new(start.clone()).chain(content);
        let buffered = BufReader::with_capacity(BUFFER_BYTES, whole);
        let input: Box<dyn Read + 'a> = match start[..] {
            [] => return invalid("is empty, so it is no archive"),
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Box::new(decoder)
            }
            _ => Box::new(buffered),
        };
        Ok(Self {
            input,
            left: 0,
            padding: 0,
            has_entries: false,
            extensions_left: MAX_EXTENSIONS_BYTES,
        })
    }

    /// Header of the next entry, after what is left of the current one; `None` at the end mark.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extensions = Extensions::default();
        for _ in 0..MAX_EXTENSIONS {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else {
                self.read_trailer()?;
                return Ok(None);
            };
            let kind = header.entry_type();
            let size = header.entry_size()?;
            if kind.is_gnu_longname() {
                extensions.path = Some(until_nul(self.read_extension(size)?));
            } else if kind.is_gnu_longlink() {
                extensions.target = Some(until_nul(self.read_extension(size)?));
            } else if kind.is_pax_local_extensions() {
                extensions.read_pax(&self.read_extension(size)?)?;
            } else if kind.is_pax_global_extensions() || kind.as_byte() == b'V' {
                // Comments, such as the commit of `git archive`, and labels of volumes.
                self.read_extension(size)?;
            } else {
                return self.entry(&header, extensions, size).map(Some);
            }
        }
        invalid("has too many records about one entry")
    }

    /// Reads of the current entry; 0 at its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = read_some(&mut self.input, &mut buffer[..most])?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.left -= read as u64;
        Ok(read)
    }

    fn entry(
        &mut self,
        header: &Header,
        extensions: Extensions,
        size: u64,
    ) -> Result<Entry, ArchiveError> {
        let path = extensions
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = header.entry_type();
        let name = super::quoted(&path);
        let kind = match kind {
            // Before there were types, a name with a slash was a directory.
            EntryType::Regular if path.ends_with(b"/") => EntryKind::Directory,
            EntryType::Regular | EntryType::Continuous => EntryKind::File,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => EntryKind::Symlink,
            EntryType::Link => EntryKind::Link,
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let what = if kind == EntryType::Fifo {
                    "FIFO"
                } else {
                    "device"
                };
                return invalid(format!(
                    "entry {name} is a {what}; only files, directories and links can be extracted"
                ));
            }
            EntryType::GNUSparse => return invalid(sparse(&name)),
            other => {
                let letter = char::from(other.as_byte()).escape_debug().to_string();
                return invalid(format!(
                    "entry {name} has the unknown type '{letter}'; make the archive with tar"
                ));
            }
        };
        let size = match kind {
            EntryKind::File => extensions.size.unwrap_or(size),
            // Some archives give a link the size of its target, and no content.
            _ => 0,
        };
        self.set_entry_size(size)?;
        let target = extensions
            .target
            .or_else(|| header.link_name_bytes().map(Into::into));
        let modified = header
            .mtime()
            .ok()
            .and_then(|seconds| i64::try_from(seconds).ok());
        Ok(Entry {
            path,
            kind,
            mode: header.mode().unwrap_or(0o644),
            size,
            modified: extensions.modified.or(modified),
            target: target.unwrap_or_default(),
        })
    }

    fn set_entry_size(&mut self, size: u64) -> Result<(), ArchiveError> {
        if size > i64::MAX as u64 {
            return invalid("has an entry with an impossible size");
        }
        self.left = size;
        self.padding = (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// Next header; `None` at a block of zeros, which marks the end.
    fn read_header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut block = [0; BLOCK_BYTES as usize];
        if let Err(error) = self.input.read_exact(&mut block) {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof if !self.has_entries => invalid(NOT_TAR),
                io::ErrorKind::UnexpectedEof => invalid("ends early: its end mark is missing"),
                _ => Err(error.into()),
            };
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block);
        // The checksum counts its own field as spaces.
        let sum = block.iter().enumerate().map(|(n, byte)| match n {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        });
        if header.cksum().ok() != Some(sum.sum()) {
            return invalid(NOT_TAR);
        }
        self.has_entries = true;
        Ok(Some(header.clone()))
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENSION_BYTES {
            return invalid("has a record of more than 1 MiB about an entry");
        }
        let Some(left) = self.extensions_left.checked_sub(size) else {
            return invalid("has more than 4 GiB of records about its entries");
        };
        self.extensions_left = left;
        self.set_entry_size(size)?;
        let mut bytes = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.left = 0;
        Ok(bytes)
    }

    /// Reads up to the end of the compressed data, which holds its checksum. Only zeros may come before it.
    fn read_trailer(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = [0; 4096];
        let mut trailer = (&mut self.input).take(MAX_TRAILER_BYTES);
        loop {
            let read = read_some(&mut trailer, &mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            if buffer[..read].iter().any(|byte| *byte != 0) {
                return invalid(
                    "has data after its end mark, such as a second archive; send each archive as a file of its own",
                );
            }
        }
    }
}

impl Extensions {
    /// Reads pax records: `LENGTH KEY=VALUE\n`, each with its whole length.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), ArchiveError> {
        while !records.is_empty() {
            let Some((key, value, rest)) = split_record(records) else {
                return invalid("has a damaged pax record");
            };
            let number = || std::str::from_utf8(value).ok();
            match key {
                b"path" => self.path = Some(value.to_owned()),
                b"linkpath" => self.target = Some(value.to_owned()),
                b"size" => match number().and_then(|text| text.parse().ok()) {
                    Some(size) => self.size = Some(size),
                    None => return invalid("has a pax record with an impossible size"),
                },
                b"mtime" => {
                    let seconds = number().and_then(|text| text.split('.').next()?.parse().ok());
                    self.modified = seconds;
                }
                _ if key.starts_with(b"GNU.sparse.") => {
                    let name = super::quoted(self.path.as_deref().unwrap_or(b"?"));
                    return invalid(sparse(&name));
                }
                _ => {}
            }
            records = rest;
        }
        Ok(())
    }
}

fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &records[length..]))
}

fn sparse(name: &str) -> String {
    format!("entry {name} is stored as a sparse file; make the archive without --sparse")
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}
