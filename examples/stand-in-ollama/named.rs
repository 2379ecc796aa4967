//! The APIs whose streams are events with names: Anthropic's messages and OpenAI's responses.

use super::{WHEN_IN_SECONDS, http::Out, talk::Counts};
use serde_json::{Value, json};
use std::io;

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// An API with named events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    Messages,
    Responses,
}

impl Named {
    pub(crate) fn refuse(self, out: &mut Out, status: u16, message: &str) -> io::Result<()> {
        let kind = match status {
            400 => "invalid_request_error",
            404 => "not_found_error",
            _ => "api_error",
        };
        let error = json!({"type": kind, "message": message});
        let object = match self {
            Self::Messages => json!({"type": "error", "error": error, "request_id": "req_1"}),
            Self::Responses => json!({"error": error}),
        };
        out.whole(status, JSON, &object.to_string())
    }

    /// Answers with this text.
    pub(crate) fn answer(
        self,
        out: &mut Out,
        wish: &Value,
        model: &str,
        text: &str,
        counts: &Counts,
    ) -> io::Result<()> {
        let whole = match self {
            Self::Messages => message(model, text, counts),
            Self::Responses => response(model, text, counts),
        };
        if wish["stream"] != true {
            return out.whole(200, JSON, &whole.to_string());
        }
        let words = text.split_inclusive(' ');
        let events: Vec<Value> = match self {
            Self::Messages => {
                let deltas = words.map(|word| {
                    let delta = json!({"type": "text_delta", "text": word});
                    json!({"type": "content_block_delta", "index": 0, "delta": delta})
                });
                let block = json!({"type": "text", "text": ""});
                let stop = json!({"stop_reason": "end_turn", "stop_sequence": null});
                let usage = json!({"output_tokens": counts.answer});
                let begin = [
                    json!({"type": "message_start", "message": begun(message(model, "", counts))}),
                    json!({"type": "content_block_start", "index": 0, "content_block": block}),
                ];
                let end = [
                    json!({"type": "content_block_stop", "index": 0}),
                    json!({"type": "message_delta", "delta": stop, "usage": usage}),
                    json!({"type": "message_stop"}),
                ];
                begin.into_iter().chain(deltas).chain(end).collect()
            }
            Self::Responses => {
                let deltas = words.enumerate().map(|(n, word)| {
                    json!({
                        "type": "response.output_text.delta", "sequence_number": n + 1, "item_id": "msg_1",
                        "output_index": 0, "content_index": 0, "delta": word, "logprobs": [],
                    })
                });
                let mut created = response(model, "", counts);
                created["status"] = "in_progress".into();
                created["output"] = json!([]);
                created["usage"] = Value::Null;
                let begin =
                    json!({"type": "response.created", "sequence_number": 0, "response": created});
                let end = json!({
                    "type": "response.completed", "sequence_number": counts.answer + 1, "response": whole,
                });
                std::iter::once(begin).chain(deltas).chain([end]).collect()
            }
        };
        let events = events.into_iter().map(|event| {
            let name = event["type"].as_str().unwrap_or_default();
            format!("event: {name}\ndata: {event}\n\n")
        });
        out.pieces(EVENTS, events)
    }
}

fn message(model: &str, text: &str, counts: &Counts) -> Value {
    json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": model,
        "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": counts.prompt, "output_tokens": counts.answer},
    })
}

/// A message that has no text yet.
fn begun(mut message: Value) -> Value {
    message["content"] = json!([]);
    message["stop_reason"] = Value::Null;
    message["usage"]["output_tokens"] = 0.into();
    message
}

fn response(model: &str, text: &str, counts: &Counts) -> Value {
    let content = json!([{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]);
    json!({
        "id": "resp_1", "object": "response", "created_at": WHEN_IN_SECONDS, "status": "completed",
        "model": model, "parallel_tool_calls": true, "tool_choice": "auto", "tools": [],
        "output": [{
            "type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": content,
        }],
        "usage": {
            "input_tokens": counts.prompt, "output_tokens": counts.answer,
            "total_tokens": counts.prompt + counts.answer,
            "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
        },
    })
}
