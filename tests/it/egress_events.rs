//! Requests of jobs to hosts, as their logs tell them.

use crate::{
    egress::{ASK, OPEN, host, open_cluster, task},
    stored_secrets::set,
    support::{
        Cluster, Sandbox, SseEvent, eventually,
        listener::{Calls, Listener},
    },
};
use serde_json::{Value, json};
use std::{fs, net::TcpListener};

/// Script that waits for a file of this name.
fn wait_for(name: &str) -> String {
    format!("until [ -e {name} ]; do usleep 5000; done\n")
}

/// Makes a file in the workspace of the one job.
fn make(cluster: &Cluster, name: &str) {
    let place = eventually("the job has its workspace", || {
        cluster.node.workspaces().pop()
    });
    fs::write(place.join("workspace").join(name), "").unwrap();
}

/// The first events of the proxy in a task's log, in a log that may still grow.
fn first_events(cluster: &Cluster, id: &str, count: usize) -> Vec<SseEvent> {
    let events = cluster.user.events(&format!("/v1/tasks/{id}/logs"), None);
    let events: Vec<_> = events
        .filter(|event| event.name == "egress")
        .take(count)
        .collect();
    assert_eq!(events.len(), count, "{events:?}");
    events
}

/// All events of the proxy in the log of a task that has ended.
fn all_events(cluster: &Cluster, id: &str, query: &str) -> Vec<SseEvent> {
    let path = format!("/v1/tasks/{id}/logs{query}");
    let events = cluster.user.events(&path, None);
    events.filter(|event| event.name == "egress").collect()
}

/// Data without the time, which each event has.
fn told(events: &[SseEvent]) -> Vec<Value> {
    let data = events.iter().map(|event| {
        let mut data = event.data.clone();
        let time = data.as_object_mut().unwrap().remove("time");
        assert!(time.is_some_and(|time| time.is_string()), "{event:?}");
        data
    });
    data.collect()
}

/// The one event with this verdict about this port.
fn about(events: &[Value], verdict: &str, port: u16) -> Value {
    let is_it = |event: &&Value| event["verdict"] == verdict && event["port"] == port;
    let found: Vec<_> = events.iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{verdict} {port}: {events:?}");
    found[0].clone()
}

fn verdicts(events: &[Value]) -> Vec<&str> {
    let verdicts = events.iter().map(|event| &event["verdict"]);
    verdicts.map(|verdict| verdict.as_str().unwrap()).collect()
}

/// Port of this machine at which nobody listens.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn requests_show_in_log_while_task_runs_and_afterwards() {
    let (server, _calls) = host();
    let mut cluster = open_cluster();
    let port = server.address.port();
    let closed = closed_port();
    let (name, nobody) = (format!("localhost:{port}"), format!("localhost:{closed}"));
    let script = format!(
        "get http://{name}/; echo; get http://other.example/ || echo refused; get http://{nobody}/ || echo away\n{}",
        wait_for("go")
    );
    let id = cluster.create(&task(&[&name, &nobody], &script));
    let live = first_events(&cluster, &id, 5);
    let events = told(&live);
    let allowed = json!({"host": "localhost", "port": port, "verdict": "allowed"});
    assert_eq!(events[0], allowed);
    let ended = json!({
        "host": "localhost", "port": port, "verdict": "ended", "bytes_sent": 0, "bytes_received": 5,
    });
    assert_eq!(about(&events, "ended", port), ended);
    let refused = about(&events, "refused", 80);
    assert_eq!(refused["host"], "other.example");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("is not on this job's list"), "{detail}");
    about(&events, "allowed", closed);
    let away = about(&events, "ended", closed);
    let detail = away["detail"].as_str().unwrap();
    assert!(detail.contains("can't be reached"), "{detail}");

    let shown = cluster.run(&["task", "logs", &id, "--events"]);
    assert_eq!(shown.stdout, "hello\nrefused\naway\n", "{shown:?}");
    for line in [
        format!("egress  {name} allowed\n"),
        format!("egress  {name} ended, 0 B sent, 5 B received\n"),
        "egress  other.example:80 refused: other.example:80 is not on".to_owned(),
        format!("egress  {nobody} ended: {nobody} can't be reached"),
    ] {
        assert!(shown.stderr.contains(&line), "{line}: {shown:?}");
    }
    let plain = cluster.run(&["task", "logs", &id]);
    assert!(!plain.stderr.contains("egress"), "{plain:?}");

    make(&cluster, "go");
    cluster.finish(&id);
    // The node is gone: only the orchestrator has the log.
    cluster.node.process.kill();
    assert_eq!(all_events(&cluster, &id, ""), live);
    assert!(all_events(&cluster, &id, "?stream=stdout").is_empty());
    let lines = cluster.run(&["task", "logs", &id, "--events", "-o", "json"]);
    let is_event = |line: &&str| line.contains("\"event\":\"egress\"");
    assert_eq!(
        lines.stdout.lines().filter(is_event).count(),
        5,
        "{lines:?}"
    );
    let result = &cluster.result(&id)["jobs"][0]["result_object"];
    assert_eq!(result["stdout"], "hello\nrefused\naway\n", "{result}");
}

#[test]
fn requests_of_sandbox_show_while_it_runs_and_afterwards() {
    let (server, _calls) = host();
    let mut cluster = open_cluster();
    let name = format!("localhost:{}", server.address.port());
    let wanted =
        json!({"name": "dev", "network_policy": "allowlist", "egress": {"allow": [&name]}});
    let sandbox = Sandbox::create(&cluster.user, &wanted);
    let script = format!("{ASK}get http://{name}/; get http://other.example/ || true");
    assert_eq!(sandbox.output(&script), "hello");
    let path = sandbox.path("events");
    let followed = cluster.user.events(&path, None);
    let live: Vec<_> = followed.take(3).collect();
    let events = told(&live);
    let mut verdicts = verdicts(&events);
    verdicts.sort_unstable();
    assert_eq!(verdicts, ["allowed", "ended", "refused"]);
    let now = cluster.user.events(&format!("{path}?follow=false"), None);
    let now: Vec<_> = now.collect();
    assert_eq!(now[..3], live);
    assert_eq!(now[3].name, "end", "{now:?}");
    assert_eq!(now[3].data, json!({"status": "running"}));
    let last = cluster
        .user
        .events(&format!("{path}?follow=false"), Some(&live[1].id));
    assert_eq!(last.collect::<Vec<_>>()[0], live[2]);

    let shown = cluster.run(&["sandbox", "events", "dev"]);
    let allowed = format!("egress  {name} allowed\n");
    assert!(
        shown.code == 0 && shown.stdout.contains(&allowed),
        "{shown:?}"
    );
    sandbox.delete();
    // The node is gone: only the orchestrator has the events.
    cluster.node.process.kill();
    let kept: Vec<_> = cluster.user.events(&path, None).collect();
    assert_eq!(kept[..3], live);
    assert_eq!(kept[3].data, json!({"status": "ended"}), "{kept:?}");
    let lines = cluster.run(&["sandbox", "events", "dev", "-f", "-o", "json"]);
    assert_eq!(lines.stdout.lines().count(), 4, "{lines:?}");
    let eve = cluster.orchestrator.add_user(&cluster.user, "eve");
    eve.get(&path).problem(404, "not-found");

    let logs = cluster.home().join("orchestrator/logs");
    assert_eq!(fs::read_dir(&logs).unwrap().count(), 1);
    let whole = format!("/v1/sandboxes/{}", sandbox.id);
    cluster.user.call("DELETE", &whole, &[], b"").expect(204);
    cluster.user.get(&path).problem(404, "not-found");
    assert_eq!(fs::read_dir(&logs).unwrap().count(), 0, "they go with it");
}

#[test]
fn reader_is_told_that_events_are_lost() {
    let flags = [&OPEN[..], &["--log-quota", "0"]].concat();
    let cluster = Cluster::start_orchestrated(&flags);
    let wanted = json!({"network_policy": "allowlist", "egress": {"allow": ["localhost"]}});
    let sandbox = Sandbox::create(&cluster.user, &wanted);
    sandbox.output(&format!("{ASK}get http://other.example/ || true"));
    sandbox.delete();
    let events: Vec<_> = cluster.user.events(&sandbox.path("events"), None).collect();
    assert_eq!(events.len(), 2, "{events:?}");
    let detail = events[0].data["detail"].as_str().unwrap();
    assert!(detail.contains("the requests are only counted"), "{detail}");
    assert_eq!(events[1].data, json!({"status": "ended"}));
    let shown = cluster.run(&["sandbox", "events", &sandbox.id]);
    assert_eq!((shown.code, &*shown.stdout), (0, ""), "{shown:?}");
    assert!(shown.stderr.contains(detail), "{shown:?}");
}

#[test]
fn decision_is_told_where_command_ends_with_it() {
    let mut cluster = open_cluster();
    let script = "get http://other.example/ 2>/dev/null";
    let ids = [(); 3].map(|()| cluster.create(&task(&["localhost"], script)));
    for id in &ids {
        cluster.finish(id);
    }
    cluster.node.process.kill();
    for id in &ids {
        let events = told(&all_events(&cluster, id, ""));
        assert_eq!(
            verdicts(&events),
            ["refused"],
            "a log without output is kept"
        );
    }
}

#[test]
fn events_go_on_after_restart_of_node() {
    let (server, _calls) = host();
    let mut cluster = open_cluster();
    let name = format!("localhost:{}", server.address.port());
    let get = format!("get http://{name}/\n");
    let script = [&*get, &wait_for("go"), &get, &wait_for("end")].concat();
    let id = cluster.create(&task(&[&name], &script));
    first_events(&cluster, &id, 2);
    cluster.node.process.kill();
    cluster.restart_node();
    make(&cluster, "go");
    let events = told(&first_events(&cluster, &id, 4));
    assert_eq!(verdicts(&events), ["allowed", "ended", "allowed", "ended"]);
    make(&cluster, "end");
    cluster.finish(&id);
}

#[test]
fn job_with_secrets_tells_no_other_host() {
    let (server, _calls) = host();
    let cluster = open_cluster();
    set(&cluster.user, "TOKEN", "swordfish").expect(200);
    let port = server.address.port();
    let name = format!("localhost:{port}");
    let script = format!(
        "get http://{name}/; get http://$TOKEN.example/; get http://other.example/\n{}",
        wait_for("go")
    );
    let mut wanted = task(&[&name], &script);
    wanted["secrets"] = json!(["TOKEN"]);
    let id = cluster.create(&wanted);
    let live = first_events(&cluster, &id, 4);
    let events = told(&live);
    let allowed = json!({"host": "localhost", "port": port, "verdict": "allowed"});
    assert_eq!(events[0], allowed);
    let refused = events.iter().filter(|event| event["verdict"] == "refused");
    let refused: Vec<_> = refused.collect();
    assert_eq!(refused, [&json!({"verdict": "refused"}); 2]);
    let shown = cluster.run(&["task", "logs", &id, "--events"]);
    assert!(
        shown
            .stderr
            .contains("egress  a request refused (the program got the reason"),
        "{shown:?}"
    );
    assert!(!shown.stderr.contains("swordfish"), "{shown:?}");
    make(&cluster, "go");
    cluster.finish(&id);
}

#[test]
fn cut_at_limit_is_a_refusal_with_its_bytes() {
    let calls = Calls::default();
    let server = Listener::open("127.0.0.1:0", &calls, |_, answer| {
        answer.text(200, &"x".repeat(100_000));
    });
    let cluster = Cluster::start_orchestrated(&[&OPEN[..], &["--egress-bytes", "150000"]].concat());
    let name = format!("localhost:{}", server.address.port());
    let get = format!("get http://{name}/ >/dev/null\n");
    let script = [&*get, &get, &wait_for("go")].concat();
    let id = cluster.create(&task(&[&name], &script));
    let events = told(&first_events(&cluster, &id, 4));
    about(&events, "ended", server.address.port());
    let cut = about(&events, "refused", server.address.port());
    let detail = cut["detail"].as_str().unwrap();
    assert!(detail.contains("which is its limit"), "{detail}");
    assert!(cut["bytes_received"].as_u64() > Some(40_000), "{cut}");
    make(&cluster, "go");
    cluster.finish(&id);
}

#[test]
fn number_of_events_is_limited() {
    let cluster = open_cluster();
    let script = "for n in $(seq 1100); do get http://other.example/; done 2>/dev/null; true";
    let id = cluster.create(&task(&["localhost"], script));
    cluster.finish(&id);
    let events = told(&all_events(&cluster, &id, ""));
    assert_eq!(events.len(), 1000);
    let details = events.iter().map(|event| event["detail"].as_str().unwrap());
    let is_last =
        |detail: &str| detail.contains("this is the last event of the proxy that is kept");
    let last: Vec<_> = details.map(is_last).collect();
    assert_eq!(last.iter().position(|is_last| *is_last), Some(999));
    let result = &cluster.result(&id)["jobs"][0]["result_object"];
    assert_eq!(result["effective"]["egress"]["refused"], 1100, "{result}");
}
