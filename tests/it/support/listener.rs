//! The listening half of what stand-ins are made of: a real port, whose calls are kept in the
//! order in which they came and answered by a script.

use super::{eventually, stream::read_head};
use serde_json::{Value, json};
use std::{
    io::{BufReader, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};
use tokio_tungstenite::tungstenite::{WebSocket, handshake::derive_accept_key, protocol::Role};

/// One call that a stand-in got.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Counts the calls of the stand-in, from 1.
    pub(crate) number: usize,
    /// When it was there in full.
    pub(crate) at: Instant,
    /// Its method.
    pub(crate) method: String,
    /// Its path, with the query.
    pub(crate) path: String,
    /// The token that it showed.
    pub(crate) token: String,
    /// Its body; null when there was none.
    pub(crate) body: Value,
    /// Its body as it came.
    pub(crate) text: String,
    /// Its header fields, their names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

/// Where a script writes its answer. The call is left hanging for as long as this is kept, and
/// cut when it is dropped.
pub(crate) struct Answer(pub(super) TcpStream);

impl Answer {
    /// Answers at once, with a body or none.
    pub(crate) fn status(self, status: u16, body: &Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.bytes(status, "application/json", &body);
    }

    /// Answers at once, with plain text.
    pub(crate) fn text(self, status: u16, body: &str) {
        self.bytes(status, "text/plain", body);
    }

    /// Answers at once, with these bytes of this media type.
    pub(crate) fn bytes(mut self, status: u16, media_type: &str, body: &str) {
        let head = head(status, media_type, body.len());
        let _ = self.0.write_all(format!("{head}{body}").as_bytes());
    }

    /// Answers at once, with these lines in its head.
    pub(crate) fn headed(mut self, status: u16, lines: &[String], body: &[u8]) {
        let head = head(status, "text/plain", body.len());
        let head = head.trim_end_matches("\r\n");
        let lines: String = lines.iter().map(|line| format!("\r\n{line}")).collect();
        let _ = self
            .0
            .write_all(format!("{head}{lines}\r\n\r\n").as_bytes());
        let _ = self.0.write_all(body);
    }

    /// Begins an answer in pieces of this media type. It is cut when dropped, unless it is ended.
    pub(crate) fn pieces(mut self, media_type: &str) -> Pieces {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nConnection: close\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        let _ = self.0.write_all(head.as_bytes());
        Pieces(self.0)
    }

    /// Opens a WebSocket.
    pub(crate) fn websocket(mut self, call: &Call) -> WebSocket<TcpStream> {
        let found = call
            .headers
            .iter()
            .find(|(name, _)| name == "sec-websocket-key");
        let key = derive_accept_key(found.unwrap().1.as_bytes());
        let head = format!(
            "HTTP/1.1 101 Stand-in\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {key}\r\n\r\n"
        );
        let _ = self.0.write_all(head.as_bytes());
        WebSocket::from_raw_socket(self.0, Role::Server, None)
    }

    /// Accepts an upgrade to this protocol: the connection, on which none of it was spoken yet.
    pub(crate) fn upgrade(mut self, protocol: &str) -> TcpStream {
        let head =
            format!("HTTP/1.1 101 Stand-in\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n");
        let _ = self.0.write_all(head.as_bytes());
        self.0
    }

    /// Waits until the caller has left.
    pub(crate) fn wait_gone(&mut self) {
        wait_gone(&mut self.0);
    }

    /// Begins an answer of one JSON document, and is cut in the middle of it.
    pub(crate) fn break_off(mut self, body: &str) {
        let head = head(200, "application/json", body.len() + 1);
        let _ = self.0.write_all(format!("{head}{body}").as_bytes());
    }

    /// Begins an answer of this media type, to which more can be added. It ends when this is dropped.
    pub(crate) fn begin(mut self, media_type: &str) -> Self {
        let head = format!(
            "HTTP/1.1 200 Stand-in\r\nContent-Type: {media_type}\r\nConnection: close\r\n\r\n"
        );
        let _ = self.0.write_all(head.as_bytes());
        self
    }

    /// Adds to an answer that has begun.
    pub(crate) fn add(&mut self, part: &str) {
        let _ = self.0.write_all(part.as_bytes());
    }

    /// Waits until the caller has closed the connection.
    pub(crate) fn until_closed(mut self) {
        while matches!(self.0.read(&mut [0; 64]), Ok(1..)) {}
    }

    /// Sends the caller elsewhere.
    pub(crate) fn redirect(mut self, status: u16, to: &str) {
        let head = head(status, "text/plain", 0);
        let head = head.trim_end_matches("\r\n");
        let _ = self
            .0
            .write_all(format!("{head}\r\nLocation: {to}\r\n\r\n").as_bytes());
    }

    /// Refuses with a problem of no known kind.
    pub(crate) fn refuse(self, status: u16) {
        self.problem(status, &format!("on-purpose-{status}"));
    }

    /// Refuses with a problem of this kind.
    pub(crate) fn problem(self, status: u16, slug: &str) {
        let kind = format!("https://cynode.ai/problems/{slug}");
        let problem = json!({
            "type": kind, "title": "On purpose", "status": status, "detail": "on purpose", "instance": "x",
        });
        self.status(status, &problem);
    }
}

/// An answer in pieces, under way.
pub(crate) struct Pieces(TcpStream);

impl Pieces {
    /// Sends a piece.
    pub(crate) fn send(&mut self, piece: &str) {
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        let _ = self.0.write_all(chunk.as_bytes());
    }

    /// Ends the answer.
    pub(crate) fn end(mut self) {
        let _ = self.0.write_all(b"0\r\n\r\n");
    }

    /// Waits until the caller has left.
    pub(crate) fn wait_gone(&mut self) {
        wait_gone(&mut self.0);
    }
}

fn wait_gone(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(super::DEADLINE)).unwrap();
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("the caller has not left: {other:?}"),
    }
}

fn head(status: u16, media_type: &str, length: usize) -> String {
    format!(
        "HTTP/1.1 {status} Stand-in\r\nContent-Type: {media_type}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    )
}

/// The calls that a stand-in got, shared with those who wait for them.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<Call>>>);

impl Calls {
    /// All so far.
    pub(crate) fn all(&self) -> Vec<Call> {
        self.0.lock().unwrap().clone()
    }

    /// Waits for one that is like this.
    pub(crate) fn wait(&self, what: &str, like: impl Fn(&Call) -> bool) -> Call {
        eventually(&format!("the stand-in is asked to {what}"), || {
            self.all().into_iter().find(&like)
        })
    }

    fn receive(&self, stream: &TcpStream) -> Option<Call> {
        let mut call = receive(stream)?;
        let mut calls = self.0.lock().unwrap();
        call.number = calls.len() + 1;
        calls.push(call.clone());
        Some(call)
    }
}

/// An open port; closed when dropped, so that connections are refused.
pub(crate) struct Listener {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    over: Arc<AtomicBool>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl Listener {
    /// Opens one at an address. Each call is kept among `calls` before the script gets it.
    pub(crate) fn open(
        address: impl ToSocketAddrs,
        calls: &Calls,
        script: impl Fn(&Call, Answer) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::<AtomicBool>::default();
        let (calls, ended, script) = (calls.clone(), Arc::clone(&over), Arc::new(script));
        let accepting = thread::spawn(move || {
            for stream in listener
                .incoming()
                .map_while(Result::ok)
                .take_while(|_| !ended.load(Ordering::SeqCst))
            {
                let (calls, script) = (calls.clone(), Arc::clone(&script));
                thread::spawn(move || {
                    if let Some(call) = calls.receive(&stream) {
                        script(&call, Answer(stream));
                    }
                });
            }
        });
        Self {
            address,
            over,
            accepting: Some(accepting),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes it, so that it sees that it is over.
        let _ = TcpStream::connect(self.address);
        let _ = self.accepting.take().map(thread::JoinHandle::join);
    }
}

/// Reads a call, without its number.
fn receive(stream: &TcpStream) -> Option<Call> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (start, headers) = read_head(&mut reader).ok()?;
    let value = |wanted: &str| {
        let mut found = headers.iter().filter(|(name, _)| name == wanted);
        found.next().map_or("", |(_, value)| value.as_str())
    };
    let mut body = vec![0; value("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let token = value("authorization")
        .trim_start_matches("Bearer ")
        .to_owned();
    let mut words = start.split(' ').map(str::to_owned);
    Some(Call {
        number: 0,
        at: Instant::now(),
        method: words.next()?,
        path: words.next()?,
        token,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        text: String::from_utf8_lossy(&body).into_owned(),
        headers,
    })
}
