//! Cost of reaching a host through the proxy of jobs rather than directly.
//!
//! A server of this process answers any path `/N` with N bytes of a file. The client is a thread of this process: in the network of this
//! machine it asks directly, and in that of a sandbox it asks the proxy, in plain HTTP and in a tunnel. In turn, so that all
//! three see the same machine:
//!
//! - the time to the first byte of a body, with a new connection for each;
//! - the throughput of a body of [`BODY_BYTES`].
//!
//! Then the memory of the node with [`STALLED`] transfers whose client has read [`STALLED_READ`] and reads no more, above
//! that with none.
//!
//! First bytes come first: a task's log takes 1000 events of the proxy, and a request that it tells of costs more than later ones.

use crate::{
    figures::Figure,
    support::{
        Times,
        processes::{pss, sandbox_processes},
        roles::System,
        time, wait_for,
    },
};
use cynode::api::egress::PROXY_PORT;
use rustix::{
    fs::sendfile,
    process::geteuid,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    panic::resume_unwind,
    thread,
    time::Duration,
};

/// Bodies whose first byte is timed, each way.
const FIRST_BYTES: usize = 200;
/// Pause after those of all ways, since the proxy takes 100 requests a second of a sandbox.
const PACE: Duration = Duration::from_millis(25);
const ROUNDS: usize = 5;
/// Body whose throughput is measured.
const BODY_BYTES: usize = 1 << 30;
/// Transfers that stall at a time.
const STALLED: usize = 100;
/// Bytes that the client of each has read.
const STALLED_READ: usize = 1 << 20;
/// Body of each: more than sockets and the proxy hold.
const STALLED_BODY: usize = 64 << 20;
/// Time after which a transfer has stalled, or what it held is given back.
const SETTLE: Duration = Duration::from_secs(3);
/// Size of the file that the server sends, as often as needed.
const FILE_BYTES: u64 = 4 << 20;
/// Bytes that the client reads at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// Flags of an operator who lets jobs reach the server.
const FLAGS: [&str; 4] = [
    "--egress-allow=*",
    "--egress-allow-private=127.0.0.0/8",
    "--egress-allow-private=::1/128",
    "--egress-bytes=0",
];

/// Way to the server.
#[derive(Clone, Copy)]
enum Way {
    Direct,
    /// Plain HTTP through the proxy.
    Plain,
    /// A tunnel of the proxy.
    Tunnel,
}

const WAYS: [Way; 3] = [Way::Direct, Way::Plain, Way::Tunnel];

pub fn bench() -> Vec<Figure> {
    if !geteuid().is_root() {
        println!(
            "not measured: the client enters the network of a sandbox, which only root can; run this as root"
        );
        return Vec::new();
    }
    let home = tempfile::tempdir().unwrap();
    let port = start_server();
    let mut system = System::orchestrator_with(home.path(), &FLAGS);
    system.start_node(1, 0);
    let task = json!({
        "command": ["sleep", "3600"],
        "network_policy": "allowlist",
        "egress": {"allow": [format!("localhost:{port}")]},
    });
    let task = system.api.post("/v1/tasks", &task);
    let task = task["id"].as_str().unwrap();
    let network = network_of_sandbox(&system);
    let client = Client { port, network };
    let mut figures: Vec<_> = first_bytes(&client).into();
    figures.extend(throughput(&client));
    figures.extend(memory(&client, system.node_pid()));
    let canceled = format!("/v1/tasks/{task}/cancel");
    system.api.post(&canceled, &json!({}));
    // To its end, since a sandbox outlives its node.
    system
        .api
        .get(&format!("/v1/tasks/{task}/logs?follow=true"));
    figures
}

/// Times to the first byte, all ways by turns.
fn first_bytes(client: &Client) -> [Figure; 3] {
    let mut times = WAYS.map(|_| Times::default());
    for round in 0..=FIRST_BYTES {
        for (way, times) in WAYS.into_iter().zip(&mut times) {
            let taken = client.inside(way, || time(|| read(&mut client.ask(way, 1), 1)));
            // The first round warms caches.
            if round > 0 {
                times.push(taken);
            }
        }
        thread::sleep(PACE);
    }
    let [direct, plain, tunnel] = times.map(|times| times.median() * 1000.0);
    let more = |name: &str, millis: f64| {
        let name = format!("first byte, more {name}, p50");
        Figure::plain(name, "ms", millis - direct).at_most(2.0)
    };
    [
        Figure::plain("first byte, direct, p50", "ms", direct),
        more("by plain HTTP through the proxy", plain),
        more("in a tunnel of the proxy", tunnel),
    ]
}

/// Throughput of a large body, all ways by turns.
fn throughput(client: &Client) -> [Figure; 3] {
    let mut times = WAYS.map(|_| Times::default());
    for round in 0..=ROUNDS {
        for (way, times) in WAYS.into_iter().zip(&mut times) {
            let taken = client.inside(way, || {
                time(|| read(&mut client.ask(way, BODY_BYTES), BODY_BYTES))
            });
            // The first round warms caches.
            if round > 0 {
                times.push(taken);
            }
        }
    }
    let [direct, plain, tunnel] = times.map(|times| BODY_BYTES as f64 / times.median());
    let over = |name: &str, rate: f64| {
        let name = format!("1 GiB {name}");
        Figure::higher(name, "× direct", rate / direct).at_least(0.7)
    };
    [
        Figure::plain("1 GiB, direct", "MB/s", direct / 1e6),
        over("by plain HTTP through the proxy", plain),
        over("in a tunnel of the proxy", tunnel),
    ]
}

/// Memory of the node for transfers that stall, each way by itself.
fn memory(client: &Client, node: u32) -> [Figure; 2] {
    thread::sleep(SETTLE);
    let before = pss(node);
    [(Way::Tunnel, "tunnels"), (Way::Plain, "plain exchanges")].map(|(way, name)| {
        let transfers = client.inside(way, || {
            let transfers = (0..STALLED).map(|_| {
                let mut transfer = client.ask(way, STALLED_BODY);
                read(&mut transfer, STALLED_READ);
                transfer
            });
            transfers.collect::<Vec<_>>()
        });
        thread::sleep(SETTLE);
        let more = pss(node) - before;
        drop(transfers);
        // They are no part of the next ones.
        thread::sleep(SETTLE);
        let name = format!("node, {STALLED} stalled {name}, above none");
        Figure::lower(name, "MiB", more).within(2.0).at_most(10.0)
    })
}

/// Network namespace of the only sandbox, once its proxy is there.
fn network_of_sandbox(system: &System) -> File {
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    wait_for("a sandbox with a proxy", || {
        // Of these only what runs in the sandbox has another network.
        let pids = sandbox_processes(system.node_pid(), &system.node_dir());
        let place = pids.into_iter().find_map(|pid| {
            let place = format!("/proc/{pid}/ns/net");
            (fs::read_link(&place).ok()? != own).then_some(place)
        })?;
        let network = File::open(place).ok()?;
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, PROXY_PORT));
        inside(Some(&network), connect).ok()?;
        Some(network)
    })
}

/// Does some work in a network, or in that of this process.
fn inside<T: Send>(network: Option<&File>, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let entered = scope.spawn(move || {
            if let Some(network) = network {
                // A namespace belongs to a thread, which ends here.
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(network.as_fd(), kind).unwrap();
            }
            work()
        });
        entered.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// A client of the server.
struct Client {
    /// Port of the server.
    port: u16,
    /// Network of the sandbox.
    network: File,
}

impl Client {
    /// Does some work in the network in which a way begins.
    fn inside<T: Send>(&self, way: Way, work: impl FnOnce() -> T + Send) -> T {
        match way {
            Way::Direct => inside(None, work),
            Way::Plain | Way::Tunnel => inside(Some(&self.network), work),
        }
    }

    /// Asks for so many bytes over a new connection; what comes behind the head of the answer.
    fn ask(&self, way: Way, bytes: usize) -> BufReader<TcpStream> {
        let host = format!("localhost:{}", self.port);
        let (port, url) = match way {
            Way::Direct => (self.port, String::new()),
            Way::Plain => (PROXY_PORT, format!("http://{host}")),
            Way::Tunnel => (PROXY_PORT, String::new()),
        };
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut reader = BufReader::with_capacity(CHUNK_BYTES, stream);
        if let Way::Tunnel = way {
            call(&mut reader, &format!("CONNECT {host}"), &host);
        }
        call(&mut reader, &format!("GET {url}/{bytes}"), &host);
        reader
    }
}

/// Sends a request, and reads the head of its answer.
fn call(reader: &mut BufReader<TcpStream>, request: &str, host: &str) {
    let head = format!("{request} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    reader.get_mut().write_all(head.as_bytes()).unwrap();
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200"), "{request}: {line}");
    while line != "\r\n" {
        line.clear();
        let read = reader.read_line(&mut line).unwrap();
        assert!(read > 0, "{request}: the answer was cut");
    }
}

/// Reads so many bytes.
fn read(reader: &mut BufReader<TcpStream>, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        let come = reader.fill_buf().unwrap().len();
        assert!(come > 0, "the body was cut, {left} bytes before its end");
        let taken = come.min(left);
        reader.consume(taken);
        left -= taken;
    }
}

/// Starts the server; its port.
fn start_server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            // A client that leaves ends its thread.
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Answers the requests of a connection.
fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let file = tempfile::tempfile()?;
    file.set_len(FILE_BYTES)?;
    loop {
        let mut left = read_request(&mut reader)?;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {left}\r\n\r\n"
        );
        reader.get_mut().write_all(head.as_bytes())?;
        while left > 0 {
            let (mut begin, most) = (0, left.min(FILE_BYTES));
            while begin < most {
                // The kernel sends it, as servers of files have it do.
                let rest = usize::try_from(most - begin).map_err(io::Error::other)?;
                sendfile(reader.get_ref(), &file, Some(&mut begin), rest)?;
            }
            left -= most;
        }
    }
}

/// Bytes that the next request asks for. Fails where the client has left.
fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<u64> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1);
    let bytes = path.and_then(|path| path.strip_prefix('/')?.parse().ok());
    let bytes = bytes.ok_or(io::ErrorKind::InvalidData)?;
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(bytes)
}
