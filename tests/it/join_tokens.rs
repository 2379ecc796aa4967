//! Join tokens: new nodes join by them once; guesses, replays and tokens that ended are refused.

use crate::support::{
    Api, Node, Orchestrator, Reply,
    client::fails,
    cynode, eventually,
    process::{Done, run},
    read,
    stand_in::capability,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

const PATH: &str = "/v1/join-tokens";
const KEY: &str = "a key of this machine";
const OTHER: &str = "a key of another machine";

/// A token as the orchestrator answered it.
struct Token {
    text: String,
    id: String,
    content: Value,
}

impl Token {
    fn create(admin: &Api, orchestrator: &Orchestrator, mut body: Value) -> Self {
        if body["url"].is_null() {
            body["url"] = orchestrator.control_url.as_str().into();
        }
        let answer = admin.post(PATH, &body).json(201);
        let text = answer["token"].as_str().unwrap().to_owned();
        let json = URL_SAFE_NO_PAD.decode(text.strip_prefix("cyj_").unwrap());
        Self {
            content: serde_json::from_slice(&json.unwrap()).unwrap(),
            id: answer["id"].as_str().unwrap().to_owned(),
            text,
        }
    }

    fn secret(&self) -> &str {
        self.content["s"].as_str().unwrap()
    }
}

/// Registers a node of this slug, and key, with this secret.
fn register(control: &Api, secret: &str, slug: &str, key: &str) -> Reply {
    let report = capability(slug, "http://127.0.0.1:1");
    let body = json!({"psk": secret, "node_key": key, "capability": report});
    control.post("/v1/nodes/register", &body)
}

/// Fails unless the registration is refused with these words, and with advice.
#[track_caller]
fn refused(reply: &Reply, words: &str) {
    let problem = reply.problem(403, "forbidden");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(words), "{detail}");
    assert!(detail.contains("cynode nodes token create"), "{detail}");
}

fn start(home: &Path) -> (Orchestrator, Api) {
    let orchestrator = Orchestrator::start(home, &[]);
    let admin = orchestrator.login();
    (orchestrator, admin)
}

/// Lets all tokens expire.
fn expire(orchestrator: &Orchestrator) {
    let database = Connection::open(orchestrator.data_dir.join("cynode.db")).unwrap();
    let sql = "UPDATE join_tokens SET expires_at = 1";
    assert!(database.execute(sql, []).unwrap() > 0);
}

#[test]
fn replayed_token_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, admin) = start(home.path());
    let token = Token::create(&admin, &orchestrator, json!({}));
    assert_eq!(token.content["u"], orchestrator.control_url);
    let join = |slug: &str, key: &str| register(&orchestrator.control, token.secret(), slug, key);
    join("box", KEY).json(201);
    join("box", KEY).json(200);
    refused(&join("box", OTHER), "used up");
    refused(&join("other", KEY), "used up");
    let list = admin.get(PATH).json(200);
    let shown = &list["tokens"][0];
    assert_eq!(shown["status"], "used_up");
    assert_eq!(
        (&shown["used"], &shown["nodes"]),
        (&json!(1), &json!(["box"]))
    );
    // The node itself, as it starts again: the secret is in the head, too.
    let again = json!({"psk": token.secret(), "node_key": KEY, "capability": capability("box", "http://127.0.0.1:1")});
    let control = orchestrator.control.with_token(token.secret());
    control.post("/v1/nodes/register", &again).json(200);
}

#[test]
fn ended_tokens_say_why() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, admin) = start(home.path());
    let create = |body| Token::create(&admin, &orchestrator, body);
    let (bound, removed) = (create(json!({"slug": "box"})), create(json!({"uses": 2})));
    let join =
        |token: &Token, slug: &str| register(&orchestrator.control, token.secret(), slug, KEY);
    refused(&join(&bound, "other"), "only for the node box");
    join(&bound, "box").json(201);
    join(&removed, "gone").json(201);
    let path = format!("{PATH}/{}", removed.id);
    admin.call("DELETE", &path, &[], b"").expect(204);
    admin.call("DELETE", &path, &[], b"").expect(404);
    refused(&join(&removed, "gone"), "was removed");
    admin.get("/v1/nodes/gone").expect(200);
    let late = create(json!({"uses": 2}));
    join(&late, "early").json(201);
    expire(&orchestrator);
    refused(&join(&late, "late"), "expired at");
    join(&late, "early").json(200);
    let list = admin.get(PATH).json(200);
    assert_eq!(list["tokens"].as_array().unwrap().len(), 2, "{list}");
    assert_eq!(list["tokens"][0]["status"], "expired");
}

#[test]
fn last_use_goes_to_one_of_many() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, admin) = start(home.path());
    let token = Token::create(&admin, &orchestrator, json!({"uses": 2}));
    let (control, token) = (&orchestrator.control, &token);
    let mut statuses: Vec<u16> = thread::scope(|scope| {
        let joining = (0..8).map(|n| {
            let slug = format!("box-{n}");
            scope.spawn(move || register(control, token.secret(), &slug, KEY).status)
        });
        let joining: Vec<_> = joining.collect();
        let joined = joining.into_iter().map(|thread| thread.join().unwrap());
        joined.collect()
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 201, 403, 403, 403, 403, 403, 403]);
}

/// Asserts that guesses are slowed after five. The wait doubles, so that a slow machine meets one that is long enough.
fn assert_slowed(refused: u16, guess: impl Fn() -> u16) {
    for _ in 0..5 {
        assert_eq!(guess(), refused);
    }
    eventually("guesses are slowed", || (guess() == 429).then_some(()));
}

#[test]
fn guessed_tokens_are_slowed() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, admin) = start(home.path());
    let token = Token::create(&admin, &orchestrator, json!({}));
    let guess = "A".repeat(43);
    assert_slowed(401, || {
        register(&orchestrator.control, &guess, "box", KEY).status
    });
    register(&orchestrator.control, token.secret(), "box", KEY).expect(429);
}

#[test]
fn token_makes_no_guess_free() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, admin) = start(home.path());
    let token = Token::create(&admin, &orchestrator, json!({}));
    register(&orchestrator.control, token.secret(), "box", KEY).json(201);
    let control = orchestrator.control.with_token(&"A".repeat(43));
    assert_slowed(403, || {
        register(&control, token.secret(), "box", OTHER).status
    });
}

#[test]
fn node_needs_key_with_token() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, admin) = start(home.path());
    let token = Token::create(&admin, &orchestrator, json!({}));
    let report = capability("box", "http://127.0.0.1:1");
    let body = json!({"psk": token.secret(), "capability": report});
    let reply = orchestrator.control.post("/v1/nodes/register", &body);
    let problem = reply.problem(400, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "#/node_key");
    register(&orchestrator.control, token.secret(), "box", KEY).expect(201);
}

#[test]
fn token_needs_admin_and_url() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, admin) = start(home.path());
    let url = admin.act(PATH).problem(400, "invalid-request");
    assert_eq!(url["errors"][0]["pointer"], "#/url");
    let ann = orchestrator.add_user(&admin, "ann");
    for (method, path) in [
        ("POST", PATH),
        ("GET", PATH),
        (
            "DELETE",
            "/v1/join-tokens/0198c0de-0000-7000-8000-000000000001",
        ),
    ] {
        ann.call(method, path, &[], b"").problem(403, "forbidden");
    }
    drop(orchestrator);
    let flags = ["--public-url", "http://box.example:7/"];
    let orchestrator = Orchestrator::start(home.path(), &flags);
    let answer = orchestrator.login().act(PATH).json(201);
    let text = answer["token"].as_str().unwrap();
    let json = URL_SAFE_NO_PAD.decode(&text["cyj_".len()..]).unwrap();
    let content: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(content["u"], "http://box.example:7");
}

/// Files below a directory that hold this text.
fn files_with(dir: &Path, text: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let found = entries.flat_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            files_with(&path, text)
        } else {
            Vec::from_iter(read(&path).contains(text).then_some(path))
        }
    });
    found.collect()
}

#[test]
fn token_secret_is_kept_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, admin) = start(home.path());
    let token = Token::create(&admin, &orchestrator, json!({}));
    register(&orchestrator.control, token.secret(), "box", KEY).json(201);
    let shown = [
        admin.get(PATH).text(),
        admin.get("/v1/audit").text(),
        admin.get("/v1/nodes").text(),
    ];
    for text in &shown {
        assert!(!text.contains(token.secret()) && !text.contains(&token.text));
    }
    for event in ["join_token.create", &token.id] {
        assert!(shown[1].contains(event), "{event}: {}", shown[1]);
    }
    for secret in [token.secret(), &token.text] {
        assert_eq!(files_with(home.path(), secret), Vec::<PathBuf>::new());
    }
    assert!(!files_with(home.path(), &token.id).is_empty());
}

/// Runs a client command of the admin.
fn cli(home: &Path, orchestrator: &Orchestrator, admin: &Api, arguments: &[&str]) -> Done {
    run(cynode(home)
        .args(arguments)
        .env("CYNODE_GATEWAY_URL", &orchestrator.gateway_url)
        .env("CYNODE_TOKEN", admin.token()))
}

#[test]
fn token_commands_create_list_and_remove() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, admin) = start(home.path());
    let cli = |arguments: &[&str]| {
        let arguments = [&["nodes", "token"][..], arguments].concat();
        cli(home.path(), &orchestrator, &admin, &arguments)
    };
    fails(&cli(&["create"]), 6, "--url");
    let url = ["--url", orchestrator.control_url.as_str()];
    fails(&cli(&["create", "--slug", "Box"]), 6, "--slug must be");
    fails(
        &cli(&["create", "--expires", "900d"]),
        6,
        "--expires must be",
    );
    assert_eq!(cli(&["create", "--uses", "0"]).code, 2);
    let created = cli(&[&["create", "--uses", "3", "--slug", "box"][..], &url].concat());
    assert_eq!(created.code, 0, "{created:?}");
    let token = created.stdout.trim();
    let command = "cynode node --join-file FILE --slug box\n";
    assert!(
        token.starts_with("cyj_") && created.stderr.contains(command),
        "{created:?}"
    );
    assert!(!created.stderr.contains(token), "{created:?}");
    assert!(created.stderr.contains("shown only once"), "{created:?}");
    let list = cli(&["list"]);
    assert!(
        list.stdout.contains("0 of 3") && list.stdout.contains("in 59m"),
        "{list:?}"
    );
    assert!(!list.stdout.contains(token), "{list:?}");
    let list = cli(&["list", "-o", "json"]);
    let list: Value = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!(list["tokens"][0]["slug"], "box");
    let id = list["tokens"][0]["id"].as_str().unwrap();
    assert_eq!(cli(&["rm", id]).code, 0);
    fails(&cli(&["rm", id]), 4, "join token");
    fails(&cli(&["rm", "box"]), 4, "cynode nodes token list");
}

/// Waits until a node says this.
fn says(node: &mut Node, text: &str) {
    eventually(text, || {
        node.process.assert_runs();
        node.process.stderr().contains(text).then_some(())
    });
}

#[test]
fn node_joins_by_token_and_returns() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, admin) = start(home.path());
    let token = Token::create(&admin, &orchestrator, json!({}));
    let file = home.path().join("token");
    fs::write(&file, format!("{}\n", token.text)).unwrap();
    let flags = ["--join-file", file.to_str().unwrap()];
    let join = |slug: &str| Node::join(home.path(), slug, &flags);
    let mut node = join("box");
    says(&mut node, "the node takes jobs");
    assert!(!node.process.stderr().contains("process's arguments"));
    assert_eq!(node.process.terminate(), 0);
    expire(&orchestrator);
    let mut node = join("box");
    says(&mut node, "the node takes jobs");
    let mut other = join("other");
    assert_eq!(other.process.code(), 3);
    assert!(
        other.process.stderr().contains("used up"),
        "{}",
        other.process.stderr()
    );
    for secret in [token.secret(), &token.text] {
        assert!(!node.process.stderr().contains(secret));
    }
    assert_eq!(node.process.terminate(), 0);
}

#[test]
fn node_of_unknown_token_ends_with_advice() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, _admin) = start(home.path());
    let secret = "A".repeat(43);
    let content = json!({"v": 1, "u": orchestrator.control_url, "s": secret}).to_string();
    let token = format!("cyj_{}", URL_SAFE_NO_PAD.encode(content));
    let mut node = Node::join(home.path(), "box", &["--join", &token]);
    assert_eq!(node.process.code(), 3);
    let stderr = node.process.stderr();
    let warned = stderr
        .lines()
        .any(|line| line.contains("WARN") && line.contains("arguments"));
    assert!(warned, "{stderr}");
    for words in [
        "does not know this node's join token",
        "cynode nodes token create",
    ] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    assert!(
        !stderr.contains(&secret) && !stderr.contains(&token),
        "{stderr}"
    );
}

#[test]
fn contradicting_and_damaged_tokens_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let secret = "A".repeat(43);
    let text = |version: u32| {
        let content = json!({"v": version, "u": "http://127.0.0.1:1", "s": secret});
        format!("cyj_{}", URL_SAFE_NO_PAD.encode(content.to_string()))
    };
    let (good, newer) = (text(1), text(2));
    let cases: [(&[&str], &str); 5] = [
        (
            &["--join", &good, "--orchestrator", "http://127.0.0.1:2"],
            "leave out --orchestrator",
        ),
        (
            &["--join", &good, "--psk", "a key of many characters"],
            "leave out --orchestrator",
        ),
        (&["--join", &good[..40]], "is damaged"),
        (&["--join", "cyk_other"], "does not begin with cyj_"),
        (&["--join", &newer], "made by a newer cynode"),
    ];
    for (flags, words) in cases {
        let mut node = Node::join(home.path(), "box", flags);
        assert_eq!(node.process.code(), 2, "{flags:?}");
        let stderr = node.process.stderr();
        assert!(stderr.contains(words), "{flags:?}: {stderr}");
        assert!(!stderr.contains(&secret), "{stderr}");
    }
}
