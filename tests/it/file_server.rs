//! The file server of a sandbox as a process of its own: its memory, and a file system that is full.

use crate::support::process::binary;
use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    thread,
};

const MEBIBYTE: usize = 1 << 20;
/// Bytes of a file that is several times the memory that the server may have.
const LARGE_BYTES: usize = 64 * MEBIBYTE;

/// Server behind a shell script in which `"$@"` starts it, and its connection.
fn start(script: &str) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let child = command
        .args(["sh", "-c", script, "sh"])
        .arg(binary())
        .arg("__sandbox-files")
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    (child, ours)
}

/// Sends a head and a body of so many chunks of a mebibyte, as far as they are taken; head and length of the answer.
fn exchange(mut stream: UnixStream, head: &str, chunks: usize) -> (String, usize) {
    let mut sender = stream.try_clone().unwrap();
    let head = head.to_owned();
    let sending = thread::spawn(move || {
        let mut sent = sender.write_all(format!("{head}\r\n\r\n").as_bytes());
        for _ in 0..chunks {
            let chunk = [b"100000\r\n", &vec![7; MEBIBYTE][..], b"\r\n"].concat();
            sent = sent.and_then(|()| sender.write_all(&chunk));
        }
        if chunks > 0 {
            sent = sent.and_then(|()| sender.write_all(b"0\r\n\r\n"));
        }
        // A server that has refused is gone.
        let _ = sent.and_then(|()| sender.shutdown(Shutdown::Write));
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    sending.join().unwrap();
    let head = answer.split(|byte| *byte == b'\r').next().unwrap();
    (String::from_utf8_lossy(head).into_owned(), answer.len())
}

fn put(path: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\ntransfer-encoding: chunked")
}

#[test]
fn large_files_need_little_memory() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    let limited = "ulimit -d 16384 && exec \"$@\"";
    let status = |head: &str, chunks: usize| {
        let (mut child, stream) = start(limited);
        let answer = exchange(stream, head, chunks);
        assert!(child.wait().unwrap().success(), "{head}");
        answer
    };
    let file = format!("/files?path={home}/tree/file");
    let (made, _) = status(&put(&file), LARGE_BYTES / MEBIBYTE);
    assert_eq!(made, "HTTP/1.1 201 Created");
    for call in [file, format!("/archive?path={home}/tree")] {
        let (read, length) = status(&format!("GET {call} HTTP/1.1"), 0);
        assert_eq!(read, "HTTP/1.1 200 OK", "{call}");
        assert!(length > LARGE_BYTES, "{call}: {length}");
    }
}

#[test]
fn full_file_system_keeps_no_half_file() {
    let script = "mount -t tmpfs -o size=8m,mode=755 none /mnt && echo old >/mnt/file && \"$@\"; \
                  ls -A /mnt; cat /mnt/file";
    for path in ["/mnt/file", "/mnt/new/file"] {
        let (child, stream) = start(script);
        let (head, _) = exchange(stream, &put(&format!("/files?path={path}")), 12);
        assert_eq!(head, "HTTP/1.1 507 Insufficient Storage");
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "file\nold\n");
    }
}
