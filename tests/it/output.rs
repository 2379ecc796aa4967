//! Output of commands as they printed it: bytes and text, live and late, and what a result keeps of it.

use crate::support::{Cluster, SseEvent, Worker, worker::printed};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::fs;

/// Script that prints all 256 bytes, some more than once.
const ALL_BYTES: &str = "for i in $(seq 0 255); do printf \"\\\\$(printf %03o $i)\"; done";

fn all_bytes() -> Vec<u8> {
    (0..=255).collect()
}

/// Bytes of one stream in events that were asked for in base64.
fn bytes_of(events: &[SseEvent], stream: &str) -> Vec<u8> {
    let of_it = events.iter().filter(|event| event.name == stream);
    of_it
        .flat_map(|event| {
            STANDARD
                .decode(event.data["data_base64"].as_str().unwrap())
                .unwrap()
        })
        .collect()
}

fn text_of(events: &[SseEvent], stream: &str) -> String {
    let of_it = events.iter().filter(|event| event.name == stream);
    of_it
        .map(|event| event.data["data"].as_str().unwrap())
        .collect()
}

fn logs(cluster: &Cluster, id: &str, query: &str, last: Option<&str>) -> Vec<SseEvent> {
    let path = format!("/v1/tasks/{id}/logs?{query}");
    cluster.user.events(&path, last).collect()
}

#[test]
fn client_prints_bytes_of_command() {
    let cluster = Cluster::start();
    let script = format!("{ALL_BYTES}; printf '\\303' >&2; printf '\\377' >&2");
    let run = cluster
        .cli(&["run", "--name", "bytes", "--", "sh", "-c", &script])
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    assert_eq!(run.stdout, all_bytes());
    assert_eq!(run.stderr, b"\xC3\xFF");
    for follow in [&[][..], &["--follow"]] {
        let arguments = [&["task", "logs", "bytes", "--stream", "stdout"], follow].concat();
        let late = cluster.cli(&arguments).output().unwrap();
        assert_eq!(
            (late.stdout, late.stderr),
            (all_bytes(), Vec::new()),
            "{follow:?}"
        );
    }
}

#[test]
fn random_megabytes_come_back_unchanged() {
    let cluster = Cluster::start();
    let script = "head -c 3000000 /dev/urandom > r; sha256sum r >&2; cat r";
    let run = cluster
        .cli(&["run", "--", "sh", "-c", script])
        .output()
        .unwrap();
    assert_eq!(run.stdout.len(), 3_000_000);
    let hash = cynode::digest::sha256_hex(&run.stdout);
    assert!(String::from_utf8(run.stderr).unwrap().starts_with(&hash));
}

#[test]
fn document_carries_bytes_or_text() {
    let cluster = Cluster::start();
    let id = cluster.script(&format!(
        "{ALL_BYTES}; printf 'é' >&2; until [ -e go ]; do usleep 5000; done"
    ));
    let path = format!("/v1/tasks/{id}/logs");
    let check = |state: &str| {
        let bytes = cluster
            .user
            .get(&format!("{path}?encoding=base64"))
            .json(200);
        let stdout = STANDARD
            .decode(bytes["stdout_base64"].as_str().unwrap())
            .unwrap();
        assert_eq!(stdout, all_bytes(), "{state}");
        assert_eq!(bytes["stderr_base64"], STANDARD.encode("é"), "{state}");
        assert_eq!(bytes.get("stdout"), None, "{state}");
        let text = cluster.user.get(&path).json(200);
        assert_eq!(
            text["stdout"],
            *String::from_utf8_lossy(&all_bytes()),
            "{state}"
        );
        assert_eq!(text["stderr"], "é", "{state}");
    };
    for event in cluster.user.events(&path, None) {
        if event.name == "stderr" {
            break;
        }
    }
    check("running");
    fs::write(cluster.node.workspaces()[0].join("workspace/go"), "").unwrap();
    cluster.finish(&id);
    check("ended");
    cluster
        .user
        .get(&format!("{path}?encoding=hex"))
        .problem(400, "invalid-request");
}

#[test]
fn split_character_is_whole_in_text() {
    let cluster = Cluster::start();
    // Each byte of two characters by itself, and one that is never completed.
    let script =
        "for b in 342 202 254 303 251; do printf \"\\\\$b\"; usleep 30000; done; printf '\\303'";
    let id = cluster.script(script);
    for state in ["live", "late"] {
        let text = logs(&cluster, &id, "follow=true", None);
        assert_eq!(text_of(&text, "stdout"), "€é\u{FFFD}", "{state}");
        let bytes = logs(&cluster, &id, "encoding=base64", None);
        assert_eq!(
            bytes_of(&bytes, "stdout"),
            b"\xE2\x82\xAC\xC3\xA9\xC3",
            "{state}"
        );
    }
    let result = cluster.result(&id);
    assert_eq!(result["jobs"][0]["result_object"]["stdout"], "€é\u{FFFD}");
}

#[test]
fn reader_resumes_anywhere_in_both_encodings() {
    let cluster = Cluster::start();
    let id =
        cluster.script("for n in 1 2 3 4 5; do echo é$n; printf '\\377' >&2; usleep 30000; done");
    cluster.finish(&id);
    let text = logs(&cluster, &id, "encoding=text", None);
    let bytes = logs(&cluster, &id, "encoding=base64", None);
    let ids = |events: &[SseEvent]| -> Vec<String> {
        events.iter().map(|event| event.id.clone()).collect()
    };
    assert_eq!(ids(&text), ids(&bytes), "an event has one number");
    for (at, event) in text.iter().enumerate() {
        for encoding in ["text", "base64"] {
            let all = if encoding == "text" { &text } else { &bytes };
            let rest = logs(
                &cluster,
                &id,
                &format!("encoding={encoding}"),
                Some(&event.id),
            );
            let expected: Vec<_> = all.iter().skip(at + 1).cloned().collect();
            // The end comes again to a reader that has it.
            let expected = if expected.is_empty() {
                vec![all[at].clone()]
            } else {
                expected
            };
            assert_eq!(rest, expected, "{encoding} after {}", event.id);
        }
    }
}

#[test]
fn node_sends_bytes_to_who_asks() {
    let worker = Worker::start(&[]);
    let job = Worker::script("printf '\\377a'; printf b >&2");
    worker.run(&job);
    let events = |query: &str| -> Vec<Value> {
        let path = format!("{}?{query}", Worker::path(&job));
        let lines = worker
            .api
            .lines("GET", &path, &[("Accept", "application/x-ndjson")], b"");
        lines
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect()
    };
    let text = events("after=0");
    assert_eq!(printed(&text, "stdout"), "\u{FFFD}a");
    let bytes = events("encoding=base64&stream=stdout");
    let output: Vec<_> = bytes
        .iter()
        .filter(|event| event["event"] == "stdout")
        .collect();
    assert_eq!(output[0]["data_base64"], STANDARD.encode(b"\xFFa"));
    assert!(output[0]["time"].is_string(), "{}", output[0]);
    assert!(bytes.iter().all(|event| event["event"] != "stderr"));
}

#[test]
fn long_output_keeps_head_and_tail() {
    let cluster = Cluster::start_with(&["--job-log-size", "256MiB"]);
    let script =
        r#"awk 'BEGIN { for (n = 0; n < 10000000; n++) printf "%09d\n", n }'; echo done >&2"#;
    let run = cluster
        .cli(&["run", "--name", "long", "--", "sh", "-c", script])
        .output()
        .unwrap();
    assert_eq!(run.stdout.len(), 100_000_000);
    let task = cluster.task("long");
    assert!(
        task["summary"]
            .as_str()
            .unwrap()
            .contains("stdout truncated"),
        "{task}"
    );
    let result = cluster.result("long");
    let result = &result["jobs"][0]["result_object"];
    let kept = result["stdout"].as_str().unwrap();
    assert_eq!(
        result["truncated"],
        json!({"stdout": true, "stderr": false})
    );
    assert!(
        kept.len() <= 262_144 && kept.starts_with("000000000\n") && kept.ends_with("009999999\n")
    );
    let (head, rest) = kept.split_once("\n[... ").unwrap();
    let (missing, tail) = rest
        .split_once(" bytes omitted; see the log of the task ...]\n")
        .unwrap();
    let missing: usize = missing.parse().unwrap();
    assert_eq!(head.len() + missing + tail.len(), 100_000_000);
    let whole = cluster.cli(&["task", "logs", "long"]).output().unwrap();
    assert!(whole.stdout == run.stdout, "{} bytes", whole.stdout.len());
    assert_eq!(whole.stderr, b"done\n");
}
