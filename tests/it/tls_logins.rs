//! Commands of users over TLS: whom they trust, and that nothing secret reaches anyone else.

use crate::support::{
    Orchestrator, PASSWORD,
    client::{client, fails},
    process::{Done, run},
    terminal::Session,
    tls_front::{Identity, TlsFront},
};
use serde_json::Value;
use std::{fs, path::Path, process::Command};

/// A client command with the admin's password at hand.
fn command(home: &Path, front: &TlsFront, arguments: &[&str]) -> Command {
    let mut command = client(home, &front.url, arguments);
    command.env("CYNODE_PASSWORD", PASSWORD);
    command
}

/// Replaces the access token of each stored login by one that the gateway does not know.
fn spoil_access_tokens(home: &Path) {
    let path = home.join("config/cynode/credentials.json");
    let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for login in file["logins"].as_object_mut().unwrap().values_mut() {
        let token = login["access_token"].as_str().unwrap();
        login["access_token"] = format!("{token}x").into();
    }
    fs::write(&path, file.to_string()).unwrap();
}

fn succeeds(done: &Done, text: &str) {
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains(text), "{text:?} in {done:?}");
}

#[test]
fn login_needs_pin_without_terminal() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let identity = Identity::new();
    let front = TlsFront::start(&identity, &orchestrator.gateway_url);
    let run_here = |arguments: &[&str]| run(&mut command(home.path(), &front, arguments));

    fails(&run_here(&["login"]), 3, &format!("--pin {}", identity.pin));
    assert_eq!(front.take_received(), "", "nothing before it is trusted");
    fails(&run_here(&["login", "--pin", "sha256:12"]), 2, "64 hex");

    let done = run_here(&["login", "--pin", &identity.pin]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(front.take_received().contains(PASSWORD));
    succeeds(&run_here(&["whoami"]), "admin");
    succeeds(&run_here(&["task", "list"]), "");
}

#[test]
fn changed_key_is_refused_until_next_pin() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (first, second) = (Identity::new(), Identity::new());
    let front = TlsFront::start(&first, &orchestrator.gateway_url);
    let run_here = |arguments: &[&str]| run(&mut command(home.path(), &front, arguments));
    assert_eq!(run_here(&["login", "--pin", &first.pin]).code, 0);
    front.swap(&first.renewed());
    succeeds(&run_here(&["whoami"]), "admin");

    front.swap(&second);
    front.take_received();
    for arguments in [&["whoami"][..], &["login"], &["run", "--", "true"]] {
        let done = run_here(arguments);
        fails(&done, 3, &first.pin);
        fails(&done, 3, &second.pin);
        fails(&done, 3, "cynode login --gateway-url");
    }
    assert_eq!(front.take_received(), "", "no token and no password");

    assert_eq!(run_here(&["login", "--pin", &second.pin]).code, 0);
    succeeds(&run_here(&["whoami"]), "admin");
    front.swap(&first);
    fails(&run_here(&["whoami"]), 3, &second.pin);
}

#[test]
fn refresh_at_untrusted_server_keeps_login() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (identity, other) = (Identity::new(), Identity::new());
    let front = TlsFront::start(&identity, &orchestrator.gateway_url);
    let run_here = |arguments: &[&str]| run(&mut command(home.path(), &front, arguments));
    assert_eq!(run_here(&["login", "--pin", &identity.pin]).code, 0);
    spoil_access_tokens(home.path());
    front.take_received();

    front.swap_after_next(&other);
    fails(&run_here(&["whoami"]), 3, &other.pin);
    let sent = front.take_received();
    assert!(sent.contains("/v1/users/me"), "{sent}");
    assert!(!sent.contains("/v1/auth/refresh"), "{sent}");
    front.swap(&identity);
    succeeds(&run_here(&["whoami"]), "admin");
    assert!(front.take_received().contains("/v1/auth/refresh"));
}

#[test]
fn given_authorities_replace_remembered_pin() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (first, second) = (Identity::new(), Identity::new());
    let front = TlsFront::start(&first, &orchestrator.gateway_url);
    fs::write(home.path().join("ca.pem"), second.pem()).unwrap();
    let run_here = |arguments: &[&str]| run(&mut command(home.path(), &front, arguments));
    assert_eq!(run_here(&["login", "--pin", &first.pin]).code, 0);
    front.swap(&second);
    fails(&run_here(&["whoami"]), 3, &first.pin);
    succeeds(&run_here(&["whoami", "--ca-file", "ca.pem"]), "admin");
}

#[test]
fn unknown_key_is_shown_at_terminal() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let identity = Identity::new();
    let front = TlsFront::start(&identity, &orchestrator.gateway_url);
    let ask = |answer: &str| {
        let mut session = Session::start(&command(home.path(), &front, &["login"]));
        session.shows("Is this what the");
        session.shows("[y/N]");
        let shown = session.shown();
        assert!(shown.contains(&identity.pin), "{shown}");
        assert_eq!(front.take_received(), "", "nothing before the answer");
        session.types(answer);
        session.ends().code
    };
    assert_eq!(ask("n\n"), 2);
    assert_eq!(front.take_received(), "");
    assert_eq!(ask("y\n"), 0);
    assert!(front.take_received().contains(PASSWORD));
    succeeds(
        &run(&mut command(home.path(), &front, &["whoami"])),
        "admin",
    );
}

#[test]
fn private_authority_is_trusted_and_remembered() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let identity = Identity::new();
    let front = TlsFront::start(&identity, &orchestrator.gateway_url);
    fs::write(home.path().join("ca.pem"), identity.pem()).unwrap();
    fs::write(home.path().join("empty.pem"), "").unwrap();
    let run_here = |arguments: &[&str]| run(&mut command(home.path(), &front, arguments));
    fails(
        &run_here(&["login", "--ca-file", "empty.pem"]),
        2,
        "--ca-file",
    );
    fails(&run_here(&["login", "--ca-file", "no.pem"]), 2, "no.pem");
    assert_eq!(run_here(&["login", "--ca-file", "ca.pem"]).code, 0);
    succeeds(&run_here(&["whoami"]), "admin");
    front.swap(&Identity::new());
    fails(&run_here(&["whoami"]), 3, "--pin");
}

#[test]
fn dates_count_for_authorities_only() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    for (identity, words) in [
        (Identity::between(2001, 2002), "has expired"),
        (Identity::between(2100, 2101), "is not valid yet"),
    ] {
        let front = TlsFront::start(&identity, &orchestrator.gateway_url);
        fs::write(home.path().join("ca.pem"), identity.pem()).unwrap();
        let run_here = |arguments: &[&str]| run(&mut command(home.path(), &front, arguments));
        let done = run_here(&["login", "--ca-file", "ca.pem"]);
        fails(&done, 3, words);
        fails(&done, 3, "this machine's clock");
        assert_eq!(front.take_received(), "");
        assert_eq!(run_here(&["login", "--pin", &identity.pin]).code, 0);
    }
}

#[test]
fn pin_of_variable_serves_commands_with_token() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let (identity, other) = (Identity::new(), Identity::new());
    let front = TlsFront::start(&identity, &orchestrator.gateway_url);
    let with_pin = |pin: &str, url: &str| {
        let mut command = client(home.path(), url, &["whoami"]);
        command.env("CYNODE_TOKEN", user.token());
        run(command.env("CYNODE_PIN", pin))
    };
    succeeds(&with_pin(&identity.pin, &front.url), "admin");
    front.take_received();
    fails(&with_pin(&other.pin, &front.url), 3, &identity.pin);
    assert_eq!(front.take_received(), "");
    let done = with_pin(&identity.pin, &orchestrator.gateway_url);
    fails(&done, 2, "needs an encrypted connection");
    // What a login remembers of this gateway holds for the token, too.
    let login = ["login", "--pin", identity.pin.as_str()];
    assert_eq!(run(&mut command(home.path(), &front, &login)).code, 0);
    let mut without_pin = client(home.path(), &front.url, &["whoami"]);
    without_pin.env("CYNODE_TOKEN", user.token());
    succeeds(&run(&mut without_pin), "admin");
    // The other protocol at either end is named.
    let plain = orchestrator.gateway_url.replace("http://", "https://");
    fails(&with_pin(&identity.pin, &plain), 7, "does not speak TLS");
}
