//! Cost of asking a model through cynode rather than its server directly.
//!
//! A model server that computes nothing, a node beside it, and an orchestrator, each a process of its own
//! or a thread here, all on loopback. Measures, directly and through the gateway by turns:
//!
//! - the time to the first byte of an answer, one request at a time;
//! - the throughput of [`STREAMS`] streams at a time, at the pace of a fast model ([`EVENT_PAUSE`]), and flat out;
//! - the memory of the orchestrator and of the node with [`OPEN_STREAMS`] open streams, above that before;
//! - the time from the end of a client to that of its request at the model server.

use crate::{
    figures::Figure,
    model_server::{EVENT, ModelServer},
    support::{
        Times,
        processes::resident,
        roles::{PASSWORD, PSK, Process, address, orchestrator, role},
        wait_for,
    },
};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

const CHAT: &str = "/v1/chat/completions";
/// Requests whose first byte is timed, each way.
const REQUESTS: usize = 2000;
/// Streams whose throughput is measured.
const STREAMS: usize = 32;
/// Events of each of these streams.
const EVENTS: usize = 600;
/// Pause between two events of a stream.
const EVENT_PAUSE: Duration = Duration::from_millis(5);
/// Events of each stream that is sent flat out.
const FAST_EVENTS: usize = 20_000;
/// Streams that are open at a time when memory is measured.
const OPEN_STREAMS: usize = 500;
/// Clients that leave.
const CANCELS: usize = 100;

pub fn bench() -> Vec<Figure> {
    let home = tempfile::tempdir().unwrap();
    let model_server = ModelServer::start();
    let direct = Target {
        address: model_server.address,
        authorization: "none".to_owned(),
    };
    let system = System::start(home.path(), &model_server);
    let ways = [&direct, &system.target];
    let mut figures = first_bytes(ways);
    for (name, events, pause) in [
        ("paced", EVENTS, EVENT_PAUSE),
        ("flat out", FAST_EVENTS, Duration::ZERO),
    ] {
        let [direct, gateway] = ways.map(|target| throughput(target, events, pause));
        let name = format!("{STREAMS} streams, {name}, events through the gateway");
        figures.push(Figure::higher(name, "× direct", gateway / direct));
    }
    figures.extend(memory(&system));
    figures.extend(cancels(&system, &model_server));
    figures
}

/// Times to the first byte of an answer, both ways by turns.
fn first_bytes(ways: [&Target; 2]) -> Vec<Figure> {
    let answer = json!({"events": 1});
    let mut taken = ways.map(|target| (target.connect(), target, Times::default()));
    for n in 0..REQUESTS + 100 {
        for (connection, target, times) in &mut taken {
            let began = Instant::now();
            connection.send(target, &answer);
            connection.read_line();
            let took = began.elapsed();
            connection.read_body();
            if n >= 100 {
                times.push(took);
            }
        }
    }
    let [direct, gateway] = taken.map(|(_, _, times)| times);
    let more = |percent| (gateway.percentile(percent) - direct.percentile(percent)) * 1000.0;
    vec![
        Figure::plain("first byte, direct, p50", "ms", direct.median() * 1000.0),
        Figure::plain("first byte, more through the gateway, p50", "ms", more(50)),
        Figure::plain("first byte, more through the gateway, p99", "ms", more(99)),
    ]
}

/// Events a second of all streams together.
fn throughput(target: &Target, events: usize, pause: Duration) -> f64 {
    let request = json!({"events": events, "pause_us": pause.as_micros() as u64});
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..STREAMS {
            scope.spawn(|| {
                let mut connection = target.connect();
                connection.send(target, &request);
                assert!(connection.read_body() >= events * EVENT.len());
            });
        }
    });
    (STREAMS * events) as f64 / began.elapsed().as_secs_f64()
}

/// Memory with many open streams.
fn memory(system: &System) -> Vec<Figure> {
    let request = json!({"events": 1, "holds": true});
    let pids = [system.orchestrator.id(), system.node.id()];
    let idle = pids.map(resident);
    let streams: Vec<_> = (0..OPEN_STREAMS)
        .map(|_| {
            let mut connection = system.target.connect();
            connection.send(&system.target, &request);
            connection.read_line();
            connection
        })
        .collect();
    let names = ["orchestrator", "node"].into_iter().enumerate();
    let figures = names.map(|(n, name)| {
        let more = resident(pids[n]) - idle[n];
        let name = format!("{name}, {OPEN_STREAMS} open streams, above idle");
        Figure::lower(name, "MiB", more).within(2.0)
    });
    let figures = figures.collect();
    drop(streams);
    figures
}

/// Times from the end of a client to that of its request at the model server.
fn cancels(system: &System, model_server: &ModelServer) -> [Figure; 2] {
    // Those of the streams that were held before.
    let pause = Duration::from_secs(1);
    while model_server.ends.recv_timeout(pause).is_ok() {}
    let request = json!({"events": 1, "holds": true});
    let times = (0..CANCELS).map(|_| {
        let mut connection = system.target.connect();
        connection.send(&system.target, &request);
        connection.read_line();
        let left = Instant::now();
        drop(connection);
        model_server.ends.recv().unwrap().duration_since(left)
    });
    let times: Times = times.collect();
    [50, 99].map(|percent| {
        let name = format!("end of a client to that of its request, p{percent}");
        Figure::plain(name, "ms", times.percentile(percent) * 1000.0)
    })
}

/// Where requests are sent.
struct Target {
    address: SocketAddr,
    /// Value of the header `Authorization`.
    authorization: String,
}

impl Target {
    fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection(BufReader::new(stream))
    }
}

/// A connection of a client.
struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Sends a request for a stream, and reads the head of its answer.
    fn send(&mut self, target: &Target, bench: &Value) {
        let messages = json!([{"role": "user", "content": "hello"}]);
        let body = json!({"model": "tiny", "stream": true, "messages": messages, "bench": bench});
        let (body, host) = (body.to_string(), target.address);
        let authorization = &target.authorization;
        let request = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: {host}\r\nauthorization: {authorization}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let status = self.read_line();
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        while !self.read_line().trim().is_empty() {}
    }

    fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// Reads the rest of a chunked body, whose first line may have been read; its length.
    fn read_body(&mut self) -> usize {
        let mut length = 0;
        loop {
            let line = self.read_line();
            if line == "0\r\n" {
                self.read_line();
                return length;
            }
            assert!(!line.is_empty(), "the answer was cut");
            length += line.len();
        }
    }
}

/// An orchestrator, and a node that uses the model server.
struct System {
    target: Target,
    node: Process,
    orchestrator: Process,
}

impl System {
    fn start(home: &Path, model_server: &ModelServer) -> Self {
        let concurrency = (2 * OPEN_STREAMS).to_string();
        let data_dir = home.join("orchestrator");
        let mut command = orchestrator(&data_dir);
        let orchestrator = Process::spawn(command.args(["--inference-concurrency", &concurrency]));
        let [gateway, control] = ["gateway", "control"].map(|name| address(&data_dir, name));
        let node = Process::spawn(
            role("node", &home.join("node"))
                .args([
                    "--worker-listen=127.0.0.1:0",
                    "--slug=box",
                    "--inference=on",
                ])
                .args(["--inference-port", &model_server.address.port().to_string()])
                .args(["--orchestrator", &format!("http://{control}")])
                .env("CYNODE_PSK", PSK),
        );
        let login = json!({"handle": "admin", "password": PASSWORD});
        let login = call(
            &format!("http://{gateway}/v1/auth/login"),
            "none",
            Some(&login),
        );
        let bearer = format!("Bearer {}", login["access_token"].as_str().unwrap());
        let key = call(
            &format!("http://{gateway}/v1/keys"),
            &bearer,
            Some(&json!({"name": "bench"})),
        );
        let authorization = format!("Bearer {}", key["key"].as_str().unwrap());
        let models = format!("http://{gateway}/v1/models");
        wait_for("a model", || {
            let models = call(&models, &authorization, None);
            (!models["data"][0].is_null()).then_some(())
        });
        Self {
            target: Target {
                address: gateway,
                authorization,
            },
            node,
            orchestrator,
        }
    }
}

/// Calls the User API; the answer, null where it fails.
fn call(url: &str, authorization: &str, body: Option<&Value>) -> Value {
    let answer = match body {
        Some(body) => ureq::post(url)
            .header("authorization", authorization)
            .header("content-type", "application/json")
            .send(body.to_string()),
        None => ureq::get(url).header("authorization", authorization).call(),
    };
    let text = answer.and_then(|mut answer| answer.body_mut().read_to_string());
    serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default()
}
