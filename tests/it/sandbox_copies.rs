//! `cynode sandbox cp` with a stand-in for the gateway: places as `docker cp` has them.

use crate::support::{
    Answer, Call,
    client::fails,
    process::{Done, run},
    sandbox_gateway::Gateway,
};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// Gateway whose sandbox has the directory `d` with a file below it, and the file `f`.
fn gateway() -> Gateway {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "sub/f", &b"inner"[..])
        .unwrap();
    // Text, as the stand-in's answers are.
    let archive = String::from_utf8(builder.into_inner().unwrap()).unwrap();
    let list = |path: &str| {
        let entry = json!({
            "path": path, "type": "file", "size_bytes": 5, "mode": "0640", "modified_at": "2026-01-01T00:00:00Z",
        });
        json!({"entries": [entry], "truncated": false})
    };
    Gateway::start(move |rest: &str, call: &Call, answer: Answer| {
        match (call.method.as_str(), rest.replace("%2F", "/").as_str()) {
            ("GET", "/files:list?path=/workspace/d") => answer.status(200, &list("/workspace/d/f")),
            ("GET", "/files:list?path=/workspace/f") => answer.status(200, &list("/workspace/f")),
            ("GET", path) if path.starts_with("/files:list") => answer.refuse(404),
            ("GET", "/files?path=/workspace/f") => answer.text(200, "hello"),
            ("GET", "/archive?path=/workspace/d") => {
                answer.bytes(200, "application/x-tar", &archive);
            }
            ("PUT", _) => answer.status(204, &Value::Null),
            (method, path) => panic!("{method} {path}"),
        }
    })
}

fn copy(gateway: &Gateway, home: &Path, from: &str, to: &str) -> Done {
    run(&mut gateway.command(home, &["sandbox", "cp", from, to]))
}

#[test]
fn copies_into_sandbox_land_as_with_docker() {
    let home = tempfile::tempdir().unwrap();
    let gateway = gateway();
    let at = |path: &str| home.path().join(path);
    fs::write(at("local"), "abc").unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/.gitignore"), "*").unwrap();
    for (from, to) in [
        ("local", "box:d"),
        ("local", "box:new"),
        ("dir", "box:d/"),
        ("dir/.", "box:d/"),
        ("dir", "box:/made"),
    ] {
        let done = copy(&gateway, home.path(), from, to);
        assert_eq!(done.code, 0, "{from} {to}: {done:?}");
    }
    let mut puts = gateway.calls.all();
    puts.retain(|call| call.method == "PUT");
    let path = |call: &Call| {
        call.path
            .replace("%2F", "/")
            .replace("/v1/sandboxes/box", "")
    };
    let paths: Vec<_> = puts.iter().map(path).collect();
    let place = |path: &str| path.split("&mode=").next().unwrap().to_owned();
    assert_eq!(place(&paths[0]), "/files?path=/workspace/d/local");
    assert_eq!(place(&paths[1]), "/files?path=/workspace/new");
    let archives = [
        "/archive?path=/workspace/d/dir",
        "/archive?path=/workspace/d",
        "/archive?path=/made",
    ];
    assert_eq!(paths[2..], archives);
    assert_eq!(puts[0].text, "abc");
    assert!(
        puts[2].text.starts_with(".gitignore"),
        "ignore files are for uploads"
    );
    let fails_with = |from: &str, to: &str, code, hint| {
        fails(&copy(&gateway, home.path(), from, to), code, hint);
    };
    fails_with("dir", "box:f", 5, "is not a directory");
    fails_with("local", "box:none/", 4, "there is no directory");
    fails_with("a", "b", 2, "NAME:PATH");
    fails_with("box:a", "box:b", 2, "through a pipe");
}

#[test]
fn copies_out_of_sandbox_land_as_with_docker() {
    let home = tempfile::tempdir().unwrap();
    let gateway = gateway();
    let at = |path: &str| home.path().join(path);
    fs::create_dir(at("dir")).unwrap();
    for (from, to) in [
        ("box:f", "f"),
        ("box:f", "dir"),
        ("box:d", "copy"),
        ("box:d", "dir"),
        ("box:d/.", "dir"),
    ] {
        let done = copy(&gateway, home.path(), from, to);
        assert_eq!(done.code, 0, "{from} {to}: {done:?}");
    }
    for (path, text) in [
        ("f", "hello"),
        ("dir/f", "hello"),
        ("copy/sub/f", "inner"),
        ("dir/d/sub/f", "inner"),
        ("dir/sub/f", "inner"),
    ] {
        assert_eq!(fs::read_to_string(at(path)).unwrap(), text, "{path}");
    }
    let tar = copy(&gateway, home.path(), "box:d", "-").stdout;
    assert!(tar.starts_with("sub/f"), "{tar:?}");
    let fails_with = |from: &str, to: &str, code, hint| {
        fails(&copy(&gateway, home.path(), from, to), code, hint);
    };
    fails_with("box:f", "none/", 4, "there is no directory none/");
    fails_with("box:none", ".", 4, "there is no /workspace/none");
    fails_with("box:d", "f", 5, "f");
}
