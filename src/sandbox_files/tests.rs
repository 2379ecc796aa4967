//! Calls over a socket pair, by a real HTTP client, on a workspace in a temporary directory.

mod archives;
mod hostile;
mod ranges;

use super::*;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    thread,
};
use tempfile::TempDir;

/// Answer of a call.
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    fn detail(&self) -> String {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status);
        problem["detail"].as_str().unwrap().to_owned()
    }

    fn json(&self) -> serde_json::Value {
        assert_eq!(self.status, 200);
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Directory that stands for a sandbox, with its workspace.
struct Sandbox(TempDir);

impl Sandbox {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("workspace")).unwrap();
        Self(home)
    }

    fn workspace(&self) -> PathBuf {
        self.0.path().join("workspace")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.workspace().join(path)
    }

    /// Connection to a file server of its own, and the thread that serves it.
    fn connect(&self) -> (UnixStream, thread::JoinHandle<io::Result<()>>) {
        let (client, server) = UnixStream::pair().unwrap();
        let workspace = self.workspace();
        (client, thread::spawn(move || serve(server, &workspace)))
    }

    fn call(&self, method: Method, target: &str, body: impl Into<Bytes>) -> Reply {
        self.call_with(method, target, &[], body)
    }

    fn call_with(
        &self,
        method: Method,
        target: &str,
        fields: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let (client, served) = self.connect();
        client.set_nonblocking(true).unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", "sandbox");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let reply = runtime.unwrap().block_on(async {
            let stream = tokio::net::UnixStream::from_std(client).unwrap();
            let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
            let exchange = async {
                let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                Reply {
                    status: parts.status.as_u16(),
                    headers: parts.headers,
                    body: body.to_vec(),
                }
            };
            tokio::join!(exchange, connection).0
        });
        served.join().unwrap().unwrap();
        reply
    }

    fn get(&self, target: &str) -> Reply {
        self.call(Method::GET, target, "")
    }

    fn put(&self, target: &str, body: impl Into<Bytes>) -> Reply {
        self.call(Method::PUT, target, body)
    }

    fn post(&self, target: &str, body: &serde_json::Value) -> Reply {
        self.call(Method::POST, target, body.to_string())
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.workspace()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn file_comes_back_with_its_mode_and_time() {
    let sandbox = Sandbox::new();
    let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let made = sandbox.put("/files?path=a/b/data.bin&mode=0750", content.clone());
    assert_eq!(made.status, 201);
    let file = sandbox.path("a/b/data.bin");
    assert_eq!(mode(&file), 0o750);
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(&file).unwrap().set_modified(time).unwrap();
    let read = sandbox.get("/files?path=a%2Fb%2Fdata.bin");
    assert_eq!(read.status, 200);
    assert!(read.body == content);
    assert_eq!(read.header("cynode-file-mode"), "0750");
    assert_eq!(
        read.header("last-modified"),
        "Sun, 09 Sep 2001 01:46:40 GMT"
    );
    assert_eq!(read.header("content-length"), "4000000");
    let head = sandbox.call(Method::HEAD, "/files?path=a/b/data.bin", "");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), "4000000");
    let empty = sandbox.put("/files?path=empty", "");
    assert_eq!(empty.status, 201);
    assert_eq!(sandbox.get("/files?path=empty").body, b"");
}

#[test]
fn replaced_file_keeps_mode_and_links() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("script"), "old").unwrap();
    fs::set_permissions(sandbox.path("script"), Permissions::from_mode(0o700)).unwrap();
    symlink("script", sandbox.path("link")).unwrap();
    symlink("../workspace/new", sandbox.path("dangling")).unwrap();
    assert_eq!(sandbox.put("/files?path=link", "new").status, 204);
    assert_eq!(fs::read(sandbox.path("script")).unwrap(), b"new");
    assert_eq!(mode(&sandbox.path("script")), 0o700);
    assert!(sandbox.path("link").is_symlink());
    assert_eq!(sandbox.put("/files?path=script&mode=640", "3").status, 204);
    assert_eq!(mode(&sandbox.path("script")), 0o640);
    assert_eq!(sandbox.put("/files?path=dangling", "made").status, 201);
    assert_eq!(fs::read(sandbox.path("new")).unwrap(), b"made");
    assert_eq!(sandbox.names(), ["dangling", "link", "new", "script"]);
}

#[test]
fn names_may_have_any_bytes() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.put("/files?path=a%ff%0A+b", "x").status, 201);
    assert_eq!(sandbox.get("/files?path=a%FF%0a%20b").body, b"x");
    let list = sandbox.get("/files:list?path=.").json();
    let path = list["entries"][0]["path"].as_str().unwrap();
    assert!(path.ends_with("/a\u{fffd}\n b"), "{path:?}");
}

#[test]
fn list_is_sorted_and_names_kinds() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("dir")).unwrap();
    fs::write(sandbox.path("dir/file"), "12345").unwrap();
    symlink("dir/file", sandbox.path("a-link")).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        sandbox.path("fifo"),
        rustix::fs::Mode::RUSR,
    )
    .unwrap();
    let shown = |target: &str| {
        let list = sandbox.get(target).json();
        assert_eq!(list["truncated"], false);
        let entries = list["entries"].as_array().unwrap().iter();
        let shown = entries.map(|entry| {
            let path = Path::new(entry["path"].as_str().unwrap());
            let path = path.strip_prefix(sandbox.workspace()).unwrap().display();
            format!(
                "{path} {} {}",
                entry["type"].as_str().unwrap(),
                entry["target"]
            )
        });
        shown.collect::<Vec<_>>()
    };
    let flat = [
        "a-link symlink \"dir/file\"",
        "dir directory null",
        "fifo other null",
    ];
    assert_eq!(shown("/files:list?path=."), flat);
    let deep = shown("/files:list?path=./&depth=2");
    assert_eq!(deep.len(), 4);
    assert_eq!(deep[2], "dir/file file null");
    assert_eq!(shown("/files:list?path=dir/file"), ["dir/file file null"]);
    let file = &sandbox.get("/files:list?path=dir").json()["entries"][0];
    assert_eq!(
        (&file["size_bytes"], &file["mode"]),
        (&5.into(), &"0644".into())
    );
    assert_eq!(sandbox.get("/files:list?path=none").status, 404);
    assert_eq!(sandbox.get("/files:list?path=.&depth=65").status, 400);
}

#[test]
fn directories_are_made_and_moved() {
    let sandbox = Sandbox::new();
    let paths = |from: &str, to: &str| serde_json::json!({"from": from, "to": to});
    let new = serde_json::json!({"path": "a/b/c"});
    assert_eq!(sandbox.post("/files:mkdir", &new).status, 201);
    assert_eq!(sandbox.post("/files:mkdir", &new).status, 204);
    fs::write(sandbox.path("a/file"), "1").unwrap();
    fs::write(sandbox.path("other"), "2").unwrap();
    assert_eq!(
        sandbox
            .post("/files:mkdir", &serde_json::json!({"path": "other"}))
            .status,
        409
    );
    assert_eq!(
        sandbox
            .post("/files:move", &paths("a/file", "x/y/z"))
            .status,
        204
    );
    assert_eq!(
        sandbox.post("/files:move", &paths("x/y/z", "other")).status,
        204
    );
    assert_eq!(fs::read(sandbox.path("other")).unwrap(), b"1");
    let onto = sandbox.post("/files:move", &paths("other", "a"));
    assert_eq!(onto.status, 409);
    assert!(
        onto.detail().contains("exists already"),
        "{}",
        onto.detail()
    );
    assert_eq!(
        sandbox
            .post("/files:move", &paths("a", "a/b/inside"))
            .status,
        400
    );
    assert_eq!(sandbox.post("/files:move", &paths("none", "b")).status, 404);
    assert_eq!(
        sandbox.post("/files:move", &paths("a/b", "moved")).status,
        204
    );
    assert!(sandbox.path("moved/c").is_dir());
    assert_eq!(
        sandbox
            .post("/files:move", &serde_json::json!({"from": 1}))
            .status,
        400
    );
}

#[test]
fn deletion_takes_full_directory_only_if_asked() {
    let sandbox = Sandbox::new();
    let delete = |target: &str| sandbox.call(Method::DELETE, target, "");
    fs::create_dir_all(sandbox.path("full/sub")).unwrap();
    fs::write(sandbox.path("full/sub/file"), "").unwrap();
    fs::write(sandbox.0.path().join("beside"), "").unwrap();
    symlink(sandbox.0.path(), sandbox.path("full/link")).unwrap();
    symlink("full", sandbox.path("link")).unwrap();
    let refused = delete("/files?path=full");
    assert_eq!(refused.status, 409);
    assert!(refused.detail().contains("recursive=true"));
    assert_eq!(delete("/files?path=link/&recursive=true").status, 204);
    assert!(sandbox.path("full/sub/file").exists(), "only the link goes");
    assert_eq!(delete("/files?path=full&recursive=true").status, 204);
    assert!(
        sandbox.0.path().join("beside").exists(),
        "no link is followed"
    );
    assert_eq!(delete("/files?path=full").status, 404);
    fs::create_dir(sandbox.path("empty")).unwrap();
    assert_eq!(delete("/files?path=empty").status, 204);
    for path in [".", "/", "/proc", "../workspace"] {
        let kept = delete(&format!("/files?path={path}&recursive=true"));
        assert_eq!(kept.status, 409, "{path}");
        assert!(kept.detail().contains("mount point"), "{}", kept.detail());
    }
    assert!(sandbox.workspace().exists());
}
