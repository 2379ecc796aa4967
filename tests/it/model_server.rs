//! The stand-in for a model server: it runs in a container and answers like Ollama.

use crate::support::{
    Api, ModelServer, Reply, eventually,
    model_server::{
        BROKEN_OLLAMA_IMAGE, BROKEN_REASON, NEXT_OLLAMA_IMAGE, NEXT_VERSION, OLLAMA_IMAGE,
        SILENT_OLLAMA_IMAGE, VERSION, Volume,
    },
};
use serde_json::{Value, json};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// Objects of a stream, one per line.
fn stream(api: &Api, path: &str, body: &Value) -> Vec<Value> {
    let lines = api.lines("POST", path, &[], body.to_string().as_bytes());
    lines
        .map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Object of an answer with this status.
fn object(reply: &Reply, status: u16) -> Value {
    serde_json::from_slice(&reply.expect(status).body).unwrap()
}

fn models(api: &Api) -> Vec<String> {
    let tags = object(&api.get("/api/tags"), 200);
    let names = tags["models"].as_array().unwrap().iter();
    names
        .map(|model| model["name"].as_str().unwrap().to_owned())
        .collect()
}

fn pull(api: &Api, model: &str) -> Vec<Value> {
    stream(api, "/api/pull", &json!({"model": model}))
}

#[test]
fn model_is_pulled_and_answers_all_apis() {
    let server = ModelServer::start(OLLAMA_IMAGE, &[]);
    let api = &server.api;
    assert_eq!(api.get("/").expect(200).text(), "Ollama is running");
    assert_eq!(object(&api.get("/api/version"), 200)["version"], VERSION);
    assert_eq!(models(api), [""; 0]);
    let generate = json!({"model": "tiny", "prompt": "why is it so"});
    let unknown = api.post("/api/generate", &generate);
    assert_eq!(object(&unknown, 404)["error"], "model 'tiny' not found");

    let steps = pull(api, "tiny");
    let step = |status: &str| {
        steps
            .iter()
            .position(|step| step["status"] == status)
            .unwrap_or_else(|| panic!("{status}: {steps:?}"))
    };
    assert!(step("pulling manifest") < step("verifying sha256 digest"));
    assert!(step("writing manifest") < step("success"));
    assert!(steps.iter().any(|step| step["completed"] == step["total"]
        && step["total"].is_u64()
        && step["digest"].as_str().unwrap().starts_with("sha256:")));
    assert_eq!(models(api), ["tiny:latest"]);
    let missing = pull(api, "missing-model");
    assert!(missing.last().unwrap()["error"].is_string(), "{missing:?}");

    let pieces = stream(api, "/api/generate", &generate);
    let text: Vec<&str> = pieces
        .iter()
        .map(|p| p["response"].as_str().unwrap())
        .collect();
    assert_eq!(text, ["echo: ", "why ", "is ", "it ", "so", ""]);
    let last = pieces.last().unwrap();
    assert_eq!(
        (&last["done"], &last["done_reason"]),
        (&json!(true), &json!("stop"))
    );
    assert_eq!(
        (&last["prompt_eval_count"], &last["eval_count"]),
        (&json!(4), &json!(5))
    );

    let talk = json!({"model": "tiny", "messages": [
        {"role": "user", "content": "first"}, {"role": "assistant", "content": "echo: first"},
        {"role": "user", "content": "then this"},
    ]});
    let pieces = stream(api, "/api/chat", &talk);
    let text: String = pieces
        .iter()
        .map(|p| p["message"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(text, "echo: then this");
    let mut whole = talk.clone();
    whole["stream"] = false.into();
    let answer = object(&api.post("/api/chat", &whole), 200);
    assert_eq!(
        answer["message"],
        json!({"role": "assistant", "content": "echo: then this"})
    );
    openai(api, &talk);
    assert!(
        server.logs().contains("POST /api/pull"),
        "{}",
        server.logs()
    );
}

/// The same conversation in OpenAI's format.
fn openai(api: &Api, talk: &Value) {
    let list = object(&api.get("/v1/models"), 200);
    assert_eq!(list["data"][0]["id"], "tiny:latest");
    let path = "/v1/chat/completions";
    let answer = object(&api.post(path, talk), 200);
    assert_eq!(
        answer["choices"][0]["message"]["content"],
        "echo: then this"
    );
    assert_eq!(answer["usage"]["total_tokens"], 5);
    let mut wish = talk.clone();
    wish["stream"] = true.into();
    let lines = api.lines("POST", path, &[], wish.to_string().as_bytes());
    let data: Vec<String> = lines
        .filter_map(|line| Some(line.strip_prefix("data: ")?.to_owned()))
        .collect();
    let (done, chunks) = data.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let text: String = chunks
        .iter()
        .map(|chunk| serde_json::from_str::<Value>(chunk).unwrap())
        .map(|chunk| {
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(text, "echo: then this");
    wish["model"] = "other".into();
    let unknown = object(&api.post(path, &wish), 404);
    assert_eq!(unknown["error"]["type"], "not_found_error");
    let nonsense = object(&api.post_raw(path, b"{"), 400);
    assert_eq!(nonsense["error"]["type"], "invalid_request_error");
    assert!(object(&api.post_raw("/api/chat", b"{"), 400)["error"].is_string());
}

#[test]
fn volume_keeps_models_over_container_replacement() {
    let volume = Volume::new();
    let mount = format!("--volume={}:/root/.ollama", volume.name);
    let given = "--env=STAND_IN_MODELS=given";
    let old = ModelServer::start(OLLAMA_IMAGE, &[&mount, given]);
    pull(&old.api, "example/tiny:1b");
    assert_eq!(old.stop(), 0, "the server stops on request");
    drop(old);
    let next = ModelServer::start(NEXT_OLLAMA_IMAGE, &[&mount]);
    let version = object(&next.api.get("/api/version"), 200);
    assert_eq!(version["version"], NEXT_VERSION);
    assert_eq!(models(&next.api), ["example/tiny:1b", "given:latest"]);
}

#[test]
fn broken_model_server_ends_with_reason() {
    let server = ModelServer::launch(BROKEN_OLLAMA_IMAGE, &[]);
    assert_eq!(server.ended(), 1);
    assert!(server.logs().contains(BROKEN_REASON), "{}", server.logs());
}

#[test]
fn silent_server_accepts_without_answering() {
    let server = ModelServer::launch(SILENT_OLLAMA_IMAGE, &[]);
    eventually("the server listens", || {
        server.logs().contains("listens on").then_some(())
    });
    let mut stream = TcpStream::connect(server.api.address()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // A working server answers within this time.
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}
