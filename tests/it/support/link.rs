//! Link between a client and the orchestrator, which can hold or cut what is sent.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

/// Link to the orchestrator, which holds what a client sends, and knows the ranges.
pub(crate) struct Link {
    pub(crate) url: String,
    ranges: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    /// Goes on with what is held; dropped, it cuts the connection.
    pub(crate) go_on: mpsc::Sender<()>,
}

impl Link {
    /// Link that holds the first request of more than `held_at` bytes.
    pub(crate) fn to(gateway: &str, held_at: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let gateway = gateway.strip_prefix("http://").unwrap().to_owned();
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let opened = Arc::clone(&connections);
        let (go_on, held) = mpsc::channel();
        let (held, seen) = (Arc::new(Mutex::new(held)), Arc::clone(&ranges));
        thread::spawn(move || {
            for from in listener.incoming() {
                let from = from.unwrap();
                // Its end may not listen yet.
                let Ok(to) = TcpStream::connect(&gateway) else {
                    continue;
                };
                opened.fetch_add(1, Ordering::SeqCst);
                let back = (to.try_clone().unwrap(), from.try_clone().unwrap());
                thread::spawn(move || pass(back.0, back.1, |_, _| true));
                let (held, seen) = (Arc::clone(&held), Arc::clone(&seen));
                thread::spawn(move || {
                    pass(from, to, |bytes, passed| {
                        let text = String::from_utf8_lossy(bytes).to_lowercase();
                        if let Some((_, range)) = text.split_once("content-range: ") {
                            let range = range.lines().next().unwrap_or_default();
                            seen.lock().unwrap().push(range.to_owned());
                        }
                        let is_held = passed < held_at && passed + bytes.len() >= held_at;
                        !is_held || held.lock().unwrap().recv().is_ok()
                    });
                });
            }
        });
        Self {
            url,
            ranges,
            connections,
            go_on,
        }
    }

    /// Number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// First bytes of the parts that were sent.
    pub(crate) fn starts(&self) -> Vec<u64> {
        let ranges = self.ranges.lock().unwrap();
        let start = |range: &String| {
            range
                .strip_prefix("bytes ")?
                .split('-')
                .next()?
                .parse()
                .ok()
        };
        ranges.iter().filter_map(start).collect()
    }
}

/// Passes bytes on until an end, or until `look` wants no more; it gets each piece and the number of bytes before.
fn pass(mut from: TcpStream, mut to: TcpStream, mut look: impl FnMut(&[u8], usize) -> bool) {
    let (mut buffer, mut passed) = (vec![0; 65_536], 0);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !look(&buffer[..read], passed) || to.write_all(&buffer[..read]).is_err() {
            break;
        }
        passed += read;
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}
