//! Numbers of tokens of an answer, read while it passes: from one JSON document, from server-sent events, or from
//! lines of JSON.
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
    usage: Usage,
    /// Parts of a stream with text. Most servers send one for each token.
    parts: u64,
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
            usage: Usage::default(),
            parts: 0,
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
                self.lexer.reset();
                self.path.depth = 0;
                self.place = self.form.start();
            }
        }
    }

    /// Counts so far. Where a stream came without counts, its parts stand for the tokens of the answer.
    pub fn usage(&self) -> Usage {
        let mut usage = self.usage;
        if usage.completion_tokens == 0 {
            usage.completion_tokens = self.parts.min(MAX_TOKENS);
        }
        usage
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
        self.json(part);
    }

    fn json(&mut self, part: &[u8]) {
        if self.place != Place::Json {
            return;
        }
        let (path, usage, parts) = (&mut self.path, &mut self.usage, &mut self.parts);
        let mut sink = |token: Token<'_>| {
            path.read(token, usage, parts);
            Ok::<_, LexError>(())
        };
        if self.lexer.feed(part, &mut sink).is_err() {
            self.place = Place::Skipped;
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
    fn read(&mut self, token: Token<'_>, usage: &mut Usage, parts: &mut u64) {
        match token {
            Token::Object | Token::Array => {
                self.depth += 1;
                self.set_key(Key::Other);
            }
            Token::End => self.depth = self.depth.saturating_sub(1),
            Token::Key(key) => self.set_key(Key::new(if key.is_cut { b"" } else { key.raw })),
            Token::String(text) if !text.raw.is_empty() => {
                if self.is_text() {
                    *parts += 1;
                }
            }
            Token::String(_) => {}
            Token::Scalar(number) => self.number(number, usage),
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
mod tests {
    use super::{super::json::tests as json, *};
    use proptest::prelude::*;

    fn count(content_type: &str, chunks: &[&[u8]]) -> Usage {
        let mut counter = Counter::new(content_type).unwrap();
        for chunk in chunks {
            counter.feed(chunk);
        }
        counter.usage()
    }

    fn usage(prompt_tokens: u64, completion_tokens: u64) -> Usage {
        Usage {
            prompt_tokens,
            completion_tokens,
        }
    }

    const SSE: &str = "text/event-stream; charset=utf-8";
    const NDJSON: &str = "application/x-ndjson";

    /// Answers of each API, and their counts.
    fn answers() -> Vec<(&'static str, &'static str, Usage)> {
        vec![
            (
                "application/json",
                r#"{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":5,
                "prompt_tokens_details":{"prompt_tokens":9}}}"#,
                usage(3, 5),
            ),
            (
                SSE,
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n\
                 data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5}}\n\ndata: [DONE]\n\n",
                usage(3, 5),
            ),
            (
                SSE,
                "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n: still there\n\n\
                 data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\n\
                 data:{\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\ndata: [DONE]\n\n",
                usage(0, 2),
            ),
            (
                SSE,
                "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":7,\
                 \"output_tokens\":1}}}\n\nevent: message_delta\ndata: {\"delta\":{\"stop_reason\":\"end_turn\"},\
                 \"usage\":{\"output_tokens\":11}}\n\n",
                usage(7, 11),
            ),
            (
                SSE,
                "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[],\
                 \"usage\":{\"input_tokens\":7,\"output_tokens\":11}}}\n\n",
                usage(7, 11),
            ),
            (
                NDJSON,
                "{\"message\":{\"content\":\"a\"},\"done\":false}\n{\"message\":{\"content\":\"\"},\"done\":true,\
                 \"prompt_eval_count\":2,\"eval_count\":4}\n",
                usage(2, 4),
            ),
            (
                NDJSON,
                "{\"response\":\"a\",\"done\":false}\n{\"response\":\"b\",\"done\":false}\n",
                usage(0, 2),
            ),
        ]
    }

    #[test]
    fn counts_of_each_api_are_read() {
        for (content_type, answer, expected) in answers() {
            assert_eq!(
                count(content_type, &[answer.as_bytes()]),
                expected,
                "{answer}"
            );
        }
    }

    #[test]
    fn text_of_model_forges_no_counts() {
        let quoted = r#"{"choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":99}"}}]}"#;
        assert_eq!(count("application/json", &[quoted.as_bytes()]), usage(0, 0));
        let nested = r#"{"message":{"tool_calls":[{"function":{"arguments":{"eval_count":99,"usage":
            {"prompt_tokens":99}}}}]},"eval_count":1}"#;
        assert_eq!(count("application/json", &[nested.as_bytes()]), usage(0, 1));
    }

    #[test]
    fn wild_counts_are_bounded() {
        for number in [
            "-1",
            "1e9",
            "1.5",
            "99999999999999999999999",
            "\"7\"",
            "null",
        ] {
            let line = format!("{{\"eval_count\":{number}}}\n");
            assert_eq!(count(NDJSON, &[line.as_bytes()]), usage(0, 0), "{number}");
        }
        let line = format!("{{\"eval_count\":{}}}\n", u64::MAX);
        assert_eq!(count(NDJSON, &[line.as_bytes()]), usage(0, MAX_TOKENS));
    }

    #[test]
    fn other_answers_are_not_read() {
        assert!(Counter::new("text/html").is_none());
        assert!(Counter::new("").is_none());
    }

    proptest! {
        #[test]
        fn cuts_change_no_count(
            n in 0..7usize, at in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let (content_type, answer, expected) = answers().swap_remove(n);
            prop_assert_eq!(count(content_type, &json::chunks(answer.as_bytes(), &at)), expected);
        }

        #[test]
        fn broken_lines_spoil_no_others(junk in "[^\n]{0,40}") {
            let answer = format!("{junk}\n{{\"eval_count\":4}}\n");
            prop_assert!(count(NDJSON, &[answer.as_bytes()]).completion_tokens >= 4);
            let answer = format!("data: {junk}\n\ndata: {{\"usage\":{{\"output_tokens\":4}}}}\n\n");
            prop_assert!(count(SSE, &[answer.as_bytes()]).completion_tokens >= 4);
        }

        #[test]
        fn counters_take_any_bytes(answer: Vec<Vec<u8>>) {
            for content_type in ["application/json", NDJSON, SSE] {
                let chunks: Vec<_> = answer.iter().map(|chunk| &chunk[..]).collect();
                let _ = count(content_type, &chunks);
            }
        }
    }
}
