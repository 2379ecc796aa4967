//! The answer of a model, part by part, as the gateway streams it in the form of OpenAI's API.

use super::super::{
    api_client::{ApiClient, Payload},
    print::clean,
    sse::SseReader,
};
use crate::{
    exit::{Exit, Failure},
    inference::chat::{self, Event, Part, TokenUsage},
};
use http::Method;
use std::io::Read;

/// Longest answer, in bytes; a model that never ends its answer is stopped there.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Answer as far as it came.
#[derive(Default, Debug)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) reasoning: String,
    /// Reason for the end, such as `stop`, or `length` for an answer that is cut.
    pub(super) finish_reason: Option<String>,
    pub(super) usage: Option<TokenUsage>,
    /// Reason for which there is no more of it, though the model had not ended.
    pub(super) failure: Option<Failure>,
}

/// Asks a model, and hands on each part as it arrives. Fails where no answer begins, and where a part can't be handed on;
/// an answer that breaks off later has its `failure`.
pub(super) fn ask(
    api: &mut ApiClient,
    request: &[u8],
    mut show: impl FnMut(&Part) -> Result<(), Failure>,
) -> Result<Answer, Failure> {
    let body = Payload::Bytes(request, "application/json");
    let headers = [("accept", "text/event-stream")];
    let answer = api.exchange(&Method::POST, chat::PATH, &headers, body)?;
    let stream = api.check_status(answer)?.into_body().into_reader();
    read(stream, &mut show)
}

fn read(
    stream: impl Read,
    show: &mut impl FnMut(&Part) -> Result<(), Failure>,
) -> Result<Answer, Failure> {
    let (mut events, mut answer) = (SseReader::new(stream), Answer::default());
    loop {
        let event = match events.next() {
            Ok(Some(event)) => event,
            // Some servers end without the last event.
            Ok(None) if answer.finish_reason.is_some() => return Ok(answer),
            Ok(None) => return Ok(answer.broken_off("the connection was lost")),
            Err(failure) => return Ok(answer.broken_off(&failure.message)),
        };
        let chunk = match Event::parse(&event.data) {
            Event::Chunk(chunk) => chunk,
            Event::Done => return Ok(answer),
            Event::Failed(reason) => return Ok(answer.broken_off(&reason)),
        };
        answer.usage = chunk.usage.or(answer.usage);
        answer.finish_reason = chunk.finish_reason.or(answer.finish_reason);
        for part in chunk.parts {
            match &part {
                Part::Reasoning(text) => answer.reasoning.push_str(text),
                Part::Text(text) => answer.text.push_str(text),
            }
            show(&part)?;
        }
        if answer.text.len() + answer.reasoning.len() > MAX_ANSWER_BYTES {
            return Ok(answer.broken_off("it is longer than 8 MiB"));
        }
    }
}

impl Answer {
    fn broken_off(self, reason: &str) -> Self {
        let text = format!("the answer broke off: {}", clean(reason));
        Self {
            failure: Some(Failure::new(Exit::Unreachable, text)),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(stream: &str) -> (Vec<Part>, Answer) {
        let mut parts = Vec::new();
        let answer = read(stream.as_bytes(), &mut |part: &Part| {
            parts.push(part.clone());
            Ok(())
        });
        (parts, answer.unwrap())
    }

    fn event(data: &str) -> String {
        format!("data: {data}\n\n")
    }

    const HELLO: &str = r#"{"choices":[{"delta":{"role":"assistant","content":"Hel"}}]}"#;

    #[test]
    fn parts_come_in_order_with_usage() {
        let stream = [
            ": keep-alive\n\n".to_owned(),
            event(r#"{"choices":[{"delta":{"role":"assistant","content":"","reasoning":"hm"}}]}"#),
            event(HELLO),
            event(r#"{"choices":[{"delta":{"content":"lo"},"finish_reason":null}]}"#),
            event(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#),
            event(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#),
            event("[DONE]"),
        ];
        let (parts, answer) = read_all(&stream.concat());
        let text = |text: &str| Part::Text(text.to_owned());
        let expected = [Part::Reasoning("hm".to_owned()), text("Hel"), text("lo")];
        assert_eq!(parts, expected);
        assert_eq!((&*answer.text, &*answer.reasoning), ("Hello", "hm"));
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
        let usage = TokenUsage {
            prompt_tokens: 3,
            completion_tokens: 2,
        };
        assert_eq!(answer.usage, Some(usage));
        assert!(answer.failure.is_none());
    }

    #[test]
    fn broken_answers_keep_what_came() {
        for (rest, reason) in [
            ("", "the connection was lost"),
            ("data: {\"cho", "the connection was lost"),
            ("data: garbage\n\n", "what is not its API"),
            (
                "data: {\"error\":{\"message\":\"node \\u001b[2J gone\",\"code\":\"x\"}}\n\n",
                "broke off: node  [2J gone",
            ),
            ("data: {\"error\":\"plain\"}\n\n", "broke off: plain"),
        ] {
            let (_, answer) = read_all(&[event(HELLO), rest.to_owned()].concat());
            let failure = answer.failure.unwrap();
            assert!(failure.message.contains(reason), "{}", failure.message);
            assert_eq!((&*answer.text, failure.exit), ("Hel", Exit::Unreachable));
        }
    }

    #[test]
    fn endless_answer_is_stopped() {
        let text = "x".repeat(1 << 20);
        let chunk = event(&format!(
            r#"{{"choices":[{{"delta":{{"content":"{text}"}}}}]}}"#
        ));
        let (_, answer) = read_all(&chunk.repeat(10));
        let failure = answer.failure.unwrap();
        assert!(
            failure.message.contains("longer than 8 MiB"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn failure_to_show_ends_reading() {
        let stream = event(HELLO).repeat(2);
        let mut shown = 0;
        let failed = read(stream.as_bytes(), &mut |_: &Part| {
            shown += 1;
            Err(Failure::silent(141))
        });
        assert_eq!((failed.unwrap_err().exit, shown), (Exit::Code(141), 1));
    }
}
