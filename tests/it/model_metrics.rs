//! Metrics of calls of models: each call counts once, by its API and its end; times and tokens, by node.

use crate::support::{
    Answer, Api, Call, Orchestrator,
    client::client,
    eventually, eventually_eq,
    exposition::Exposition,
    model_node::{chat, completion, model_node, report_models},
    process::run,
    raw::connect_to,
};
use serde_json::json;
use std::{
    io::Write as _,
    sync::{Mutex, mpsc},
};

const CHAT: &str = "/v1/chat/completions";

/// Numbers of calls that ended: completed, rejected, failed, canceled.
fn ends(gateway: &Api, api: &str) -> [f64; 4] {
    let metrics = Exposition::of(gateway);
    ["completed", "rejected", "failed", "canceled"].map(|status| {
        let labels = format!("api=\"{api}\",status=\"{status}\"");
        metrics.value(&format!("cynode_inference_requests_total{{{labels}}}"))
    })
}

/// Waits for these numbers. A client may see the end just before it is counted.
fn eventually_ends(gateway: &Api, api: &str, expected: [f64; 4]) {
    eventually_eq("the calls are counted", expected, || ends(gateway, api));
}

/// Answers of a model server, by the model.
fn script(call: &Call, answer: Answer) {
    match call.body["model"].as_str().unwrap() {
        "wrong" => answer.status(400, &json!({"error": {"message": "no"}})),
        "broken" => answer.status(500, &json!({"error": {"message": "no"}})),
        "cut" => answer.break_off("{\"choices\":"),
        _ => answer.status(200, &completion("hi")),
    }
}

#[test]
fn each_call_counts_once_by_its_end() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let models = ["tiny", "wrong", "broken", "cut"];
    let _node = model_node(&orchestrator, "box", &models, script);
    let (gateway, user) = (&orchestrator.gateway, orchestrator.login());
    for api in ["openai", "anthropic", "ollama"] {
        assert_eq!(ends(gateway, api), [0.0; 4]);
    }
    user.post(CHAT, &chat("tiny")).expect(200);
    eventually_ends(gateway, "openai", [1.0, 0.0, 0.0, 0.0]);
    for (model, status) in [("wrong", 400), ("unknown", 404)] {
        user.post(CHAT, &chat(model)).expect(status);
    }
    user.post_raw(CHAT, b"{").expect(400);
    eventually_ends(gateway, "openai", [1.0, 3.0, 0.0, 0.0]);
    user.post(CHAT, &chat("broken")).expect(500);
    let cut = user.try_call("POST", CHAT, &[], chat("cut").to_string().as_bytes());
    cut.unwrap_err();
    eventually_ends(gateway, "openai", [1.0, 3.0, 2.0, 0.0]);
    user.post("/v1/messages", &chat("tiny")).expect(200);
    user.post("/api/chat", &chat("other")).expect(404);
    eventually_ends(gateway, "anthropic", [1.0, 0.0, 0.0, 0.0]);
    eventually_ends(gateway, "ollama", [0.0, 1.0, 0.0, 0.0]);

    let metrics = Exposition::of(gateway);
    let value = |series: &str| metrics.value(&format!("cynode_inference_{series}"));
    assert_eq!(value("tokens_total{kind=\"prompt\",node=\"box\"}"), 6.0);
    assert_eq!(
        value("tokens_total{kind=\"completion\",node=\"box\"}"),
        10.0
    );
    // The answer that was cut had begun.
    assert_eq!(value("first_byte_seconds_count{node=\"box\"}"), 3.0);
    assert_eq!(value("duration_seconds_count{node=\"box\"}"), 2.0);
    assert!(value("duration_seconds_sum{node=\"box\"}") < 60.0);
}

#[test]
fn running_calls_are_counted_by_node() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (sender, held) = mpsc::channel();
    let sender = Mutex::new(sender);
    let _node = model_node(&orchestrator, "box", &["tiny"], move |_, answer| {
        let _ = sender.lock().unwrap().send(answer);
    });
    let (gateway, user) = (&orchestrator.gateway, orchestrator.login());
    let running = || Exposition::of(gateway).value("cynode_inference_running{node=\"box\"}");
    assert_eq!(running(), 0.0);
    let mut client = connect_to(&user);
    let (body, token, host) = (chat("tiny").to_string(), user.token(), user.address());
    let length = body.len();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    client.write_all(request.as_bytes()).unwrap();
    let mut answer = held.recv().unwrap();
    assert_eq!(running(), 1.0);
    drop(client);
    answer.wait_gone();
    eventually_ends(gateway, "openai", [0.0, 0.0, 0.0, 1.0]);
    eventually_eq("the place is free", 0.0, running);
}

#[test]
fn forgotten_node_leaves_no_series() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let node = model_node(&orchestrator, "box", &["tiny"], script);
    let (gateway, user) = (&orchestrator.gateway, orchestrator.login());
    user.post(CHAT, &chat("tiny")).expect(200);
    eventually_ends(gateway, "openai", [1.0, 0.0, 0.0, 0.0]);
    let named = |metrics: Exposition| {
        let series = metrics.series();
        let of_node = series
            .iter()
            .filter(|series| series.contains("node=\"box\""));
        of_node.count()
    };
    assert!(named(Exposition::of(gateway)) > 0);
    drop(node);
    user.call("DELETE", "/v1/nodes/box", &[], b"").expect(204);
    assert_eq!(named(Exposition::of(gateway)), 0);
}

#[test]
fn status_shows_loaded_models() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let node = model_node(&orchestrator, "box", &["tiny"], script);
    let user = orchestrator.login();
    let status = || {
        let mut status = client(home.path(), &orchestrator.gateway_url, &["status"]);
        run(status.env("CYNODE_TOKEN", user.token())).stdout
    };
    assert!(!status().contains("LOADED MODEL"));
    let loaded =
        json!([{"name": "tiny", "loaded": true, "vram_bytes": 3 << 20}, {"name": "other"}]);
    report_models(&node, &loaded);
    let shown = eventually("the model is shown as loaded", || {
        let text = status();
        let (_, table) = text.split_once("LOADED MODEL")?;
        Some(table.to_owned())
    });
    let row = shown.lines().nth(1).unwrap();
    let cells: Vec<_> = row
        .split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect();
    assert_eq!(cells, ["tiny", "box", "3.0 MiB"]);
    assert_eq!(shown.lines().count(), 2);
}
