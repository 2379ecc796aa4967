//! The gateway's model API: calls reach the right node, pass as they are, and fail in the shape of their API.

use crate::support::{
    Api, Orchestrator, eventually,
    model_node::{chat, completion, model_node, report_models},
};
use serde_json::{Value, json};

/// Media type of answers in a worker's own words.
const PROBLEM: &str = "application/problem+json";
const CHAT: &str = "/v1/chat/completions";

/// Detail of an error in OpenAI's shape, with this status and code.
#[track_caller]
fn openai_error(reply: &crate::support::Reply, status: u16, code: Value) -> String {
    let error = reply.json(status)["error"].clone();
    assert_eq!(error["code"], code, "{error}");
    assert!(error["type"].is_string(), "{error}");
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn models_of_all_nodes_are_listed() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let refused = user.post(CHAT, &chat("tiny"));
    let detail = openai_error(&refused, 503, json!("unavailable"));
    assert!(detail.contains("no node is registered"), "{detail}");

    let _a = model_node(
        &orchestrator,
        "a",
        &["tiny:latest", "org/big:7b"],
        |_, _| {},
    );
    let b = model_node(&orchestrator, "b", &["tiny:latest"], |_, _| {});
    let list = user.get("/v1/models").json(200);
    let model = |id, nodes| json!({"id": id, "object": "model", "created": 0, "owned_by": nodes});
    assert_eq!(
        list,
        json!({"object": "list", "data": [model("org/big:7b", "a"), model("tiny:latest", "a,b")]})
    );
    let found = user.get("/v1/models/org/big:7b").json(200);
    assert_eq!(found, model("org/big:7b", "a"));
    assert_eq!(user.get("/v1/models/tiny").json(200)["id"], "tiny:latest");
    openai_error(&user.get("/v1/models/other"), 404, json!("model_not_found"));

    user.act("/v1/nodes/b/drain").expect(204);
    report_models(&b, &json!([{"name": "only-here:1b"}]));
    let owner = user.get("/v1/models/tiny").json(200)["owned_by"].clone();
    assert_eq!(owner, "a", "a drained node gets no calls");
    let refused = user.post(CHAT, &chat("only-here:1b"));
    let detail = openai_error(&refused, 503, json!("unavailable"));
    assert!(
        detail.contains("node b") && detail.contains("draining"),
        "{detail}"
    );
}

#[test]
fn bytes_pass_unchanged_in_both_directions() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let answer = format!("{}\n ", completion("hi \u{1b}[2J"));
    let said = answer.clone();
    let node = model_node(&orchestrator, "a", &["tiny:latest"], move |_, out| {
        out.bytes(200, "application/json", &said);
    });
    let body =
        "{ \"x\" : [1.0e1, \"\\u00e9\"],\n\t\"model\" :\"ti\\u006ey\" , \"stream\":false }\r\n";
    let user = orchestrator.login();
    let headers = [
        ("Content-Type", "application/json"),
        ("anthropic-version", "2023-06-01"),
        ("Cookie", "secret=1"),
    ];
    for path in [
        CHAT,
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
    ]
    .into_iter()
    .chain(["/api/chat", "/api/generate", "/api/embed", "/api/show"])
    {
        let reply = user.call("POST", path, &headers, body.as_bytes());
        assert_eq!(reply.expect(200).text(), answer, "{path}");
        assert_eq!(reply.header("cynode-node"), Some("a"));
        let call = node.call(path, |call| call.is_model_call(path));
        assert_eq!(call.text, body, "{path}");
        let sent = |name: &str| call.headers.iter().any(|(known, _)| known == name);
        assert!(sent("anthropic-version") && sent("content-length"));
        assert!(!sent("cookie"));
        assert_ne!(call.token, user.token(), "the user's token stays here");
    }
}

#[test]
fn missing_and_wrong_keys_are_explained() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let stranger = user.anonymous();
    let refused = stranger.post(CHAT, &chat("tiny"));
    let detail = openai_error(&refused, 401, json!("invalid_api_key"));
    assert!(detail.contains("cynode keys create"), "{detail}");
    let wrong = [("x-api-key", "cyk_wrong")];
    let refused = stranger.call("GET", "/v1/models", &wrong, b"");
    let detail = openai_error(&refused, 401, json!("invalid_api_key"));
    assert!(detail.contains("cynode keys list"), "{detail}");
    openai_error(&stranger.get("/v1/models"), 401, json!("invalid_api_key"));
}

#[test]
fn errors_have_shape_of_their_api() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let node = model_node(&orchestrator, "a", &["tiny:latest"], |_, _| {});
    let user = orchestrator.login();
    openai_error(&user.get(CHAT), 405, Value::Null);
    let detail = openai_error(
        &user.post(CHAT, &chat("other")),
        404,
        json!("model_not_found"),
    );
    assert!(detail.contains("tiny:latest"), "{detail}");
    for (body, expected) in [
        (&b"{"[..], "ends early"),
        (b"", "ends early"),
        (b"[]", "object"),
        (b"{\"messages\": []}", "`model` is missing"),
        (b"{\"model\": 7}", "`model` must be"),
        (
            b"{\"model\": \"a\", \"model\": \"b\"}",
            "`model` must be there once",
        ),
        (b"{\"model\": \"tiny\", \"stream\": 1}", "`stream` must be"),
        (b"{\"model\": \"tiny\",}", "not valid JSON"),
        (b"{\"model\": \"tiny\"} {", "not valid JSON"),
    ] {
        let detail = openai_error(&user.post_raw(CHAT, body), 400, Value::Null);
        assert!(detail.contains(expected), "{detail}");
    }
    let deep = format!("{{\"model\":\"tiny\",\"x\":{}", "[".repeat(1 << 20));
    openai_error(&user.post_raw(CHAT, deep.as_bytes()), 400, Value::Null);
    let large = format!("{{\"model\":\"tiny\",\"x\":\"{}\"}}", "x".repeat(11 << 20));
    let too_large = user.post_raw(CHAT, large.as_bytes());
    openai_error(&too_large, 413, json!("payload_too_large"));

    let error = user.post("/v1/messages", &chat("other")).json(404);
    assert_eq!(
        (&error["type"], &error["error"]["type"]),
        (&json!("error"), &json!("not_found_error"))
    );
    let error = user
        .anonymous()
        .post("/v1/messages", &chat("tiny"))
        .json(401);
    assert_eq!(error["error"]["type"], "authentication_error");
    let error = user.post("/api/chat", &chat("other")).json(404);
    assert!(
        error["error"].as_str().unwrap().contains("other"),
        "{error}"
    );
    for (method, path) in [
        ("POST", "/api/pull"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/create"),
        ("GET", "/api/unknown"),
    ] {
        let error = user.call(method, path, &[], b"").json(403);
        assert!(
            error["error"].as_str().unwrap().contains("cynode models"),
            "{error}"
        );
    }
    let calls = node.calls();
    assert!(
        !calls.iter().any(|call| call.path.contains("/inference/")),
        "{calls:?}"
    );
}

#[test]
fn loaded_model_and_idle_node_come_first() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let say =
        |_: &crate::support::Call, out: crate::support::Answer| out.status(200, &completion("x"));
    let nodes = ["a", "b"].map(|slug| model_node(&orchestrator, slug, &["tiny:latest"], say));
    let _other = model_node(&orchestrator, "c", &["other:latest"], say);
    let user = orchestrator.login();
    let node_of = |model: &str| {
        let reply = user.post(CHAT, &chat(model));
        reply.expect(200).header("cynode-node").unwrap().to_owned()
    };
    assert_eq!(node_of("other"), "c");
    let mut both = [node_of("tiny"), node_of("tiny")];
    both.sort();
    assert_eq!(both, ["a", "b"], "equal nodes take turns");
    report_models(&nodes[1], &json!([{"name": "tiny:latest", "loaded": true}]));
    eventually("the loaded model is preferred", || {
        (node_of("tiny") == "b" && node_of("tiny") == "b").then_some(())
    });
}

#[test]
fn wrong_base_url_is_explained() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let base = format!("http://{}/v1", user.address());
    let detail = openai_error(
        &user.post("/chat/completions", &chat("tiny")),
        404,
        Value::Null,
    );
    assert!(detail.contains(&base), "{detail}");
    let error = user.post("/v1/v1/messages", &chat("tiny")).json(404);
    assert_eq!(error["error"]["type"], "not_found_error", "{error}");
    user.get("/v1/other").problem(404, "not-found");
}

#[test]
fn failing_node_is_replaced_before_first_byte() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let fault = |call: &crate::support::Call, out: crate::support::Answer| match call.body["fault"]
        .as_str()
    {
        Some("cut") => drop(out),
        Some("cut after head") => drop(out.pieces("text/event-stream")),
        Some("worker") => out.bytes(502, PROBLEM, "{}"),
        _ => out.status(500, &json!({"error": "out of memory"})),
    };
    let _bad = model_node(&orchestrator, "bad", &["tiny:latest"], fault);
    report_models(&_bad, &json!([{"name": "tiny:latest", "loaded": true}]));
    let user = orchestrator.login();
    let request = |fault: &str| {
        let mut request = chat("tiny");
        request["fault"] = fault.into();
        user.post(CHAT, &request)
    };
    for fault in ["cut", "cut after head", "worker"] {
        let detail = openai_error(&request(fault), 502, json!("upstream_error"));
        assert!(detail.contains("node bad"), "{detail}");
    }
    let own = request("its own");
    assert_eq!(
        own.json(500),
        json!({"error": "out of memory"}),
        "the last one's answer passes"
    );

    let good = model_node(&orchestrator, "good", &["tiny:latest"], |_, out| {
        out.status(200, &completion("x"));
    });
    for fault in ["cut", "cut after head", "worker", "its own"] {
        let reply = request(fault);
        assert_eq!(reply.json(200), completion("x"), "{fault}");
        assert_eq!(reply.header("cynode-node"), Some("good"), "{fault}");
        good.call(fault, |call| call.body["fault"] == fault);
    }
}

#[test]
fn old_and_silent_nodes_fail_clearly() {
    let home = tempfile::tempdir().unwrap();
    let limit = ["--inference-timeout", "2s"];
    let orchestrator = Orchestrator::start(home.path(), &limit);
    let held = std::sync::Mutex::new(Vec::new());
    let _old = model_node(&orchestrator, "old", &["old:latest"], |_, out| {
        out.bytes(404, PROBLEM, "{}");
    });
    let _silent = model_node(
        &orchestrator,
        "silent",
        &["silent:latest"],
        move |_, out| {
            held.lock().unwrap().push(out);
        },
    );
    let user: Api = orchestrator.login();
    let detail = openai_error(&user.post(CHAT, &chat("old")), 502, json!("upstream_error"));
    assert!(detail.contains("release of cynode"), "{detail}");
    let detail = openai_error(&user.post(CHAT, &chat("silent")), 504, json!("timeout"));
    assert!(detail.contains("--inference-timeout"), "{detail}");
}
