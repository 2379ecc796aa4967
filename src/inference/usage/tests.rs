//! Counts of each API, however its answers are cut, and the ends of streams.

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

#[test]
fn ends_of_streams_are_known() {
    let ended = |content_type: &str, answer: &str| {
        let answer = answer.as_bytes();
        let is_ended = |chunks: &[&[u8]]| {
            let mut counter = Counter::new(content_type).unwrap();
            chunks.iter().for_each(|chunk| counter.feed(chunk));
            counter.has_ended()
        };
        let whole = is_ended(&[answer]);
        for at in 0..answer.len() {
            let (start, rest) = answer.split_at(at);
            assert_eq!(is_ended(&[start, rest]), whole, "{at}");
        }
        whole
    };
    for end in [
        "data: [DONE]\n",
        "data:[DONE]\r\n\r\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n",
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{}}\n",
    ] {
        assert!(
            ended(SSE, &format!("data: {{\"choices\":[]}}\n\n{end}")),
            "{end}"
        );
    }
    assert!(ended(
        NDJSON,
        "{\"done\":false}\n{\"message\":{},\"done\":true}\n"
    ));
    for open in [
        "data: [DONE]",
        "data: [DONE]x\n",
        "[DONE]\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"\\ndata: [DONE]\\n\"}}]}\n\n",
        "data: {\"message\":{\"type\":\"message_stop\"}}\n",
        "data: {\"type\":\"message_delta\"}\n",
    ] {
        assert!(!ended(SSE, open), "{open}");
    }
    for open in [
        "{\"done\":true}",
        "{\"message\":{\"done\":true},\"done\":false}\n",
        "{\"response\":\"\\\"done\\\":true\"}\n",
    ] {
        assert!(!ended(NDJSON, open), "{open}");
    }
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
