//! Files of sandboxes that stay, through the User API, in a whole system.

use crate::support::{Cluster, Reply, Sandbox, image::USER_IMAGE};
use serde_json::{Value, json};
use std::io::Read as _;
use tar::{Builder, EntryType, Header};

fn detail(reply: &Reply) -> String {
    let problem: Value = serde_json::from_slice(&reply.body).unwrap();
    problem["detail"].as_str().unwrap().to_owned()
}

/// Archive of entries: name, type, target of a link or content of a file.
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, text) in entries {
        let mut header = Header::new_gnu();
        // Any name, also one that no archiver writes.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let content = if *kind == EntryType::Regular {
            *text
        } else {
            ""
        };
        header.set_size(content.len() as u64);
        if content.is_empty() {
            header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn files_are_those_of_commands() {
    let cluster = Cluster::start();
    for wanted in [json!({}), json!({"image": USER_IMAGE})] {
        let sandbox = Sandbox::create(&cluster.user, &wanted);
        sandbox
            .put(
                "files?path=a/b/run.sh&mode=0755",
                b"#!/bin/sh\necho ran as $(id -u)\n",
            )
            .expect(201);
        let user = sandbox.output("id -u");
        assert_eq!(
            sandbox.output("a/b/run.sh"),
            format!("ran as {user}"),
            "its owner runs it"
        );
        assert_eq!(sandbox.output("stat -c %u a/b/run.sh"), user);
        sandbox
            .put("files?path=/workspace/a/b/run.sh", b"second")
            .expect(204);
        let read = sandbox.get("files?path=a/b/run.sh");
        assert_eq!((read.status, &read.body[..]), (200, b"second".as_slice()));
        assert_eq!(read.header("cynode-file-mode"), Some("0755"));
        assert!(
            read.header("last-modified")
                .is_some_and(|time| time.ends_with(" GMT"))
        );
        sandbox.output("ln -s a link; printf 12 >'x y'");
        let list = sandbox.get("files:list?path=.&depth=3").json(200);
        let shown: Vec<_> = list["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                format!(
                    "{} {}",
                    entry["path"].as_str().unwrap(),
                    entry["type"].as_str().unwrap()
                )
            })
            .collect();
        let expected = [
            "/workspace/a directory",
            "/workspace/a/b directory",
            "/workspace/a/b/run.sh file",
            "/workspace/link symlink",
            "/workspace/x y file",
        ];
        assert_eq!(shown, expected);
        sandbox
            .post("files:mkdir", &json!({"path": "/tmp/new/dir"}))
            .expect(201);
        let to = json!({"from": "x y", "to": "/tmp/new/dir/z"});
        sandbox.post("files:move", &to).expect(204);
        assert_eq!(sandbox.output("cat /tmp/new/dir/z; ls"), "12a\nlink\n");
        sandbox
            .call("DELETE", "files?path=a", b"")
            .problem(409, "conflict");
        sandbox
            .call("DELETE", "files?path=a&recursive=true", b"")
            .expect(204);
        assert_eq!(sandbox.output("ls"), "link\n");
        sandbox.delete();
    }
    cluster.node.assert_clean();
}

#[test]
fn large_file_and_archive_come_back_whole() {
    let cluster = Cluster::start();
    let sandbox = Sandbox::create(&cluster.user, &json!({}));
    let content: Vec<u8> = (0..12_000_000_u32).flat_map(u32::to_le_bytes).collect();
    sandbox.put("files?path=d/large", &content).expect(201);
    let sum = sandbox.output("sha256sum d/large");
    assert!(
        sum.starts_with(&cynode::digest::sha256_hex(&content)),
        "{sum}"
    );
    assert!(sandbox.get("files?path=d/large").expect(200).body == content);
    let path = sandbox.path("files?path=d/large");
    let ranged = |range| cluster.user.call("GET", &path, &[("range", range)], b"");
    let part = ranged("bytes=5000000-39999999");
    assert!(part.expect(206).body == content[5_000_000..40_000_000]);
    let total = content.len();
    let expected = format!("bytes 5000000-39999999/{total}");
    assert_eq!(part.header("content-range"), Some(expected.as_str()));
    assert_eq!(part.header("accept-ranges"), Some("bytes"));
    let beyond = ranged("bytes=48000000-");
    beyond.problem(416, "range-not-satisfiable");
    let expected = format!("bytes */{total}");
    assert_eq!(beyond.header("content-range"), Some(expected.as_str()));
    sandbox.output("ln -s large d/link; ln d/large d/same; mkfifo d/fifo");
    let made = sandbox.get("archive?path=d");
    assert_eq!(made.header("content-type"), Some("application/x-tar"));
    sandbox.put("archive?path=copy", &made.body).expect(204);
    let same = "cmp d/large copy/large && stat -c '%h %i' copy/large copy/same | uniq | wc -l; readlink copy/link; ls copy";
    assert_eq!(sandbox.output(same), "1\nlarge\nlarge\nlink\nsame\n");
    let mut read = tar::Archive::new(&made.body[..]);
    let mut files = read.entries().unwrap().map(Result::unwrap);
    let mut large = files.find(|entry| entry.size() > 0).unwrap();
    let mut bytes = Vec::new();
    large.read_to_end(&mut bytes).unwrap();
    assert!(bytes == content);
    sandbox.delete();
    cluster.node.assert_clean();
}

#[test]
fn no_path_leaves_the_sandbox() {
    let cluster = Cluster::start();
    let secret = cluster.home().join("secret");
    std::fs::write(&secret, "of the host").unwrap();
    let sandbox = Sandbox::create(&cluster.user, &json!({}));
    let secret = secret.to_str().unwrap();
    sandbox.output(&format!(
        "ln -s {secret} to-host; ln -s / root; ln -s /proc/1/root init; ln -s /proc/self/root self"
    ));
    let climbing = format!("{}{secret}", "../".repeat(40));
    for path in [
        secret,
        &climbing,
        "to-host",
        &format!("root{secret}"),
        &format!("self{secret}"),
    ] {
        for call in ["files", "files:list", "archive"] {
            let reply = sandbox.get(&format!("{call}?path={path}"));
            reply.problem(404, "not-found");
        }
    }
    // The root of init is the sandbox's, too, and init can't be looked into.
    let through_init = sandbox.get(&format!("files?path=init{secret}"));
    assert!(
        [403, 404].contains(&through_init.status),
        "{}",
        through_init.text()
    );
    // What is written there is written in the sandbox.
    let made = sandbox.put(&format!("files?path={climbing}"), b"of the sandbox");
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "of the host");
    assert_eq!(sandbox.output(&format!("cat {secret}")), "of the sandbox");
    for (entries, word) in [
        (vec![("../evil", EntryType::Regular, "x")], ".."),
        (vec![("/tmp/evil", EntryType::Regular, "x")], "relative"),
        (vec![("root/tmp/evil", EntryType::Regular, "x")], "link"),
        (
            vec![
                ("l", EntryType::Symlink, "/tmp"),
                ("l/evil", EntryType::Regular, "x"),
            ],
            "link",
        ),
        (vec![("evil", EntryType::Char, "")], "device"),
        (
            vec![("evil", EntryType::Link, "../../etc/passwd")],
            "hard link",
        ),
    ] {
        let refused = sandbox.put("archive?path=.", &archive(&entries));
        assert_eq!(refused.status, 400, "{word}: {}", refused.text());
        assert!(
            detail(&refused).contains(word),
            "{word}: {}",
            refused.text()
        );
    }
    assert_eq!(
        sandbox.output("find / -xdev -name evil 2>/dev/null | wc -l"),
        "0\n"
    );
    sandbox.delete();
    cluster.node.assert_clean();
}

#[test]
fn files_that_are_none_hold_nothing_up() {
    let cluster = Cluster::start();
    let sandbox = Sandbox::create(&cluster.user, &json!({}));
    sandbox.output(
        "mkfifo fifo; ln -s fifo to-fifo; ln -s loop loop; mkdir dir; ln -s /dev/zero zero",
    );
    for path in [
        "fifo",
        "to-fifo",
        "/dev/zero",
        "zero",
        "/dev/tty",
        "loop",
        "dir",
        "/proc",
        ".",
    ] {
        for reply in [
            sandbox.get(&format!("files?path={path}")),
            sandbox.put(&format!("files?path={path}"), b"x"),
        ] {
            reply.problem(409, "conflict");
        }
    }
    let long = "n".repeat(300);
    for (path, status) in [
        ("", 400),
        ("a%00b", 400),
        (&long, 400),
        ("none", 404),
        ("/.cynode-init/x", 409),
    ] {
        assert_eq!(
            sandbox.get(&format!("files?path={path}")).status,
            status,
            "{path}"
        );
    }
    let wide = sandbox.get(&format!("files?path={}", "d/".repeat(2100)));
    wide.problem(400, "invalid-request");
    let made = sandbox.get("archive?path=.");
    assert!(made.text().contains("left out 1 entries"), "the FIFO");
    // A name with any bytes, as the shell made it.
    sandbox.output("printf 1 >\"$(printf 'a\\377\\nb')\"");
    assert_eq!(sandbox.get("files?path=a%ff%0ab").body, b"1");
    let refused = sandbox.put("archive?path=dir", b"no archive");
    assert!(detail(refused.expect(400)).contains("not a tar archive"));
    sandbox.delete();
    cluster.node.assert_clean();
}

#[test]
fn full_file_system_is_said_and_left_as_it_was() {
    let cluster = Cluster::start();
    let sandbox = Sandbox::create(&cluster.user, &json!({"shm_size": "1MiB"}));
    let large = vec![7; 4 << 20];
    sandbox.put("files?path=/dev/shm/old", b"old").expect(201);
    for path in ["/dev/shm/new/file", "/dev/shm/old"] {
        let reply = sandbox.put(&format!("files?path={path}"), &large);
        reply.problem(507, "insufficient-storage");
        let text = detail(&reply);
        assert!(
            text.contains("1 MiB of its 1 MiB are in use, and 4 MiB are needed"),
            "{text}"
        );
    }
    let entry = "x".repeat(3 << 20);
    let reply = sandbox.put(
        "archive?path=/dev/shm",
        &archive(&[
            ("a", EntryType::Regular, "1"),
            ("b", EntryType::Regular, &entry),
        ]),
    );
    reply.problem(507, "insufficient-storage");
    assert_eq!(
        sandbox.output("ls -A /dev/shm; cat /dev/shm/old /dev/shm/a"),
        "a\nold\nold1"
    );
    sandbox.delete();
    cluster.node.assert_clean();
}

#[test]
fn upload_that_breaks_off_leaves_nothing() {
    let cluster = Cluster::start();
    let sandbox = Sandbox::create(&cluster.user, &json!({}));
    sandbox.put("files?path=old", b"old").expect(201);
    for path in ["old", "new/file"] {
        let head = format!(
            "PUT {} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: 1000000\r\n\r\nhalf",
            sandbox.path(&format!("files?path={path}")),
            cluster.user.address(),
            cluster.user.token(),
        );
        let mut stream = crate::support::raw::connect_to(&cluster.user);
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        crate::support::eventually("half of the upload is there", || {
            let seen = sandbox.output("find . -name '.cynode-new-*' -size +0 | wc -l");
            (seen == "1\n").then_some(())
        });
        drop(stream);
        crate::support::eventually("half of the upload is gone", || {
            (sandbox.output("ls -A") == "old\n").then_some(())
        });
    }
    assert_eq!(sandbox.get("files?path=old").body, b"old");
    sandbox.delete();
    cluster.node.assert_clean();
}
