//! Sandboxes that stay at the Worker API alone: execs, files and terminals in real ones.

use crate::support::{Api, IMAGE, Worker, eventually, uuid};
use serde_json::{Value, json};
use std::{net::TcpStream, thread};
use tokio_tungstenite::tungstenite::{Message, WebSocket, protocol::Role};

/// Sandbox that stays, at a worker of its own.
struct Session {
    worker: Worker,
    path: String,
}

impl Session {
    fn start() -> Self {
        let worker = Worker::start(&[]);
        let id = uuid();
        let times = json!({"lifetime_seconds": 3600, "idle_timeout_seconds": 900});
        let body = json!({
            "version": 1, "session_id": id, "sandbox": {"image": IMAGE, "session": times},
        });
        let state = worker.api.post("/v1/worker/sessions", &body).json(200);
        assert_eq!(state["session_id"], id, "{state}");
        let again = worker.api.post("/v1/worker/sessions", &body).json(200);
        assert_eq!(again["session_id"], id, "a repeated call finds it");
        let path = format!("/v1/worker/sessions/{id}");
        Self { worker, path }
    }

    fn api(&self) -> &Api {
        &self.worker.api
    }

    fn at(&self, rest: &str) -> String {
        format!("{}{rest}", self.path)
    }

    fn exec(&self, body: &Value) -> Value {
        self.api().post(&self.at("/exec"), body).json(200)
    }

    /// Starts a script in the background; the path of its exec.
    fn background(&self, body: Value) -> String {
        let mut body = body;
        body["background"] = true.into();
        let exec = self.api().post(&self.at("/exec"), &body).json(201);
        self.at(&format!("/execs/{}", exec["exec_id"].as_str().unwrap()))
    }

    fn ended(&self, exec: &str) -> Value {
        eventually("the exec ends", || {
            let exec = self.api().get(exec).json(200);
            (exec["status"] != "running").then_some(exec)
        })
    }

    fn terminal(&self, query: &str) -> Terminal {
        let mut stream = TcpStream::connect(self.api().address()).unwrap();
        stream
            .set_read_timeout(Some(crate::support::DEADLINE))
            .unwrap();
        let head = format!(
            "GET {}?{query} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.at("/terminal"),
            self.api().address(),
            self.api().token(),
        );
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
            answer.extend(byte);
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let mut terminal = Terminal {
            socket: WebSocket::from_raw_socket(stream, Role::Client, None),
            screen: String::new(),
        };
        assert!(terminal.control()["exec_id"].is_string());
        terminal
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Else a failed test would have another failure here.
        if !thread::panicking() {
            let end = self.at("?force=true");
            self.api().call("DELETE", &end, &[], b"").expect(200);
        }
    }
}

/// Client of a terminal.
struct Terminal {
    socket: WebSocket<TcpStream>,
    /// Output that was not looked for yet.
    screen: String,
}

impl Terminal {
    fn send(&mut self, input: &str) {
        self.socket
            .send(Message::binary(input.to_owned().into_bytes()))
            .unwrap();
    }

    fn send_control(&mut self, control: &Value) {
        self.socket
            .send(Message::text(control.to_string()))
            .unwrap();
    }

    /// Waits until this is printed.
    fn expect(&mut self, wanted: &str) {
        loop {
            if let Some(at) = self.screen.find(wanted) {
                self.screen.drain(..at + wanted.len());
                return;
            }
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => {
                    self.screen.push_str(&String::from_utf8_lossy(&bytes));
                }
                Ok(Message::Ping(_)) => {}
                other => panic!(
                    "{wanted:?} does not come after {:?}: {other:?}",
                    self.screen
                ),
            }
        }
    }

    /// The next control message.
    fn control(&mut self) -> Value {
        loop {
            match self.socket.read().unwrap() {
                Message::Text(text) => return serde_json::from_str(text.as_str()).unwrap(),
                Message::Binary(_) | Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn parallel_execs_are_not_mixed_nor_held_up() {
    let session = Session::start();
    // Its output is never read.
    let flood = session.background(json!({"script": "yes flood"}));
    thread::scope(|scope| {
        for n in 0..64 {
            let session = &session;
            scope.spawn(move || {
                let script = format!("echo out {n}; echo err {n} >&2; cat; exit {}", n % 7);
                let stdin = format!("in {n}\n");
                let result = session.exec(&json!({"script": script, "stdin": stdin}));
                assert_eq!(result["stdout"], format!("out {n}\nin {n}\n"));
                assert_eq!(result["stderr"], format!("err {n}\n"));
                assert_eq!(result["exit_code"], n % 7);
            });
        }
    });
    let listed = session.api().get(&session.at("/execs")).json(200);
    assert_eq!(listed["execs"].as_array().unwrap().len(), 65);
    let stop = json!({"signal": "SIGINT"});
    session
        .api()
        .post(&format!("{flood}/signal"), &stop)
        .expect(204);
    let ended = session.ended(&flood);
    assert_eq!(
        (&ended["exit_code"], &ended["cause"]),
        (&json!(130), &json!("signal"))
    );
    let late = session.api().post(&format!("{flood}/signal"), &stop);
    late.problem(409, "conflict");
}

#[test]
fn exec_takes_stdin_while_it_runs() {
    let session = Session::start();
    let cat = session.background(json!({"command": ["cat"], "interactive": true}));
    let mut events = session
        .api()
        .events(&format!("{cat}/logs?follow=true"), None);
    assert_eq!(events.next().unwrap().name, "started");
    let send = |query: &str, body: &[u8]| {
        let path = format!("{cat}/stdin{query}");
        session.api().call("POST", &path, &[], body).json(200)
    };
    assert_eq!(send("", b"first\n"), json!({"bytes": 6}));
    assert_eq!(events.next().unwrap().data["data"], "first\n");
    let large = vec![b'x'; 3 << 20];
    assert_eq!(send("?eof=true", &large), json!({"bytes": 3 << 20}));
    let exit = events.last().unwrap();
    assert_eq!((&*exit.name, &exit.data["exit_code"]), ("exit", &json!(0)));
    let log = session.api().get(&format!("{cat}/logs")).json(200);
    assert_eq!(log["stdout"].as_str().unwrap().len(), (3 << 20) + 6);
}

#[test]
fn numbered_stdin_is_written_once() {
    let session = Session::start();
    let cat = session.background(json!({"command": ["cat"], "interactive": true}));
    let call = |query: &str, body: &[u8]| {
        let path = format!("{cat}/stdin?{query}");
        session.api().call("POST", &path, &[], body)
    };
    let taken = json!({"bytes": 6, "offset": 6});
    for _ in 0..2 {
        assert_eq!(call("offset=0", b"first\n").json(200), taken);
    }
    let part = call("offset=2", b"rst\nsecond\n").json(200);
    assert_eq!(part, json!({"bytes": 11, "offset": 13}));
    call("offset=14", b"x").problem(409, "conflict");
    // Calls without a number are written as they come, and don't count.
    let third = call("eof=false", b"third\n").json(200);
    assert_eq!(third, json!({"bytes": 6}));
    let end = call("offset=13&eof=true", b"").json(200);
    assert_eq!(end, json!({"bytes": 0, "offset": 13}));
    let logs = format!("{cat}/logs?follow=true");
    session.api().events(&logs, None).last().unwrap();
    let log = session.api().get(&format!("{cat}/logs")).json(200);
    assert_eq!(log["stdout"], "first\nsecond\nthird\n");
}

#[test]
fn terminal_runs_screen_programs() {
    let session = Session::start();
    let mut terminal = session.terminal("cols=100&rows=50");
    terminal.send("stty size; echo done-$((1+1))\n");
    terminal.expect("50 100");
    terminal.expect("done-2");
    terminal.send_control(&json!({"resize": {"cols": 120, "rows": 40}}));
    terminal.send(
        "until [ \"$(stty size)\" = '40 120' ]; do usleep 5000; done; echo resized-$((1+1))\n",
    );
    terminal.expect("resized-2");
    // Ctrl-C is for the program in the foreground, and the shell goes on.
    // Before it prints, the shell may still edit the line, where Ctrl-C means something else.
    terminal.send("sh -c 'echo begun-$((1+1)); exec sleep 1000'\n");
    terminal.expect("begun-2");
    terminal.send("\u{3}");
    terminal.expect("^C");
    terminal.send("echo code $?-é\n");
    terminal.expect("code 130-é");
    terminal.send("vi text\n");
    terminal.expect("~");
    terminal.send("ihello from vi");
    terminal.expect("hello from vi");
    // Together with the next key an escape would be another key.
    terminal.send("\u{1b}");
    terminal.expect("- text [Modified]");
    terminal.send(":wq\n");
    terminal.send("cat text | tr a-z A-Z; exit 3\n");
    terminal.expect("HELLO FROM VI");
    let end = terminal.control();
    assert_eq!(
        (&end["exit_code"], &end["status"]),
        (&json!(3), &json!("exited"))
    );
    assert_eq!(
        session.exec(&json!({"command": ["cat", "text"]}))["stdout"],
        "hello from vi\n"
    );
}

#[test]
fn second_terminal_attaches_and_first_hangs_up() {
    let session = Session::start();
    let id = uuid();
    let mut first = session.terminal(&format!("exec_id={id}"));
    first.send("echo one-$((1+1))\n");
    first.expect("one-2");
    let mut second = session.terminal(&format!("exec_id={id}"));
    second.expect("one-2");
    second.send("echo two-$((1+1))\n");
    for terminal in [&mut first, &mut second] {
        terminal.expect("two-2");
    }
    first.send_control(&json!({"detach": true}));
    second.send("echo three-$((1+1))\n");
    second.expect("three-2");
    second.socket.close(None).unwrap();
    let ended = session.ended(&session.at(&format!("/execs/{id}")));
    assert_eq!(ended["exit_code"], 129, "{ended}");
}

#[test]
fn files_pass_through_sandbox() {
    let session = Session::start();
    let api = session.api();
    let content: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 251) as u8).collect();
    let path = session.at("/files?path=dir/data%20file");
    api.post(&session.at("/files:mkdir"), &json!({"path": "dir"}));
    api.call("PUT", &path, &[], &content).expect(201);
    let got = api.get(&path);
    assert!(got.expect(200).body == content);
    assert_eq!(got.header("content-type"), Some("application/octet-stream"));
    let sum = session.exec(&json!({"script": "wc -c < 'dir/data file'; mkfifo pipe"}));
    assert_eq!(
        sum["stdout"].as_str().unwrap().trim(),
        content.len().to_string()
    );
    let listed = api.get(&session.at("/files:list?path=dir")).json(200);
    assert_eq!(listed["entries"].as_array().unwrap().len(), 1, "{listed}");
    api.get(&session.at("/files?path=none"))
        .problem(404, "not-found");
    let fifo = api.get(&session.at("/files?path=pipe"));
    assert!((400..500).contains(&fifo.status), "{}", fifo.text());
    let archive = api.get(&session.at("/archive?path=dir"));
    assert_eq!(
        archive.expect(200).header("content-type"),
        Some("application/x-tar")
    );
    let tar = &archive.body;
    api.call("PUT", &session.at("/archive?path=copy"), &[], tar);
    api.call("DELETE", &path, &[], b"").expect(204);
    api.get(&path).problem(404, "not-found");
}

#[test]
fn ended_session_is_gone_with_reason() {
    let session = Session::start();
    let api = session.api();
    let waiting = session.background(json!({"command": ["sleep", "1000"]}));
    api.call("DELETE", &session.path, &[], b"").expect(200);
    let ended = session.ended(&waiting);
    for (path, body) in [
        ("/exec", json!({"command": ["true"]})),
        ("/renew", json!({"lifetime_seconds": 60})),
    ] {
        let gone = api.post(&session.at(path), &body).problem(410, "gone");
        let detail = gone["detail"].as_str().unwrap();
        assert!(detail.contains("deleted"), "{detail}");
    }
    assert!(
        ["lost", "exited"].contains(&ended["status"].as_str().unwrap()),
        "{ended}"
    );
    api.get(&session.at("/files?path=x")).problem(410, "gone");
    let unknown = format!("/v1/worker/sessions/{}/execs", uuid());
    api.get(&unknown).problem(404, "not-found");
    api.anonymous().get(&unknown).problem(401, "unauthorized");
}
