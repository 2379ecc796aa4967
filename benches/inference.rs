//! Cost of asking a model through cynode rather than its server directly.
//!
//! `make bench`. A model server that computes nothing, a node beside it, and an orchestrator, each a process of its own
//! or a thread here, all on loopback. Measures, directly and through the gateway by turns:
//!
//! - the time to the first byte of an answer, one request at a time;
//! - the throughput of [`STREAMS`] streams at a time, at the pace of a fast model ([`EVENT_PAUSE`]), and flat out;
//! - the memory of the orchestrator and of the node with [`OPEN_STREAMS`] open streams, above that before;
//! - the time from the end of a client to that of its request at the model server.
//!
//! Prints differences and ratios of this one run; asserts nothing.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

const BINARY: &str = env!("CARGO_BIN_EXE_cynode");
const PASSWORD: &str = "the password of a bench";
const PSK: &str = "the pre-shared key of a bench";
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
/// An event as model servers send it.
const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\
    \"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}]}\n\n";
const POLL: Duration = Duration::from_millis(20);

fn main() {
    let home = tempfile::tempdir().unwrap();
    let model_server = ModelServer::start();
    let system = System::start(home.path(), &model_server);
    let ways = [
        ("direct", &model_server.target),
        ("gateway", &system.target),
    ];

    let answer = json!({"events": 1});
    let mut first_bytes = ways.map(|(_, target)| (target.connect(), target, Vec::new()));
    for n in 0..REQUESTS + 100 {
        for (connection, target, times) in &mut first_bytes {
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
    println!("first byte of {REQUESTS} answers, one at a time");
    println!("{:<10} {:>9} {:>9}", "", "p50", "p99");
    let [direct, gateway] = first_bytes.map(|(_, _, times)| percentiles(times));
    let row = |name: &str, [p50, p99]: [f64; 2]| println!("{name:<10} {p50:>6.2} ms {p99:>6.2} ms");
    row("direct", direct);
    row("gateway", gateway);
    row("more", [gateway[0] - direct[0], gateway[1] - direct[1]]);

    println!("\nthroughput of {STREAMS} streams");
    println!(
        "{:<10} {:>14} {:>14} {:>7}",
        "", "direct", "gateway", "ratio"
    );
    for (name, events, pause) in [
        ("paced", EVENTS, EVENT_PAUSE),
        ("flat out", FAST_EVENTS, Duration::ZERO),
    ] {
        let [direct, gateway] = ways.map(|(_, target)| throughput(target, events, pause));
        let ratio = gateway / direct;
        println!("{name:<10} {direct:>12.0}/s {gateway:>12.0}/s {ratio:>7.3}");
    }

    memory(&system);
    cancels(&system, &model_server);
}

/// Milliseconds at the 50th and 99th of a hundred.
fn percentiles(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort_unstable();
    [50, 99].map(|percent| times[times.len() * percent / 100].as_secs_f64() * 1000.0)
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
fn memory(system: &System) {
    let request = json!({"events": 1, "holds": true});
    let names = ["orchestrator", "node"];
    let pids = [&system.orchestrator, &system.node].map(|process| process.0.id());
    let idle = pids.map(resident);
    let streams: Vec<_> = (0..OPEN_STREAMS)
        .map(|_| {
            let mut connection = system.target.connect();
            connection.send(&system.target, &request);
            connection.read_line();
            connection
        })
        .collect();
    println!("\nresident memory with {OPEN_STREAMS} open streams, in MiB");
    println!("{:<14} {:>7} {:>7} {:>7}", "", "idle", "open", "more");
    for (n, name) in names.into_iter().enumerate() {
        let (idle, open) = (idle[n], resident(pids[n]));
        println!("{name:<14} {idle:>7.1} {open:>7.1} {:>+7.1}", open - idle);
    }
    drop(streams);
}

/// Times from the end of a client to that of its request at the model server.
fn cancels(system: &System, model_server: &ModelServer) {
    // Those of the streams that were held before.
    while model_server
        .ends
        .recv_timeout(Duration::from_secs(1))
        .is_ok()
    {}
    let request = json!({"events": 1, "holds": true});
    let times = (0..CANCELS).map(|_| {
        let mut connection = system.target.connect();
        connection.send(&system.target, &request);
        connection.read_line();
        let left = Instant::now();
        drop(connection);
        model_server.ends.recv().unwrap().duration_since(left)
    });
    let [p50, p99] = percentiles(times.collect());
    println!("\na client leaves; its request ends at the model server");
    println!("{:<10} {p50:>6.2} ms {p99:>6.2} ms", "p50, p99");
}

/// Resident memory of a process, in MiB.
fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .unwrap()
        .trim_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .unwrap();
    kib / 1024.0
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

/// A model server that computes nothing.
struct ModelServer {
    target: Target,
    /// Ends of clients that left a stream that is held.
    ends: mpsc::Receiver<Instant>,
}

impl ModelServer {
    fn start() -> Self {
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
        let authorization = "none".to_owned();
        Self {
            target: Target {
                address,
                authorization,
            },
            ends,
        }
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

/// A process that is ended at the end.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
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
        let image = Command::new("scripts/demo-image.sh")
            .stderr(Stdio::inherit())
            .output()
            .expect("run it from the repository");
        assert!(image.status.success());
        let secret = |name: &str, text: &str| {
            let path = home.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let concurrency = (2 * OPEN_STREAMS).to_string();
        let orchestrator = role("serve-orchestrator", &home.join("orchestrator"))
            .args([
                "--gateway-listen=127.0.0.1:0",
                "--control-listen=127.0.0.1:0",
            ])
            .args(["--user-rate=0", "--inference-concurrency", &concurrency])
            .arg("--admin-password-file")
            .arg(secret("password", PASSWORD))
            .arg("--psk-file")
            .arg(secret("psk", PSK))
            .spawn();
        let orchestrator = Process(orchestrator.unwrap());
        let [gateway, control] =
            ["gateway", "control"].map(|name| address(&home.join("orchestrator"), name));
        let port = model_server.target.address.port().to_string();
        let node = role("node", &home.join("node"))
            .args([
                "--worker-listen=127.0.0.1:0",
                "--slug=box",
                "--inference=on",
            ])
            .args(["--inference-port", &port, "--orchestrator"])
            .arg(format!("http://{control}"))
            .arg("--psk-file")
            .arg(home.join("psk"))
            .spawn();
        let node = Process(node.unwrap());
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
        while call(&models, &authorization, None)["data"][0].is_null() {
            thread::sleep(POLL);
        }
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

fn role(name: &str, data_dir: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args([name, "--log-level=warn", "--data-dir"])
        .arg(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Address of a listener, once it is there.
fn address(data_dir: &Path, name: &str) -> SocketAddr {
    loop {
        let addresses = fs::read(data_dir.join("addresses.json")).unwrap_or_default();
        let addresses: Value = serde_json::from_slice(&addresses).unwrap_or_default();
        if let Some(address) = addresses[name].as_str() {
            return address.parse().unwrap();
        }
        thread::sleep(POLL);
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
