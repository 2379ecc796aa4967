//! The ways to talk to a model: Ollama's generate and chat, OpenAI's chat, and those of [`Named`]. They differ
//! in where the prompt stands and in how the answer is wrapped; what is answered is the same.

use super::{
    WHEN, WHEN_IN_SECONDS,
    http::{JSON, Out},
    named::Named,
};
use serde_json::{Value, json};
use std::io;

/// How a client talks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Generate,
    Chat,
    OpenAi,
    Named(Named),
}

/// A body's object, or what to complain of.
pub(crate) fn parse(body: &[u8]) -> Result<Value, String> {
    if body.is_empty() {
        return Err("missing request body".to_owned());
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if value.is_object() {
        Ok(value)
    } else {
        Err("the body is no object".to_owned())
    }
}

impl Dialect {
    pub(crate) fn refuse(self, out: &mut Out, status: u16, message: &str) -> io::Result<()> {
        if let Self::Named(named) = self {
            return named.refuse(out, status, message);
        }
        if self != Self::OpenAi {
            return self.object(out, status, &json!({"error": message}));
        }
        let kind = match status {
            400 => "invalid_request_error",
            404 => "not_found_error",
            _ => "api_error",
        };
        let error = json!({"message": message, "type": kind, "param": null, "code": null});
        self.object(out, status, &json!({"error": error}))
    }

    /// OpenAI's answers name no character set, Ollama's own do.
    fn object(self, out: &mut Out, status: u16, object: &Value) -> io::Result<()> {
        let kind = if self == Self::OpenAi {
            "application/json"
        } else {
            JSON
        };
        out.whole(status, kind, &object.to_string())
    }

    /// Says the prompt back.
    pub(crate) fn answer(self, out: &mut Out, wish: &Value, model: &str) -> io::Result<()> {
        let prompt = self.prompt(wish);
        if prompt.is_empty() {
            if matches!(self, Self::OpenAi | Self::Named(_)) {
                return self.refuse(out, 400, "[] is too short - 'messages'");
            }
            // Nothing to answer: so a client has a model loaded before it is needed, or unloaded.
            let reason = if wish["keep_alive"] == 0 {
                "unload"
            } else {
                "load"
            };
            let mut loaded = self.piece(model, "");
            loaded["done"] = true.into();
            loaded["done_reason"] = reason.into();
            return self.object(out, 200, &loaded);
        }
        let text = format!("echo: {prompt}");
        let counts = Counts {
            prompt: prompt.split_whitespace().count(),
            answer: text.split_whitespace().count(),
        };
        if let Self::Named(named) = self {
            return named.answer(out, wish, model, &text, &counts);
        }
        if !wish["stream"].as_bool().unwrap_or(self != Self::OpenAi) {
            let whole = match self {
                Self::OpenAi => completion(model, &text, &counts),
                _ => self.last(model, &text, &counts),
            };
            return self.object(out, 200, &whole);
        }
        let words = text
            .split_inclusive(' ')
            .map(|word| self.piece(model, word));
        let last = std::iter::once(self.last(model, "", &counts));
        if self != Self::OpenAi {
            return out.lines(words.chain(last));
        }
        let usage = (wish["stream_options"]["include_usage"] == true).then(|| {
            let mut usage = chunk(model, "", None);
            usage["choices"] = json!([]);
            usage["usage"] = counts.usage();
            usage
        });
        let chunks = words.chain(last).chain(usage);
        let events = chunks.map(|chunk| format!("data: {chunk}\n\n"));
        let done = std::iter::once("data: [DONE]\n\n".to_owned());
        out.pieces("text/event-stream", events.chain(done))
    }

    /// What is to be answered: the prompt, or what the user said last.
    fn prompt(self, wish: &Value) -> String {
        if self == Self::Generate {
            return wish["prompt"].as_str().unwrap_or_default().to_owned();
        }
        let list = match self {
            Self::Named(Named::Responses) => &wish["input"],
            _ => &wish["messages"],
        };
        if let Value::String(text) = list {
            return text.clone();
        }
        let messages = list.as_array().into_iter().flatten();
        let said = messages
            .filter(|message| message["role"] == "user")
            .map(|message| &message["content"])
            .next_back();
        match said {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => parts.iter().filter_map(|p| p["text"].as_str()).collect(),
            _ => String::new(),
        }
    }

    /// One piece of a stream.
    fn piece(self, model: &str, text: &str) -> Value {
        match self {
            Self::OpenAi | Self::Named(_) => chunk(model, text, None),
            Self::Generate => {
                json!({"model": model, "created_at": WHEN, "response": text, "done": false})
            }
            Self::Chat => {
                let message = json!({"role": "assistant", "content": text});
                json!({"model": model, "created_at": WHEN, "message": message, "done": false})
            }
        }
    }

    /// The last piece, which may also be the only one.
    fn last(self, model: &str, text: &str, counts: &Counts) -> Value {
        if self == Self::OpenAi {
            return chunk(model, text, Some("stop"));
        }
        let mut last = self.piece(model, text);
        last["done"] = true.into();
        last["done_reason"] = "stop".into();
        if self == Self::Generate {
            last["context"] = json!([1, 2, 3]);
        }
        last["total_duration"] = 6_000_000.into();
        last["load_duration"] = 1_000_000.into();
        last["prompt_eval_count"] = counts.prompt.into();
        last["prompt_eval_duration"] = 2_000_000.into();
        last["eval_count"] = counts.answer.into();
        last["eval_duration"] = 3_000_000.into();
        last
    }
}

/// How many words there are; a real server counts tokens.
pub(crate) struct Counts {
    pub(crate) prompt: usize,
    pub(crate) answer: usize,
}

impl Counts {
    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt, "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
        })
    }
}

fn chunk(model: &str, text: &str, finish: Option<&str>) -> Value {
    let delta = json!({"role": "assistant", "content": text});
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": WHEN_IN_SECONDS,
        "model": model, "system_fingerprint": "fp_ollama",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    })
}

fn completion(model: &str, text: &str, counts: &Counts) -> Value {
    let message = json!({"role": "assistant", "content": text});
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": WHEN_IN_SECONDS,
        "model": model, "system_fingerprint": "fp_ollama",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": counts.usage(),
    })
}
