//! Commands of `cynode users` and `cynode audit`, and refreshes by several processes.

use crate::{
    support::{
        Orchestrator, PASSWORD,
        client::{client, fails},
        cynode, eventually,
        process::{at_terminal, run},
    },
    users::{FIRST, assert_dead, tokens},
};
use serde_json::Value;
use std::{fs, thread};

#[test]
fn user_commands_match_api_calls() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let cli = |arguments: &[&str]| {
        run(cynode(home.path())
            .args(arguments)
            .env("CYNODE_GATEWAY_URL", &orchestrator.gateway_url)
            .env("CYNODE_TOKEN", admin.token()))
    };
    let file = home.path().join("new");
    fs::write(&file, format!("{FIRST}\n")).unwrap();
    let file = file.to_str().unwrap();
    let created = cli(&["users", "create", "ann", "--new-password-file", file]);
    assert_eq!(
        (created.code, created.stdout.as_str()),
        (0, ""),
        "{created:?}"
    );
    tokens(&orchestrator.gateway, "ann", FIRST);
    let generated = cli(&[
        "users",
        "create",
        "bob",
        "--generate",
        "--admin",
        "--email",
        "b@c",
    ]);
    assert_eq!(generated.code, 0, "{generated:?}");
    tokens(&orchestrator.gateway, "bob", generated.stdout.trim());
    let list = cli(&["users", "list"]);
    let rows: Vec<Vec<&str>> = list
        .stdout
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows,
        [
            ["USER", "ROLE", "STATE", "EMAIL"],
            ["admin", "admin", "active", "-"],
            ["ann", "user", "active", "-"],
            ["bob", "admin", "active", "b@c"],
        ]
    );
    let session = tokens(&orchestrator.gateway, "ann", FIRST);
    for command in ["revoke-sessions", "disable", "enable"] {
        assert_eq!(cli(&["users", command, "ann"]).code, 0, "{command}");
    }
    assert_dead(&orchestrator.gateway, &session);
    let reset = cli(&["users", "reset-password", "ann", "--generate"]);
    tokens(&orchestrator.gateway, "ann", reset.stdout.trim());
    for (arguments, code) in [
        (&["users", "create", "ann", "--generate"][..], 5),
        (&["users", "create", "Ann", "--generate"], 6),
        (&["users", "create", "carl"], 2),
        (&["users", "disable", "nobody"], 4),
    ] {
        let done = cli(arguments);
        assert_eq!(done.code, code, "{arguments:?}: {done:?}");
        assert_eq!(done.stdout, "", "no password of a failed creation is shown");
    }
    let audit = cli(&["audit", "--who", "bob"]);
    assert!(audit.stdout.contains("user.create"), "{audit:?}");
}

#[test]
fn login_at_port_of_nodes_names_port_of_users() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let mut login = client(home.path(), &orchestrator.control_url, &["login"]);
    let done = run(login.env("CYNODE_PASSWORD", PASSWORD));
    fails(&done, 4, "users call the gateway, at port 12080");
}

#[test]
fn disabling_oneself_asks_first() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let cli = |arguments: &[&str]| {
        let mut command = cynode(home.path());
        command
            .args(arguments)
            .env("CYNODE_GATEWAY_URL", &orchestrator.gateway_url)
            .env("CYNODE_TOKEN", user.token());
        command
    };
    let other = run(&mut cli(&[
        "users",
        "create",
        "ann",
        "--admin",
        "--generate",
    ]));
    assert_eq!(other.code, 0, "{other:?}");
    let me = ["users", "disable", "admin"];
    let unasked = run(&mut cli(&me));
    assert_eq!(unasked.code, 2, "{unasked:?}");
    for text in ["Disable yourself?", "--yes"] {
        assert!(unasked.stderr.contains(text), "{unasked:?}");
    }
    let no = at_terminal(&mut cli(&me), "\n");
    assert!(no.stdout.contains("Nothing was changed"), "{no:?}");
    user.get("/v1/users/me").expect(200);
    let yes = at_terminal(&mut cli(&me), "y\n");
    assert_eq!(yes.code, 0, "{yes:?}");
    user.get("/v1/users/me").problem(401, "unauthorized");
}

#[test]
fn concurrent_refresh_keeps_all_sessions() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let password = home.path().join("password.secret");
    let login = run(cynode(home.path()).args([
        "login",
        "--gateway-url",
        &orchestrator.gateway_url,
        "--password-file",
        password.to_str().unwrap(),
    ]));
    assert_eq!(login.code, 0, "{login:?}");
    let path = home.path().join("config/cynode/credentials.json");
    for _ in 0..3 {
        // The access token is invalid, as 15 minutes after a login.
        let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        file["logins"][&orchestrator.gateway_url]["access_token"] = "expired".into();
        fs::write(&path, file.to_string()).unwrap();
        let codes: Vec<i32> = thread::scope(|scope| {
            let all = [(); 6].map(|()| scope.spawn(|| run(cynode(home.path()).arg("whoami"))));
            all.map(|one| one.join().unwrap().code).into()
        });
        assert_eq!(codes, [0; 6]);
    }
    eventually("the user is still logged in", || {
        (run(cynode(home.path()).arg("whoami")).code == 0).then_some(())
    });
}
