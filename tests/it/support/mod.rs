//! The harness: real processes, real podman, plain HTTP. Tests wait on conditions through
//! [`eventually`] and on streams, never on time.

pub(crate) mod attack;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod encryption;
pub(crate) mod exposition;
pub(crate) mod golden;
pub(crate) mod http;
pub(crate) mod image;
pub(crate) mod link;
pub(crate) mod listener;
pub(crate) mod model_node;
pub(crate) mod model_server;
pub(crate) mod models;
pub(crate) mod orchestrator_stand_in;
pub(crate) mod own_storage;
pub(crate) mod peer_worker;
pub(crate) mod podman_host;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod sandbox;
pub(crate) mod sandbox_gateway;
pub(crate) mod server;
pub(crate) mod stage;
pub(crate) mod stand_in;
pub(crate) mod stream;
pub(crate) mod terminal;
pub(crate) mod tls;
pub(crate) mod tls_front;
pub(crate) mod tunnel;
pub(crate) mod wire;
pub(crate) mod worker;

pub(crate) use cluster::{Cluster, Node, Orchestrator, PASSWORD};
pub(crate) use http::{Api, Reply};
pub(crate) use image::IMAGE;
pub(crate) use listener::{Answer, Call};
pub(crate) use model_server::{ModelPort, ModelServer};
pub(crate) use orchestrator_stand_in::{OrchestratorStandIn, Reaction, Step};
pub(crate) use peer_worker::{PeerWorker, nothing_more};
pub(crate) use process::{Process, cynode};
pub(crate) use sandbox::Sandbox;
pub(crate) use stand_in::StandIn;
pub(crate) use stream::SseEvent;
pub(crate) use worker::Worker;

use std::{
    fmt::Debug,
    net::TcpListener,
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long a condition may take to come true, on a slow and busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Asks until there is an answer; the only place that waits on time, and then fails with `what`.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            began.elapsed() < DEADLINE,
            "in {DEADLINE:?} it did not come true: {what}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// Asks until the answer is the expected one, and shows the last one when it never is.
pub(crate) fn eventually_eq<T: PartialEq + Debug>(
    what: &str,
    expected: T,
    mut ask: impl FnMut() -> T,
) {
    let began = Instant::now();
    let mut seen = ask();
    eventually(what, || {
        if seen == expected {
            return Some(());
        }
        assert!(
            began.elapsed() < DEADLINE - Duration::from_secs(1),
            "{what}: expected {expected:?}, last seen {seen:?}"
        );
        seen = ask();
        None
    });
}

/// A free port below the range from which the system takes ports by itself, so that it is still
/// free after a restart of the one who had it.
pub(crate) fn lasting_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + (std::process::id() % 1_000) as u16 * 20;
    eventually("a free port", || {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
    })
}

/// A file's text.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A random lower-case id.
pub(crate) fn uuid() -> String {
    uuid::Uuid::now_v7().to_string()
}
