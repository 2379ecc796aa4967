//! Form of a download on disk: a line of JSON with what is known of it, and its bytes. After each [chunk](CHUNK_BYTES) of
//! them stands the SHA-256 of all before it, sums left out.
//!
//! The URL is not in it, since it may have a password or a signature: the name of the file is made of its hash.

use serde::{Deserialize, Serialize};
use std::io;

/// Version of the form. Files of another one are not understood, and are removed.
const VERSION: u32 = 1;
/// Longest first line, its end included.
pub(super) const MAX_HEAD_BYTES: u64 = 64 * 1024;
/// Bytes of a download that have a sum behind them; the last ones may be fewer.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes of a sum.
pub(super) const SUM_BYTES: u64 = 32;

/// What is known of a download.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    version: u32,
    /// Strong entity tag, with its quotes.
    pub(super) etag: String,
    /// Headers of the answer that are kept, names in lower case.
    pub(super) headers: Vec<(String, String)>,
    /// Number of bytes.
    pub(super) length: u64,
}

impl Entry {
    /// What is known of an answer.
    pub(super) fn new(etag: String, headers: Vec<(String, String)>, length: u64) -> Self {
        Self {
            version: VERSION,
            etag,
            headers,
            length,
        }
    }

    /// First line of a file.
    pub(super) fn to_line(&self) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }

    /// Reads the first line of a file.
    pub(super) fn parse(line: &[u8]) -> io::Result<Self> {
        let line = line.strip_suffix(b"\n");
        let line = line.ok_or_else(|| damaged("its first line has no end"))?;
        let entry: Self =
            serde_json::from_slice(line).map_err(|error| damaged(&error.to_string()))?;
        if entry.version == VERSION {
            Ok(entry)
        } else {
            Err(damaged("it has the form of another release"))
        }
    }

    /// Bytes of the whole file, whose first line is so long.
    pub(super) fn file_bytes(&self, line: usize) -> u64 {
        let chunks = self.length.div_ceil(CHUNK_BYTES as u64);
        (line as u64)
            .saturating_add(self.length)
            .saturating_add(chunks.saturating_mul(SUM_BYTES))
    }
}

/// Error about a file that is not what was written.
pub(super) fn damaged(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_read_as_written() {
        let headers = vec![("content-type".to_owned(), "a/b; c=\"d\"".to_owned())];
        let entry = Entry::new("\"x\"".to_owned(), headers, 7);
        let line = entry.to_line().unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(Entry::parse(&line).unwrap(), entry);
        assert_eq!(entry.file_bytes(line.len()), line.len() as u64 + 39);
        for wrong in [
            &line[..line.len() - 1],
            b"\n",
            b"{}\n",
            &line[1..],
            br#"{"version":2,"etag":"","headers":[],"length":1}
"#,
        ] {
            let error = Entry::parse(wrong).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
