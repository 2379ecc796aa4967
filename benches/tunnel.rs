//! Cost of calling a node by its tunnel rather than at its port.
//!
//! Two orchestrators, each with a node of its own: one that listens, and one that listens nowhere. In turn, so that both see
//! the same machine:
//!
//! - the latency of a warm task, from `POST /v1/tasks` to the end of its log;
//! - the throughput of the log of a task that prints [`LOG_BYTES`], followed by one reader.
//!
//! Then the resident memory of an orchestrator with [`TUNNELS`] idle tunnels, each of a registration of its own, above that
//! with the registrations alone. The nodes behind them are tasks of this process, which answer that they are alive.

use crate::{
    figures::Figure,
    support::{
        Times,
        api::Connection,
        processes::resident,
        roles::{PSK, System, address, has_warm},
        time, wait_for,
    },
};
use cynode::{
    http::{
        metrics::MetricsRegistry,
        response,
        router::Router,
        tunnel::{self, DialIdentity, Dialer},
    },
    tls::Trust,
};
use http::{Method, StatusCode};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, sync::watch};

const ROUNDS: usize = 100;
const SLOTS: usize = 2;
const WARM: usize = 2 * SLOTS;
/// Output of the task whose log is followed.
const LOG_BYTES: u64 = 100_000_000;
const LOG_ROUNDS: usize = 5;
const TUNNELS: usize = 1000;
/// File descriptors that a process with [`TUNNELS`] connections needs: an orchestrator uses a quarter of them for each listener.
const DESCRIPTORS: u64 = 5000;
/// Time after which a role counts as idle: some pings have passed.
const SETTLE: Duration = Duration::from_secs(12);
/// Flags of nodes that are called at their port, and by their tunnel.
const WAYS: [&[&str]; 2] = [
    &["--connect=listen", "--worker-listen=127.0.0.1:0"],
    &["--connect=dial"],
];

pub fn bench() -> Vec<Figure> {
    let homes = WAYS.map(|_| tempfile::tempdir().unwrap());
    let mut systems = homes
        .each_ref()
        .map(|home| System::orchestrator(home.path()));
    let warm = if has_warm() { WARM } else { 0 };
    for (system, way) in systems.iter_mut().zip(WAYS) {
        system.start_node_at(SLOTS, warm, way);
    }
    let mut figures = latency(&systems, warm);
    figures.extend(logs(&systems));
    drop(systems);
    figures.push(memory());
    figures
}

/// Latency of warm tasks, both ways by turns.
fn latency(systems: &[System; 2], warm: usize) -> Vec<Figure> {
    let mut times = WAYS.map(|_| Times::default());
    for round in 0..=ROUNDS {
        for (system, times) in systems.iter().zip(&mut times) {
            // Refilling is no part of the next way.
            system.wait_warm(warm);
            let taken = time(|| system.api.run_true());
            system.wait_warm(warm);
            // The first round warms caches.
            if round > 0 {
                times.push(taken);
            }
        }
    }
    let [port, tunnel] = times;
    let over = |percent| tunnel.percentile(percent) / port.percentile(percent);
    vec![
        Figure::plain("warm task at a port, p50", "ms", port.median() * 1000.0),
        Figure::lower("warm task by the tunnel, p50", "× at a port", over(50)).at_most(1.15),
        Figure::plain("warm task by the tunnel, p95", "× at a port", over(95)),
    ]
}

/// Throughput of followed logs, both ways by turns.
fn logs(systems: &[System; 2]) -> [Figure; 2] {
    let mut rates = WAYS.map(|_| Vec::new());
    for round in 0..=LOG_ROUNDS {
        for (system, rates) in systems.iter().zip(&mut rates) {
            let rate = log_rate(system);
            // The first round warms caches.
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    let [port, tunnel] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    [
        Figure::plain("followed log at a port", "MB/s", port / 1e6),
        Figure::higher("followed log by the tunnel", "× at a port", tunnel / port).at_least(0.7),
    ]
}

/// Bytes of output a second, from the creation of a task to the end of its log.
fn log_rate(system: &System) -> f64 {
    let script = format!("yes 0123456789abcdef0123456789abcdef | head -c {LOG_BYTES}");
    let began = Instant::now();
    let task = system.api.create(&["sh", "-c", &script]);
    let url = format!(
        "http://{}/v1/tasks/{task}/logs?follow=true",
        system.api.gateway
    );
    let answer = ureq::get(&url)
        .header("authorization", format!("Bearer {}", system.api.token))
        .call();
    let mut reader = answer.unwrap().into_body().into_reader();
    let read = io::copy(&mut reader, &mut io::sink()).unwrap();
    assert!(read >= LOG_BYTES, "{read} bytes are not the whole log");
    LOG_BYTES as f64 / began.elapsed().as_secs_f64()
}

/// Memory of an idle tunnel at the orchestrator.
fn memory() -> Figure {
    raise_file_limit();
    let home = tempfile::tempdir().unwrap();
    let system = System::orchestrator(home.path());
    let control = address(&home.path().join("orchestrator"), "control");
    let mut connection = Connection::open(control);
    let tokens: Vec<_> = (0..TUNNELS).map(|n| register(&mut connection, n)).collect();
    drop(connection);
    let connected = format!("\ncynode_node_tunnels_connected {TUNNELS}\n");
    let all_connected = || system.api.get("/metrics").contains(&connected);
    // The memory of such an answer, with all nodes, is no part of the tunnels.
    (0..3).for_each(|_| assert!(!all_connected()));
    thread::sleep(SETTLE);
    let before = resident(system.orchestrator.id());
    let runtime = Runtime::new().unwrap();
    let healthz = async |_, _| Ok(response::text(StatusCode::OK, "ok"));
    let router = Router::new()
        .route(Method::GET, "/healthz", healthz)
        .build(Arc::new(()), MetricsRegistry::default().requests("bench"));
    let (_stop, stopped) = watch::channel(false);
    let dialer = Dialer::new(Trust::default());
    let url = format!("http://{control}/v1/nodes/tunnel");
    for token in &tokens {
        let identity = DialIdentity {
            token,
            instance: None,
        };
        let stream = runtime.block_on(dialer.dial(&url, identity)).unwrap();
        let (router, stopped) = (router.clone(), stopped.clone());
        runtime.spawn(async move {
            // Its end shows by the count below.
            let _ = tunnel::serve(stream, router, || (), stopped).await;
        });
    }
    wait_for("all tunnels", || all_connected().then_some(()));
    thread::sleep(SETTLE);
    assert!(all_connected(), "idle tunnels stay");
    let each = (resident(system.orchestrator.id()) - before) * 1024.0 / TUNNELS as f64;
    let name = format!("orchestrator, each of {TUNNELS} idle tunnels");
    Figure::lower(name, "KiB", each).at_most(60.0)
}

/// Has this process, and those that it starts, open as many files as the system lets it.
fn raise_file_limit() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    assert!(
        files.maximum.is_none_or(|files| files >= DESCRIPTORS),
        "{TUNNELS} tunnels need {DESCRIPTORS} file descriptors; raise the hard limit (ulimit -Hn)"
    );
}

/// Registers a node, from an address of its own, since new nodes of one address are limited; its token.
fn register(connection: &mut Connection, n: usize) -> String {
    let from = format!("x-forwarded-for: 10.77.{}.{}\r\n", n >> 8 & 255, n & 255);
    let body = json!({"psk": PSK, "capability": capability(&format!("box-{n}"))});
    let (status, body) = connection.call("POST", "/v1/nodes/register", &from, &body.to_string());
    assert_eq!(status, 201, "{body}");
    let bootstrap: Value = serde_json::from_str(&body).unwrap();
    bootstrap["auth"]["node_jwt"].as_str().unwrap().to_owned()
}

/// Report of a node that listens nowhere.
fn capability(slug: &str) -> Value {
    json!({
        "version": 1, "reported_at": "2026-01-01T00:00:00Z", "node": {"node_slug": slug, "labels": []},
        "platform": {"os": "linux", "arch": "amd64"}, "compute": {"cpu_cores": 1, "ram_mb": 1},
        "sandbox": {"supported": true, "max_concurrency": 2}, "worker_api": {"base_url": "", "tunnel": true},
    })
}
