//! Chat completions in the form of OpenAI's API, for callers of our own: the request, and the events of its answer.
//!
//! What passes through for others is not read like this; see [`usage`](super::usage).

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Path of the call.
pub const PATH: &str = "/v1/chat/completions";
/// Data of the last event.
const DONE: &str = "[DONE]";

/// Author of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions before the first question.
    System,
    /// A person, or a program.
    User,
    /// The model.
    Assistant,
}

/// Message of a conversation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Message {
    /// Author.
    pub role: Role,
    /// Text.
    pub content: String,
}

/// Body of the call. What is read of it on the way comes first.
#[derive(Serialize)]
pub struct ChatRequest<'a> {
    model: &'a str,
    stream: bool,
    stream_options: StreamOptions,
    messages: Vec<&'a Message>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl<'a> ChatRequest<'a> {
    /// Request for the next message of a conversation, streamed.
    pub fn new(model: &'a str, messages: impl IntoIterator<Item = &'a Message>) -> Self {
        Self {
            model,
            stream: true,
            stream_options: StreamOptions {
                include_usage: true,
            },
            messages: messages.into_iter().collect(),
        }
    }
}

/// Part of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// Thoughts of a model that reasons before it answers.
    Reasoning(String),
    /// The answer itself.
    Text(String),
}

/// Number of tokens that a question and its answer had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TokenUsage {
    /// Of the question, with all messages before it.
    pub prompt_tokens: u64,
    /// Of the answer; absent for a model that writes none.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// Event of an answer.
#[derive(PartialEq, Debug)]
pub enum Event {
    /// Next parts of the answer, and what is known of its end.
    Chunk(Chunk),
    /// The answer is complete.
    Done,
    /// The answer is not, for this reason.
    Failed(String),
}

/// Content of an event.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Parts, in their order.
    pub parts: Vec<Part>,
    /// Reason for the end, such as `stop`, or `length` for an answer that is cut.
    pub finish_reason: Option<String>,
    /// Counts, which come with the last event.
    pub usage: Option<TokenUsage>,
}

#[derive(Deserialize)]
struct ChunkDocument {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<TokenUsage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    /// Name at Ollama; others say `reasoning_content`.
    #[serde(default, alias = "reasoning_content")]
    reasoning: Option<String>,
}

impl Event {
    /// Reads the data of a server-sent event.
    pub fn parse(data: &str) -> Self {
        if data == DONE {
            return Self::Done;
        }
        let Ok(document) = serde_json::from_str::<ChunkDocument>(data) else {
            return Self::Failed("the model server sent what is not its API".to_owned());
        };
        if let Some(error) = document.error {
            return Self::Failed(error_text(&error));
        }
        let Choice {
            delta,
            finish_reason,
        } = document.choices.into_iter().next().unwrap_or_default();
        let is_filled = |text: &String| !text.is_empty();
        let reasoning = delta.reasoning.filter(is_filled).map(Part::Reasoning);
        let text = delta.content.filter(is_filled).map(Part::Text);
        Self::Chunk(Chunk {
            parts: reasoning.into_iter().chain(text).collect(),
            finish_reason,
            usage: document.usage,
        })
    }
}

/// Text of the error of a body that is one; `None` where it is none.
pub fn error_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct ErrorBody {
        error: Value,
    }
    let body: ErrorBody = serde_json::from_slice(body).ok()?;
    Some(error_text(&body.error))
}

/// Text of an error: of an object with a message, or the error itself.
fn error_text(error: &Value) -> String {
    let message = error.get("message").unwrap_or(error);
    let text = message.as_str().map(str::to_owned);
    text.unwrap_or_else(|| message.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_apart() {
        let chunk = |parts: &[Part]| Chunk {
            parts: parts.to_vec(),
            ..Chunk::default()
        };
        let text = || Part::Text("lo".to_owned());
        for (data, expected) in [
            ("[DONE]", Event::Done),
            (
                r#"{"choices":[{"delta":{"content":"lo","reasoning":"hm"}}]}"#,
                Event::Chunk(chunk(&[Part::Reasoning("hm".to_owned()), text()])),
            ),
            (
                r#"{"choices":[{"delta":{"content":"","reasoning_content":null},"finish_reason":null}]}"#,
                Event::Chunk(chunk(&[])),
            ),
            (
                r#"{"choices":[],"usage":{"prompt_tokens":3}}"#,
                Event::Chunk(Chunk {
                    usage: Some(TokenUsage {
                        prompt_tokens: 3,
                        completion_tokens: 0,
                    }),
                    ..Chunk::default()
                }),
            ),
            (
                r#"{"error":{"message":"gone","code":1}}"#,
                Event::Failed("gone".to_owned()),
            ),
            (r#"{"error":"plain"}"#, Event::Failed("plain".to_owned())),
            (
                "garbage",
                Event::Failed("the model server sent what is not its API".to_owned()),
            ),
        ] {
            assert_eq!(Event::parse(data), expected, "{data}");
        }
        assert_eq!(
            error_of(br#"{"error":{"message":"x"}}"#).as_deref(),
            Some("x")
        );
        assert_eq!(error_of(b"<html>"), None);
    }
}
