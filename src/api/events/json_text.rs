//! Output in a JSON document that is written while the output is read.

use super::OutputEncoding;
use crate::api::time::Time;
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Content of a JSON string that is written in pieces, such as the output of a command.
pub struct JsonText {
    encoding: OutputEncoding,
    timestamps: bool,
    is_line_start: bool,
    /// Bytes that don't fill a group of base64 yet.
    rest: Vec<u8>,
}

impl JsonText {
    /// Content in an encoding, with the time before each line where `timestamps` is set.
    pub fn new(encoding: OutputEncoding, timestamps: bool) -> Self {
        Self {
            encoding,
            timestamps,
            is_line_start: true,
            rest: Vec::new(),
        }
    }

    /// Next piece of the content; `None` where it is too short to be one.
    pub fn write(&mut self, bytes: Vec<u8>, time: Option<Time>) -> Option<String> {
        let bytes = match time.filter(|_| self.timestamps) {
            Some(time) => self.prefix_lines(&bytes, time),
            None => bytes,
        };
        match self.encoding {
            OutputEncoding::Text => {
                let json = serde_json::to_string(&String::from_utf8_lossy(&bytes)).ok()?;
                Some(json[1..json.len() - 1].to_owned())
            }
            OutputEncoding::Base64 => {
                self.rest.extend(bytes);
                let whole = self.rest.len() - self.rest.len() % 3;
                let text = STANDARD.encode(&self.rest[..whole]);
                self.rest.drain(..whole);
                Some(text)
            }
        }
        .filter(|text| !text.is_empty())
    }

    fn prefix_lines(&mut self, bytes: &[u8], time: Time) -> Vec<u8> {
        let mut prefixed = Vec::with_capacity(2 * bytes.len());
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.is_line_start {
                prefixed.extend(format!("{time} ").into_bytes());
            }
            prefixed.extend_from_slice(line);
            self.is_line_start = line.ends_with(b"\n");
        }
        prefixed
    }

    /// Rest of the content.
    pub fn finish(self) -> String {
        STANDARD.encode(self.rest)
    }
}
