//! Decoding of UTF-8 that arrives in chunks, cut anywhere.

/// Lossy UTF-8 decoder that waits for the rest of a character that is cut by the end of a chunk.
#[derive(Default)]
pub struct Utf8Decoder {
    undecoded: Vec<u8>,
}

impl Utf8Decoder {
    /// Text that these bytes complete; invalid UTF-8 becomes U+FFFD.
    pub fn decode(&mut self, bytes: &[u8]) -> String {
        let joined;
        let mut rest = if self.undecoded.is_empty() {
            bytes
        } else {
            self.undecoded.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.undecoded);
            &joined
        };
        let mut text = String::with_capacity(rest.len());
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(bad) => {
                            text.push('\u{FFFD}');
                            rest = &after[bad..];
                        }
                        None => {
                            self.undecoded = after.to_vec();
                            return text;
                        }
                    }
                }
            }
        }
    }

    /// Bytes that begin a character which is not complete.
    pub fn pending(&self) -> &[u8] {
        &self.undecoded
    }

    /// Ends the input; returns U+FFFD if a character is incomplete.
    pub fn finish(&mut self) -> &'static str {
        if std::mem::take(&mut self.undecoded).is_empty() {
            ""
        } else {
            "\u{FFFD}"
        }
    }
}
