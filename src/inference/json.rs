//! Lexer of JSON that arrives in chunks, cut anywhere. It keeps the beginning of one token, and one bit per level.
//!
//! It accepts every JSON text up to its depth, and refuses most others: numbers are checked only by their characters,
//! and strings are not checked for UTF-8.

/// Bytes of a token that are kept; the rest of a longer one passes unseen. A name of a model fits, however escaped.
pub(super) const KEPT_BYTES: usize = 2048;

/// Text of a string or key without its quotes, as it was sent: with escapes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Text<'a> {
    pub(super) raw: &'a [u8],
    /// Whether `raw` is only the beginning.
    pub(super) is_cut: bool,
}

impl Text<'_> {
    /// Decoded text; `None` where it is too long, or no UTF-8.
    pub(super) fn decode(self) -> Option<String> {
        if self.is_cut {
            return None;
        }
        if !self.raw.contains(&b'\\') {
            return str::from_utf8(self.raw).ok().map(str::to_owned);
        }
        let quoted = [b"\"", self.raw, b"\""].concat();
        serde_json::from_slice(&quoted).ok()
    }
}

/// Part of a JSON text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Token<'a> {
    /// Begin of an object.
    Object,
    /// Begin of an array.
    Array,
    /// End of an object or array.
    End,
    /// Name of a member.
    Key(Text<'a>),
    /// Value that is a string.
    String(Text<'a>),
    /// Value that is a number, `true`, `false` or `null`, as it was sent.
    Scalar(&'a [u8]),
}

/// Reason for which a text is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LexError {
    Syntax,
    TooDeep,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
    Text { is_key: bool },
    Escape { is_key: bool },
    Hex { is_key: bool, left: u8 },
    Scalar,
    Done,
}

/// Lexer of one JSON text.
pub(super) struct Lexer {
    state: State,
    /// Open containers, outermost first: whether each is an object.
    open: Vec<bool>,
    max_depth: usize,
    kept: Vec<u8>,
    is_cut: bool,
}

impl Lexer {
    /// Lexer of a text with at most `max_depth` containers in each other.
    pub(super) fn new(max_depth: usize) -> Self {
        Self {
            state: State::Value,
            open: Vec::new(),
            max_depth,
            kept: Vec::new(),
            is_cut: false,
        }
    }

    /// Starts with another text.
    pub(super) fn reset(&mut self) {
        self.state = State::Value;
        self.open.clear();
        self.kept.clear();
        self.is_cut = false;
    }

    /// Whether the text is complete. A number at its top has no end of its own.
    pub(super) fn is_complete(&self) -> bool {
        self.state == State::Done
    }

    /// Reads a chunk, and passes each token that ends in it to `sink`.
    pub(super) fn feed<E: From<LexError>>(
        &mut self,
        mut chunk: &[u8],
        sink: &mut impl FnMut(Token<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some((&byte, rest)) = chunk.split_first() {
            match self.state {
                State::Text { is_key } => {
                    chunk = self.text(chunk, is_key, sink)?;
                    continue;
                }
                State::Escape { is_key } => self.escape(byte, is_key)?,
                State::Hex { is_key, left } => self.hex(byte, is_key, left)?,
                State::Scalar => {
                    if byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.') {
                        self.keep(&[byte]);
                    } else {
                        self.end_scalar(sink)?;
                        // The byte belongs to what follows.
                        continue;
                    }
                }
                _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => {}
                State::Value => self.value(byte, sink)?,
                State::ValueOrEnd if byte == b']' => self.end(sink)?,
                State::ValueOrEnd => self.value(byte, sink)?,
                State::KeyOrEnd if byte == b'}' => self.end(sink)?,
                State::Key | State::KeyOrEnd if byte == b'"' => self.begin_text(true),
                State::Colon if byte == b':' => self.state = State::Value,
                State::CommaOrEnd => match (byte, self.open.last()) {
                    (b',', Some(true)) => self.state = State::Key,
                    (b',', Some(false)) => self.state = State::Value,
                    (b'}', Some(true)) | (b']', Some(false)) => self.end(sink)?,
                    _ => return Err(LexError::Syntax.into()),
                },
                State::Key | State::KeyOrEnd | State::Colon | State::Done => {
                    return Err(LexError::Syntax.into());
                }
            }
            chunk = rest;
        }
        Ok(())
    }

    fn value<E: From<LexError>>(
        &mut self,
        byte: u8,
        sink: &mut impl FnMut(Token<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match byte {
            b'{' | b'[' => {
                if self.open.len() >= self.max_depth {
                    return Err(LexError::TooDeep.into());
                }
                let is_object = byte == b'{';
                self.open.push(is_object);
                self.state = if is_object {
                    State::KeyOrEnd
                } else {
                    State::ValueOrEnd
                };
                sink(if is_object {
                    Token::Object
                } else {
                    Token::Array
                })
            }
            b'"' => {
                self.begin_text(false);
                Ok(())
            }
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                self.begin(State::Scalar);
                self.keep(&[byte]);
                Ok(())
            }
            _ => Err(LexError::Syntax.into()),
        }
    }

    fn begin_text(&mut self, is_key: bool) {
        self.begin(State::Text { is_key });
    }

    fn begin(&mut self, state: State) {
        self.state = state;
        self.kept.clear();
        self.is_cut = false;
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = KEPT_BYTES - self.kept.len();
        self.is_cut |= bytes.len() > room;
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Reads on in a string. Returns what follows the part that was read.
    fn text<'a, E: From<LexError>>(
        &mut self,
        chunk: &'a [u8],
        is_key: bool,
        sink: &mut impl FnMut(Token<'_>) -> Result<(), E>,
    ) -> Result<&'a [u8], E> {
        let is_special = |byte: &u8| matches!(byte, b'"' | b'\\') || *byte < 0x20;
        let length = chunk.iter().position(is_special).unwrap_or(chunk.len());
        let (plain, rest) = chunk.split_at(length);
        self.keep(plain);
        let Some((special, rest)) = rest.split_first() else {
            return Ok(rest);
        };
        match special {
            b'"' => {
                self.state = if is_key {
                    State::Colon
                } else {
                    self.after_value()
                };
                let text = Text {
                    raw: &self.kept,
                    is_cut: self.is_cut,
                };
                sink(if is_key {
                    Token::Key(text)
                } else {
                    Token::String(text)
                })?;
            }
            b'\\' => {
                self.keep(b"\\");
                self.state = State::Escape { is_key };
            }
            _ => return Err(LexError::Syntax.into()),
        }
        Ok(rest)
    }

    fn escape(&mut self, byte: u8, is_key: bool) -> Result<(), LexError> {
        self.keep(&[byte]);
        self.state = match byte {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => State::Text { is_key },
            b'u' => State::Hex { is_key, left: 4 },
            _ => return Err(LexError::Syntax),
        };
        Ok(())
    }

    fn hex(&mut self, byte: u8, is_key: bool, left: u8) -> Result<(), LexError> {
        if !byte.is_ascii_hexdigit() {
            return Err(LexError::Syntax);
        }
        self.keep(&[byte]);
        self.state = match left {
            0 | 1 => State::Text { is_key },
            left => State::Hex {
                is_key,
                left: left - 1,
            },
        };
        Ok(())
    }

    fn end_scalar<E: From<LexError>>(
        &mut self,
        sink: &mut impl FnMut(Token<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let is_number = self.kept.iter().any(u8::is_ascii_digit)
            && self
                .kept
                .iter()
                .all(|byte| b"+-.eE0123456789".contains(byte));
        if !is_number && !matches!(&self.kept[..], b"true" | b"false" | b"null") {
            return Err(LexError::Syntax.into());
        }
        self.state = self.after_value();
        sink(Token::Scalar(&self.kept))
    }

    fn end<E>(&mut self, sink: &mut impl FnMut(Token<'_>) -> Result<(), E>) -> Result<(), E> {
        self.open.pop();
        self.state = self.after_value();
        sink(Token::End)
    }

    fn after_value(&self) -> State {
        if self.open.is_empty() {
            State::Done
        } else {
            State::CommaOrEnd
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
