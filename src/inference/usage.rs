//! Numbers of tokens of an answer, read while it passes: from one JSON document, from server-sent events, or from
//! lines of JSON; and whether the last event of a stream has passed, after which a client may close before the server.
//!
//! Only counts are read, at the places where the APIs have them. Text of a model can't forge them: it stands in
//! strings, or elsewhere. A server can send any number, so the counts are bounded.

use super::json::{LexError, Lexer, Token};

/// Most containers in each other that are followed in an answer.
const MAX_DEPTH: usize = 64;
/// Keys that are told apart, outermost first.
const MAX_KEYS: usize = 6;
/// Largest number of tokens that is believed, per answer.
const MAX_TOKENS: u64 = 100_000_000;
/// Begin of the data of a server-sent event.
const DATA: &[u8] = b"data:";
/// Data of the last event of OpenAI's streams.
const DONE: &[u8] = b"[DONE]";
/// Types of the last events of Anthropic's streams, and of OpenAI's responses.
const LAST_TYPES: [&[u8]; 4] = [
    b"message_stop",
    b"response.completed",
    b"response.incomplete",
    b"response.failed",
];

/// Numbers of tokens of one request and its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Tokens of the request.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
}

/// Form of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// One JSON document.
    Document,
    /// A JSON document per line.
    Lines,
    /// Server-sent events with JSON data.
    Events,
}

/// Place in a line of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// After so many bytes of `data:`.
    Prefix(usize),
    Json,
    /// In data that is not JSON.
    Data,
    /// In a line, or a document, without counts.
    Skipped,
}

/// Key that leads to a count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Key {
    #[default]
    Other,
    Usage,
    /// `message` of Anthropic's first event, `response` of OpenAI's last one.
    Wrapper,
    Prompt,
    Completion,
    /// `prompt_eval_count` and `eval_count`, at the top of Ollama's last line.
    OllamaPrompt,
    OllamaCompletion,
    Choices,
    Delta,
    /// Text of an answer.
    Text,
    /// Type of an event.
    Type,
    /// End of Ollama's streams.
    Done,
}

impl Key {
    fn new(name: &[u8]) -> Self {
        match name {
            b"usage" => Self::Usage,
            b"message" | b"response" => Self::Wrapper,
            b"prompt_tokens" | b"input_tokens" => Self::Prompt,
            b"completion_tokens" | b"output_tokens" => Self::Completion,
            b"prompt_eval_count" => Self::OllamaPrompt,
            b"eval_count" => Self::OllamaCompletion,
            b"choices" => Self::Choices,
            b"delta" => Self::Delta,
            b"content" | b"text" | b"reasoning" | b"reasoning_content" => Self::Text,
            b"type" => Self::Type,
            b"done" => Self::Done,
            _ => Self::Other,
        }
    }
}

/// Counter of the tokens of one answer.
pub struct Counter {
    form: Form,
    place: Place,
    lexer: Lexer,
    path: Path,
    counts: Counts,
    /// First bytes of the data of an event without spaces, one more than those of [`DONE`], and their number.
    data: ([u8; DONE.len() + 1], usize),
    has_ended: bool,
}

/// Findings in an answer.
#[derive(Default)]
struct Counts {
    usage: Usage,
    /// Parts of a stream with text. Most servers send one for each token.
    parts: u64,
    /// Whether the present line is the last event.
    is_last: bool,
}

/// Keys from the top of a document to the present value.
#[derive(Default)]
struct Path {
    depth: usize,
    keys: [Key; MAX_KEYS],
}

impl Counter {
    /// Counter of an answer with this `Content-Type`; `None` where it can hold no counts.
    pub fn new(content_type: &str) -> Option<Self> {
        let media_type = content_type.split(';').next()?.trim().to_ascii_lowercase();
        let form = match media_type.as_str() {
            "application/json" => Form::Document,
            "application/x-ndjson" => Form::Lines,
            "text/event-stream" => Form::Events,
            _ => return None,
        };
        Some(Self {
            form,
            place: form.start(),
            lexer: Lexer::new(MAX_DEPTH),
            path: Path::default(),
            counts: Counts::default(),
            data: Default::default(),
            has_ended: false,
        })
    }

    /// Reads the next chunk of the answer.
    pub fn feed(&mut self, chunk: &[u8]) {
        if self.form == Form::Document {
            self.json(chunk);
            return;
        }
        for line in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.line(line);
            if line.ends_with(b"\n") {
                let (data, length) = &self.data;
                self.has_ended |= self.counts.is_last || data[..*length] == *DONE;
                self.counts.is_last = false;
                self.data.1 = 0;
                self.lexer.reset();
                self.path.depth = 0;
                self.place = self.form.start();
            }
        }
    }

    /// Counts so far. Where a stream came without counts, its parts stand for the tokens of the answer.
    pub fn usage(&self) -> Usage {
        let mut usage = self.counts.usage;
        if usage.completion_tokens == 0 {
            usage.completion_tokens = self.counts.parts.min(MAX_TOKENS);
        }
        usage
    }

    /// Whether the last event of a stream has passed.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Reads a part of a line.
    fn line(&mut self, mut part: &[u8]) {
        if let Place::Prefix(length) = self.place {
            let same = part.iter().zip(&DATA[length..]);
            let same = same.take_while(|(found, expected)| found == expected);
            let same = same.count();
            part = &part[same..];
            self.place = if length + same == DATA.len() {
                Place::Json
            } else if part.is_empty() {
                Place::Prefix(length + same)
            } else {
                Place::Skipped
            };
        }
        if self.form == Form::Events && matches!(self.place, Place::Json | Place::Data) {
            self.keep_data(part);
        }
        self.json(part);
    }

    /// Keeps the first bytes of the data of an event.
    fn keep_data(&mut self, part: &[u8]) {
        let (data, length) = &mut self.data;
        let bytes = part.iter().filter(|byte| !byte.is_ascii_whitespace());
        for (place, byte) in data[*length..].iter_mut().zip(bytes) {
            *place = *byte;
            *length += 1;
        }
    }

    fn json(&mut self, part: &[u8]) {
        if self.place != Place::Json {
            return;
        }
        let (path, counts) = (&mut self.path, &mut self.counts);
        let mut sink = |token: Token<'_>| {
            path.read(token, counts);
            Ok::<_, LexError>(())
        };
        if self.lexer.feed(part, &mut sink).is_err() {
            self.place = Place::Data;
        }
    }
}

impl Form {
    const fn start(self) -> Place {
        match self {
            Self::Document | Self::Lines => Place::Json,
            Self::Events => Place::Prefix(0),
        }
    }
}

impl Path {
    fn read(&mut self, token: Token<'_>, counts: &mut Counts) {
        match token {
            Token::Object | Token::Array => {
                self.depth += 1;
                self.set_key(Key::Other);
            }
            Token::End => self.depth = self.depth.saturating_sub(1),
            Token::Key(key) => self.set_key(Key::new(if key.is_cut { b"" } else { key.raw })),
            Token::String(text) if !text.raw.is_empty() => {
                if self.is_text() {
                    counts.parts += 1;
                }
                counts.is_last |= self.keys() == [Key::Type] && LAST_TYPES.contains(&text.raw);
            }
            Token::String(_) => {}
            Token::Scalar(b"true") => counts.is_last |= self.keys() == [Key::Done],
            Token::Scalar(number) => self.number(number, &mut counts.usage),
        }
    }

    /// Sets the key of the present container.
    fn set_key(&mut self, key: Key) {
        if let Some(place) = self.keys.get_mut(self.depth.saturating_sub(1)) {
            *place = key;
        }
    }

    /// Keys to the present value; those of arrays are [`Key::Other`]. Empty where it is too deep.
    fn keys(&self) -> &[Key] {
        self.keys.get(..self.depth).unwrap_or_default()
    }

    fn number(&self, number: &[u8], usage: &mut Usage) {
        let number = str::from_utf8(number).ok();
        let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) else {
            return;
        };
        let count = match self.keys() {
            [Key::Usage | Key::Wrapper, rest @ ..] => match rest {
                [Key::Prompt] | [Key::Usage, Key::Prompt] => &mut usage.prompt_tokens,
                [Key::Completion] | [Key::Usage, Key::Completion] => &mut usage.completion_tokens,
                _ => return,
            },
            [Key::OllamaPrompt] => &mut usage.prompt_tokens,
            [Key::OllamaCompletion] => &mut usage.completion_tokens,
            _ => return,
        };
        // Later counts of a stream include earlier ones.
        *count = (*count).max(number.min(MAX_TOKENS));
    }

    /// Whether the present value is text in a part of a stream.
    fn is_text(&self) -> bool {
        use Key::{Choices, Delta, Other, Text, Wrapper};
        matches!(
            self.keys(),
            // OpenAI's chat and completions; Anthropic's delta; OpenAI's responses; Ollama's lines.
            [Choices, Other, Delta, Text]
                | [Choices, Other, Text]
                | [Delta, Text]
                | [Delta]
                | [Wrapper, Text]
                | [Wrapper]
        )
    }
}

#[cfg(test)]
mod tests;
