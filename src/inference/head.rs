//! Head of a request: `model` and `stream` at the top of its JSON body, read while the body passes.
//!
//! The [`Scanner`] is fed with the body in chunks. It knows the model as soon as that has arrived, and refuses a body
//! that a model server could read differently: one that names a model twice, or in another case, which some servers
//! take for the same. Everything else in the body is only checked to be JSON.

use super::{
    Endpoint, MAX_MODEL_BYTES, MAX_REQUEST_BYTES,
    json::{LexError, Lexer, Text, Token},
};
use crate::api::problem::{Problem, ProblemKind};

/// Most containers in each other in a request.
const MAX_DEPTH: usize = 128;

/// Reason for which a body is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeadError {
    /// It is longer than [`MAX_REQUEST_BYTES`].
    #[error("the body is larger than {MAX_REQUEST_BYTES} bytes; send less")]
    TooLarge,
    /// It is not JSON.
    #[error("the body is not valid JSON; check quotes, commas and brackets")]
    NotJson,
    /// It ends before the JSON does.
    #[error("the body must be a whole JSON object, but it ends early; send all of it")]
    Incomplete,
    /// It is JSON, but not an object.
    #[error("the body must be a JSON object, such as {{\"model\": \"llama3.2\"}}")]
    NotObject,
    /// Its containers are too deep in each other.
    #[error("the body is nested more than {MAX_DEPTH} levels deep; send a flatter one")]
    TooDeep,
    /// It has a field twice, or in upper case.
    #[error("`{0}` must be there once, in lower case")]
    Ambiguous(&'static str),
    /// It names no model.
    #[error("`model` is missing; name a model of those that GET /v1/models lists")]
    NoModel,
    /// It names a model in another form.
    #[error(
        "`model` must be a string of 1 to {MAX_MODEL_BYTES} printable characters, such as \"llama3.2\""
    )]
    InvalidModel,
    /// `stream` is of another type.
    #[error("`stream` must be true or false")]
    InvalidStream,
}

impl HeadError {
    /// Field at fault; `None` where it is the whole body.
    pub const fn field(self) -> Option<&'static str> {
        match self {
            Self::Ambiguous(field) => Some(field),
            Self::NoModel | Self::InvalidModel => Some("model"),
            Self::InvalidStream => Some("stream"),
            _ => None,
        }
    }

    /// Problem for the sender.
    pub fn problem(self) -> Problem {
        let kind = match self {
            Self::TooLarge => ProblemKind::PayloadTooLarge,
            _ => ProblemKind::InvalidRequest,
        };
        let problem = Problem::new(kind, self.to_string());
        match self.field() {
            Some(field) => problem.about(field),
            None => problem,
        }
    }
}

impl From<LexError> for HeadError {
    fn from(error: LexError) -> Self {
        match error {
            LexError::Syntax => Self::NotJson,
            LexError::TooDeep => Self::TooDeep,
        }
    }
}

/// Scanner of the body of a request, which arrives in chunks.
pub struct Scanner {
    lexer: Lexer,
    members: Members,
    bytes: usize,
}

/// Members at the top of the body that are read.
#[derive(Default)]
struct Members {
    /// Containers that are open, the body itself included.
    depth: usize,
    /// Field whose value comes next.
    next: Option<Field>,
    /// Whether `name` counts as the model where there is no `model`: so it was called in Ollama's older API.
    takes_name: bool,
    model: Option<String>,
    name: Option<String>,
    stream: Option<Option<bool>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Field {
    Model,
    Name,
    Stream,
}

impl Scanner {
    /// Scanner of the body of a request to `endpoint`.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            lexer: Lexer::new(MAX_DEPTH),
            members: Members {
                takes_name: endpoint == Endpoint::Show,
                ..Members::default()
            },
            bytes: 0,
        }
    }

    /// Reads the next chunk. A body that was refused stays so: no further chunk may be passed on.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), HeadError> {
        self.bytes = self.bytes.saturating_add(chunk.len());
        if self.bytes > MAX_REQUEST_BYTES {
            return Err(HeadError::TooLarge);
        }
        let members = &mut self.members;
        self.lexer.feed(chunk, &mut |token| members.read(token))
    }

    /// Checks that the body is complete and names a model.
    pub fn finish(&self) -> Result<(), HeadError> {
        if !self.lexer.is_complete() {
            return Err(HeadError::Incomplete);
        }
        self.model().map(drop).ok_or(HeadError::NoModel)
    }

    /// Name of the model; `None` where it has not arrived.
    pub fn model(&self) -> Option<&str> {
        let members = &self.members;
        let model = members.model.as_deref();
        // `model` may still come, and counts more.
        let name = members.name.as_deref();
        model.or_else(|| name.filter(|_| self.lexer.is_complete()))
    }

    /// Value of `stream`; `None` where it is null or has not arrived.
    pub fn stream(&self) -> Option<bool> {
        self.members.stream.flatten()
    }
}

impl Members {
    fn read(&mut self, token: Token<'_>) -> Result<(), HeadError> {
        let is_value = !matches!(token, Token::Key(_) | Token::End);
        if self.depth == 0 && token != Token::Object {
            return Err(HeadError::NotObject);
        }
        if self.depth == 1 && is_value {
            self.value(token)?;
        }
        match token {
            Token::Object | Token::Array => self.depth += 1,
            Token::End => self.depth -= 1,
            Token::Key(key) if self.depth == 1 => self.next = self.key(key)?,
            Token::Key(_) | Token::String(_) | Token::Scalar(_) => {}
        }
        Ok(())
    }

    /// Field with this key.
    fn key(&self, key: Text<'_>) -> Result<Option<Field>, HeadError> {
        let Some(key) = key.decode() else {
            return Ok(None);
        };
        let fields = [
            ("model", Field::Model, self.model.is_some()),
            ("stream", Field::Stream, self.stream.is_some()),
            ("name", Field::Name, self.name.is_some()),
        ];
        let fields = fields.iter();
        let mut fields = fields.filter(|(_, field, _)| *field != Field::Name || self.takes_name);
        let Some((name, field, is_there)) =
            fields.find(|(name, ..)| key.eq_ignore_ascii_case(name))
        else {
            return Ok(None);
        };
        if *is_there || key != *name {
            return Err(HeadError::Ambiguous(name));
        }
        Ok(Some(*field))
    }

    fn value(&mut self, token: Token<'_>) -> Result<(), HeadError> {
        match self.next.take() {
            None => {}
            Some(Field::Stream) => {
                self.stream = Some(match token {
                    Token::Scalar(b"true") => Some(true),
                    Token::Scalar(b"false") => Some(false),
                    Token::Scalar(b"null") => None,
                    _ => return Err(HeadError::InvalidStream),
                });
            }
            Some(Field::Model) => self.model = Some(model(token)?),
            Some(Field::Name) => self.name = Some(model(token)?),
        }
        Ok(())
    }
}

fn model(token: Token<'_>) -> Result<String, HeadError> {
    let text = match token {
        Token::String(text) => text.decode(),
        _ => None,
    };
    let is_valid = |name: &String| {
        !name.is_empty() && name.len() <= MAX_MODEL_BYTES && !name.contains(char::is_control)
    };
    text.filter(is_valid).ok_or(HeadError::InvalidModel)
}

#[cfg(test)]
mod tests {
    use super::{super::json::tests as json, *};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Model and `stream` of a body that arrives in these chunks.
    fn scan(chunks: &[&[u8]]) -> Result<(Option<String>, Option<bool>), HeadError> {
        let mut scanner = Scanner::new(Endpoint::ChatCompletions);
        for chunk in chunks {
            scanner.feed(chunk)?;
        }
        scanner.finish()?;
        Ok((scanner.model().map(str::to_owned), scanner.stream()))
    }

    fn refused(body: &str) -> HeadError {
        scan(&[body.as_bytes()]).unwrap_err()
    }

    proptest! {
        #[test]
        fn scanner_agrees_with_whole_parser(
            members in prop::collection::vec(("[a-l]{1,3}", json::value()), 0..4),
            model in "\\PC{1,20}",
            stream in any::<Option<bool>>(),
            pretty: bool,
            at in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut body: serde_json::Map<String, Value> = members.into_iter().collect();
            body.insert("model".into(), json!(model));
            body.insert("stream".into(), json!(stream));
            let text = if pretty { serde_json::to_vec_pretty(&body) } else { serde_json::to_vec(&body) };
            let text = text.unwrap();
            prop_assert_eq!(scan(&json::chunks(&text, &at)), Ok((Some(model), stream)));
        }

        #[test]
        fn any_bytes_are_answered(body: Vec<u8>, rest: Vec<u8>) {
            let object = [b"{\"model\":", &body[..]].concat();
            for chunks in [[&body[..], &rest], [&object, &rest]] {
                let whole = chunks.concat();
                if let Ok((model, _)) = scan(&chunks) {
                    let parsed: Value = serde_json::from_slice(&whole).unwrap_or_default();
                    if !parsed.is_null() {
                        prop_assert_eq!(parsed["model"].as_str(), model.as_deref());
                    }
                }
            }
        }
    }

    #[test]
    fn model_is_known_before_the_end() {
        let mut scanner = Scanner::new(Endpoint::ChatCompletions);
        scanner
            .feed(b"{\"messages\":[{\"model\":\"inner\"}],\"mo")
            .unwrap();
        assert_eq!(scanner.model(), None);
        scanner.feed(b"del\":\"ti\\u006ey\"").unwrap();
        assert_eq!(scanner.model(), Some("tiny"));
        assert_eq!(scanner.finish(), Err(HeadError::Incomplete));
        scanner.feed(b",\"stream\":true}\n").unwrap();
        assert_eq!(scanner.finish(), Ok(()));
        assert_eq!(scanner.stream(), Some(true));
    }

    #[test]
    fn ambiguous_fields_are_refused() {
        for body in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","Model":"b"}"#,
            r#"{"MODEL":"a"}"#,
            r#"{"model":"a","mod\u0065l":"b"}"#,
        ] {
            assert_eq!(refused(body), HeadError::Ambiguous("model"), "{body}");
        }
        let twice = r#"{"model":"a","stream":true,"stream":false}"#;
        assert_eq!(refused(twice), HeadError::Ambiguous("stream"));
        let inner = r#"{"model":"a","x":{"model":"b","model":"c"}}"#;
        assert!(scan(&[inner.as_bytes()]).is_ok());
    }

    #[test]
    fn wrong_types_name_their_field() {
        let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(MAX_MODEL_BYTES + 1));
        let longer = format!(r#"{{"model":"{}"}}"#, "x".repeat(1 << 20));
        let models = [
            "7",
            "null",
            "[]",
            "{}",
            "true",
            "\"\"",
            "\"a\\u001b[2J\"",
            "\"\\ud800\"",
        ];
        let models = models.map(|model| format!("{{\"model\":{model}}}"));
        for body in models.iter().chain([&long, &longer]) {
            assert_eq!(refused(body), HeadError::InvalidModel, "{body:.60}");
        }
        for stream in ["1", "\"true\"", "[]", "{}"] {
            let body = format!(r#"{{"stream":{stream},"model":"a"}}"#);
            assert_eq!(refused(&body), HeadError::InvalidStream, "{body}");
        }
        assert_eq!(refused("{}"), HeadError::NoModel);
        assert_eq!(refused(r#"{"name":"a"}"#), HeadError::NoModel);
    }

    #[test]
    fn broken_bodies_are_refused() {
        for (body, expected) in [
            ("", HeadError::Incomplete),
            ("[]", HeadError::NotObject),
            ("\"a\"", HeadError::NotObject),
            ("null ", HeadError::NotObject),
            (r#"{"model":"a""#, HeadError::Incomplete),
            (r#"{"model":"a"}{"#, HeadError::NotJson),
            (r#"{"model":"a",}"#, HeadError::NotJson),
            ("<html>", HeadError::NotJson),
        ] {
            assert_eq!(refused(body), expected, "{body}");
        }
        let deep = format!(r#"{{"model":"a","x":{}"#, "[".repeat(1000));
        assert_eq!(refused(&deep), HeadError::TooDeep);
        let large = format!(r#"{{"model":"a","x":"{}"}}"#, "x".repeat(MAX_REQUEST_BYTES));
        assert_eq!(refused(&large), HeadError::TooLarge);
        assert_eq!(
            HeadError::TooLarge.problem().kind,
            ProblemKind::PayloadTooLarge
        );
    }

    #[test]
    fn show_takes_older_name() {
        let show = |body: &str| {
            let mut scanner = Scanner::new(Endpoint::Show);
            scanner.feed(body.as_bytes())?;
            scanner.finish()?;
            Ok::<_, HeadError>(scanner.model().map(str::to_owned))
        };
        assert_eq!(show(r#"{"name":"a"}"#), Ok(Some("a".into())));
        assert_eq!(show(r#"{"name":"a","model":"b"}"#), Ok(Some("b".into())));
        assert_eq!(show("{}"), Err(HeadError::NoModel));
    }
}
