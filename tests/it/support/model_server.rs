//! Images of a model server without a model (`examples/stand-in-ollama`), and containers of them.
//! They are in the local podman only: a test that runs one needs no network.

use super::{
    Api, DEADLINE, eventually,
    image::{podman, provide},
    lasting_port,
    process::run,
    uuid,
};
use cynode::digest::sha256_hex;
use serde_json::Value;
use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
};

/// A model server that works, and has no model yet.
pub(crate) const OLLAMA_IMAGE: &str = "localhost/cynode-test-ollama:latest";
/// The same of another version, [`NEXT_VERSION`].
pub(crate) const NEXT_OLLAMA_IMAGE: &str = "localhost/cynode-test-ollama-next:latest";
/// One that ends as soon as it is started, and says [`BROKEN_REASON`].
pub(crate) const BROKEN_OLLAMA_IMAGE: &str = "localhost/cynode-test-ollama-broken:latest";
/// One that takes connections and never answers.
pub(crate) const SILENT_OLLAMA_IMAGE: &str = "localhost/cynode-test-ollama-silent:latest";

/// Version that [`OLLAMA_IMAGE`] reports.
pub(crate) const VERSION: &str = "0.0.0-stand-in";
/// Version that [`NEXT_OLLAMA_IMAGE`] reports.
pub(crate) const NEXT_VERSION: &str = "0.0.1-stand-in";
/// Message of [`BROKEN_OLLAMA_IMAGE`] on stderr before it exits with 1.
pub(crate) const BROKEN_REASON: &str = "no space for the model server";

/// Raise it when the recipe below changes, so that images of an earlier one are replaced.
const RECIPE: &str = "1";
const SERVE: [&str; 3] = [
    "ENTRYPOINT [\"/bin/ollama\"]",
    "CMD [\"serve\"]",
    "ENV OLLAMA_HOST=0.0.0.0:11434",
];

/// Makes sure that all images are there; the work is done once per process.
pub(crate) fn ready() {
    static READY: OnceLock<()> = OnceLock::new();
    READY.get_or_init(|| {
        let path = binary();
        let binary = fs::read(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; run `make it`", path.display()));
        let label = sha256_hex([binary.as_slice(), RECIPE.as_bytes()].concat());
        let root = tempfile::tempdir().unwrap();
        lay_out(root.path(), &binary);
        let (next, broken) = (
            format!("ENV STAND_IN_VERSION={NEXT_VERSION}"),
            format!("ENV STAND_IN_FAIL=\"{BROKEN_REASON}\""),
        );
        for (name, change) in [
            (OLLAMA_IMAGE, None),
            (NEXT_OLLAMA_IMAGE, Some(next.as_str())),
            (BROKEN_OLLAMA_IMAGE, Some(broken.as_str())),
            (SILENT_OLLAMA_IMAGE, Some("ENV STAND_IN_SILENT=1")),
        ] {
            let changes: Vec<&str> = SERVE.into_iter().chain(change).collect();
            provide(root.path(), name, &changes, &label);
        }
    });
}

/// The server, which cargo puts beside the directory of the test's own executable.
pub(crate) fn binary() -> PathBuf {
    let own = env::current_exe().unwrap();
    let profile = own.parent().and_then(Path::parent).unwrap();
    profile.join("examples/stand-in-ollama")
}

/// Writes the root file system of the images.
fn lay_out(root: &Path, binary: &[u8]) {
    for dir in ["bin", "root", "tmp"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    let mode = |path: &str, mode| {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    fs::write(root.join("bin/ollama"), binary).unwrap();
    mode("bin/ollama", 0o755);
    mode("root", 0o700);
    mode("tmp", 0o1777);
    mode("", 0o755);
}

/// A container of one of the images, removed at the end of the test, also of one that fails.
pub(crate) struct ModelServer {
    /// Its name, for podman.
    pub(crate) name: String,
    /// Its API.
    pub(crate) api: Api,
}

impl ModelServer {
    /// Runs one, with more options of `podman run` in `more`, and waits until it answers.
    pub(crate) fn start(image: &str, more: &[&str]) -> Self {
        let server = Self::launch(image, more);
        eventually(&format!("{image} answers within {DEADLINE:?}"), || {
            let reply = server.api.try_call("GET", "/", &[], b"").ok()?;
            (reply.status == 200).then_some(())
        });
        server
    }

    /// Runs one, with more options of `podman run` in `more`.
    pub(crate) fn launch(image: &str, more: &[&str]) -> Self {
        ready();
        let mut server = Self {
            name: format!("cynode-test-{}", uuid()),
            api: Api::new(""),
        };
        server
            .run(image, more)
            .unwrap_or_else(|error| panic!("{error}"));
        // One that has ended has no port any more.
        if let Ok(address) = podman(&["port", &server.name, "11434/tcp"]) {
            server.api = Api::new(address.trim());
        }
        server
    }

    /// Starts the container. Where podman's own runtime or ulimits don't work, it takes what the
    /// node would find out to work, see `docs/sandbox.md`.
    fn run(&self, image: &str, more: &[&str]) -> Result<(), String> {
        let limits: &[&str] = &["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"];
        let ways: [(&[&str], &[&str]); 3] = [
            (&[], &[]),
            (&["--runtime=runc"], &[]),
            (&["--runtime=runc"], limits),
        ];
        let start = ["run", "--detach", "--replace", "--pull=never"];
        let own = ["--name", &self.name, "--publish=127.0.0.1::11434"];
        let mut failed = String::new();
        for (runtime, limits) in ways {
            let arguments = [runtime, &start, &own, limits, more, &[image]].concat();
            match podman(&arguments) {
                Ok(_) => return Ok(()),
                Err(error) => failed += &error,
            }
        }
        Err(failed)
    }

    /// Its output so far: stdout, then stderr.
    pub(crate) fn logs(&self) -> String {
        let logs = run(Command::new("podman").args(["logs", &self.name]));
        logs.stdout + &logs.stderr
    }

    /// Ends it as an operator does; its exit code, 137 when it had to be killed.
    pub(crate) fn stop(&self) -> i32 {
        podman(&["stop", &self.name]).unwrap();
        self.ended()
    }

    /// Waits for its end; its exit code.
    pub(crate) fn ended(&self) -> i32 {
        let code = podman(&["wait", &self.name]).unwrap();
        code.trim().parse().unwrap()
    }
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("==== {}\n{}====", self.name, self.logs());
        }
        let removed = podman(&["rm", "--force", "--volumes", "--time=10", &self.name]);
        if !thread::panicking() {
            removed.unwrap();
        }
    }
}

/// A place for models that outlives containers, removed at the end of the test.
pub(crate) struct Volume {
    /// Its name, for podman.
    pub(crate) name: String,
}

impl Volume {
    /// A new one.
    pub(crate) fn new() -> Self {
        let name = format!("cynode-test-{}", uuid());
        podman(&["volume", "create", &name]).unwrap();
        Self { name }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let removed = podman(&["volume", "rm", "--force", &self.name]);
        if !thread::panicking() {
            removed.unwrap();
        }
    }
}

/// A port for the one model server of a node, and what a node makes for it: removed at the end of
/// the test, also of one that fails.
pub(crate) struct ModelPort {
    /// The port.
    pub(crate) port: u16,
    /// The name of the container and of its volume.
    pub(crate) name: String,
}

impl ModelPort {
    /// A free port.
    pub(crate) fn new() -> Self {
        ready();
        let port = lasting_port();
        Self {
            port,
            name: format!("cynode-ollama-{port}"),
        }
    }

    /// Podman's description of the container; `None` without one.
    pub(crate) fn inspect(&self) -> Option<Value> {
        let found = podman(&["container", "inspect", &self.name]).ok()?;
        let found: Value = serde_json::from_str(&found).unwrap();
        Some(found[0].clone())
    }

    /// The id of the container; empty when there is none.
    pub(crate) fn id(&self) -> String {
        let id = |container: Value| container["Id"].as_str().unwrap().to_owned();
        self.inspect().map(id).unwrap_or_default()
    }

    /// Its API.
    pub(crate) fn api(&self) -> Api {
        Api::new(&format!("127.0.0.1:{}", self.port))
    }

    /// Version that the server at the port reports.
    pub(crate) fn version(&self) -> String {
        let reply = self.api().get("/api/version");
        let version: Value = serde_json::from_str(&reply.text()).unwrap();
        version["version"].as_str().unwrap().to_owned()
    }
}

impl Drop for ModelPort {
    fn drop(&mut self) {
        // A container of a test that failed may still be there, and be paused.
        let container = podman(&["rm", "--force", "--ignore", "--time=0", &self.name]);
        let volume = podman(&["volume", "rm", "--force", &self.name]);
        if !thread::panicking() {
            container.unwrap();
            volume.unwrap();
        }
    }
}
