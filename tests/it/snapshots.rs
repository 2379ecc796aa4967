//! Snapshots of sandboxes, in a whole system with real containers.

use crate::support::{Api, Cluster, Sandbox, eventually, eventually_eq, image::podman};
use serde_json::{Value, json};
use std::{fs, path::Path, thread};

/// Script that makes what a snapshot has to keep.
const MAKE: &str = "mkdir -p d/e && echo text >d/e/x && printf '#!/bin/sh\\necho ran\\n' >run.sh && chmod 755 run.sh && \
    ln -s d/e/x link && ln -s /etc/passwd out && echo made >/opt/tools/made && rm /bin/yes";
/// Script that shows it, and what it prints.
const SHOW: &str = "cat d/e/x && ./run.sh && readlink link && readlink out && cat link /opt/tools/made && ! [ -e /bin/yes ]";
const SHOWN: &str = "text\nran\nd/e/x\n/etc/passwd\ntext\nmade\n";

/// Images of the snapshots of a user, which are removed at the end.
struct Images(String);

impl Images {
    fn of(user: &Api) -> Self {
        let me = user.get("/v1/users/me").json(200);
        let id = me["id"].as_str().unwrap();
        Self(format!("localhost/cynode-snapshots/{id}"))
    }

    fn list(&self) -> Vec<String> {
        let filter = format!("--filter=reference={}", self.0);
        let format = "--format={{.Repository}}:{{.Tag}}";
        let listed = podman(&["images", format, &filter]).unwrap();
        listed.lines().map(str::to_owned).collect()
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        for image in self.list() {
            let _ = podman(&["rmi", "--force", &image]);
        }
    }
}

/// Sandbox that starts from an image, with what is in it.
fn start(user: &Api, image: &str) -> Sandbox {
    let created = user.post("/v1/sandboxes", &json!({"image": image}));
    let created = created.json(201);
    assert_eq!(created["image"], image);
    let id = created["id"].as_str().unwrap().to_owned();
    // The report of a busy node may be older than a new snapshot.
    eventually_eq("the sandbox runs", json!("running"), || {
        user.get(&format!("/v1/sandboxes/{id}")).json(200)["status"].clone()
    });
    Sandbox {
        user: user.clone(),
        id,
    }
}

fn save(sandbox: &Sandbox, name: &str) -> Value {
    sandbox.post("snapshot", &json!({"name": name})).json(201)
}

fn names(user: &Api) -> Vec<String> {
    let list = user.get("/v1/snapshots").json(200);
    assert!(list.get("unreachable_nodes").is_none(), "{list}");
    let names = list["snapshots"].as_array().unwrap().iter();
    let names = names.map(|snapshot| snapshot["name"].as_str().unwrap().to_owned());
    names.collect()
}

/// Number of files below a directory whose names begin so.
fn count(dir: &Path, start: &str) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let counts = entries.map(|entry| {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match is_dir {
            true => count(&entry.path(), start),
            false => usize::from(entry.file_name().to_string_lossy().starts_with(start)),
        }
    });
    counts.sum()
}

#[test]
fn snapshot_keeps_files_and_starts_others() {
    let cluster = Cluster::start_with(&["--max-concurrency=8"]);
    let user = &cluster.user;
    let images = Images::of(user);
    let sandbox = Sandbox::create(user, &json!({}));
    sandbox.output(MAKE);
    let made = save(&sandbox, "base");
    assert_eq!(made["image"], "snapshot:base");
    assert_eq!(made["node_slug"], "box");
    assert_eq!(sandbox.output(SHOW), SHOWN, "the sandbox goes on");
    sandbox.delete();

    let forks = [(); 2].map(|()| start(user, "snapshot:base"));
    for fork in &forks {
        assert_eq!(fork.output(SHOW), SHOWN);
    }
    forks[0].output("echo changed >d/e/x; rm /opt/tools/made; touch /bin/yes");
    assert_eq!(forks[1].output(SHOW), SHOWN, "each has its own files");
    let cat = ["--", "cat", "/workspace/d/e/x", "/opt/tools/made"];
    let run = [&["run", "--image", "snapshot:base"][..], &cat].concat();
    let done = cluster.run(&run);
    assert_eq!((done.code, &*done.stdout), (0, "text\nmade\n"), "{done:?}");

    // The same name again.
    save(&forks[0], "base");
    let third = start(user, "snapshot:base");
    let changed = "cat d/e/x; ls /opt/tools; ls /bin/yes";
    assert_eq!(third.output(changed), "changed\necho\n/bin/yes\n");
    assert_eq!(forks[1].output(SHOW), SHOWN, "it began from the first");
    assert_eq!(names(user), ["base"]);
    let done = cluster.run(&["sandbox", "snapshots"]);
    assert!(done.stdout.starts_with("NAME  NODE  SIZE"), "{done:?}");
    assert!(done.stdout.contains("\nbase  box"), "{done:?}");

    for sandbox in forks.iter().chain([&third]) {
        sandbox.delete();
    }
    cluster.node.assert_clean();
    let done = cluster.run(&["sandbox", "rm-snapshot", "base"]);
    assert_eq!(
        (done.code, &*done.stdout),
        (0, "base removed\n"),
        "{done:?}"
    );
    assert_eq!(names(user), [""; 0]);
    assert_eq!(images.list(), [""; 0]);
    assert_eq!(count(&cluster.home().join("box"), "run.sh"), 0);
    user.post("/v1/sandboxes", &json!({"image": "snapshot:base"}))
        .problem(400, "invalid-request");
}

#[test]
fn client_makes_snapshot() {
    let cluster = Cluster::start();
    let _images = Images::of(&cluster.user);
    let sandbox = Sandbox::create(&cluster.user, &json!({"name": "dev"}));
    sandbox.output("echo text >x");
    let done = cluster.run(&["sandbox", "snapshot", "dev", "ready"]);
    assert_eq!(
        (done.code, &*done.stdout),
        (0, "snapshot:ready\n"),
        "{done:?}"
    );
    let create = [
        "sandbox",
        "create",
        "--name",
        "try",
        "--image",
        "snapshot:ready",
    ];
    assert_eq!(cluster.run(&create).code, 0);
    let done = cluster.run(&["sandbox", "exec", "try", "cat", "x"]);
    assert_eq!((done.code, &*done.stdout), (0, "text\n"), "{done:?}");
    let done = cluster.run(&["sandbox", "rm", "dev", "try"]);
    assert_eq!(done.code, 0, "{done:?}");
    let done = cluster.run(&["sandbox", "snapshot", "dev", "ready"]);
    assert!(
        done.code != 0 && done.stderr.contains("has ended"),
        "{done:?}"
    );
    cluster.node.assert_clean();
}

#[test]
fn snapshot_above_quota_leaves_nothing() {
    let cluster = Cluster::start_with(&["--snapshot-quota=1MiB"]);
    let images = Images::of(&cluster.user);
    let sandbox = Sandbox::create(&cluster.user, &json!({}));
    for place in ["big", "/opt/tools/big"] {
        sandbox.output(&format!("head -c 3000000 /dev/urandom >{place}"));
        let refused = sandbox.post("snapshot", &json!({"name": "big"}));
        refused.problem(507, "insufficient-storage");
        assert_eq!(images.list(), [""; 0], "{place}");
        sandbox.output(&format!("rm {place}"));
    }
    assert_eq!(names(&cluster.user), [""; 0]);
    let home = cluster.home().join("box");
    eventually_eq("no copy is left", 0, || count(&home, "big"));
    sandbox.output("echo small >small");
    save(&sandbox, "small");
    assert_eq!(names(&cluster.user), ["small"]);
    sandbox.delete();
    cluster.node.assert_clean();
}

#[test]
fn killed_node_has_whole_snapshots_or_none() {
    let mut cluster = Cluster::start();
    let images = Images::of(&cluster.user);
    let home = cluster.home().join("box");
    let sandbox = Sandbox::create(&cluster.user, &json!({}));
    let many = "mkdir d; i=0; while [ $i -lt 20000 ]; do : >d/many-$i; i=$((i+1)); done";
    sandbox.output(many);
    let all = count(&home, "many-");
    assert_eq!(all, 20_000, "the workspace is below the node's directory");
    let (user, path) = (cluster.user.clone(), sandbox.path("snapshot"));
    let call = thread::spawn(move || user.post(&path, &json!({"name": "base"})).status);
    eventually("the snapshot is being made", || {
        (count(&home, "many-") > all || call.is_finished()).then_some(())
    });
    cluster.node.process.kill();
    let status = call.join().unwrap();
    cluster.restart_node();

    assert_eq!(sandbox.output("ls d | wc -l"), "20000\n", "it goes on");
    let whole = names(&cluster.user).len();
    assert!(whole == 1 || status != 201, "{status}");
    eventually_eq("no part is left", (whole, (1 + whole) * all), || {
        (images.list().len(), count(&home, "many-"))
    });
    save(&sandbox, "base");
    sandbox.delete();
    let fork = start(&cluster.user, "snapshot:base");
    assert_eq!(fork.output("ls d | wc -l"), "20000\n");
    fork.delete();
    cluster.node.assert_clean();
}
