//! Change of one's own password.

use crate::support::{
    Orchestrator, PASSWORD,
    client::{client, fails},
    cluster::secret_file,
    process::{at_terminal, run},
};
use serde_json::json;

const FIRST: &str = "the first password";
const SECOND: &str = "the second password";

#[test]
fn own_password_is_changed_with_current_one() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (user, other) = (orchestrator.login(), orchestrator.login());
    let change = |current: &str, new: &str| {
        let body = json!({"current_password": current, "new_password": new});
        user.post("/v1/users/me/password", &body)
    };
    change("not the password", SECOND).problem(403, "forbidden");
    let short = change(PASSWORD, "short").problem(400, "invalid-request");
    assert_eq!(short["errors"][0]["pointer"], "#/new_password");
    user.get("/v1/users/me").expect(200);
    other.get("/v1/users/me").expect(200);

    change(PASSWORD, SECOND).expect(204);
    user.get("/v1/users/me").expect(200);
    other.get("/v1/users/me").problem(401, "unauthorized");
    let login = |password: &str| {
        let login = json!({"handle": "admin", "password": password});
        orchestrator.gateway.post("/v1/auth/login", &login)
    };
    login(PASSWORD).problem(401, "unauthorized");
    login(SECOND).expect(200);
    change(PASSWORD, FIRST).problem(403, "forbidden");

    let log = user.get("/v1/audit?action=user.change_password").json(200);
    let outcomes: Vec<_> = log["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| {
            assert_eq!(
                (&event["actor"], &event["target"]),
                (&json!("admin"), &json!("admin"))
            );
            (event["outcome"].as_str().unwrap(), event["reason"].as_str())
        })
        .collect();
    let wrong = ("failure", Some("wrong-password"));
    assert_eq!(outcomes, [wrong, ("success", None), wrong]);
    let text = log.to_string();
    assert!(!text.contains(SECOND) && !text.contains(PASSWORD), "{text}");
}

#[test]
fn guesses_of_current_password_are_throttled() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let body = json!({"current_password": "not the password", "new_password": SECOND});
    for _ in 0..5 {
        user.post("/v1/users/me/password", &body)
            .problem(403, "forbidden");
    }
    let refused = user.post("/v1/users/me/password", &body);
    refused.problem(429, "too-many-requests");
    assert!(refused.header("retry-after").is_some());
}

#[test]
fn passwd_asks_without_echo_or_reads_files() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let url = &orchestrator.gateway_url;
    let old = secret_file(home.path(), "old", PASSWORD);
    let new = secret_file(home.path(), "new", SECOND);
    assert_eq!(
        run(&mut client(
            home.path(),
            url,
            &["login", "--password-file", &old]
        ))
        .code,
        0
    );
    fails(
        &run(&mut client(home.path(), url, &["passwd"])),
        2,
        "--new-password-file",
    );
    let wrong = [
        "passwd",
        "--password-file",
        &new,
        "--new-password-file",
        &new,
    ];
    fails(
        &run(&mut client(home.path(), url, &wrong)),
        3,
        "current password is wrong",
    );

    let files = [
        "passwd",
        "--password-file",
        &old,
        "--new-password-file",
        &new,
    ];
    let done = run(&mut client(home.path(), url, &files));
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    assert_eq!(
        run(&mut client(home.path(), url, &["whoami"])).code,
        0,
        "the login goes on"
    );

    let typed = format!("{SECOND}\n{FIRST}\n{FIRST}\n");
    let done = at_terminal(&mut client(home.path(), url, &["passwd"]), &typed);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("New password: "), "{done:?}");
    assert!(
        !done.stdout.contains(FIRST) && !done.stdout.contains(SECOND),
        "{done:?}"
    );
    let typed = format!("{FIRST}\n{SECOND}\nanother one\n");
    let done = at_terminal(&mut client(home.path(), url, &["passwd"]), &typed);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stdout.contains("differ"), "{done:?}");
}
