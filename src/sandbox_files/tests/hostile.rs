//! Paths and connections that are not what they should be.

use super::*;
use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixListener,
};

fn fifo(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap();
}

/// Sends bytes as they are, and nothing more; the answer.
fn send_raw(sandbox: &Sandbox, bytes: &[u8]) -> String {
    let (mut client, served) = sandbox.connect();
    client.write_all(bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    drop(client);
    // A connection that is gone is none of its failures.
    let _ = served.join().unwrap();
    answer
}

#[test]
fn files_that_are_none_are_refused_at_once() {
    let sandbox = Sandbox::new();
    fifo(&sandbox.path("fifo"));
    let _listener = UnixListener::bind(sandbox.path("socket")).unwrap();
    fs::create_dir(sandbox.path("dir")).unwrap();
    symlink("fifo", sandbox.path("to-fifo")).unwrap();
    for (path, kind) in [
        ("fifo", "FIFO"),
        ("to-fifo", "FIFO"),
        ("socket", "socket"),
        ("/dev/null", "device"),
        ("dir", "directory"),
        (".", "directory"),
        ("/", "directory"),
    ] {
        for reply in [
            sandbox.get(&format!("/files?path={path}")),
            sandbox.put(&format!("/files?path={path}"), "x"),
        ] {
            if (path, reply.status) != ("/", 400) {
                assert_eq!(reply.status, 409, "{path}: {}", reply.detail());
                assert!(reply.detail().contains(kind), "{path}: {}", reply.detail());
            }
        }
    }
    let archive = sandbox.get("/archive?path=fifo");
    assert_eq!(archive.status, 409);
    assert_eq!(sandbox.names(), ["dir", "fifo", "socket", "to-fifo"]);
}

#[test]
fn bad_paths_have_clear_problems() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("file"), "").unwrap();
    symlink("loop", sandbox.path("loop")).unwrap();
    let long = "n".repeat(256);
    let deep = "d/".repeat(2050);
    for (path, status, word) in [
        ("", 400, "empty"),
        ("a%00b", 400, "NUL"),
        (&deep[..4097], 400, "4096"),
        (&deep[..4090], 400, "longer"),
        (&long, 400, "longer"),
        ("none", 404, "there is no"),
        ("file/below", 409, "not a directory"),
        ("loop", 409, "links"),
        ("loop/below", 409, "links"),
        ("../none", 404, "there is no"),
    ] {
        let reply = sandbox.get(&format!("/files?path={path}"));
        assert_eq!(reply.status, status, "{path}: {}", reply.detail());
        assert!(reply.detail().contains(word), "{path}: {}", reply.detail());
        let reply = sandbox.put(&format!("/files?path={path}"), "x");
        if status != 404 {
            assert_eq!(reply.status, status, "{path}: {}", reply.detail());
        }
    }
    assert_eq!(sandbox.get("/files").status, 400);
    for path in ["dir/", "missing/..", ".."] {
        let reply = sandbox.put(&format!("/files?path={path}"), "x");
        assert!((400..500).contains(&reply.status), "{path}");
    }
    assert_eq!(sandbox.names(), ["file", "loop", "none"]);
}

#[test]
fn broken_upload_leaves_nothing() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("old"), "old").unwrap();
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    for (path, body) in [
        ("a/b/c", "content-length: 100\r\n\r\nhalf".to_owned()),
        ("old", "content-length: 100\r\n\r\nhalf".to_owned()),
        ("a", format!("{chunked}4\r\nhalf\r\n")),
        ("a", format!("{chunked}4\r\nha")),
        ("a", format!("{chunked}4\r\nhalfXX4\r\n")),
        ("a", format!("{chunked}xyz\r\nhalf\r\n0\r\n\r\n")),
        ("a", format!("{chunked}4\r\nhalf\r\n0\r\n")),
        ("a", format!("{chunked}{}", "1".repeat(9000))),
        ("a", format!("{chunked}ffffffffffffffffff\r\n")),
    ] {
        let answer = send_raw(
            &sandbox,
            format!("PUT /files?path={path} HTTP/1.1\r\n{body}").as_bytes(),
        );
        assert!(answer.starts_with("HTTP/1.1 400"), "{body:?}: {answer}");
        assert!(answer.contains("ended early"), "{answer}");
        assert_eq!(sandbox.names(), ["old"], "{body:?}");
        assert_eq!(fs::read(sandbox.path("old")).unwrap(), b"old");
    }
}

#[test]
fn chunks_and_lengths_are_both_read() {
    let sandbox = Sandbox::new();
    let bodies = [
        "transfer-encoding: chunked\r\n\r\n3\r\none\r\n3;x=y\r\ntwo\r\n0\r\nTrailer: x\r\n\r\n",
        "content-length: 6\r\n\r\nonetwo",
        "expect: 100-continue\r\ncontent-length: 6\r\n\r\nonetwo",
    ];
    for body in bodies {
        let request = format!("PUT /files?path=file HTTP/1.1\r\n{body}");
        let answer = send_raw(&sandbox, request.as_bytes());
        let is_asked = answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 20");
        assert_eq!(is_asked, body.starts_with("expect"), "{answer}");
        assert_eq!(fs::read(sandbox.path("file")).unwrap(), b"onetwo");
        fs::remove_file(sandbox.path("file")).unwrap();
    }
}

#[test]
fn garbage_is_answered_or_closed() {
    let sandbox = Sandbox::new();
    assert_eq!(send_raw(&sandbox, b""), "");
    let long = [b"GET /files?path=".as_slice(), &[b'x'; 70_000]].concat();
    for bytes in [
        b"\r\n\r\n".as_slice(),
        b"\x16\x03\x01\x02\x00\n\r\n",
        b"GET /files?path=x HTTP/1.1\r\nhalf",
        b"PUT /files?path=x HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"PUT /files?path=x HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
        &long,
    ] {
        let answer = send_raw(&sandbox, bytes);
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert_eq!(sandbox.get("/other").status, 404);
    let refused = sandbox.call(Method::PATCH, "/files?path=x", "");
    assert_eq!(
        (refused.status, refused.header("allow")),
        (405, "GET, HEAD, PUT, DELETE")
    );
    assert!(sandbox.names().is_empty());
}

#[test]
fn upload_beyond_free_space_is_refused_first() {
    let sandbox = Sandbox::new();
    let request = b"PUT /files?path=a/big HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1152921504606846976\r\n\r\n";
    let answer = send_raw(&sandbox, request);
    assert!(answer.starts_with("HTTP/1.1 507"), "{answer}");
    assert!(answer.contains("1099511627776 MiB are needed"), "{answer}");
    assert!(sandbox.names().is_empty());
}

#[test]
fn refusal_reaches_client_that_still_sends() {
    let sandbox = Sandbox::new();
    let refused = sandbox.put("/files?path=.", vec![0; 8 << 20]);
    assert_eq!(refused.status, 409);
}

#[test]
fn system_files_have_content() {
    let sandbox = Sandbox::new();
    let read = sandbox.get("/files?path=/proc/self/status");
    assert_eq!(read.status, 200);
    assert!(read.body.starts_with(b"Name:"));
}

#[test]
fn temporary_file_that_cannot_be_made_has_clear_problem() {
    let sandbox = Sandbox::new();
    // No user may make a file there, not even root.
    let refused = sandbox.put("/files?path=/proc/none", "x");
    assert!([403, 404].contains(&refused.status), "{}", refused.detail());
    let full = io::Error::new(io::ErrorKind::StorageFull, "full, at path x");
    let problem = failure::problem(&sandbox.workspace(), &full);
    assert_eq!(problem.kind.status(), 507);
}
