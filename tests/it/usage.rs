//! Sums of the use of models: who sees which, and how they are asked for.

use crate::support::{Orchestrator, PASSWORD, cynode, process::run};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

/// First millisecond of 2026-01-31.
const DAY: i64 = 1_769_817_600_000;

/// An orchestrator whose users asked models: ann on two days, the admin on one.
fn start(home: &tempfile::TempDir) -> Orchestrator {
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let ann = orchestrator.add_user(&admin, "ann");
    let [admin, ann] = [&admin, &ann].map(|user| user.get("/v1/users/me").json(200)["id"].clone());
    drop(orchestrator);
    let database = Connection::open(home.path().join("orchestrator/cynode.db")).unwrap();
    let key = "01a20920-0a58-729a-992b-cb26c90fd979";
    for (user, day, key, name, model, tokens) in [
        (&ann, 0, "", "", "tiny", 10),
        (&ann, 0, key, "ci", "tiny", 20),
        (&ann, 1, key, "ci", "big:70b", 30),
        (&admin, 1, "", "", "tiny", 40),
    ] {
        let sql = "INSERT INTO inference_usage (user_id, day, key_id, key_name, model, requests, prompt_tokens, completion_tokens)
                   VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, 1)";
        let day = DAY + day * 86_400_000;
        database
            .execute(
                sql,
                params![user.as_str().unwrap(), day, key, name, model, tokens],
            )
            .unwrap();
    }
    drop(database);
    Orchestrator::start(home.path(), &[])
}

const RANGE: &str = "since=2026-01-31&until=2026-02-01";

/// Sums as rows of their fields.
fn rows(usage: &Value, fields: &[&str]) -> Vec<Value> {
    let sums = usage["usage"].as_array().unwrap().iter();
    sums.map(|sum| fields.iter().map(|field| sum[*field].clone()).collect())
        .collect()
}

#[test]
fn users_see_own_use_and_admins_all() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = start(&home);
    let admin = orchestrator.login();
    let login = json!({"handle": "ann", "password": PASSWORD});
    let tokens = orchestrator
        .gateway
        .post("/v1/auth/login", &login)
        .json(200);
    let ann = admin.with_token(tokens["access_token"].as_str().unwrap());
    let fields = [
        "user",
        "key_name",
        "model",
        "requests",
        "prompt_tokens",
        "completion_tokens",
    ];
    let hers = [
        json!(["ann", null, "tiny", 1, 10, 1]),
        json!(["ann", "ci", "big:70b", 1, 30, 1]),
        json!(["ann", "ci", "tiny", 1, 20, 1]),
    ];
    let usage = ann.get(&format!("/v1/usage?{RANGE}")).json(200);
    assert_eq!(rows(&usage, &fields), hers);
    assert_eq!(
        (&usage["since"], &usage["until"]),
        (&json!("2026-01-31"), &json!("2026-02-01"))
    );
    let usage = admin.get(&format!("/v1/usage?{RANGE}")).json(200);
    assert_eq!(
        rows(&usage, &fields)[0],
        json!(["admin", null, "tiny", 1, 40, 1])
    );
    assert_eq!(rows(&usage, &fields)[1..], hers);
    let usage = admin.get(&format!("/v1/usage?{RANGE}&user=ann")).json(200);
    assert_eq!(rows(&usage, &fields), hers);
    let usage = ann.get(&format!("/v1/usage?{RANGE}&user=admin")).json(200);
    assert_eq!(usage["usage"], json!([]));
}

#[test]
fn sums_of_use_are_paged_and_checked() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = start(&home);
    let admin = orchestrator.login();
    let mut path = format!("/v1/usage?{RANGE}&by=day,model&limit=2");
    let page = admin.get(&path).json(200);
    let fields = ["day", "model", "prompt_tokens"];
    assert_eq!(
        rows(&page, &fields),
        [
            json!(["2026-02-01", "big:70b", 30]),
            json!(["2026-02-01", "tiny", 40])
        ]
    );
    path += &format!("&cursor={}", page["next_cursor"].as_str().unwrap());
    let page = admin.get(&path).json(200);
    assert_eq!(rows(&page, &fields), [json!(["2026-01-31", "tiny", 30])]);
    assert_eq!(page["next_cursor"], "");
    assert_eq!(
        admin.get("/v1/usage?until=2026-01-30").json(200)["since"],
        "2026-01-01"
    );
    for wrong in [
        "by=",
        "by=node",
        "by=day,day",
        "since=yesterday",
        "since=2026-02-02&until=2026-02-01",
        "cursor=x",
        "limit=0",
    ] {
        admin
            .get(&format!("/v1/usage?{wrong}"))
            .problem(400, "invalid-request");
    }
}

#[test]
fn usage_command_prints_sums_and_total() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = start(&home);
    let admin = orchestrator.login();
    let cli = |more: &[&str]| {
        let arguments = [
            &["usage", "--since", "2026-01-31", "--until", "2026-02-01"],
            more,
        ]
        .concat();
        let done = run(cynode(home.path())
            .args(arguments)
            .env("CYNODE_GATEWAY_URL", &orchestrator.gateway_url)
            .env("CYNODE_TOKEN", admin.token()));
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout
    };
    let table = cli(&[]);
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words,
        [
            vec![
                "USER",
                "KEY",
                "MODEL",
                "REQUESTS",
                "PROMPT",
                "TOKENS",
                "COMPLETION",
                "TOKENS"
            ],
            vec!["admin", "-", "tiny", "1", "40", "1"],
            vec!["ann", "-", "tiny", "1", "10", "1"],
            vec!["ann", "ci", "big:70b", "1", "30", "1"],
            vec!["ann", "ci", "tiny", "1", "20", "1"],
            vec!["total", "4", "100", "4"],
        ]
    );
    let one = cli(&["--by", "user", "--user", "ann"]);
    assert_eq!(one.lines().count(), 2, "no total of one row: {one}");
    let json: Value = serde_json::from_str(&cli(&["--by", "model", "--output", "json"])).unwrap();
    assert_eq!(
        rows(&json, &["model", "requests"]),
        [json!(["big:70b", 1]), json!(["tiny", 3])]
    );
}
