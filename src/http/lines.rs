//! JsonLines of JSON out of bytes that come in pieces, cut anywhere.

use super::request::parse_json;
use bytes::BytesMut;
use serde::de::DeserializeOwned;

/// Longest line, in bytes: a result with both streams full and every byte escaped.
const MAX_LINE_BYTES: usize = 8 * 1024 * 1024;

/// Bytes that arrived and were not read yet; never much more than one line.
#[derive(Default)]
pub struct LineBuffer {
    bytes: BytesMut,
    /// Number of bytes from the start that hold no line feed.
    searched: usize,
}

impl LineBuffer {
    /// Appends a chunk.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Next line as a `T`; `None` until the whole line has arrived. The error says what is wrong with the line.
    pub fn take_line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, String> {
        let unseen = &self.bytes[self.searched..];
        if let Some(at) = unseen.iter().position(|b| *b == b'\n') {
            let line = self.bytes.split_to(self.searched + at + 1);
            self.searched = 0;
            return parse_json(&line)
                .map(Some)
                .map_err(|problem| problem.detail);
        }
        self.searched = self.bytes.len();
        if self.searched > MAX_LINE_BYTES {
            return Err(format!("a line longer than {MAX_LINE_BYTES} bytes"));
        }
        Ok(None)
    }

    /// Whether no bytes are left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_line_is_bounded() {
        let mut lines = LineBuffer::default();
        let piece = vec![b' '; MAX_LINE_BYTES / 2];
        lines.push(&piece);
        lines.push(&piece);
        assert_eq!(lines.take_line::<u8>(), Ok(None));
        lines.push(b"7");
        assert_eq!(
            lines.take_line::<u8>(),
            Err(format!("a line longer than {MAX_LINE_BYTES} bytes"))
        );
    }
}
