//! Calls of a chat, to a stand-in for the gateway.

use super::{
    answer::{Answer, ask},
    conversation::Conversation,
    models,
};
use crate::{
    client::api_client::ApiClient,
    exit::{Exit, Failure},
    inference::chat::Part,
};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc::channel,
    thread::{self, JoinHandle},
    time::Duration,
};

/// Stand-in that gives one answer a connection, in this order.
struct Gateway {
    url: String,
    calls: JoinHandle<Vec<Call>>,
}

/// Call that it got.
struct Call {
    line: String,
    body: Value,
    connection: TcpStream,
}

impl Gateway {
    fn start(answers: impl IntoIterator<Item = String>) -> Self {
        let answers: Vec<_> = answers.into_iter().collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls = thread::spawn(move || {
            let answer = |answer: String| {
                let mut call = receive(listener.accept().unwrap().0);
                call.connection.write_all(answer.as_bytes()).unwrap();
                call
            };
            answers.into_iter().map(answer).collect()
        });
        Self { url, calls }
    }
}

fn receive(connection: TcpStream) -> Call {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let (mut line, mut header, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut line).unwrap();
    while header != "\r\n" {
        header.clear();
        reader.read_line(&mut header).unwrap();
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Call {
        line,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        connection,
    }
}

/// Answer with a body of this length, or of which more is to come.
fn answer(status: u16, body: &str, more: usize) -> String {
    let length = body.len() + more;
    format!("HTTP/1.1 {status} Stand-in\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn json_answer(status: u16, body: &Value) -> String {
    answer(status, &body.to_string(), 0)
}

fn asked(gateway: &Gateway, conversation: &Conversation) -> Result<Answer, Failure> {
    let mut api = ApiClient::of_test(gateway.url.clone());
    ask(&mut api, &conversation.request().unwrap(), |_| Ok(()))
}

const HELLO: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n";

#[test]
fn conversation_is_sent_and_answer_read() {
    let stream = [HELLO, "data: [DONE]\n\n"].concat();
    let gateway = Gateway::start([answer(200, &stream, 0)]);
    let mut conversation = Conversation::new("m".to_owned(), None);
    conversation.ask("hello".to_owned());
    let answer = asked(&gateway, &conversation).unwrap();
    assert_eq!(answer.text, "Hel");
    assert!(answer.failure.is_none());
    let [call] = &gateway.calls.join().unwrap()[..] else {
        panic!("one call");
    };
    assert_eq!(call.line, "POST /v1/chat/completions HTTP/1.1\r\n");
    assert_eq!(call.body["model"], "m");
    assert_eq!(
        call.body["messages"],
        json!([{"role": "user", "content": "hello"}])
    );
}

#[test]
fn errors_of_each_shape_are_shown() {
    let url = "https://cynode.ai/problems/x";
    let problem = json!({"type": url, "title": "t", "status": 403, "detail": "of a problem", "instance": "i"});
    for (status, body, exit, text) in [
        (
            404,
            json!({"error": {"message": "no\nsuch model", "code": "model_not_found"}}),
            Exit::NotFound,
            "no such model",
        ),
        (429, json!({"error": "plain"}), Exit::Invalid, "plain"),
        (403, problem, Exit::NotAllowed, "of a problem"),
        (
            503,
            json!({"error": {"message": "no node is ready"}}),
            Exit::Internal,
            "no node is ready",
        ),
        (
            502,
            json!("<html>"),
            Exit::Internal,
            "check that this is a cynode orchestrator",
        ),
        (401, json!({}), Exit::NotAllowed, "CYNODE_TOKEN is invalid"),
    ] {
        let answer = json_answer(status, &body);
        let gateway = Gateway::start([answer.clone(), answer]);
        let failure = asked(&gateway, &Conversation::new("m".to_owned(), None)).unwrap_err();
        let listing = models::list(&mut ApiClient::of_test(gateway.url.clone())).unwrap_err();
        for failure in [failure, listing] {
            assert_eq!(failure.exit, exit, "{status}");
            assert!(failure.message.contains(text), "{}", failure.message);
        }
    }
}

#[test]
fn shutdown_ends_silent_answer_at_once() {
    let gateway = Gateway::start([answer(200, HELLO, 1)]);
    let mut api = ApiClient::of_test(gateway.url.clone());
    let connections = api.reconnect(Duration::from_secs(60));
    let (sender, shown) = channel();
    let asking = thread::spawn(move || {
        let request = Conversation::new("m".to_owned(), None).request().unwrap();
        ask(&mut api, &request, |part: &Part| {
            sender.send(part.clone()).unwrap();
            Ok(())
        })
    });
    assert_eq!(shown.recv().unwrap(), Part::Text("Hel".to_owned()));
    connections.shutdown();
    let answer = asking.join().unwrap().unwrap();
    assert_eq!(answer.text, "Hel");
    assert!(answer.failure.is_some());
    let mut calls = gateway.calls.join().unwrap();
    let connection = &mut calls[0].connection;
    assert_eq!(
        connection.read(&mut [0]).unwrap(),
        0,
        "the connection is closed"
    );
}

#[test]
fn loaded_model_is_the_default() {
    let list = |names: &[&str]| {
        let data: Vec<_> = names.iter().map(|name| json!({"id": name})).collect();
        json_answer(200, &json!({"object": "list", "data": data}))
    };
    let loaded = json_answer(200, &json!({"models": [{"name": "b"}, {"name": "z"}]}));
    let shown = |capability| json_answer(200, &json!({"capabilities": [capability]}));
    let none = || json_answer(404, &json!({}));
    for (names, answers, expected) in [
        (&["c", "b", "a"][..], vec![loaded, shown("completion")], "b"),
        (&["c", "a"], vec![none(), none()], "a"),
        (
            &["c", "a"],
            vec![none(), shown("embedding"), shown("completion")],
            "c",
        ),
    ] {
        let gateway = Gateway::start([vec![list(names)], answers].concat());
        let mut api = ApiClient::of_test(gateway.url.clone());
        let names = models::list(&mut api).unwrap();
        assert!(names.is_sorted());
        assert_eq!(models::choose(&mut api, &names), expected);
    }
    let nodes = json_answer(200, &json!({"nodes": [], "next_cursor": ""}));
    let refused = json_answer(403, &json!({}));
    let gateway = Gateway::start([list(&["a"]), list(&[]), nodes, list(&[]), refused]);
    let mut api = ApiClient::of_test(gateway.url.clone());
    let names = models::list(&mut api).unwrap();
    assert_eq!(
        models::choose(&mut api, &names),
        "a",
        "without another call"
    );
    for text in [
        "no node is registered; ",
        "cynode nodes list shows the nodes",
    ] {
        let failure = models::list(&mut api).unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
        assert!(failure.message.contains(text), "{}", failure.message);
    }
}
