//! Prompts at a stand-in for a model server.

use super::*;
use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

/// Model server with one answer a connection, in this order; returns the requests.
fn serve<const N: usize>(answers: [String; N]) -> (ModelServer, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = ModelServer::default();
    server.set_address(Some(listener.local_addr().unwrap()));
    let requests = thread::spawn(move || {
        let answer = |answer: String| {
            let (mut connection, _) = listener.accept().unwrap();
            let (mut request, mut some) = (Vec::new(), [0; 4096]);
            // The body is one JSON document, or there is none.
            while !request.ends_with(b"}") && !request.starts_with(b"GET") {
                let length = connection.read(&mut some).unwrap();
                request.extend_from_slice(&some[..length]);
            }
            connection.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        };
        answers.map(answer).into()
    });
    (server, requests)
}

fn http(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn prompt(model: Option<&str>) -> Prompt {
    Prompt {
        text: "why?".to_owned(),
        model: model.map(str::to_owned),
    }
}

/// End of a job, and its output.
async fn asked(server: &ModelServer, prompt: &Prompt) -> (JobEnd, Vec<Output>) {
    let (sender, mut outputs) = channel(MAX_WAITING_PARTS);
    let mut inference = None;
    let end = ask(server, prompt, &mut inference, sender).await;
    let end = JobEnd { inference, ..end };
    let mut all = Vec::new();
    while let Some(output) = outputs.recv().await {
        all.push(output);
    }
    (end, all)
}

const HALF: &str =
    "data: {\"choices\":[{\"delta\":{\"reasoning\":\"hm\",\"content\":\"half\"}}]}\n\n";

#[tokio::test]
async fn answer_is_stdout_with_counts() {
    let usage =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":1}}\n\n";
    let stream = [": wait\n\n", HALF, usage, "data: [DONE]\n\n"].concat();
    let (server, requests) = serve([http("200 OK", &stream)]);
    let (end, output) = asked(&server, &prompt(Some("m:1"))).await;
    assert_eq!((end.status, end.exit_code), (Outcome::Completed, Some(0)));
    assert_eq!(output, [(Stream::Stdout, "half".to_owned())]);
    let expected = JobInference {
        model: "m:1".to_owned(),
        prompt_tokens: 2,
        completion_tokens: 1,
    };
    assert_eq!(end.inference, Some(expected));
    let request = &requests.join().unwrap()[0];
    assert!(
        request.starts_with("POST /v1/chat/completions"),
        "{request}"
    );
    assert!(
        request.ends_with(r#""messages":[{"role":"user","content":"why?"}]}"#),
        "{request}"
    );
}

#[tokio::test(start_paused = true)]
async fn server_is_waited_for_while_it_restarts() {
    let server = ModelServer::default();
    for prompt in [prompt(None), prompt(Some("m"))] {
        let began = Instant::now();
        let (end, _) = asked(&server, &prompt).await;
        assert_eq!(end.error.unwrap().kind, JobErrorKind::ModelServerFailed);
        assert!(began.elapsed() >= RESTART_TIMEOUT);
    }
    let stream = [HALF, "data: [DONE]\n\n"].concat();
    let (later, _requests) = serve([http("200 OK", &stream)]);
    let prompt = prompt(Some("m"));
    let back = async {
        sleep(RESTART_TIMEOUT / 2).await;
        server.set_address(later.address());
    };
    let ((end, _), ()) = tokio::join!(asked(&server, &prompt), back);
    assert_eq!(end.exit_code, Some(0), "{:?}", end.error);
}

#[tokio::test]
async fn each_failure_has_its_kind() {
    let gone = "data: {\"error\":{\"message\":\"gone\"}}\n\n";
    let error = |text: &str| format!("{{\"error\":{{\"message\":\"{text}\"}}}}");
    for (answer, kind, message) in [
        (
            http("404 Not Found", &error("no such model")),
            JobErrorKind::ModelNotFound,
            "no such model",
        ),
        (
            http("500 Oops", "<html>"),
            JobErrorKind::ModelServerFailed,
            "it answered 500",
        ),
        (
            http("200 OK", HALF),
            JobErrorKind::ModelServerFailed,
            "its answer broke off",
        ),
        (
            http("200 OK", &[HALF, gone].concat()),
            JobErrorKind::ModelServerFailed,
            "gone",
        ),
        (
            http("200 OK", "data: garbage\n"),
            JobErrorKind::ModelServerFailed,
            "not its API",
        ),
    ] {
        let (server, _requests) = serve([answer]);
        let (end, _) = asked(&server, &prompt(Some("m"))).await;
        let failure = end.error.unwrap();
        assert_eq!(failure.kind, kind, "{}", failure.message);
        assert!(failure.message.contains(message), "{}", failure.message);
    }
    let (server, _requests) = serve([http("400 Bad Request", &error("too long"))]);
    let (end, output) = asked(&server, &prompt(Some("m"))).await;
    assert_eq!(end.exit_code, Some(1));
    assert_eq!(output, [(Stream::Stderr, "too long\n".to_owned())]);
}

#[tokio::test]
async fn loaded_model_is_preferred() {
    let models = http(
        "200 OK",
        r#"{"object":"list","data":[{"id":"b"},{"id":"a"}]}"#,
    );
    let loaded = http("200 OK", r#"{"models":[{"name":"b"}]}"#);
    for (answers, expected) in [
        ([loaded, models.clone()], "b"),
        ([http("404 Not Found", "{}"), models], "a"),
    ] {
        let (server, _requests) = serve(answers);
        let address = server.address().unwrap();
        let base = format!("http://{address}");
        let Ok(model) = default_model(&server, &base).await else {
            panic!("there are models");
        };
        assert_eq!(model, expected);
    }
}

#[tokio::test]
async fn models_that_answer_nothing_are_passed_over() {
    let models = r#"{"data":[{"id":"b"},{"id":"a"},{"id":"../c"}]}"#;
    let shown =
        |capability: &str| http("200 OK", &format!(r#"{{"capabilities":["{capability}"]}}"#));
    let (server, requests) = serve([
        http("200 OK", r#"{"models":[]}"#),
        http("200 OK", models),
        shown("embedding"),
        shown("completion"),
    ]);
    let base = format!("http://{}", server.address().unwrap());
    let chosen = default_model(&server, &base).await;
    assert_eq!(chosen.ok().as_deref(), Some("b"));
    assert!(requests.join().unwrap()[3].ends_with(r#"{"model":"b"}"#));
}

#[tokio::test]
async fn stopped_answers_have_model_and_counts() {
    let (server, requests) = serve([http("200 OK", HALF).replace("Length: ", "Length: 9")]);
    let (sender, mut outputs) = channel(MAX_WAITING_PARTS);
    let (prompt, mut inference) = (prompt(Some("m")), None);
    {
        let asked = ask(&server, &prompt, &mut inference, sender);
        tokio::pin!(asked);
        tokio::select! {
            _ = &mut asked => {}
            output = outputs.recv() => assert!(output.is_some()),
        }
    }
    requests.join().unwrap();
    let expected = JobInference {
        model: "m".to_owned(),
        prompt_tokens: 0,
        // A thought and a text.
        completion_tokens: 2,
    };
    assert_eq!(inference, Some(expected));
}
