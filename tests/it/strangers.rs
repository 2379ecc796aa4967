//! Limits of callers without credentials: connections and guesses.

use crate::support::{
    Api, Orchestrator, eventually,
    raw::{connect_from, connect_to, is_open, rest},
};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Sends a request and reads the start of its answer; returns the status, or 0 if the connection was closed.
fn status(stream: &mut TcpStream, request: &[u8]) -> u16 {
    let mut start = [0; 12];
    let sent = stream.write_all(request);
    match sent.and_then(|()| stream.read_exact(&mut start)) {
        Ok(()) => std::str::from_utf8(&start[9..]).unwrap().parse().unwrap(),
        Err(_) => 0,
    }
}

/// Opens `each` connections from each of `addresses` addresses, and sends part of a head on each.
fn half_open(api: &Api, addresses: u8, each: usize) -> Vec<TcpStream> {
    let of = |address: u8| {
        (0..each).map(move |_| {
            let mut stream = connect_from([127, 0, 7, address], api);
            // A refusal may be on its way already.
            let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-a:");
            stream
        })
    };
    (1..=addresses).flat_map(of).collect()
}

#[test]
fn half_sent_heads_block_no_new_client() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    for listener in [&orchestrator.gateway, &orchestrator.control] {
        let all = half_open(listener, 80, 40);
        let began = Instant::now();
        for last in 1..=50 {
            let mut newcomer = connect_from([127, 0, 8, last], listener);
            assert_eq!(status(&mut newcomer, HEALTH), 200, "newcomer {last}");
        }
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "{:?}",
            began.elapsed()
        );
        let left = all.iter().filter(|stream| is_open(stream)).count();
        assert!(left < 2048, "{left} are held");
    }
}

#[test]
fn unknown_address_gets_32_connections() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (gateway, from) = (&orchestrator.gateway, [127, 0, 0, 9]);
    let token = orchestrator.login().token().to_owned();
    let open = || {
        let mut stream = connect_from(from, gateway);
        (status(&mut stream, HEALTH), stream)
    };
    let mut kept: Vec<_> = (0..32).map(|_| open()).collect();
    assert!(kept.iter().all(|(status, _)| *status == 200));
    let refused = eventually("a connection beyond the limit is refused", || {
        let answer = rest(connect_from(from, gateway));
        (!answer.is_empty()).then_some(answer)
    });
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(
        refused.to_lowercase().contains("\r\nretry-after: 1\r\n"),
        "{refused}"
    );
    // Valid credentials on one connection make its address known.
    let request = format!(
        "GET /v1/users/me HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    let (_, mut first) = kept.swap_remove(0);
    first.write_all(request.as_bytes()).unwrap();
    assert!(rest(first).contains("HTTP/1.1 200 "));
    kept.extend((0..100).map(|_| open()));
    assert!(kept.iter().all(|(status, _)| *status == 200));
}

#[test]
fn idle_connections_make_room_for_same_address() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let kept: Vec<TcpStream> = (0..32).map(|_| connect_to(&orchestrator.control)).collect();
    eventually("another connection is accepted", || {
        let reply = orchestrator.control.try_call("GET", "/healthz", &[], b"");
        reply.ok().filter(|reply| reply.status == 200)
    });
    let left = kept.iter().filter(|stream| is_open(stream)).count();
    assert!((1..32).contains(&left), "{left}");
}

#[test]
fn unsent_bodies_of_one_user_block_no_other() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let gateway = &orchestrator.gateway;
    let admin = orchestrator.login();
    let eve = orchestrator.add_user(&admin, "eve");
    let begun = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: 50\r\nauthorization: Bearer {}\r\n\r\n{{",
        eve.token()
    );
    let hold = |from: u8| {
        let mut stream = connect_from([127, 0, 0, from], gateway);
        // A refusal may be on its way already.
        let _ = stream.write_all(begun.as_bytes());
        stream
    };
    let all: Vec<_> = (0..256 * 4).map(|n| hold(1 + (n / 256) as u8)).collect();
    let answer = eventually("the answer advises her to send fewer", || {
        let answer = all.iter().rev().find_map(|stream| {
            stream.set_nonblocking(true).unwrap();
            let mut start = [0; 4096];
            { stream }
                .read(&mut start)
                .ok()
                .filter(|n| *n > 0)
                .map(|n| String::from_utf8_lossy(&start[..n]).into_owned())
        });
        answer.filter(|answer| answer.contains("of your requests"))
    });
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    for _ in 0..20 {
        admin.get("/v1/users/me").expect(200);
        gateway.get("/healthz").expect(200);
    }
}

#[test]
fn unfinished_head_is_cut_off_in_ten_seconds() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let began = Instant::now();
    let [silent, idle] = [(); 2].map(|()| connect_to(&orchestrator.gateway));
    (&idle).write_all(HEALTH).unwrap();
    assert_eq!(rest(silent), "");
    assert!(rest(idle).starts_with("HTTP/1.1 200 "));
    let took = began.elapsed().as_secs();
    assert!((9..20).contains(&took), "{took} s");
}

#[test]
fn loopback_addresses_share_guess_limit() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let login = |from: u8, password: &str| {
        let body = format!(r#"{{"handle":"admin","password":"{password}"}}"#);
        let request = format!(
            "POST /v1/auth/login HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        status(
            &mut connect_from([127, 0, 0, from], &orchestrator.gateway),
            request.as_bytes(),
        )
    };
    for from in 2..=6 {
        assert_eq!(login(from, "a guess"), 401);
    }
    assert_eq!(login(7, "a guess"), 429);
    let register = |from: u8| {
        let body =
            r#"{"psk":"a guess at the key","capability":{"version":1,"node":{"node_slug":"a"}}}"#;
        let request = format!(
            "POST /v1/nodes/register HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        status(
            &mut connect_from([127, 0, 0, from], &orchestrator.control),
            request.as_bytes(),
        )
    };
    for from in 2..=6 {
        assert_eq!(register(from), 401);
    }
    assert_eq!(register(7), 429);
}
