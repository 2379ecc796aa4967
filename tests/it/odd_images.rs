//! Images that can't run, and odd images that can: an image's fault is distinguished from podman's.

use crate::support::{
    Worker,
    image::{IMAGE, NO_USER_IMAGE, OddImage, odd, podman},
    process::with_tool,
};
use rustix::process::geteuid;
use serde_json::{Value, json};
use std::{fs, os::unix::fs::symlink, path::Path};

fn plain(_: &Path) {}

fn run(worker: &Worker, image: &OddImage, script: &str) -> Value {
    worker.run(&Worker::script_with(script, json!({"image": image.0})))
}

fn link(target: &str) -> impl FnOnce(&Path) {
    move |root| symlink(target, root.join("workspace")).unwrap()
}

#[test]
fn unrunnable_image_fails_job_with_podmans_reason() {
    let worker = Worker::start(&[]);
    let cases = [
        (odd(plain, &["USER 4294967295"]), "2147483647"),
        (odd(plain, &["USER 2147483648"]), "2147483647"),
        (odd(plain, &["USER nobody:nogroup-either"]), "group"),
        (
            odd(|root| fs::write(root.join("workspace"), "x").unwrap(), &[]),
            "not a directory",
        ),
        (odd(link("/etc"), &[]), "/workspace"),
        (odd(link("/bin/busybox"), &[]), ""),
        (odd(link("/nowhere/at/all"), &[]), "/workspace"),
        (odd(link("/"), &[]), ""),
        (
            odd(
                |root| symlink("/etc/not-executable", root.join(".cynode-init")).unwrap(),
                &[],
            ),
            "link",
        ),
    ];
    for (image, words) in &cases {
        let result = run(&worker, image, "echo ran");
        assert_eq!(result["error"]["type"], "image-not-runnable", "{result}");
        let message = result["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{words} in {message}");
        assert_eq!(result["stdout"], "", "{result}");
    }
    // Podman counts as healthy.
    worker.api.get("/readyz").expect(200);
    worker.assert_clean();
}

#[test]
fn unusual_images_run() {
    let worker = Worker::start(&[]);
    let no_etc = |root: &Path| fs::remove_dir_all(root.join("etc")).unwrap();
    let cases = [
        odd(plain, &["VOLUME /workspace", "VOLUME /data"]),
        odd(plain, &["VOLUME /"]),
        odd(plain, &["WORKDIR /no/such/place"]),
        odd(plain, &["WORKDIR /etc/passwd"]),
        odd(plain, &["ENV a.b=c", "ENV 1X==y"]),
        odd(plain, &["STOPSIGNAL SIGKILL"]),
        odd(no_etc, &[]),
    ];
    for image in &cases {
        let script = "pwd; echo x >file && cat file; grep -c ' /workspace ' /proc/mounts; \
                      grep -qw \"$(hostname)\" /etc/hosts && echo known";
        let result = run(&worker, image, script);
        assert_eq!(result["stdout"], "/workspace\nx\n1\nknown\n", "{result}");
    }
}

#[test]
fn hosts_file_names_only_sandbox() {
    let worker = Worker::start(&[]);
    let job = Worker::script("hostname; cat /etc/hosts; cat /etc/resolv.conf 2>/dev/null");
    let result = worker.run(&job);
    let text = result["stdout"].as_str().unwrap();
    let (own, hosts) = text.split_once('\n').unwrap();
    let mut names = Vec::new();
    for line in hosts.lines() {
        let mut words = line.split_whitespace();
        assert!(
            ["127.0.0.1", "::1"].contains(&words.next().unwrap()),
            "{text}"
        );
        names.extend(words);
    }
    let known = |name: &&str| ["localhost", own].contains(name) || name.starts_with("cynode-");
    assert!(
        names.contains(&"localhost") && names.contains(&own),
        "{text}"
    );
    assert!(names.iter().all(known), "{text}");
}

/// A worker whose podman refuses to start a sandbox with an image as `refusal` decides, and does everything else.
fn refusing(home: &Path, refusal: &str) -> Worker {
    let script = format!(
        "case \" $* \" in *' image mount '*) kind=mount;; *' --rootfs '*) ;; *' run '*) kind=run;; esac\n\
         PLACE={}; {refusal}\nexec podman \"$@\"",
        home.display()
    );
    with_tool(home, "refusing-podman", &script);
    let engine = home.join("bin/refusing-podman");
    Worker::start(&["--engine", engine.to_str().unwrap()])
}

#[test]
fn brief_podman_failure_costs_no_attempt() {
    let home = tempfile::tempdir().unwrap();
    let once = "[ \"$kind\" = run ] && mkdir $PLACE/refused 2>/dev/null && echo 'Error: a lock' >&2 && exit 125";
    let worker = refusing(home.path(), once);
    let result = worker.run(&Worker::script("echo ran"));
    assert_eq!(result["stdout"], "ran\n", "{result}");
    assert!(home.path().join("refused").exists());
}

#[test]
fn podman_failure_is_not_image_fault() {
    let changing = "[ \"$kind\" = run ] && if mkdir $PLACE/refused 2>/dev/null; then echo 'Error: a lock' >&2; else echo 'Error: a disk' >&2; fi && exit 125";
    let broken_layer = "[ -n \"$kind\" ] && echo 'Error: layer not known' >&2 && exit 125";
    let killed = "[ \"$kind\" = run ] && echo 'Error: killed' >&2 && kill -KILL $$";
    for refusal in [changing, broken_layer, killed] {
        let home = tempfile::tempdir().unwrap();
        let worker = refusing(home.path(), refusal);
        let result = worker.run(&Worker::script("echo ran"));
        assert_eq!(result["error"]["type"], "engine-error", "{result}");
        worker.assert_clean();
    }
}

#[test]
fn container_in_the_way_prevents_second_start() {
    let home = tempfile::tempdir().unwrap();
    // Leaves a container of the sandbox's name and labels, whose removal fails until the way is clear.
    let stuck = format!(
        "if [ \"$kind\" = run ]; then echo run >>$PLACE/runs; kept=; \
         for word; do case $word in --name=*|--label=*) kept=\"$kept $word\";; esac; done; \
         podman create --quiet $kept {IMAGE} true >/dev/null; echo 'Error: a lock' >&2; exit 125; fi\n\
         case \" $* \" in *' rm '*) [ -e $PLACE/clear ] || {{ echo rm >>$PLACE/removals; exit 125; }};; esac"
    );
    let worker = refusing(home.path(), &stuck);
    let result = worker.run(&Worker::script("echo ran"));
    assert_eq!(result["error"]["type"], "engine-error", "{result}");
    assert_eq!(crate::support::read(home.path().join("runs")), "run\n");
    fs::write(home.path().join("clear"), "").unwrap();
    worker.assert_clean();
}

#[test]
fn cancel_works_during_fault_analysis() {
    let home = tempfile::tempdir().unwrap();
    // Every image is mounted once before it runs.
    let hangs = "[ \"$kind\" = run ] && touch $PLACE/refused; \
                 [ \"$kind\" = mount ] && [ -e $PLACE/refused ] && mkdir $PLACE/looking && exec sleep 1000";
    let worker = refusing(home.path(), hangs);
    let job = Worker::script_with("true", json!({"image": NO_USER_IMAGE}));
    let events = worker.follow(&job, 0);
    crate::support::eventually("the image is checked", || {
        home.path().join("looking").exists().then_some(())
    });
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(&job)))
        .json(200);
    assert_eq!(events.last().unwrap()["status"], "canceled");
    let next = worker.run(&Worker::script_with("echo next", json!({"image": IMAGE})));
    assert_eq!(next["stdout"], "next\n", "{next}");
}

#[test]
fn canceled_check_leaves_no_image_mounted() {
    let home = tempfile::tempdir().unwrap();
    // The first mount checks the image's files; the second finds why podman refuses it. Rootless, podman is called twice
    // for each: to enter a namespace, and inside.
    let hangs = "case \" $* \" in *' unshare '*) exec podman \"$@\";; esac\n\
         [ \"$kind\" = mount ] && mkdir $PLACE/first 2>/dev/null && exec podman \"$@\"\n\
         [ \"$kind\" = mount ] && podman \"$@\" && touch $PLACE/mounted && exec sleep 1000";
    let worker = refusing(home.path(), hangs);
    let image = odd(plain, &["USER nobody-knows-them"]);
    let job = Worker::job_in(&image.0, &["true"]);
    let events = worker.follow(&job, 0);
    crate::support::eventually("the image is mounted", || {
        home.path().join("mounted").exists().then_some(())
    });
    let cancel = format!("{}:cancel", Worker::path(&job));
    worker.api.act(&cancel).json(200);
    assert_eq!(events.last().unwrap()["status"], "canceled");
    worker.assert_clean();
    let list = ["unshare", "podman", "image", "mount"];
    // Only rootless podman needs a namespace for that.
    let list = &list[if geteuid().is_root() { 2 } else { 0 }..];
    let mounted = podman(list).unwrap();
    assert!(!mounted.contains(&image.0), "{mounted}");
}
