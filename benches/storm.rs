//! Cost of a storm of wrong logins for other users.
//!
//! Requests a list of tasks repeatedly over a kept connection, first on an idle machine, then
//! while [`STORM`] others try wrong passwords at the same time, each from an address of its own (of
//! 10.0.0.0/8), so that a hash is computed for each; then while [`HALF_OPEN`] connections stand half open. A
//! storm keeps a core busy, and the cost of a busy core for others is up to the kernel: so one figure has a core
//! that an unrelated loop keeps busy.

use crate::{
    figures::Figure,
    support::{
        Times,
        api::{Connection, bearer},
        roles::System,
    },
};
use std::{
    io::Write as _,
    net::TcpStream,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

const STORM: usize = 64;
const HALF_OPEN: usize = 200;
/// Requests that are timed, each time.
const REQUESTS: usize = 3000;

pub fn bench() -> Vec<Figure> {
    let home = tempfile::tempdir().unwrap();
    let system = System::orchestrator(home.path());
    for _ in 0..20 {
        system.api.create(&["true"]);
    }
    measure(&system);
    let peace = measure(&system);
    let (storm, logins) = in_a_storm(&system);
    let busy = beside_a_busy_core(|| measure(&system));
    let half_open: Vec<TcpStream> = (0..HALF_OPEN)
        .map(|_| {
            let mut stream = TcpStream::connect(system.api.gateway).unwrap();
            stream
                .write_all(b"GET /v1/tasks HTTP/1.1\r\nhost: x\r\nx-a:")
                .unwrap();
            stream
        })
        .collect();
    let crowd = measure(&system);
    drop(half_open);

    let mut figures = vec![
        Figure::plain("list of tasks, p50 in peace", "ms", peace.median() * 1000.0),
        Figure::plain("wrong logins answered in the storm", "", logins as f64),
    ];
    for (name, times) in [("busy core", busy), ("storm", storm), ("half-open", crowd)] {
        let over = |percent| times.percentile(percent) / peace.percentile(percent);
        figures.push(Figure::lower(format!("{name}, p50"), "× peace", over(50)).within(2.0));
        figures.push(Figure::plain(format!("{name}, p99"), "× peace", over(99)));
    }
    figures
}

/// Does something while another process keeps a core busy.
fn beside_a_busy_core<T>(work: impl FnOnce() -> T) -> T {
    let mut stranger = Command::new("sh")
        .args(["-c", "while :; do :; done"])
        .spawn()
        .unwrap();
    let done = work();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    done
}

fn measure(system: &System) -> Times {
    let headers = bearer(&system.api.token);
    let mut connection = Connection::open(system.api.gateway);
    let one = |_| {
        let began = Instant::now();
        let (status, _) = connection.call("GET", "/v1/tasks", &headers, "");
        assert_eq!(status, 200);
        began.elapsed()
    };
    (0..REQUESTS).map(one).collect()
}

/// The same while others try wrong passwords; and how many of those were answered.
fn in_a_storm(system: &System) -> (Times, usize) {
    let (over, tries) = (AtomicBool::new(false), AtomicUsize::new(0));
    let times = thread::scope(|scope| {
        for _ in 0..STORM {
            scope.spawn(|| {
                let mut connection = Connection::open(system.api.gateway);
                while !over.load(Ordering::Relaxed) {
                    let n = tries.fetch_add(1, Ordering::Relaxed);
                    let from = format!(
                        "x-forwarded-for: 10.{}.{}.{}\r\n",
                        n >> 16 & 255,
                        n >> 8 & 255,
                        n & 255
                    );
                    let body =
                        format!(r#"{{"handle":"nobody-{n}","password":"a wrong password"}}"#);
                    let (status, _) = connection.call("POST", "/v1/auth/login", &from, &body);
                    assert_eq!(status, 401);
                }
            });
        }
        // All of them are at it.
        while tries.load(Ordering::Relaxed) < STORM * 2 {
            thread::sleep(Duration::from_millis(10));
        }
        let times = measure(system);
        over.store(true, Ordering::Relaxed);
        times
    });
    (times, tries.into_inner())
}
