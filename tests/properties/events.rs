//! A job's output, and how a node reports it.

use crate::oracles::events;
use cynode::api::{
    events::{
        HEAD_LIMIT_BYTES, LogRecord, OUTPUT_LIMIT_BYTES, OutputLog, RecordContent, Stream,
        Utf8Decoder,
    },
    time::Time,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const ID: &str = "0198c0de-0000-7000-8000-000000000001";

fn result(status: &str, exit_code: Option<i32>, message: Option<usize>) -> Value {
    let mut result = json!({
        "event": "result", "seq": 9, "version": 1, "task_id": ID, "job_id": ID, "attempt": 1, "status": status,
        "stdout": "o", "stderr": "", "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:01Z",
        "truncated": {"stdout": false, "stderr": false},
        "effective": {"image_id": "i", "network": "none", "runtime": "default", "timeout_seconds": 5},
    });
    if let Some(code) = exit_code {
        result["exit_code"] = code.into();
    }
    if let Some(length) = message {
        result["error"] = json!({"type": "engine-error", "message": "m".repeat(length)});
    }
    result
}

/// An event as a node may send it, or nearly.
fn event() -> impl Strategy<Value = Value> {
    let number = || prop_oneof![8 => 0u64..6, 1 => any::<u64>()];
    let text = prop_oneof![
        "[aé\n\u{0}]{0,4}",
        Just("é".repeat(OUTPUT_LIMIT_BYTES / 2 - 1)),
        any::<String>()
    ];
    let stream = proptest::sample::select(vec!["stdout", "stderr"]);
    let status = proptest::sample::select(vec!["completed", "failed", "timeout", "canceled"]);
    let code = proptest::option::of(-1..300);
    let message = proptest::option::of(proptest::sample::select(vec![0, 16 * 1024, 16 * 1024 + 1]));
    prop_oneof![
        2 => number().prop_map(|seq| json!({"event": "started", "attempt": 1, "seq": seq})),
        6 => (stream.clone(), number(), text)
            .prop_map(|(stream, seq, data)| json!({"event": stream, "attempt": 1, "seq": seq, "data": data})),
        1 => (stream.clone(), number())
            .prop_map(|(stream, seq)| json!({"event": stream, "attempt": 1, "seq": seq, "data_base64": "/w==", "time": "2026-01-01T00:00:00Z"})),
        2 => (stream, number(), number())
            .prop_map(|(stream, seq, bytes)| json!({"event": "gap", "attempt": 1, "seq": seq, "stream": stream, "bytes": bytes})),
        1 => (status, code, message).prop_map(|(status, code, message)| result(status, code, message)),
        1 => Just(json!({"event": "news", "seq": 1})),
        1 => Just(json!({"seq": 1})),
    ]
}

proptest! {
    #[test]
    fn event_stream_decodes_alike_however_split(events in proptest::collection::vec(event(), 0..8), in_order: bool, cut in 0usize..3) {
        let mut bytes = Vec::new();
        for (n, mut event) in events.into_iter().enumerate() {
            if in_order {
                event["seq"] = (n + 1).into();
            }
            bytes.extend(serde_json::to_vec(&event).unwrap());
            bytes.push(b'\n');
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        events::stream(&bytes);
    }

    #[test]
    fn any_bytes_are_events_or_fault(bytes: Vec<u8>, text in "[{}\"a-z:,\n]{0,60}") {
        events::stream(&bytes);
        events::stream(text.as_bytes());
    }

    #[test]
    fn any_split_gives_lossy_text(bytes: Vec<u8>, cuts in proptest::collection::vec(0usize..40, 0..20)) {
        let (mut log, mut decoder) = (OutputLog::default(), Utf8Decoder::default());
        let mut rest = bytes.as_slice();
        for cut in cuts {
            let (head, tail) = rest.split_at(cut.min(rest.len()));
            events::print(&mut log, Stream::Stdout, &decoder.decode(head));
            rest = tail;
        }
        events::print(&mut log, Stream::Stdout, &decoder.decode(rest));
        events::print(&mut log, Stream::Stdout, decoder.finish());
        prop_assert_eq!(log.text(Stream::Stdout), String::from_utf8_lossy(&bytes));
        events::kept(&log);
    }

    #[test]
    fn long_text_keeps_head_and_tail(
        pieces in proptest::collection::vec(("[aé€😀]{1,3}", 1usize..20_000), 1..20),
    ) {
        let (mut log, mut whole) = (OutputLog::default(), String::new());
        log.mark_started();
        for (text, count) in pieces {
            let piece = text.repeat(count.min(16 * 1024 / text.len()));
            events::print(&mut log, Stream::Stderr, &piece);
            whole.push_str(&piece);
        }
        let kept = log.text(Stream::Stderr);
        prop_assert!(kept.len() <= OUTPUT_LIMIT_BYTES);
        prop_assert_eq!(log.truncated().stderr, whole.len() > OUTPUT_LIMIT_BYTES);
        if whole.len() <= OUTPUT_LIMIT_BYTES {
            prop_assert_eq!(&kept, &whole);
        } else {
            let (head, rest) = kept.split_once("\n[... ").unwrap();
            let (missing, tail) = rest.split_once(" bytes omitted; see the log of the task ...]\n").unwrap();
            prop_assert!(whole.starts_with(head) && whole.ends_with(tail));
            prop_assert!(head.len() + 4 > HEAD_LIMIT_BYTES && head.len() <= HEAD_LIMIT_BYTES);
            // The oldest record that was dropped is at most so long.
            prop_assert!(kept.len() + 16 * 1024 + 100 > OUTPUT_LIMIT_BYTES);
            prop_assert_eq!(missing.parse(), Ok(whole.len() - head.len() - tail.len()));
        }
        events::kept(&log);
    }

    #[test]
    fn outline_and_texts_give_same_events(
        pushes in proptest::collection::vec((any::<bool>(), "[aé]{0,3}"), 0..20),
        gaps in proptest::collection::vec((any::<bool>(), prop_oneof![1u64..9, Just(u64::MAX)]), 0..3),
    ) {
        let of = |err: bool| if err { Stream::Stderr } else { Stream::Stdout };
        let mut log = OutputLog::default();
        log.mark_started();
        for (err, text) in &pushes {
            events::print(&mut log, of(*err), text);
        }
        for (err, bytes) in gaps {
            let seq = log.last_seq() + bytes % 7 + 1;
            let content = RecordContent::Gap { stream: of(err), bytes };
            log.append(&LogRecord { seq, time: None, content });
        }
        for (err, text) in &pushes {
            log.skip_event();
            events::print(&mut log, of(*err), text);
        }
        events::kept(&log);
        let (out, err) = (log.text(Stream::Stdout), log.text(Stream::Stderr));
        let other = OutputLog::restore(&log.outline(), &format!("{out}x"), &err);
        prop_assert_eq!(events::replay(&other), [format!("{out}x"), err]);
    }

    #[test]
    fn timestamps_survive_round_trip(millis in -377_705_023_201_000i64..253_402_207_200_000, text in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,9})?(Z|[+-][0-2][0-9]:[0-6][0-9])") {
        let time = Time::from_millis(millis);
        let json = serde_json::to_string(&time).unwrap();
        prop_assert_eq!(serde_json::from_str::<Time>(&json).unwrap(), time);
        if let Ok(time) = serde_json::from_value::<Time>(Value::from(text)) {
            let again = serde_json::to_value(time).unwrap();
            prop_assert_eq!(serde_json::from_value::<Time>(again).unwrap(), time);
        }
    }
}
