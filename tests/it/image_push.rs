//! `cynode images push`: an image of a laptop's podman reaches a node, and nothing else does.

use crate::{
    artifacts::put,
    support::{
        Api, Cluster, IMAGE, Node, Orchestrator, Reply,
        client::fails,
        eventually, image,
        process::{Done, with_tool},
        stage::Stage,
        uuid,
    },
};
use serde_json::json;
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, thread};

/// A podman of a laptop that shares its storage with the node: what was saved is removed, so that only a load brings
/// it back.
fn laptop(home: &Path) -> String {
    let path = home.join("laptop-podman");
    let script = "#!/bin/sh\npodman \"$@\" || exit\n\
                  test \"$1\" != save || { for name; do :; done; podman rmi \"$name\" >/dev/null; }\n";
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn push(user: &Api, slug: &str, artifact: &str) -> Reply {
    let path = format!("/v1/nodes/{slug}/images");
    user.post(&path, &json!({"artifact_id": artifact}))
}

#[test]
fn pushed_image_runs_at_node() {
    let cluster = Cluster::start();
    let podman = laptop(cluster.home());
    let greets = |root: &Path| fs::write(root.join("greeting"), "from the laptop\n").unwrap();
    let odd = image::odd(greets, &[]);
    let pushed = cluster.run(&[
        "images", "push", &odd.0, "--node", "box", "--engine", &podman,
    ]);
    assert_eq!(
        (pushed.code, pushed.stdout.trim()),
        (0, &*odd.0),
        "{pushed:?}"
    );
    let done = cluster.run(&["run", "--image", &odd.0, "--", "cat", "/greeting"]);
    assert_eq!(
        (done.code, &*done.stdout),
        (0, "from the laptop\n"),
        "{done:?}"
    );
    let left = cluster.user.get("/v1/artifacts").json(200);
    assert_eq!(
        left["artifacts"],
        json!([]),
        "the archive was only for the push"
    );
    let audit = cluster.user.get("/v1/audit?action=image.push").json(200);
    let event = &audit["events"][0];
    assert_eq!(
        (&event["target"], &event["outcome"], &event["reason"]),
        (&json!("box"), &json!("success"), &json!(odd.0))
    );
    cluster.node.assert_clean();
}

#[test]
fn push_fails_before_anything_is_sent() {
    let cluster = Cluster::start();
    let push = |image: &str, more: &[&str]| {
        cluster.run(&[&["images", "push", image, "--node"], more].concat())
    };
    let missing = format!("localhost/missing:{}", uuid());
    fails_after_note(&push(&missing, &["box"]), "is not an image of this machine");
    let none = push(IMAGE, &["box", "--engine", "/nothing/podman"]);
    fails_after_note(&none, "install podman");
    fails(&push(IMAGE, &["nowhere"]), 4, "node");
    let sent = cluster.user.get("/v1/artifacts").json(200);
    assert_eq!(sent["artifacts"], json!([]));
}

/// Fails unless it ended with an error after it had begun to save.
#[track_caller]
fn fails_after_note(done: &Done, hint: &str) {
    assert_ne!(done.code, 0, "{done:?}");
    let error = done.stderr.lines().find(|line| line.starts_with("error: "));
    assert!(error.is_some_and(|line| line.contains(hint)), "{done:?}");
}

#[test]
fn node_loads_only_what_it_allows() {
    let cluster = Cluster::start_with(&["--allowed-image", "localhost/cynode-test-odd:*"]);
    let user = &cluster.user;
    let archive = cluster.home().join("archive.tar");
    let save = |format: &str, name: &str| {
        let format = format!("--format={format}");
        let file = archive.to_str().unwrap();
        let _ = fs::remove_file(&archive);
        image::podman(&["save", "--quiet", &format, "--output", file, name]).unwrap();
        put(user, "image", &fs::read(&archive).unwrap())
    };
    let odd = image::odd(|root| fs::write(root.join("unique"), uuid()).unwrap(), &[]);
    let id = image::podman(&["image", "inspect", "--format={{.Id}}", &odd.0]).unwrap();
    let refused = [
        (put(user, "x", b"not an archive"), "not a tar archive"),
        (
            save("docker-archive", &odd.0),
            "which is none of an OCI archive",
        ),
        (save("oci-archive", id.trim()), "it was saved by its id"),
        (
            save("oci-archive", IMAGE),
            "allows only the images localhost/cynode-test-odd:*",
        ),
    ];
    for (artifact, hint) in refused {
        let answer = push(user, "box", artifact["artifact_id"].as_str().unwrap());
        let problem = answer.problem(400, "invalid-request");
        assert!(
            problem["detail"].as_str().unwrap().contains(hint),
            "{problem}"
        );
    }
    let mut broken = save("oci-archive", &odd.0);
    let good = broken["artifact_id"].as_str().unwrap().to_owned();
    let mut bytes = fs::read(&archive).unwrap();
    // podman does not read a layer that it has.
    image::podman(&["image", "rm", &odd.0]).unwrap();
    let blob = bytes
        .windows(4)
        .position(|part| part == [0x1f, 0x8b, 8, 0])
        .unwrap();
    bytes[blob + 20..blob + 40].fill(0);
    broken = put(user, "broken", &bytes);
    let answer = push(user, "box", broken["artifact_id"].as_str().unwrap());
    let problem = answer.problem(400, "invalid-request");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("log says why") && !detail.contains("sha256:"),
        "{detail}"
    );
    let pushed = push(user, "box", &good).json(200);
    assert_eq!(pushed, json!({"images": [odd.0]}));
}

#[test]
fn only_admins_push_to_nodes_that_can() {
    let stage = Stage::set(|_, _, answer| answer.status(404, &json!({})));
    let artifact = put(&stage.user, "x", b"x");
    let artifact = artifact["artifact_id"].as_str().unwrap();
    let old = push(&stage.user, "box", artifact).problem(409, "conflict");
    assert!(old["detail"].as_str().unwrap().contains("too old"), "{old}");
    push(&stage.user, "nowhere", artifact).problem(404, "not-found");
    push(&stage.user, "box", &uuid()).problem(400, "invalid-request");
}

#[test]
fn stopped_node_gets_no_image() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let mut node = Node::start(home.path(), "box", &orchestrator.control_url, &[]);
    node.process.terminate();
    let artifact = put(&admin, "x", b"x");
    let artifact = artifact["artifact_id"].as_str().unwrap();
    let offline = push(&admin, "box", artifact).problem(503, "unavailable");
    assert!(
        offline["detail"]
            .as_str()
            .unwrap()
            .contains("can't be reached"),
        "{offline}"
    );
    let user = orchestrator.add_user(&admin, "ann");
    push(&user, "box", artifact).problem(403, "forbidden");
    let audit = admin.get("/v1/audit?action=image.push").json(200);
    let outcomes: Vec<_> = audit["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["outcome"])
        .collect();
    assert_eq!(outcomes, ["denied", "failure"]);
}

#[test]
fn ended_load_leaves_nothing_unpacked() {
    let home = tempfile::tempdir().unwrap();
    let loads = home.path().join("box/worker/loads");
    fs::create_dir_all(loads.join("of-a-killed-node")).unwrap();
    let locked = fs::Permissions::from_mode(0o700);
    for path in ["box", "box/worker", "box/worker/loads"] {
        fs::set_permissions(home.path().join(path), locked.clone()).unwrap();
    }
    let slow =
        "test \"$1\" != load || { touch \"$TMPDIR/layer\"; exec sleep 1000; }\nexec podman \"$@\"";
    with_tool(home.path(), "slow-podman", slow);
    let engine = home.path().join("bin/slow-podman");
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let arguments = ["--engine", engine.to_str().unwrap()];
    let start = || Node::start(home.path(), "box", &orchestrator.control_url, &arguments);
    let mut node = start();
    let entries = || {
        fs::read_dir(&loads)
            .unwrap()
            .map(|entry| entry.unwrap().path())
    };
    eventually("what an earlier node left is gone", || {
        entries().next().is_none().then_some(())
    });
    let archive = home.path().join("archive.tar");
    let file = archive.to_str().unwrap();
    let odd = image::odd(|root| fs::write(root.join("unique"), uuid()).unwrap(), &[]);
    image::podman(&[
        "save",
        "--quiet",
        "--format=oci-archive",
        "--output",
        file,
        &odd.0,
    ])
    .unwrap();
    let artifact = put(&admin, "image", &fs::read(&archive).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| push(&admin, "box", artifact["artifact_id"].as_str().unwrap()));
        eventually("podman unpacks the image", || {
            entries()
                .any(|entry| entry.join("layer").exists())
                .then_some(())
        });
        node.process.terminate();
    });
    // A node that stops may leave the removal to the next start.
    let _node = start();
    eventually("what the ended load left is gone", || {
        entries().next().is_none().then_some(())
    });
}
