//! Someone between a node and its orchestrator who records every byte, and what they can read.

use crate::support::{
    Node, Orchestrator,
    cluster::{PSK, wait_ready},
    cynode,
    process::piped,
    read,
    tls::pin_at,
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde_json::Value;
use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// Words in the command of the task, its environment, its stdin and its output.
const COMMAND: &str = "word-of-the-command-7f3a";
const VARIABLE: &str = "word-of-the-variable-91bc";
const STDIN: &str = "word-of-the-input-22de";
const OUTPUT: &str = "word-of-the-output-5c1f";
/// Script whose text does not hold the word that it prints.
const SCRIPT: &str = ": word-of-the-command-7f3a; cat >/dev/null; echo word-of-the-out\"\"put-5c1f";

/// Passage between a node and its orchestrator, which keeps all bytes.
struct Recorder {
    /// Address for the node.
    address: String,
    /// Bytes of each connection and direction.
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    /// Passage to this address.
    fn to(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let recorder = Self {
            address: listener.local_addr().unwrap().to_string(),
            recorded: Arc::default(),
        };
        let (address, recorded) = (address.to_owned(), Arc::clone(&recorder.recorded));
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let Ok(far) = TcpStream::connect(&address) else {
                    continue;
                };
                let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
                for (from, to) in [(near, far), back] {
                    let recorded = Arc::clone(&recorded);
                    thread::spawn(move || pass(from, to, &recorded));
                }
            }
        });
        recorder
    }

    /// Whether any connection has carried this text, as it is or inside of base64.
    fn has(&self, text: &str) -> bool {
        let spellings = spellings(text);
        let recorded = self.recorded.lock().unwrap();
        recorded.iter().any(|bytes| {
            spellings.iter().any(|spelling| {
                let mut windows = bytes.windows(spelling.len());
                windows.any(|window| window == spelling.as_bytes())
            })
        })
    }
}

/// Passes bytes on until one side ends, and keeps them.
fn pass(mut from: TcpStream, mut to: TcpStream, recorded: &Mutex<Vec<Vec<u8>>>) {
    let index = {
        let mut recorded = recorded.lock().unwrap();
        recorded.push(Vec::new());
        recorded.len() - 1
    };
    let mut buffer = vec![0; 65_536];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        recorded.lock().unwrap()[index].extend_from_slice(&buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}

/// A text as it is, and inside of base64 that began any number of bytes before it.
fn spellings(text: &str) -> Vec<String> {
    let encoded = (0..3).map(|skipped| {
        let rest = &text.as_bytes()[skipped..];
        STANDARD_NO_PAD.encode(&rest[..rest.len() / 3 * 3])
    });
    std::iter::once(text.to_owned()).chain(encoded).collect()
}

/// Runs a task on a node whose connections are recorded, with the encryption of the default or without one. The recorder,
/// and what nobody in between may read: a name and a text each.
fn record(is_encrypted: bool) -> (Recorder, Vec<(&'static str, String)>) {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = if is_encrypted {
        Orchestrator::start_default(home.path(), ["127.0.0.1:0", "127.0.0.1:0"], &[])
    } else {
        Orchestrator::start(home.path(), &["--tls", "off"])
    };
    let control = orchestrator.control.address();
    let recorder = Recorder::to(control);
    let url = orchestrator.control_url.replace(control, &recorder.address);
    let pin = is_encrypted.then(|| pin_at(control));
    let flags: Vec<_> = pin.iter().flat_map(|pin| ["--pin", pin.as_str()]).collect();
    let node = Node::dial(home.path(), "box", &url, &flags);
    wait_ready(&orchestrator);
    let user = orchestrator.login();
    assert_eq!(user.get("/v1/nodes/box").json(200)["via_tunnel"], true);

    let mut command = cynode(home.path());
    let variable = format!("RECORDED={VARIABLE}");
    command
        .args(["run", "-i", "--env", &variable, "--", "sh", "-c", SCRIPT])
        .env("CYNODE_GATEWAY_URL", &orchestrator.gateway_url)
        .env("CYNODE_TOKEN", user.token());
    let done = piped(&mut command, STDIN.as_bytes());
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stdout.trim(), OUTPUT);

    let state = |file: &str| -> Value {
        let text = read(node.data_dir.join("node").join(file));
        serde_json::from_str(&text).unwrap()
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let session = text(&state("session.json")["auth"]["node_jwt"]);
    let worker = text(&state("config.json")["worker_api"]["orchestrator_bearer_token"]);
    let secrets = vec![
        ("the pre-shared key", PSK.to_owned()),
        ("the token of the node", session),
        ("the token of the Worker API", worker),
        ("the command", COMMAND.to_owned()),
        ("the environment", VARIABLE.to_owned()),
        ("stdin", STDIN.to_owned()),
        ("the output", OUTPUT.to_owned()),
    ];
    (recorder, secrets)
}

#[test]
fn recorder_reads_nothing_by_default() {
    let (recorder, secrets) = record(true);
    for (name, secret) in secrets {
        assert!(!recorder.has(&secret), "{name} was sent in the clear");
    }
}

#[test]
fn recorder_reads_everything_without_tls() {
    // So that the test above can fail.
    let (recorder, secrets) = record(false);
    for (name, secret) in secrets {
        assert!(recorder.has(&secret), "{name} was not recorded");
    }
}

#[test]
fn base64_is_searched_at_every_offset() {
    for before in ["", "x", "xy"] {
        let text = STANDARD_NO_PAD.encode(format!("{before}{OUTPUT} and more"));
        let found = spellings(OUTPUT)
            .iter()
            .any(|spelling| text.contains(spelling));
        assert!(found, "{before:?}");
    }
}
