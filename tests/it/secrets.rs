//! Keys, passwords and tokens: in no log, database or argument list, and in files that only their owner reads.

use crate::{
    sandbox::on_host,
    support::{
        Api, Cluster, Orchestrator, PASSWORD, StandIn, Worker, cluster::PSK, eventually, read,
        stand_in::capability, worker::WORKER_TOKEN,
    },
};
use argon2::{Argon2, PasswordHash, PasswordVerifier as _};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .flat_map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                files(&entry.path())
            } else {
                vec![entry.path()]
            }
        })
        .collect()
}

/// A cluster that has used every kind of secret, and these secrets by name.
fn used_cluster() -> (Cluster, Vec<(&'static str, String)>) {
    // The stand-in speaks plain HTTP.
    let flags = ["--trusted-proxy", "127.0.0.1", "--tls", "off"];
    let cluster = Cluster::start_orchestrated(&flags);
    let login = json!({"handle": "admin", "password": PASSWORD});
    let first = cluster
        .orchestrator
        .gateway
        .post("/v1/auth/login", &login)
        .json(200);
    let refresh = json!({"refresh_token": first["refresh_token"]});
    let second = cluster
        .orchestrator
        .gateway
        .post("/v1/auth/refresh", &refresh)
        .json(200);
    let mut stand_in = StandIn::idle(&cluster.orchestrator, "stand-in");
    let node_key = "a key of the machine that stands in";
    stand_in.key = Some(node_key.to_owned());
    stand_in.register();
    let worker_token = stand_in.config()["worker_api"]["orchestrator_bearer_token"].clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut secrets = vec![
        ("password", PASSWORD.to_owned()),
        ("psk", PSK.to_owned()),
        ("access token", cluster.user.token().to_owned()),
        ("access token", text(&first["access_token"])),
        ("access token", text(&second["access_token"])),
        ("refresh token", text(&first["refresh_token"])),
        ("refresh token", text(&second["refresh_token"])),
        ("node token", stand_in.control.token().to_owned()),
        ("worker token", text(&worker_token)),
        ("node key", node_key.to_owned()),
    ];
    for key in files(&cluster.orchestrator.data_dir.join("keys")) {
        secrets.push(("key", read(key).trim().to_owned()));
    }
    assert!(
        secrets.iter().all(|(_, secret)| secret.len() > 15),
        "{secrets:?}"
    );
    (cluster, secrets)
}

#[test]
fn no_secret_in_log_database_or_argv() {
    let (cluster, secrets) = used_cluster();
    // While all of them are in use: a job runs and is followed.
    let mut client = cluster.spawn(&[
        "run",
        "--",
        "sh",
        "-c",
        "echo up; until [ -e go ]; do usleep 5000; done",
    ]);
    eventually("the job runs", || (client.stdout() == "up\n").then_some(()));
    // The client has its token from its own environment; the others have none in theirs.
    for (name, secret) in &secrets {
        let cmdline = |process: &PathBuf| read(process.join("cmdline")).contains(secret.as_str());
        let shown: Vec<_> = on_host(secret)
            .into_iter()
            .filter(|process| cmdline(process) || !process.ends_with(client.pid().to_string()))
            .collect();
        assert_eq!(shown, Vec::<PathBuf>::new(), "{name}");
    }
    fs::write(cluster.node.workspaces()[0].join("workspace/go"), "").unwrap();
    assert_eq!(client.code(), 0);

    let orchestrator = &cluster.orchestrator.data_dir;
    let databases: Vec<PathBuf> = files(orchestrator)
        .into_iter()
        .filter(|path| path.to_str().unwrap().contains("cynode.db"))
        .collect();
    assert!(
        databases.len() >= 2,
        "the database and its log: {databases:?}"
    );
    let logs: Vec<PathBuf> = fs::read_dir(cluster.home())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "stdout" || extension == "stderr")
        })
        .collect();
    assert!(
        logs.iter().any(|log| read(log).contains("DEBUG")),
        "the logs are at their most verbose level"
    );
    for path in databases.iter().chain(&logs) {
        let content = read(path);
        for (name, secret) in &secrets {
            assert!(
                !content.contains(secret.as_str()),
                "a {name} is in {}",
                path.display()
            );
        }
    }
}

/// Words of a file that could be a credential: the file, split at characters that occur in no credential
/// and at those that JSON and logs put around a value.
fn words(path: &Path) -> BTreeSet<String> {
    let text = read(path);
    let cut = |c: char| !(c.is_ascii_alphanumeric() || "-_.$+/=,".contains(c));
    let words = text.split(cut).flat_map(|word| {
        let value = word.split_once('=').map(|(_, value)| value);
        [Some(word), value, Some(word.trim_matches(['.', ',']))]
    });
    let long_enough = |word: &&str| (12..4096).contains(&word.len());
    words
        .flatten()
        .filter(long_enough)
        .map(str::to_owned)
        .collect()
}

/// An attacker with a copy of everything except the keys, and a new address for each try.
struct Thief<'a> {
    cluster: &'a Cluster,
    /// Password hashes in the stolen database.
    hashes: Vec<String>,
    tries: Cell<u32>,
}

impl Thief<'_> {
    fn post(&self, api: &Api, path: &str, body: &Value) -> u16 {
        let n = self.tries.replace(self.tries.get() + 1);
        let from = format!("10.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255);
        let headers = [
            ("Content-Type", "application/json"),
            ("X-Forwarded-For", &from),
        ];
        let reply = api.call("POST", path, &headers, body.to_string().as_bytes());
        assert_ne!(reply.status, 429, "a rate-limited try proves nothing");
        reply.status
    }

    /// Access that a string grants, if any.
    fn opens(&self, word: &str) -> Vec<&'static str> {
        let orchestrator = &self.cluster.orchestrator;
        let (gateway, control) = (&orchestrator.gateway, &orchestrator.control);
        let worker = Api::new(self.cluster.node.url());
        let get = |api: &Api, path: &str| api.with_token(word).get(path).status;
        let register =
            json!({"psk": word, "capability": capability("thief", "http://127.0.0.1:1")});
        let mut opened = vec![
            ("the gateway", get(gateway, "/v1/users/me")),
            ("the control plane", get(control, "/v1/nodes/config")),
            ("the worker", get(&worker, "/v1/worker/jobs")),
            (
                "a session",
                self.post(gateway, "/v1/auth/refresh", &json!({"refresh_token": word})),
            ),
            (
                "a registration",
                self.post(control, "/v1/nodes/register", &register),
            ),
        ];
        // Checks passwords as a login does, without its delays. Ids are recognised by their form.
        let verifies = |hash: &String| {
            let hash = PasswordHash::new(hash).unwrap();
            Argon2::default()
                .verify_password(word.as_bytes(), &hash)
                .is_ok()
        };
        if uuid::Uuid::parse_str(word).is_err() && self.hashes.iter().any(verifies) {
            opened.push(("a login", 200));
        }
        opened.retain(|(_, status)| *status != 401);
        opened.into_iter().map(|(what, _)| what).collect()
    }
}

#[test]
fn stolen_database_and_logs_hold_no_secret() {
    let (cluster, secrets) = used_cluster();
    let id = cluster.script("echo done");
    cluster.finish(&id);
    let database = Connection::open(cluster.orchestrator.data_dir.join("cynode.db")).unwrap();
    let mut rows = database.prepare("SELECT password_hash FROM users").unwrap();
    let hashes = rows.query_map([], |row| row.get(0)).unwrap();
    let thief = Thief {
        cluster: &cluster,
        hashes: hashes.map(Result::unwrap).collect(),
        tries: Cell::new(0),
    };
    let copied = files(cluster.home()).into_iter().filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("cynode.db") || name.ends_with(".stdout") || name.ends_with(".stderr")
    });
    let words: BTreeSet<String> = copied.flat_map(|path| words(&path)).collect();
    assert!(words.len() > 100, "{words:?}");
    for word in &words {
        assert_eq!(thief.opens(word), [""; 0], "{word}");
    }
    // The same tries succeed with the real credentials.
    let real = |name: &str| {
        // The newest first: reuse of an older refresh token ends its session.
        let of_it = secrets.iter().rev().filter(|(known, _)| *known == name);
        of_it
            .flat_map(|(_, secret)| thief.opens(secret))
            .collect::<Vec<_>>()
    };
    assert_eq!(real("password"), ["a login"]);
    assert_eq!(real("psk"), ["a registration"]);
    assert_eq!(real("access token"), ["the gateway"; 3]);
    assert_eq!(real("node token"), ["the control plane"]);
    assert_eq!(
        real("refresh token"),
        ["a session"],
        "the second one; the first is used up"
    );
}

#[test]
fn data_directory_is_private() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("orchestrator");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let orchestrator = Orchestrator::start(home.path(), &[]);
    orchestrator.login();
    assert_eq!(mode(&dir), 0o700, "although it existed");
    let check = |dir: &Path, exempt: &str| {
        for path in files(dir)
            .into_iter()
            .filter(|path| exempt.is_empty() || !path.to_str().unwrap().contains(exempt))
        {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    };
    check(&dir, "");
    drop(orchestrator);
    for path in files(&dir) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    let _orchestrator = Orchestrator::start(home.path(), &[]);
    check(&dir, "");

    let worker = Worker::start(&[]);
    assert_eq!(mode(&worker.data_dir), 0o700);
    check(&worker.data_dir, "/init/");
    assert!(!worker.process.stderr().contains(WORKER_TOKEN));
}
