//! Cost of a storm of wrong logins for other users.
//!
//! `make bench`. Requests a list of tasks repeatedly over a kept connection, first on an idle machine, then
//! while [`STORM`] others try wrong passwords at the same time, each from an address of its own (of
//! 127.0.0.0/8), so that a hash is computed for each; then while [`HALF_OPEN`] connections stand half open. A
//! storm keeps a core busy, and the cost of a busy core for others is up to the kernel: so one row has a core
//! that an unrelated loop keeps busy. Prints percentiles and ratios of this one run, on a machine that is
//! otherwise idle; asserts nothing.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

const STORM: usize = 64;
const HALF_OPEN: usize = 200;
/// Requests that are timed, each time.
const REQUESTS: usize = 3000;
const BINARY: &str = env!("CARGO_BIN_EXE_cynode");
const PASSWORD: &str = "the password of a bench";

fn main() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path());
    let token = server.log_in();
    for _ in 0..20 {
        let body = r#"{"script":"true"}"#;
        let (status, _) =
            Connection::open(server.gateway).call("POST", "/v1/tasks", &token, "", body);
        assert_eq!(status, 201);
    }
    server.measure(&token);
    let peace = server.measure(&token);
    let (storm, logins) = server.in_a_storm(&token);
    let busy = beside_a_busy_core(|| server.measure(&token));
    let half_open: Vec<TcpStream> = (0..HALF_OPEN)
        .map(|_| {
            let mut stream = TcpStream::connect(server.gateway).unwrap();
            stream
                .write_all(b"GET /v1/tasks HTTP/1.1\r\nhost: x\r\nx-a:")
                .unwrap();
            stream
        })
        .collect();
    let crowd = server.measure(&token);
    drop(half_open);

    println!(
        "{REQUESTS} times GET /v1/tasks; {STORM} concurrent wrong logins, {logins} of them answered meanwhile; {HALF_OPEN} half-open connections"
    );
    println!(
        "{:<10} {:>10} {:>10} {:>10} {:>9} {:>9}",
        "", "median", "p99", "worst", "median x", "p99 x"
    );
    for (name, times) in [
        ("peace", &peace),
        ("busy core", &busy),
        ("storm", &storm),
        ("half-open", &crowd),
    ] {
        let [median, p99, worst] = figures(times);
        let [base, base99, _] = figures(&peace);
        println!(
            "{name:<10} {:>7.2} ms {:>7.2} ms {:>7.2} ms {:>9.2} {:>9.2}",
            millis(median),
            millis(p99),
            millis(worst),
            median.as_secs_f64() / base.as_secs_f64(),
            p99.as_secs_f64() / base99.as_secs_f64(),
        );
    }
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

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Median, 99th percentile, maximum.
fn figures(times: &[Duration]) -> [Duration; 3] {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    [at(50), at(99), at(100)]
}

/// An orchestrator without nodes.
struct Server {
    process: Child,
    gateway: SocketAddr,
}

impl Server {
    fn start(home: &Path) -> Self {
        let data_dir = home.join("orchestrator");
        let process = Command::new(BINARY)
            .args([
                "serve-orchestrator",
                "--require-inference",
                "false",
                "--user-rate",
                "0",
            ])
            .args([
                "--gateway-listen",
                "127.0.0.1:0",
                "--control-listen",
                "127.0.0.1:0",
            ])
            .args(["--trusted-proxy", "127.0.0.1"])
            .arg("--data-dir")
            .arg(&data_dir)
            .env("CYNODE_ADMIN_PASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let gateway = loop {
            let text = fs::read_to_string(data_dir.join("addresses.json")).unwrap_or_default();
            let addresses: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some(gateway) = addresses["gateway"].as_str() {
                break gateway.parse().unwrap();
            }
            thread::sleep(Duration::from_millis(10));
        };
        Self { process, gateway }
    }

    fn log_in(&self) -> String {
        let body = format!(r#"{{"handle":"admin","password":"{PASSWORD}"}}"#);
        let (status, body) =
            Connection::open(self.gateway).call("POST", "/v1/auth/login", "", "", &body);
        assert_eq!(status, 200, "{body}");
        let tokens: serde_json::Value = serde_json::from_str(&body).unwrap();
        tokens["access_token"].as_str().unwrap().to_owned()
    }

    fn measure(&self, token: &str) -> Vec<Duration> {
        let mut connection = Connection::open(self.gateway);
        let one = |_| {
            let began = Instant::now();
            let (status, _) = connection.call("GET", "/v1/tasks", token, "", "");
            assert_eq!(status, 200);
            began.elapsed()
        };
        (0..REQUESTS).map(one).collect()
    }

    /// The same while others try wrong passwords; and how many of those were answered.
    fn in_a_storm(&self, token: &str) -> (Vec<Duration>, usize) {
        let (over, tries) = (AtomicBool::new(false), AtomicUsize::new(0));
        let times = thread::scope(|scope| {
            for _ in 0..STORM {
                scope.spawn(|| {
                    let mut connection = Connection::open(self.gateway);
                    while !over.load(Ordering::Relaxed) {
                        let n = tries.fetch_add(1, Ordering::Relaxed);
                        let from = format!("10.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255);
                        let body =
                            format!(r#"{{"handle":"nobody-{n}","password":"a wrong password"}}"#);
                        let (status, _) =
                            connection.call("POST", "/v1/auth/login", "", &from, &body);
                        assert_eq!(status, 401);
                    }
                });
            }
            // All of them are at it.
            while tries.load(Ordering::Relaxed) < STORM * 2 {
                thread::sleep(Duration::from_millis(10));
            }
            let times = self.measure(token);
            over.store(true, Ordering::Relaxed);
            times
        });
        (times, tries.into_inner())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection that is kept.
struct Connection {
    reader: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Connection {
    fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            reader: BufReader::new(stream),
            address,
        }
    }

    /// Status and body of an answer.
    fn call(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        from: &str,
        body: &str,
    ) -> (u16, String) {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n",
            self.address,
            body.len()
        );
        if !token.is_empty() {
            head += &format!("authorization: Bearer {token}\r\n");
        }
        if !from.is_empty() {
            head += &format!("x-forwarded-for: {from}\r\n");
        }
        if !body.is_empty() {
            head += "content-type: application/json\r\n";
        }
        let request = format!("{head}\r\n{body}");
        self.reader.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            self.reader.read_line(&mut line).unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            }
            if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).unwrap();
        (status, String::from_utf8(body).unwrap())
    }
}
