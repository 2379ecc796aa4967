//! Execs and files of sandboxes that stay, as ways to escape or to harm the node. Each fails, and leaves the node and other
//! sandboxes unchanged.

use crate::support::{Cluster, Sandbox, eventually, image::USER_IMAGE, raw, uuid};
use serde_json::json;
use std::io::Write as _;

/// Fails unless both sandboxes still work, then removes them.
fn assert_well(cluster: &Cluster, sandboxes: &[&Sandbox]) {
    for sandbox in sandboxes {
        assert_eq!(sandbox.output("echo well"), "well\n");
        sandbox.put("files?path=/tmp/well", b"well").expect(201);
        sandbox.delete();
    }
    cluster.node.assert_clean();
}

#[test]
fn exec_gains_no_privileges() {
    let cluster = Cluster::start();
    let script = "grep -E '^(NoNewPrivs|CapEff|CapBnd)' /proc/self/status; ls /proc/self/fd | wc -l; \
                  mknod device c 1 3 2>/dev/null && cat device; mount -t tmpfs none /tmp 2>/dev/null && echo mounted";
    let none = "0000000000000000";
    let expected = format!("CapEff:\t{none}\nCapBnd:\t{none}\nNoNewPrivs:\t1\n4\n");
    for wanted in [json!({}), json!({"image": USER_IMAGE})] {
        let sandbox = Sandbox::create(&cluster.user, &wanted);
        // Its three standard descriptors, and the directory that `ls` reads.
        assert_eq!(sandbox.run(script)["stdout"], expected);
        sandbox.delete();
    }
    cluster.node.assert_clean();
}

#[test]
fn exec_kills_only_its_own_sandbox() {
    let cluster = Cluster::start();
    let [one, other] = [(); 2].map(|()| Sandbox::create(&cluster.user, &json!({})));
    let exec_id = uuid();
    let waits = json!({"script": "until [ -e go ]; do usleep 5000; done; echo went", "exec_id": exec_id, "background": true});
    other.post("exec", &waits).expect(201);
    for script in ["kill -9 -1", "kill -9 1; kill -TERM 1; kill -STOP -1"] {
        let result = one.exec(&json!({"script": script, "timeout_seconds": 5}));
        assert_eq!(result["status"], "exited", "{result}");
        assert_eq!(one.output("echo still"), "still\n", "{script}");
    }
    other.output("touch go");
    assert_eq!(
        other.exec(&waits)["stdout"].as_str(),
        None,
        "a background exec answers at once"
    );
    let again = json!({"script": "", "exec_id": exec_id});
    assert_eq!(other.exec(&again)["stdout"], "went\n");
    assert_well(&cluster, &[&one, &other]);
}

#[test]
fn fork_bomb_of_exec_ends_with_it() {
    let cluster = Cluster::start();
    let [one, other] = [(); 2].map(|()| Sandbox::create(&cluster.user, &json!({})));
    let bomb =
        json!({"script": "bomb() { bomb | bomb & }; bomb; exec sleep 1000", "timeout_seconds": 3});
    let result = one.exec(&bomb);
    assert_eq!(result["cause"], "timeout", "{result}");
    assert_eq!(other.output("echo beside"), "beside\n");
    eventually("the sandbox has processes left again", || {
        let result = one
            .user
            .post(&one.path("exec"), &json!({"script": "echo again"}));
        (result.status == 200 && result.text().contains("again\\n")).then_some(())
    });
    assert_well(&cluster, &[&one, &other]);
}

#[test]
fn flood_of_exec_slows_no_other() {
    let cluster = Cluster::start();
    let sandbox = Sandbox::create(&cluster.user, &json!({}));
    let flood = json!({"script": "yes | head -c 200000000; exit 3", "background": true});
    let exec = sandbox.post("exec", &flood).json(201);
    for _ in 0..20 {
        assert_eq!(sandbox.output("echo beside"), "beside\n");
    }
    let id = exec["exec_id"].as_str().unwrap();
    let result = sandbox.exec(&json!({"script": "", "exec_id": id}));
    assert_eq!(
        (&result["exit_code"], &result["truncated"]),
        (&json!(3), &json!(true))
    );
    assert_well(&cluster, &[&sandbox]);
}

#[test]
fn file_server_gives_nothing_away_and_may_be_killed() {
    let cluster = Cluster::start();
    let sandbox = Sandbox::create(&cluster.user, &json!({}));
    let head = format!(
        "PUT {} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: 1000000\r\n\r\nhalf",
        sandbox.path("files?path=new"),
        cluster.user.address(),
        cluster.user.token(),
    );
    let mut upload = raw::connect_to(&cluster.user);
    upload.write_all(head.as_bytes()).unwrap();
    let server = eventually("the file server runs", || {
        let found = sandbox.output(
            "grep -lae __sandbox-files /proc/[0-9]*/cmdline 2>/dev/null | grep -v self; true",
        );
        let pid = found
            .lines()
            .find_map(|line| line.split('/').nth(2)?.parse::<u32>().ok());
        pid.filter(|pid| {
            sandbox.run(&format!("grep -q Name:..cynode /proc/{pid}/status"))["exit_code"] == 0
        })
    });
    let script = format!(
        "cd /proc/{server}; cat mem environ 2>/dev/null | wc -c; readlink fd/* 2>/dev/null | wc -l; ls root/ 2>/dev/null | wc -l; \
         grep ^NoNewPrivs status; grep ^CapEff status; kill -9 {server}; echo $?"
    );
    let nothing = "0\n0\n0\nNoNewPrivs:\t1\nCapEff:\t0000000000000000\n0\n";
    assert_eq!(sandbox.output(&script), nothing);
    let answer = raw::rest(upload);
    assert!(
        answer.is_empty() || answer.contains("sandbox-failed"),
        "{answer}"
    );
    sandbox.output("rm -f .cynode-new-*");
    assert_eq!(sandbox.output("ls -A"), "");
    assert_well(&cluster, &[&sandbox]);
}

#[test]
fn spoilt_workspace_harms_only_its_sandbox() {
    let cluster = Cluster::start();
    for image in [json!({}), json!({"image": USER_IMAGE})] {
        let sandbox = Sandbox::create(&cluster.user, &image);
        let script = "mkdir -p a/b/c; touch a/b/c/file; chmod 0 a/b/c a/b a; cd /; rm -rf /workspace/*; chmod 0 /workspace";
        sandbox.run(script);
        for call in ["files?path=x", "files:list?path=.", "archive?path=."] {
            let reply = sandbox.get(call);
            assert!(
                (200..500).contains(&reply.status),
                "{call}: {}",
                reply.text()
            );
        }
        let reply = sandbox.put("files?path=x", b"x");
        assert!([201, 403].contains(&reply.status), "{}", reply.text());
        sandbox.delete();
    }
    cluster.node.assert_clean();
}

#[test]
fn workspace_over_its_limit_ends_the_sandbox() {
    let cluster = Cluster::start_with(&["--workspace-limit=32MiB"]);
    let sandbox = Sandbox::create(&cluster.user, &json!({}));
    let content = vec![7; 20 << 20];
    for n in 0..4 {
        // Once it has ended, this is what each further call says.
        let reply = sandbox.put(&format!("files?path={n}"), &content);
        assert!(
            [201, 409, 410, 502, 503].contains(&reply.status),
            "{}",
            reply.text()
        );
    }
    assert_eq!(sandbox.end(), "failed");
    let detail = sandbox.state()["detail"].to_string();
    assert!(detail.contains("workspace"), "{detail}");
    sandbox.get("files?path=0").problem(410, "gone");
    cluster.node.assert_clean();
}
