//! A model server that computes nothing: it answers at once, at the pace that a request asks for, or holds a stream open.

use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// An event as model servers send it.
pub const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\
    \"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}]}\n\n";

/// A model server that computes nothing.
pub struct ModelServer {
    pub address: SocketAddr,
    /// Ends of clients that left a stream that is held.
    pub ends: mpsc::Receiver<Instant>,
}

impl ModelServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, ends) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, sender) = (stream.unwrap(), sender.clone());
                // A client that leaves ends its thread.
                thread::spawn(move || serve(stream, &sender));
            }
        });
        Self { address, ends }
    }
}

/// Answers the requests of a connection.
fn serve(stream: TcpStream, ends: &mpsc::Sender<Instant>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let (path, body) = read_request(&mut reader)?;
        let whole = match path.as_str() {
            "/api/version" => json!({"version": "0.0.0"}),
            "/api/tags" => json!({"models": [{"name": "tiny", "size": 1}]}),
            "/api/ps" => json!({"models": [{"name": "tiny"}]}),
            "/v1/models" => json!({"object": "list", "data": [{"id": "tiny"}]}),
            _ => {
                let request: Value = serde_json::from_slice(&body)?;
                stream_events(&mut reader, &request["bench"], ends)?;
                continue;
            }
        };
        let whole = whole.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            whole.len()
        );
        reader
            .get_mut()
            .write_all(format!("{head}{whole}").as_bytes())?;
    }
}

fn stream_events(
    reader: &mut BufReader<TcpStream>,
    bench: &Value,
    ends: &mpsc::Sender<Instant>,
) -> std::io::Result<()> {
    let pause = Duration::from_micros(bench["pause_us"].as_u64().unwrap_or(0));
    let chunk = format!("{:x}\r\n{EVENT}\r\n", EVENT.len());
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    reader.get_mut().write_all(head.as_bytes())?;
    for _ in 0..bench["events"].as_u64().unwrap_or(1) {
        reader.get_mut().write_all(chunk.as_bytes())?;
        thread::sleep(pause);
    }
    if bench["holds"] == true {
        // The client sends nothing any more, so that this returns when it leaves.
        let _ = reader.read(&mut [0]);
        let _ = ends.send(Instant::now());
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    }
    reader.get_mut().write_all(b"0\r\n\r\n")
}

/// Path and body of the next request.
fn read_request(reader: &mut BufReader<TcpStream>) -> std::io::Result<(String, Vec<u8>)> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut length, mut is_chunked) = (0, false);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let lower = line.trim().to_ascii_lowercase();
        if lower.is_empty() {
            break;
        }
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        is_chunked |= lower == "transfer-encoding: chunked";
    }
    let mut body = Vec::new();
    while is_chunked {
        line.clear();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
        reader.take(size).read_to_end(&mut body)?;
        reader.read_line(&mut line)?;
        is_chunked = size > 0;
    }
    reader.take(length).read_to_end(&mut body)?;
    Ok((path, body))
}
