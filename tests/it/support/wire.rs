//! Wire between a node and its orchestrator that a test can cut, and on which it can have tunnels go mute.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// The wire.
pub(crate) struct Wire {
    /// `http://` and its near end.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    /// Connections so far.
    passages: Vec<Passage>,
}

/// One connection.
struct Passage {
    ends: [TcpStream; 2],
    is_tunnel: Arc<AtomicBool>,
    /// Whether bytes vanish.
    is_mute: Arc<AtomicBool>,
}

impl Wire {
    /// Wire to this address.
    pub(crate) fn to(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            state: Arc::default(),
        };
        let (state, address) = (Arc::clone(&wire.state), address.to_owned());
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let mut state = state.lock().unwrap();
                // Its end may not listen at present.
                if !state.is_cut
                    && let Ok(far) = TcpStream::connect(&address)
                {
                    state.passages.push(Passage::open(near, far));
                }
            }
        });
        wire
    }

    /// Cuts all connections; new ones are closed at once.
    pub(crate) fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_cut = true;
        for passage in &state.passages {
            for end in &passage.ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }

    /// Lets new connections pass again.
    pub(crate) fn mend(&self) {
        self.state.lock().unwrap().is_cut = false;
    }

    /// Has all bytes vanish on the tunnels that are open, which stay open.
    pub(crate) fn mute_tunnels(&self) {
        let state = self.state.lock().unwrap();
        for passage in state.tunnels() {
            passage.is_mute.store(true, Ordering::SeqCst);
        }
    }

    /// Number of tunnels so far.
    pub(crate) fn tunnels(&self) -> usize {
        self.state.lock().unwrap().tunnels().count()
    }
}

impl State {
    fn tunnels(&self) -> impl Iterator<Item = &Passage> {
        let passages = self.passages.iter();
        passages.filter(|passage| passage.is_tunnel.load(Ordering::SeqCst))
    }
}

impl Passage {
    fn open(near: TcpStream, far: TcpStream) -> Self {
        let passage = Self {
            ends: [near.try_clone().unwrap(), far.try_clone().unwrap()],
            is_tunnel: Arc::default(),
            is_mute: Arc::default(),
        };
        let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
        for (from, to) in [(near, far), back] {
            let is_tunnel = Arc::clone(&passage.is_tunnel);
            let is_mute = Arc::clone(&passage.is_mute);
            thread::spawn(move || pass(from, to, &is_tunnel, &is_mute));
        }
        passage
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, is_tunnel: &AtomicBool, is_mute: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if buffer[..read].starts_with(b"GET /v1/nodes/tunnel") {
            is_tunnel.store(true, Ordering::SeqCst);
        }
        if !is_mute.load(Ordering::SeqCst) && to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}
