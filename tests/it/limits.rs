//! Limits of the gateway: storms, floods, slow clients, full queues.

use crate::support::{
    Api, Node, Orchestrator, PASSWORD,
    cluster::{finish, wait_ready},
    eventually,
    raw::{connect_to, rest},
};
use serde_json::{Value, json};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

/// Answer to a login whose X-Forwarded-For names this address.
fn guess(gateway: &Api, from: &str, handle: &str) -> crate::support::Reply {
    let login = json!({"handle": handle, "password": "a guess"});
    let headers = [
        ("Content-Type", "application/json"),
        ("X-Forwarded-For", from),
    ];
    gateway.call(
        "POST",
        "/v1/auth/login",
        &headers,
        login.to_string().as_bytes(),
    )
}

#[test]
fn only_trusted_proxies_are_believed() {
    let home = tempfile::tempdir().unwrap();
    let trusting = Orchestrator::start(home.path(), &["--trusted-proxy", "127.0.0.0/8"]);
    let gateway = &trusting.gateway;
    for _ in 0..5 {
        guess(gateway, "203.0.113.1", "admin").expect(401);
    }
    guess(gateway, "203.0.113.1", "admin").problem(429, "too-many-requests");
    // The client's own entries precede the one of the proxy.
    guess(gateway, "198.51.100.1, 203.0.113.1", "admin").problem(429, "too-many-requests");
    guess(gateway, "203.0.113.1, 198.51.100.1", "admin").expect(401);
    let admin = trusting.login();
    let log = admin.get("/v1/audit?action=auth.login").json(200);
    assert_eq!(log["events"][1]["address"], "198.51.100.1");
    drop(trusting);

    let wary = Orchestrator::start(home.path(), &[]);
    for n in 0..5 {
        guess(&wary.gateway, &format!("203.0.113.{n}"), "admin").expect(401);
    }
    guess(&wary.gateway, "203.0.113.99", "admin").problem(429, "too-many-requests");
}

#[test]
fn distributed_guesses_do_not_lock_accounts() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--trusted-proxy", "127.0.0.1"]);
    for n in 0..40 {
        guess(&orchestrator.gateway, &format!("203.0.113.{n}"), "admin").expect(401);
    }
    let login = json!({"handle": "admin", "password": PASSWORD}).to_string();
    let headers = [
        ("Content-Type", "application/json"),
        ("X-Forwarded-For", "198.51.100.1"),
    ];
    let gateway = &orchestrator.gateway;
    gateway
        .call("POST", "/v1/auth/login", &headers, login.as_bytes())
        .expect(200);
}

#[test]
fn request_rate_is_limited_per_user() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--user-rate", "1"]);
    let admin = orchestrator.login();
    let ann = json!({"handle": "ann", "password": "a good password"});
    admin.post("/v1/users", &ann).expect(201);
    let refused = (0..20)
        .map(|_| admin.get("/v1/users/me"))
        .find(|reply| reply.status != 200)
        .unwrap();
    refused.problem(429, "too-many-requests");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let tokens = orchestrator.gateway.post("/v1/auth/login", &ann).json(200);
    let ann = orchestrator
        .gateway
        .with_token(tokens["access_token"].as_str().unwrap());
    ann.get("/v1/users/me").expect(200);
}

#[test]
fn full_queue_refuses_tasks_until_one_starts() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--max-queued", "3", "--max-queued-per-user", "2"];
    let orchestrator = Orchestrator::start(home.path(), &flags);
    let admin = orchestrator.login();
    let mut users = vec![admin.clone()];
    users.extend(["ann", "bob"].map(|handle| orchestrator.add_user(&admin, handle)));
    let task = json!({"script": "true"});
    let create = |user: &Api, key: &str| {
        let headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", key),
        ];
        user.call("POST", "/v1/tasks", &headers, task.to_string().as_bytes())
    };
    let first = create(&users[0], "a").json(201);
    create(&users[0], "b").expect(201);
    let full = create(&users[0], "c");
    let detail = full.problem(429, "queue-full")["detail"].clone();
    assert!(
        detail.as_str().unwrap().starts_with("your queue"),
        "{detail}"
    );
    assert!(full.header("retry-after").is_some());
    assert_eq!(
        create(&users[0], "a").json(201)["id"],
        first["id"],
        "accepted tasks stay accepted"
    );
    create(&users[1], "a").expect(201);
    let detail = create(&users[2], "a").problem(429, "queue-full")["detail"].clone();
    assert!(detail.as_str().unwrap().contains("all users"), "{detail}");
    let count = |admin: &Api| {
        admin.get("/v1/tasks").json(200)["tasks"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(count(&admin), 3, "no task is stored in part");
    let cancel = format!("/v1/tasks/{}/cancel", first["id"].as_str().unwrap());
    admin.act(&cancel).expect(200);
    create(&users[2], "a").expect(201);
    // Many requests at the same time, for one free place.
    let second = admin.get("/v1/tasks?status=queued").json(200)["tasks"][0]["id"].clone();
    admin
        .act(&format!("/v1/tasks/{}/cancel", second.as_str().unwrap()))
        .expect(200);
    let statuses: Vec<u16> = thread::scope(|scope| {
        let keys = [0, 1, 2, 3, 4, 5, 6, 7].map(|n| format!("at once {n}"));
        let all = keys.map(|key| scope.spawn(|| create(&users[1], &{ key }).status));
        all.map(|one| one.join().unwrap()).into()
    });
    assert_eq!(
        statuses.iter().filter(|status| **status == 201).count(),
        1,
        "{statuses:?}"
    );
}

#[test]
fn started_task_makes_room_in_queue() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--max-queued-per-user", "1"];
    let orchestrator = Orchestrator::start(home.path(), &flags);
    let user = orchestrator.login();
    let _node = Node::start(home.path(), "box", &orchestrator.control_url, &[]);
    wait_ready(&orchestrator);
    for _ in 0..5 {
        // Each task leaves the queue as soon as it starts.
        let id = eventually("the queue has room", || {
            let reply = user.post("/v1/tasks", &json!({"script": "true"}));
            (reply.status == 201).then(|| reply.json(201)["id"].as_str().unwrap().to_owned())
        });
        assert_eq!(finish(&user, &id)["status"], "completed");
    }
}

#[test]
fn half_open_connections_block_no_client() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let half_open: Vec<TcpStream> = (0..200)
        .map(|n| {
            let mut stream = connect_to(&orchestrator.gateway);
            // Some connections send nothing, some stop in their first line, some in their headers.
            let begun: &[u8] = match n % 3 {
                0 => b"",
                1 => b"GET /v1/ta",
                _ => b"GET /v1/tasks HTTP/1.1\r\nhost: localhost\r\nx-a:",
            };
            stream.write_all(begun).unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        admin.get("/v1/tasks").expect(200);
        admin
            .post("/v1/tasks", &json!({"script": "true"}))
            .expect(201);
    }
    drop(half_open);
}

#[test]
fn one_address_cannot_take_all_connections() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--trusted-proxy", "127.0.0.2"]);
    // A known address gets more than an unknown one.
    orchestrator.login();
    let mut open = Vec::new();
    let refused = loop {
        let mut stream = connect_to(&orchestrator.gateway);
        assert!(open.len() < 2000, "connections have no limit");
        // The head of a request whose body never arrives.
        let login = "POST /v1/auth/login HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                     content-length: 9\r\nexpect: 100-continue\r\n\r\n";
        stream.write_all(login.as_bytes()).unwrap();
        let mut head = [0; 12];
        match stream.read_exact(&mut head) {
            Ok(()) if head == *b"HTTP/1.1 100" => open.push(stream),
            _ => break String::from_utf8_lossy(&head).into_owned(),
        }
    };
    // The connection may have been reset before the answer was read.
    assert!(
        refused.contains("503") || refused.starts_with('\0'),
        "{refused:?}"
    );
    assert!(open.len() >= 200, "only {} were accepted", open.len());
    open.truncate(open.len() - 5);
    eventually("connections are accepted again", || {
        let reply = orchestrator
            .gateway
            .try_call("GET", "/healthz", &[], b"")
            .ok()?;
        (reply.status == 200).then_some(())
    });
}

#[test]
fn slow_client_is_disconnected() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let token = admin.token().to_owned();
    // All slow clients run in parallel, since each takes long.
    let silent = connect_to(&orchestrator.gateway);
    let in_the_head = connect_to(&orchestrator.gateway);
    let in_the_body = connect_to(&orchestrator.gateway);
    let after_an_answer = connect_to(&orchestrator.gateway);
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    (&in_the_head)
        .write_all(b"GET /healthz HTTP/1.1\r\nx-a: ")
        .unwrap();
    (&in_the_body).write_all(head.as_bytes()).unwrap();
    (&after_an_answer)
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let trickle = in_the_head.try_clone().unwrap();
    let trickling = thread::spawn(move || {
        // A byte now and then doesn't extend the time limit.
        while (&trickle).write_all(b"x").is_ok() {
            thread::park_timeout(Duration::from_millis(500));
        }
    });
    let body = rest(in_the_body);
    assert!(body.starts_with("HTTP/1.1 400"), "{body}");
    assert!(body.contains("did not arrive within"), "{body}");
    for stream in [silent, in_the_head] {
        let answer = rest(stream);
        assert!(!answer.contains("200"), "{answer}");
    }
    assert!(rest(after_an_answer).starts_with("HTTP/1.1 200"));
    trickling.join().unwrap();
    let listed: Value = admin.get("/v1/tasks").json(200);
    assert_eq!(listed["tasks"], json!([]));
}

#[test]
fn malformed_request_is_reported() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    for nonsense in [
        // A client that speaks TLS.
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nhost: localhost\r\n\r\n",
    ] {
        for listener in [&orchestrator.gateway, &orchestrator.control] {
            let mut stream = connect_to(listener);
            stream.write_all(nonsense).unwrap();
            let answer = rest(stream);
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        }
    }
    // Also after a valid request on the same connection.
    let mut stream = connect_to(&orchestrator.gateway);
    let both = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nnonsense\r\n\r\n";
    stream.write_all(both).unwrap();
    let answers = rest(stream);
    assert!(answers.starts_with("HTTP/1.1 200 OK\r\n"), "{answers}");
    assert!(answers.contains("HTTP/1.1 400 "), "{answers}");
}

#[test]
fn oversized_heads_and_bodies_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let large = "x".repeat(200_000);
    let mut stream = connect_to(&orchestrator.gateway);
    let head = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-large: {large}\r\n\r\n");
    // The server may close the connection before it has read everything.
    let _ = stream.write_all(head.as_bytes());
    let answer = rest(stream);
    // A reset may overtake the answer.
    if !answer.is_empty() {
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    let mut stream = connect_to(&orchestrator.gateway);
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        admin.token(),
        15 << 20
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413", "refused before the body is sent");
}
