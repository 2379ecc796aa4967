//! `cynode sandbox shell` and `cynode run -it` at a terminal, with a stand-in for the gateway: keys, sizes, detaching,
//! lost connections, and a terminal that is what it was afterwards.

use crate::support::{
    Answer, Call,
    client::fails,
    eventually,
    process::run,
    sandbox_gateway::{Gateway, exec, sandbox},
    terminal::Session,
    tls_front::{Identity, TlsFront},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio_tungstenite::tungstenite::{Message, WebSocket};

const DETACH: &str = "\x10\x11";

/// What a program in a sandbox gets, in its order.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn add(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    /// Waits until this has come.
    fn waits(&self, text: &str) {
        eventually(&format!("{text:?} has come"), || {
            self.0
                .lock()
                .unwrap()
                .iter()
                .any(|seen| seen == text)
                .then_some(())
        });
    }
}

/// Program that shows what it gets in brackets, keeps all, and ends with 7 at a `q`.
fn serve(mut link: WebSocket<TcpStream>, seen: &Seen) {
    while let Ok(message) = link.read() {
        match message {
            Message::Binary(keys) => {
                let keys = String::from_utf8(keys.to_vec()).unwrap();
                seen.add(format!("{keys:?}"));
                let shown = format!("[{}]", keys.escape_debug());
                let _ = link.send(Message::binary(shown.into_bytes()));
                if keys.contains('q') {
                    let _ = link.send(Message::text(json!({"exit_code": 7}).to_string()));
                    let _ = link.close(None);
                }
            }
            Message::Text(text) => seen.add(text.to_string()),
            _ => {}
        }
    }
    seen.add("closed".to_owned());
}

/// Begins a terminal as the server does.
fn open(call: &Call, answer: Answer) -> WebSocket<TcpStream> {
    let mut link = answer.websocket(call);
    link.send(Message::text(json!({"exec_id": "x"}).to_string()))
        .unwrap();
    link.send(Message::binary(&b"$ "[..])).unwrap();
    link
}

#[test]
fn keys_output_and_sizes_go_through() {
    let home = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let of_server = seen.clone();
    let gateway = Gateway::start(move |_, call, answer| serve(open(call, answer), &of_server));
    let mut shell = Session::start(&gateway.command(home.path(), &["sandbox", "shell", "box"]));
    shell.shows("$ ");
    assert!(!shell.echoes());
    // Keys that are signals and flow control elsewhere, and characters of several bytes.
    for (keys, shown) in [
        ("é", "[é]"),
        ("\x03", "[\\u{3}]"),
        ("\x1a\x11", "[\\u{1a}\\u{11}]"),
        ("\r", "[\\r]"),
    ] {
        shell.types(keys);
        shell.shows(shown);
    }
    // Ctrl-P reaches the program, too.
    shell.types("\x10");
    shell.shows("[\\u{10}]");
    shell.resize(100, 40);
    seen.waits(r#"{"resize":{"cols":100,"rows":40}}"#);
    shell.types("q");
    let done = shell.ends();
    assert_eq!(done.code, 7, "{done:?}");
    assert!(shell.echoes(), "the terminal is restored");
    let call = gateway
        .calls
        .wait("open a terminal", |call| call.path.contains("/terminal"));
    assert!(call.path.contains("&cols=80&rows=24"), "{}", call.path);
    assert_eq!(call.token, "cyk_test");
}

#[test]
fn detached_program_is_found_again() {
    let home = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let of_server = seen.clone();
    let gateway = Gateway::start(move |rest, call, answer| {
        if rest.starts_with("/terminal") {
            return serve(open(call, answer), &of_server);
        }
        let id = rest.rsplit('/').next().unwrap();
        answer.status(200, &exec(id, "running", None));
    });
    let command = ["sandbox", "shell", "box", "top", "-d", "1"];
    let mut shell = Session::start(&gateway.command(home.path(), &command));
    shell.shows("$ ");
    shell.types(DETACH);
    let done = shell.ends();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(shell.echoes());
    seen.waits(r#"{"detach":true}"#);
    let (_, id) = done.stdout.rsplit_once("--attach ").unwrap();
    let id = id.trim();
    let call = gateway
        .calls
        .wait("open a terminal", |call| call.path.contains("/terminal"));
    assert!(
        call.path.contains(&format!("exec_id={id}")),
        "{}",
        call.path
    );
    assert!(
        call.path.ends_with("&command=top&command=-d&command=1"),
        "{}",
        call.path
    );

    let command = ["sandbox", "shell", "box", "--attach", id];
    let mut shell = Session::start(&gateway.command(home.path(), &command));
    shell.shows("$ ");
    // The size changes and changes back, so that the program draws its screen.
    seen.waits(r#"{"resize":{"cols":80,"rows":23}}"#);
    seen.waits(r#"{"resize":{"cols":80,"rows":24}}"#);
    shell.types("q");
    assert_eq!(shell.ends().code, 7);
}

#[test]
fn encrypted_terminal_goes_to_pinned_key_only() {
    let home = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let of_server = seen.clone();
    let gateway = Gateway::start(move |_, call, answer| serve(open(call, answer), &of_server));
    let (identity, other) = (Identity::new(), Identity::new());
    let front = TlsFront::start(&identity, &gateway.url());
    let shell = |pin: &str| {
        let mut command = gateway.command(home.path(), &["sandbox", "shell", "box"]);
        command.env("CYNODE_GATEWAY_URL", &front.url);
        Session::start(command.env("CYNODE_PIN", pin))
    };
    assert_eq!(shell(&other.pin).ends().code, 3);
    assert_eq!(front.take_received(), "", "no token");

    // The name is looked up at the right server, and the terminal meets another one.
    front.swap_after_next(&other);
    assert_eq!(shell(&identity.pin).ends().code, 3);
    assert!(!front.take_received().contains("/terminal"));
    front.swap(&identity);

    let mut shell = shell(&identity.pin);
    shell.shows("$ ");
    shell.types("a");
    shell.shows("[a]");
    shell.types("q");
    assert_eq!(shell.ends().code, 7);
    assert!(front.take_received().contains("/terminal"));
}

#[test]
fn lost_terminal_is_connected_again() {
    let home = tempfile::tempdir().unwrap();
    let (links, seen) = (Arc::<AtomicUsize>::default(), Seen::default());
    let (count, of_server) = (Arc::clone(&links), seen.clone());
    let gateway = Gateway::start(move |rest, call, answer| {
        if !rest.starts_with("/terminal") {
            let id = rest.rsplit('/').next().unwrap();
            return match count.load(Ordering::SeqCst) {
                1 => answer.status(200, &exec(id, "running", None)),
                _ => answer.status(200, &exec(id, "exited", Some(5))),
            };
        }
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => drop(open(call, answer)),
            _ => {
                let mut link = open(call, answer);
                // Half a frame, and then nothing.
                while !matches!(link.read(), Ok(Message::Binary(_))) {}
                of_server.add("read".to_owned());
                std::io::Write::write_all(link.get_mut(), b"\x82\x7e\x01").unwrap();
            }
        }
    });
    let command = ["sandbox", "shell", "box", "vi"];
    let mut shell = Session::start(&gateway.command(home.path(), &command));
    shell.shows("the connection is lost; retrying");
    shell.shows_times("$ ", 2);
    shell.types("x");
    seen.waits("read");
    let done = shell.ends();
    assert_eq!(done.code, 5, "{done:?}");
    assert!(shell.echoes());
    let calls = gateway.calls.all();
    let terminals: Vec<_> = calls
        .iter()
        .filter(|call| call.path.contains("/terminal"))
        .collect();
    assert!(terminals[0].path.ends_with("&command=vi"));
    assert!(
        !terminals[1].path.contains("command"),
        "{}",
        terminals[1].path
    );
}

#[test]
fn terminal_is_restored_on_every_way_out() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(|_, call, answer| {
        let mut link = open(call, answer);
        // An editor: another screen, no cursor, a mouse.
        link.send(Message::binary(
            &b"\x1b[?1049h\x1b[?25l\x1b[?1006hediting"[..],
        ))
        .unwrap();
        while link.read().is_ok() {}
    });
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut shell = Session::start(&gateway.command(home.path(), &["sandbox", "shell", "box"]));
        shell.shows("editing");
        assert!(!shell.echoes());
        shell.signal(signal);
        let done = shell.ends();
        assert_eq!(done.code, 128 + signal.as_raw(), "{done:?}");
        assert!(shell.echoes());
        let end = done.stdout.rsplit_once("editing").unwrap().1;
        for undone in ["\x1b[?1049l", "\x1b[?25h", "\x1b[?1006l"] {
            assert!(end.contains(undone), "{undone:?} in {end:?}");
        }
    }
    let shell = Session::start(&gateway.command(home.path(), &["sandbox", "shell", "box"]));
    shell.shows("editing");
    shell.signal(Signal::KILL);
    eventually("the terminal is restored", || shell.echoes().then_some(()));
    shell.shows("\x1b[?1049l");
}

#[test]
fn warnings_spare_full_screens() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(|_, call, answer| {
        let mut link = open(call, answer);
        let warning =
            Message::text(json!({"warning": "it ends in 2 minutes\u{1b}[2J"}).to_string());
        link.send(warning.clone()).unwrap();
        link.send(Message::binary(&b"\x1b[?1049hfull"[..])).unwrap();
        link.send(Message::text("garbage")).unwrap();
        link.send(warning).unwrap();
        link.send(Message::text(json!({"exit_code": 0}).to_string()))
            .unwrap();
        while link.read().is_ok() {}
    });
    let mut shell = Session::start(&gateway.command(home.path(), &["sandbox", "shell", "box"]));
    let done = shell.ends();
    assert_eq!(done.code, 0, "{done:?}");
    let (plain, full) = done.stdout.split_once("full").unwrap();
    assert!(
        plain.contains("\r\n[it ends in 2 minutes [2J]\r\n"),
        "{done:?}"
    );
    assert!(
        full.contains("\x1b]2;it ends in 2 minutes [2J\x07"),
        "{done:?}"
    );
    assert!(!full.contains("[it ends"), "{done:?}");
}

#[test]
fn run_at_terminal_removes_its_sandbox() {
    let home = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let of_server = seen.clone();
    let gateway = Gateway::start(
        move |rest, call, answer| match (call.method.as_str(), rest) {
            ("POST", "/v1/sandboxes") => answer.status(201, &sandbox("starting")),
            ("POST", "/exec") => {
                let id = call.body["exec_id"].as_str().unwrap();
                answer.status(201, &exec(id, "running", None));
            }
            ("DELETE", "") => answer.status(204, &Value::Null),
            ("GET", path) if path.starts_with("/terminal") => serve(open(call, answer), &of_server),
            _ => answer.refuse(404),
        },
    );
    let removed = || {
        gateway
            .calls
            .all()
            .iter()
            .filter(|call| call.method == "DELETE")
            .count()
    };
    let arguments = [
        "run", "-it", "--image", "alpine", "--memory", "1GiB", "--", "sh", "-l",
    ];
    let mut shell = Session::start(&gateway.command(home.path(), &arguments));
    shell.shows("$ ");
    shell.types("q");
    assert_eq!(shell.ends().code, 7);
    assert_eq!(removed(), 1);
    let call = gateway
        .calls
        .wait("start the command", |call| call.path.ends_with("/exec"));
    assert_eq!(call.body["command"], json!(["sh", "-l"]));
    assert_eq!(call.body["tty"], true);

    let mut shell = Session::start(&gateway.command(home.path(), &arguments));
    shell.shows("$ ");
    shell.signal(Signal::TERM);
    assert_eq!(shell.ends().code, 143);
    assert_eq!(removed(), 2);

    let mut shell = Session::start(&gateway.command(home.path(), &arguments));
    shell.shows("$ ");
    shell.types(DETACH);
    let done = shell.ends();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("cynode sandbox rm"), "{done:?}");
    assert_eq!(removed(), 2, "a detached one stays");

    let done = run(&mut gateway.command(home.path(), &arguments));
    fails(&done, 2, "a terminal needs stdin and stdout to be one");
}
