//! Terminals over WebSockets, and clients that speak none.

use super::*;
use crate::api::sandboxes::exec::TerminalSize;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use std::sync::atomic::Ordering;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

type Terminal = WebSocketStream<TcpStream>;

/// Connection whose protocol is WebSocket now.
async fn upgraded(sandbox: &Sandbox, query: &str) -> TcpStream {
    let mut stream = TcpStream::connect(sandbox.address).await.unwrap();
    let head = format!(
        "GET /s/x/y/1/terminal?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    // The example of RFC 6455, section 1.3.
    let accept = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    assert!(answer.contains(accept), "{answer}");
    stream
}

async fn terminal(sandbox: &Sandbox, query: &str) -> (Terminal, ExecId) {
    let stream = upgraded(sandbox, query).await;
    let mut terminal = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let first = text(&mut terminal).await;
    let id = first["exec_id"].as_str().unwrap().parse().unwrap();
    (terminal, id)
}

async fn next(terminal: &mut Terminal) -> Message {
    let next = tokio::time::timeout(LIMIT, terminal.next()).await;
    next.unwrap().unwrap().unwrap()
}

async fn text(terminal: &mut Terminal) -> Value {
    match next(terminal).await {
        Message::Text(text) => serde_json::from_str(text.as_str()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Output up to so many bytes.
async fn output(terminal: &mut Terminal, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        match next(terminal).await {
            Message::Binary(more) => bytes.extend_from_slice(&more),
            other => panic!("{other:?}"),
        }
    }
    bytes
}

async fn signals(sandbox: &Sandbox) -> Vec<i32> {
    let mut signals = sandbox.stand_in.shim.signals.subscribe();
    let received = crate::wait::until(&mut signals, |all| !all.is_empty());
    tokio::time::timeout(LIMIT, received)
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_terminals_share_one_exec() {
    let sandbox = Sandbox::start().await;
    let (mut first, id) = terminal(&sandbox, "command=cat&cols=100&rows=50").await;
    first.send(Message::binary("typed ")).await.unwrap();
    assert_eq!(output(&mut first, 6).await, b"typed ");
    let (mut second, same) = terminal(&sandbox, &format!("exec_id={id}")).await;
    assert_eq!(same, id);
    assert_eq!(output(&mut second, 6).await, b"typed ");
    second.send(Message::binary("more")).await.unwrap();
    for terminal in [&mut first, &mut second] {
        assert_eq!(output(terminal, 4).await, b"more");
    }
    let resize = json!({"resize": {"cols": 120, "rows": 40}});
    second
        .send(Message::text(resize.to_string()))
        .await
        .unwrap();
    let mut sizes = sandbox.stand_in.shim.sizes.subscribe();
    let wanted = TerminalSize {
        cols: 120,
        rows: 40,
    };
    let resized = crate::wait::until(&mut sizes, |all| all.contains(&wanted));
    tokio::time::timeout(LIMIT, resized).await.unwrap().unwrap();
    // The exec of one that is closed goes on as long as another is attached.
    first.close(None).await.unwrap();
    assert!(next(&mut first).await.is_close());
    sandbox.stand_in.shim.print(id, b"!");
    assert_eq!(output(&mut second, 1).await, b"!");
    sandbox.stand_in.shim.end(id, 5);
    let end = text(&mut second).await;
    assert_eq!(
        (&end["exit_code"], &end["status"]),
        (&json!(5), &json!("exited"))
    );
    assert!(next(&mut second).await.is_close());
    assert_eq!(sandbox.stand_in.shim.starts.load(Ordering::SeqCst), 1);
    assert!(sandbox.stand_in.shim.signals.borrow().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_terminal_hangs_up_and_detached_does_not() {
    let sandbox = Sandbox::start().await;
    let (mut kept, id) = terminal(&sandbox, "command=wait").await;
    let detach = json!({"detach": true}).to_string();
    kept.send(Message::text(detach)).await.unwrap();
    assert!(next(&mut kept).await.is_close());
    let (mut closed, _) = terminal(&sandbox, "command=wait").await;
    closed.close(None).await.unwrap();
    assert_eq!(signals(&sandbox).await, [1]);
    let (mut again, _) = terminal(&sandbox, &format!("exec_id={id}")).await;
    sandbox.stand_in.shim.print(id, b"still here");
    assert_eq!(output(&mut again, 10).await, b"still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn late_terminal_begins_with_last_screenful() {
    let sandbox = Sandbox::start().await;
    let body = json!({"command": ["flood", "1048576"], "tty": true, "background": true});
    let id = id_in(&sandbox.exec(body).await);
    let (mut terminal, _) = terminal(&sandbox, &format!("exec_id={id}")).await;
    assert_eq!(output(&mut terminal, 64 * 1024).await.len(), 64 * 1024);
    sandbox.stand_in.shim.print(id, b"end");
    assert_eq!(output(&mut terminal, 3).await, b"end");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_connection_and_nothing_else() {
    let sandbox = Sandbox::start().await;
    let mut garbage: Vec<(&str, Vec<u8>)> = vec![
        ("no frame", vec![0xff; 64]),
        ("reserved bits", vec![0xf2, 0x80, 0, 0, 0, 0]),
        ("not masked", vec![0x82, 0x01, b'x']),
        ("text of bytes", vec![0x81, 0x81, 0, 0, 0, 0, 0xff]),
        ("text that is no JSON", vec![0x81, 0x81, 0, 0, 0, 0, b'x']),
        // A frame of 2^62 bytes, and one just above the limit.
        (
            "endless frame",
            vec![0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            "long frame",
            vec![0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0],
        ),
        ("long ping", [&[0x89, 0xfe, 0, 126][..], &[0; 130]].concat()),
    ];
    let endless: Vec<u8> = [0x02, 0xfe, 0xff, 0xff, 0, 0, 0, 0]
        .into_iter()
        .chain([0; 0xffff])
        .chain([0x00, 0xfe, 0xff, 0xff, 0, 0, 0, 0])
        .chain([0; 0xffff])
        .collect();
    garbage.push(("message without an end", endless));
    for (what, bytes) in garbage {
        let mut stream = upgraded(&sandbox, "command=wait").await;
        stream.write_all(&bytes).await.unwrap();
        let mut rest = Vec::new();
        // It is closed or reset; what was sent before does not matter.
        let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "{what}");
    }
    // Half a frame, and then nothing: others are not held up.
    let mut half = upgraded(&sandbox, "command=wait").await;
    half.write_all(&[0x82, 0xfe, 0x10]).await.unwrap();
    let answer = sandbox.exec(json!({"command": ["print", "fine"]})).await;
    assert_eq!(answer.json()["stdout"], "fine");
    let plain = sandbox.get("/terminal").await;
    assert_eq!(plain.status, StatusCode::BAD_REQUEST);
    assert!(plain.problem().detail.contains("WebSocket"));
}

#[tokio::test(flavor = "multi_thread")]
async fn deaf_exec_holds_up_no_output() {
    let sandbox = Sandbox::start().await;
    let (mut terminal, id) = terminal(&sandbox, "command=deaf").await;
    for _ in 0..16 {
        terminal
            .send(Message::binary(vec![b'x'; 32 * 1024]))
            .await
            .unwrap();
    }
    sandbox.stand_in.shim.print(id, b"output");
    assert_eq!(output(&mut terminal, 6).await, b"output");
    sandbox.stand_in.shim.end(id, 0);
    assert_eq!(text(&mut terminal).await["exit_code"], 0);
}
