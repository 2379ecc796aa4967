//! Ranges of a file.

use super::*;

/// Answer to a request for a range of the file `x`, with further header fields.
fn part(sandbox: &Sandbox, range: &str, more: &[(&str, &str)]) -> Reply {
    let fields = [&[("range", range)][..], more].concat();
    sandbox.call_with(Method::GET, "/files?path=x", &fields, "")
}

#[test]
fn one_range_is_answered() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("x"), "0123456789").unwrap();
    for (range, content_range, body) in [
        ("bytes=2-4", "bytes 2-4/10", "234"),
        ("bytes=7-", "bytes 7-9/10", "789"),
        ("bytes=-1", "bytes 9-9/10", "9"),
        ("bytes=0-99", "bytes 0-9/10", "0123456789"),
    ] {
        let reply = part(&sandbox, range, &[]);
        assert_eq!(reply.status, 206, "{range}");
        assert_eq!(reply.header("content-range"), content_range);
        assert_eq!(reply.header("content-length"), body.len().to_string());
        assert_eq!(reply.header("accept-ranges"), "bytes");
        assert_eq!(reply.body, body.as_bytes(), "{range}");
    }
    for range in ["bytes=0-1,3-4", "lines=1-2", "bytes=4-2"] {
        let reply = part(&sandbox, range, &[]);
        assert_eq!((reply.status, reply.body.len()), (200, 10), "{range}");
        assert_eq!(reply.header("content-range"), "");
    }
    let head = sandbox.call_with(Method::HEAD, "/files?path=x", &[("range", "bytes=2-4")], "");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("accept-ranges"), "bytes");
}

#[test]
fn range_beyond_end_is_refused() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("x"), "0123456789").unwrap();
    for range in ["bytes=10-", "bytes=-0"] {
        let reply = part(&sandbox, range, &[]);
        assert_eq!(reply.status, 416, "{range}");
        assert_eq!(reply.header("content-range"), "bytes */10");
        assert!(
            reply.detail().contains("has 10 bytes"),
            "{}",
            reply.detail()
        );
    }
    fs::write(sandbox.path("x"), "").unwrap();
    let empty = part(&sandbox, "bytes=0-", &[]);
    assert_eq!((empty.status, empty.body.len()), (200, 0));
}

#[test]
fn changed_file_comes_whole() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("x"), "0123456789").unwrap();
    let fresh = part(&sandbox, "bytes=0-1", &[]);
    let fresh = fresh.header("last-modified").to_owned();
    let reply = part(&sandbox, "bytes=0-1", &[("if-range", &fresh)]);
    assert_eq!(reply.status, 200, "it may change again within this second");
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let file = fs::File::open(sandbox.path("x")).unwrap();
    file.set_modified(time).unwrap();
    let old = [("if-range", "Sun, 09 Sep 2001 01:46:40 GMT")];
    assert_eq!(part(&sandbox, "bytes=0-1", &old).status, 206);
    for other in ["Sun, 09 Sep 2001 01:46:41 GMT", "\"etag\""] {
        let reply = part(&sandbox, "bytes=0-1", &[("if-range", other)]);
        assert_eq!((reply.status, reply.body.len()), (200, 10), "{other}");
    }
}
