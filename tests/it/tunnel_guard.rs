//! Tunnels against hostile nodes, hostile orchestrators, and tokens of others.

use crate::{
    support::{
        Api, Node, Orchestrator, OrchestratorStandIn, StandIn, Step,
        cluster::finish,
        eventually, eventually_eq,
        exposition::Exposition,
        orchestrator_stand_in::TUNNEL,
        raw::rest,
        read,
        stage::well,
        stand_in::capability,
        tunnel::{
            CONTINUATION, DATA, END_HEAD, END_STREAM, HEADERS, HostilePeer, PING, PREFACE, PUSH,
            RESET, SETTINGS, TunnelServer, WINDOW, ask, frame,
        },
    },
    tunnel::{view, wait_takes_jobs},
};
use serde_json::json;
use std::{
    io::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Largest memory of an orchestrator under attack, in KiB: far below what the attacks would take if they piled up.
const MEMORY_LIMIT_KIB: u64 = 512 * 1024;
/// Time after which a node gives up a try to open a tunnel.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames of a flood.
const FLOOD: usize = 100_000;

/// Node of this slug that has registered, and gets no jobs since it does not go on.
fn register(orchestrator: &Orchestrator, slug: &str) -> StandIn {
    let mut node = StandIn::idle(orchestrator, slug);
    node.register();
    node
}

/// Waits until the node of this slug has a tunnel, or has none.
fn wait_tunnel(user: &Api, slug: &str, is_expected: bool) {
    let path = format!("/v1/nodes/{slug}");
    eventually_eq(
        &format!("{slug} has a tunnel: {is_expected}"),
        is_expected,
        || user.get(&path).json(200)["via_tunnel"] == true,
    );
}

/// Attacks of a node on the HTTP/2 client of its tunnel, by name.
fn attacks() -> Vec<(&'static str, Vec<u8>)> {
    let flood = |frame: Vec<u8>| frame.repeat(FLOOD);
    // A field `a: b` without an index (RFC 7541, section 6.2.2).
    let fields = [0, 1, b'a', 1, b'b'].repeat(3000);
    let mut endless_head = frame(HEADERS, 0, 1, &fields);
    endless_head.extend(frame(CONTINUATION, 0, 1, &fields).repeat(1000));
    vec![
        ("noise", vec![0xa5; 100_000]),
        ("data-of-no-call", frame(DATA, 0, 0, b"x")),
        ("answer-of-no-call", frame(HEADERS, END_HEAD, 9999, &[0x88])),
        ("push", frame(PUSH, END_HEAD, 1, &[0, 0, 0, 2, 0x82])),
        ("endless-head", endless_head),
        (
            "too-large-window",
            frame(WINDOW, 0, 0, &[0x7f, 0xff, 0xff, 0xff]).repeat(2),
        ),
        (
            "one-call-at-a-time",
            frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]),
        ),
        ("resets", flood(frame(RESET, 0, 1, &[0, 0, 0, 8]))),
        ("pings", flood(frame(PING, 0, 0, &[0; 8]))),
        ("settings", flood(frame(SETTINGS, 0, 0, &[]))),
    ]
}

/// Streams that an orchestrator opens and resets at once.
fn rapid_resets() -> Vec<u8> {
    // `GET /` of the authority `a` (RFC 7541, appendix A).
    let head = [0x82, 0x86, 0x84, 0x41, 1, b'a'];
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    for n in 0..10_000 {
        let stream = 2 * n + 1;
        bytes.extend(frame(HEADERS, END_HEAD | END_STREAM, stream, &head));
        bytes.extend(frame(RESET, 0, stream, &[0, 0, 0, 8]));
    }
    bytes
}

/// Largest memory that a process has had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = read(format!("/proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let size = line.unwrap().trim().trim_end_matches(" kB");
    size.parse().unwrap()
}

#[test]
fn only_nodes_open_tunnels() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    for token in ["", "nonsense", user.token()] {
        let (_, line) = ask(&orchestrator, token);
        assert!(line.starts_with("HTTP/1.1 401 "), "{line}");
    }
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.key = Some("the key of a machine".to_owned());
    node.register();
    let old = node.control.token().to_owned();
    node.register();
    let (_, line) = ask(&orchestrator, &old);
    assert!(line.starts_with("HTTP/1.1 401 "), "{line}");
    let refused = node.control.get("/v1/nodes/tunnel");
    refused.problem(426, "upgrade-required");
    assert_eq!(refused.header("upgrade"), Some("cynode-tunnel"));
    let (_stream, line) = ask(&orchestrator, node.control.token());
    assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
}

#[test]
fn garbage_after_upgrade_is_no_tunnel() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.join();
    wait_takes_jobs(&user);
    let garbage = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nand more than a frame".to_vec(),
        vec![0xff; 100_000],
        vec![0; 100_000],
    ];
    for bytes in garbage {
        let (mut stream, line) = ask(&orchestrator, node.control.token());
        assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
        // It may be closed before all was sent.
        let _ = stream.write_all(&bytes);
        rest(stream);
        let node = view(&user);
        assert_eq!(node["status"], "ready", "{node}");
        assert!(node.get("via_tunnel").is_none(), "{node}");
    }
    // One that says nothing is closed, too.
    let (stream, line) = ask(&orchestrator, node.control.token());
    assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
    rest(stream);
    orchestrator
        .process
        .stderr()
        .find("tunnel refused")
        .unwrap();
}

#[test]
fn newer_connection_replaces_the_one_before() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.join();
    let server = TunnelServer::to(&orchestrator);
    let serve = || server.serve(node.control.token());
    let first = serve();
    wait_tunnel(&user, "box", true);
    let second = serve();
    server.runtime.block_on(first).unwrap();
    assert!(!second.is_finished());
    assert_eq!(view(&user)["via_tunnel"], true);
    node.register();
    server.runtime.block_on(second).unwrap();
    assert!(view(&user).get("via_tunnel").is_none());
}

#[test]
fn hostile_nodes_lose_only_their_tunnels() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut good = StandIn::start(&orchestrator, "box", well);
    good.join();
    wait_takes_jobs(&user);
    thread::scope(|scope| {
        for (slug, bytes) in attacks() {
            let (orchestrator, user) = (&orchestrator, &user);
            scope.spawn(move || {
                let node = register(orchestrator, slug);
                let mut peer = HostilePeer::open(orchestrator, node.control.token());
                wait_tunnel(user, slug, true);
                peer.attack(&bytes);
                // At once where the rules are broken; else since pings get no answer.
                rest(peer.into_stream());
                wait_tunnel(user, slug, false);
            });
        }
        for _ in 0..20 {
            let task = user.post("/v1/tasks", &json!({"command": ["true"]}));
            let task = task.json(201);
            let done = finish(&user, task["id"].as_str().unwrap());
            assert_eq!(done["status"], "completed", "{done}");
        }
    });
    let peak = peak_kib(orchestrator.process.pid());
    assert!(peak < MEMORY_LIMIT_KIB, "{peak} KiB");
}

#[test]
fn connections_of_a_node_are_bounded() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let [greedy, other] = ["greedy", "other"].map(|slug| register(&orchestrator, slug));
    let accepted = |node: &StandIn| {
        let (stream, head) = ask(&orchestrator, node.control.token());
        head.starts_with("HTTP/1.1 101 ")
            .then_some(stream)
            .ok_or(head)
    };
    let open: Vec<_> = (0..8).map(|_| accepted(&greedy).unwrap()).collect();
    let refused = accepted(&greedy).unwrap_err();
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    accepted(&other).unwrap();
    drop(open);
    eventually("there is room again", || accepted(&greedy).ok());
}

#[test]
fn tunnels_leave_room_for_other_calls() {
    let home = tempfile::tempdir().unwrap();
    // Room for 32 connections to each listener.
    let orchestrator = Orchestrator::start_with_files(home.path(), 256, &[]);
    let nodes = (0..5).map(|n| register(&orchestrator, &format!("box-{n}")));
    let nodes: Vec<_> = nodes.collect();
    let open = |node: &StandIn| ask(&orchestrator, node.control.token());
    let tunnels: Vec<_> = (0..28).map(|n| open(&nodes[n / 7])).collect();
    for (_, head) in &tunnels {
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }
    let last = &nodes[4];
    let (_, head) = open(last);
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    last.report(&capability(&last.slug, &last.url)).expect(204);
}

#[test]
fn forgotten_node_loses_its_tunnel() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = StandIn::start(&orchestrator, "box", well);
    node.join();
    let connected = || Exposition::of(&orchestrator.control).value("cynode_node_tunnels_connected");
    assert_eq!(connected(), 0.0);
    let server = TunnelServer::to(&orchestrator);
    let tunnel = server.serve(node.control.token());
    wait_tunnel(&user, "box", true);
    assert_eq!(connected(), 1.0);
    user.call("DELETE", "/v1/nodes/box", &[], b"").expect(204);
    server.runtime.block_on(tunnel).unwrap();
    assert_eq!(connected(), 0.0);
    let (_, head) = ask(&orchestrator, node.control.token());
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
}

#[test]
fn registration_during_upgrade_closes_tunnel() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = register(&orchestrator, "box");
    let peer = HostilePeer::upgrade(&orchestrator, node.control.token());
    node.register();
    rest(peer.answer_first_call().into_stream());
    wait_tunnel(&user, "box", false);
    let log = orchestrator.process.stderr();
    log.find("tunnel closed: the node has registered again")
        .unwrap();
    // The same with a node that is forgotten meanwhile.
    let peer = HostilePeer::upgrade(&orchestrator, node.control.token());
    user.call("DELETE", "/v1/nodes/box", &[], b"").expect(204);
    rest(peer.answer_first_call().into_stream());
    let metrics = Exposition::of(&orchestrator.control);
    assert_eq!(metrics.value("cynode_node_tunnels_connected"), 0.0);
}

#[test]
fn node_ends_while_it_dials() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.offer_tunnel();
    let held = Mutex::new(Vec::new());
    orchestrator.script(move |call, answer| {
        if call.path != TUNNEL {
            return Some(answer);
        }
        held.lock().unwrap().push(answer);
        None
    });
    let mut node = Node::dial(home.path(), "box", &orchestrator.url, &[]);
    eventually("the node dials", || {
        let calls = orchestrator.calls();
        calls.iter().any(|call| call.path == TUNNEL).then_some(())
    });
    let began = Instant::now();
    assert_eq!(node.process.terminate(), 0);
    let elapsed = began.elapsed();
    assert!(elapsed < DIAL_TIMEOUT, "{elapsed:?}");
}

#[test]
fn token_opens_only_its_own_tunnel() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let [one, other] = ["one", "other"].map(|slug| register(&orchestrator, slug));
    let server = TunnelServer::to(&orchestrator);
    let first = server.serve(one.control.token());
    wait_tunnel(&user, "one", true);
    let second = server.serve(other.control.token());
    wait_tunnel(&user, "other", true);
    assert!(!first.is_finished() && !second.is_finished());
    wait_tunnel(&user, "one", true);
}

#[test]
fn node_outlives_hostile_orchestrators() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.offer_tunnel();
    let tries = AtomicUsize::new(0);
    orchestrator.script(move |call, answer| {
        if call.path != TUNNEL {
            return Some(answer);
        }
        let bytes = match tries.fetch_add(1, Ordering::SeqCst) {
            0 => vec![0xa5; 100_000],
            1 => rapid_resets(),
            2 => {
                answer.upgrade("websocket");
                return None;
            }
            _ => return Some(answer),
        };
        // It may be closed before all was sent.
        let _ = answer.upgrade("cynode-tunnel").write_all(&bytes);
        None
    });
    let flags = ["--connect", "auto"];
    let mut node = Node::start(home.path(), "box", &orchestrator.url, &flags);
    let ack = orchestrator.call(Step::Ack, 1);
    assert_eq!(ack.body["status"], "applied", "{ack:?}");
    eventually("all of it was tried", || {
        let calls = orchestrator.calls();
        let tunnels = calls.iter().filter(|call| call.path == TUNNEL);
        (tunnels.count() > 3).then_some(())
    });
    node.process.assert_runs();
    Api::new(node.url()).get("/healthz").expect(200);
}
