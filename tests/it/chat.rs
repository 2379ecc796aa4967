//! `cynode chat` at a terminal and in pipes, with a stand-in for the gateway.

use crate::support::{
    Answer, Call,
    client::{client, fails},
    eventually,
    listener::{Calls, Listener},
    models::{DONE, STREAM, delta},
    process::{piped, run},
    terminal::Session,
};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

const UP: &str = "\x1b[A";
const CTRL_C: &str = "\x03";

/// Path of a question.
const QUESTIONS: &str = "/v1/chat/completions";

/// Gateway with the models `big` and `small`, whose answers to questions are a script.
struct Gateway {
    listener: Listener,
    calls: Calls,
}

impl Gateway {
    fn start(answer: impl Fn(&str, Answer) + Send + Sync + 'static) -> Self {
        Self::with_models(&["small", "big"], answer)
    }

    fn with_models(models: &[&str], script: impl Fn(&str, Answer) + Send + Sync + 'static) -> Self {
        let data: Vec<_> = models.iter().map(|id| json!({"id": id})).collect();
        let models = json!({"object": "list", "data": data});
        let calls = Calls::default();
        let listener = Listener::open("127.0.0.1:0", &calls, move |call, answer| {
            match call.path.as_str() {
                "/v1/models" => answer.status(200, &models),
                "/api/ps" => answer.status(200, &json!({"models": [{"name": "small"}]})),
                "/v1/nodes" => answer.status(200, &json!({"nodes": []})),
                QUESTIONS => script(&last_question(call), answer),
                _ => answer.refuse(404),
            }
        });
        Self { listener, calls }
    }

    fn command(&self, home: &Path, arguments: &[&str]) -> Command {
        let url = format!("http://{}", self.listener.address);
        let mut command = client(home, &url, &[&["chat"], arguments].concat());
        // Without colors, so that the prompt stands beside what is typed.
        command.env("CYNODE_TOKEN", "cyk_test").env("NO_COLOR", "1");
        command
    }

    /// Calls that ask the model.
    fn questions(&self) -> Vec<Call> {
        let mut calls = self.calls.all();
        calls.retain(|call| call.path == QUESTIONS);
        calls
    }

    /// Waits until so many questions have come.
    fn asked(&self, times: usize) {
        eventually("the question arrives", || {
            (self.questions().len() == times).then_some(())
        });
    }

    /// Messages of the question with this number, from 1: author and text.
    fn question(&self, number: usize) -> Vec<(String, String)> {
        let call = &self.questions()[number - 1];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let messages = call.body["messages"].as_array().unwrap().iter();
        messages
            .map(|message| (text(&message["role"]), text(&message["content"])))
            .collect()
    }
}

fn last_question(call: &Call) -> String {
    let messages = call.body["messages"].as_array();
    let last = messages.and_then(|messages| messages.last());
    last.map_or("", |message| message["content"].as_str().unwrap())
        .to_owned()
}

/// Gateway that answers each question with `text`.
fn answers(text: &'static str) -> impl Fn(&str, Answer) + Send + Sync {
    move |_, answer| {
        let end = r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        let stream = [&delta(text), end, "\n\n", DONE].concat();
        answer.bytes(200, STREAM, &stream);
    }
}

#[test]
fn conversation_and_history_go_on() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(answers("an answer"));
    let mut chat = Session::start(&gateway.command(home.path(), &["--system", "be brief"]));
    chat.shows("small at http://");
    chat.types("first\r");
    chat.shows("an answer");
    chat.shows("[5 tokens");
    chat.types("second\r");
    chat.shows_times("an answer", 2);
    let text = |role: &str, text: &str| (role.to_owned(), text.to_owned());
    let expected = [
        text("system", "be brief"),
        text("user", "first"),
        text("assistant", "an answer"),
        text("user", "second"),
    ];
    assert_eq!(gateway.question(2), expected);
    chat.types("/save it.md\r");
    chat.shows("saved to it.md");
    chat.types("/exit\r");
    assert_eq!(chat.ends().code, 0);
    let saved = std::fs::read_to_string(home.path().join("it.md")).unwrap();
    assert!(
        saved.contains("## You\n\nsecond\n\n## small\n\nan answer\n"),
        "{saved}"
    );

    let mut chat = Session::start(&gateway.command(home.path(), &["-c"]));
    chat.shows("goes on after 4 messages; you asked last: second");
    // Past /exit and /save.
    chat.types(&[UP, UP, UP].concat());
    chat.shows("> second");
    chat.types("\r");
    chat.shows("an answer");
    assert_eq!(gateway.question(3).len(), 6);
    assert_eq!(gateway.question(3)[5], text("user", "second"));
    assert_eq!(chat.leaves().code, 0);

    let mut chat = Session::start(&gateway.command(home.path(), &["--no-history"]));
    chat.shows("small at http://");
    chat.types(&[UP, "new\r"].concat());
    chat.shows("an answer");
    assert_eq!(gateway.question(4), [text("user", "new")]);
    assert_eq!(chat.leaves().code, 0);
}

#[test]
fn interrupt_stops_answer_and_not_chat() {
    let home = tempfile::tempdir().unwrap();
    let closed = Arc::<AtomicUsize>::default();
    let seen = Arc::clone(&closed);
    let gateway = Gateway::start(move |question, answer| {
        if question == "quick" {
            return answers("done")(question, answer);
        }
        let mut answer = answer.begin(STREAM);
        answer.add(": wait\n\n");
        if question == "long" {
            answer.add(&delta("endless"));
        }
        answer.until_closed();
        seen.fetch_add(1, Ordering::SeqCst);
    });
    let mut chat = Session::start(&gateway.command(home.path(), &[]));
    chat.shows("> ");
    chat.types(CTRL_C);
    chat.shows("Ctrl-D or /exit leaves");
    for (number, question) in [(1, "long"), (2, "silent")] {
        chat.types(&format!("{question}\r"));
        gateway.asked(number);
        // Once the answer begins, or at once: both can be stopped.
        if question == "long" {
            chat.shows("endless");
        }
        assert!(
            !chat.echoes(),
            "what is typed meanwhile does not mix with the answer"
        );
        chat.types(CTRL_C);
        chat.shows_times("[stopped]", number);
        eventually("the call is closed", || {
            (closed.load(Ordering::SeqCst) == number).then_some(())
        });
    }
    chat.types("quick\r");
    chat.shows("done");
    let texts: Vec<_> = gateway
        .question(3)
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    assert_eq!(texts, ["long", "endless", "quick"]);
    chat.types("/bye\r");
    assert_eq!(chat.ends().code, 0);
}

#[test]
fn model_can_not_control_terminal() {
    let home = tempfile::tempdir().unwrap();
    let hostile = "a\u{1b}]0;title\u{7}\u{1b}[2Jb\u{9b}2Jc\u{202e}d";
    let gateway = Gateway::start(answers(hostile));
    let mut chat = Session::start(&gateway.command(home.path(), &[]));
    chat.shows("> ");
    chat.types("hello\r");
    chat.shows("a ]0;title  [2Jb 2Jc d");
    chat.leaves();
    let done = run(&mut gateway.command(home.path(), &["-m", "hello"]));
    assert_eq!(
        done.stdout,
        format!("{hostile}\n"),
        "a file gets what the model wrote"
    );
}

#[test]
fn pipes_go_in_and_out() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(answers("fine"));
    let message = ["-m", "review this"];
    let done = piped(&mut gateway.command(home.path(), &message), b"+a diff\n");
    assert_eq!((done.code, done.stdout.as_str()), (0, "fine\n"), "{done:?}");
    assert_eq!(done.stderr, "");
    assert_eq!(gateway.question(1)[0].1, "review this\n\n+a diff");

    let more = ["big", "--continue", "--json", "--system", "s"];
    let done = piped(&mut gateway.command(home.path(), &more), b"why?");
    let document: Value = serde_json::from_str(&done.stdout).unwrap();
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 5});
    let expected =
        json!({"model": "big", "content": "fine", "finish_reason": null, "usage": usage});
    assert_eq!(document, expected);
    let roles: Vec<_> = gateway
        .question(2)
        .into_iter()
        .map(|(role, _)| role)
        .collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    assert_eq!(gateway.calls.all().last().unwrap().body["model"], "big");

    let (closed, writer) = std::io::pipe().unwrap();
    drop(closed);
    let mut head = gateway.command(home.path(), &["-m", "x", "small"]);
    let status = head.stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(141), "as any writer into a closed pipe");
}

#[test]
fn commands_change_model_and_system_prompt() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(answers("yes"));
    let mut chat = Session::start(&gateway.command(home.path(), &["--model", "big"]));
    chat.shows("big at http://");
    chat.types("/frob\r");
    chat.shows("there is no command /frob");
    chat.types("/help\r");
    chat.shows("Ctrl-C stops an answer");
    chat.types("/model\r");
    chat.shows("* big");
    chat.types("/model none\r");
    chat.shows("no node serves the model \"none\" now; there are: big, small");
    chat.types("/model sm\t\r");
    chat.shows("small answers from now on");
    chat.types("/system be brief\r");
    chat.shows("the system prompt is set");
    chat.types("/save\r");
    chat.shows("there is nothing to save yet");
    chat.types("\"\"\"\rtwo\rlines\"\"\"\r");
    chat.shows("yes");
    let call = gateway.calls.all().pop().unwrap();
    assert_eq!(call.body["model"], "small");
    let texts: Vec<_> = gateway
        .question(1)
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    assert_eq!(texts, ["be brief", "two\nlines"]);
    chat.types("/clear\r");
    chat.shows("a new conversation begins");
    let stored = home.path().join("state/cynode-chat/conversation.json");
    let stored = std::fs::read_to_string(stored).unwrap();
    assert!(
        !stored.contains("lines") && stored.contains("be brief"),
        "{stored}"
    );
    chat.types("again\r");
    chat.shows_times("yes", 2);
    assert_eq!(gateway.question(2).len(), 2);
    assert_eq!(chat.leaves().code, 0);
}

#[test]
fn failures_say_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(|question, answer| match question {
        "cut" => {
            let mut answer = answer.begin(STREAM);
            answer.add(&delta("half"));
        }
        "away" => {
            let error = json!({"error": {"message": "node a is away", "code": "x"}});
            answer.bytes(200, STREAM, &format!("{}data: {error}\n\n", delta("half")));
        }
        _ => {
            let message = "no node serves the model \"m\"; there are: big, small";
            answer.status(
                404,
                &json!({"error": {"message": message, "code": "model_not_found"}}),
            );
        }
    });
    let ask = |arguments: &[&str]| run(&mut gateway.command(home.path(), arguments));
    fails(&ask(&["m", "-m", "x"]), 4, "there are: big, small");
    fails(&ask(&["-m", " "]), 2, "there is no message");
    fails(
        &ask(&["--continue", "-m", "x"]),
        4,
        "no conversation to continue",
    );
    for (question, reason) in [
        ("cut", "the connection was lost"),
        ("away", "node a is away"),
    ] {
        let done = ask(&["-m", question]);
        assert_eq!((done.code, done.stdout.as_str()), (7, "half\n"), "{done:?}");
        assert!(done.stderr.contains(reason), "{done:?}");
        fails(&ask(&["-m", question, "--json"]), 7, reason);
    }
    let long = vec![b'x'; (8 << 20) + 1];
    let done = piped(&mut gateway.command(home.path(), &[]), &long);
    fails(&done, 2, "longer than 8 MiB");

    let empty = Gateway::with_models(&[], |_, answer| answer.refuse(500));
    let reason = "no node is registered; start one with: cynode node";
    fails(
        &run(&mut empty.command(home.path(), &["-m", "x"])),
        4,
        reason,
    );
    let mut chat = Session::start(&empty.command(home.path(), &[]));
    let done = chat.ends();
    assert_eq!(done.code, 4);
    assert!(done.stdout.contains(reason), "{done:?}");
    let mut stranger = gateway.command(home.path(), &["-m", "x"]);
    fails(&run(stranger.env_remove("CYNODE_TOKEN")), 3, "cynode login");
    let mut nobody = client(home.path(), "http://127.0.0.1:1", &["chat", "-m", "x"]);
    fails(
        &run(nobody.env("CYNODE_TOKEN", "x")),
        7,
        "can't reach the orchestrator",
    );
}

#[test]
fn chat_goes_on_after_failed_question() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(|question, answer| match question {
        "busy" => answer.status(429, &json!({"error": {"message": "too many wait"}})),
        _ => answers("fine")(question, answer),
    });
    let mut chat = Session::start(&gateway.command(home.path(), &[]));
    chat.shows("> ");
    chat.types("busy\r");
    chat.shows("error: too many wait");
    chat.types("again\r");
    chat.shows("fine");
    assert_eq!(
        gateway.question(2).len(),
        1,
        "the question without an answer is taken back"
    );
    assert_eq!(chat.leaves().code, 0);
}
