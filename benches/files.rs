//! Time to move real data through a task, over the time of a plain copy through the same machine.
//!
//! `make bench`. A directory of 2,000 files and one of 500 MB, 1 GB in all, goes into a sandbox, and the file of 500 MB
//! comes out of it again. Two ways, in turn:
//!
//! - `copy`: `tar c | socat` over loopback and `socat | tar x`, in and out;
//! - `cynode run`: `--upload` and `--download`, with an orchestrator and a node as processes of their own.
//!
//! A third one repeats the run with the same directory, whose content need not be sent again. Prints medians, ratios, the
//! memory of both roles above idle and the bytes that crossed loopback, all of this one run; asserts only that the
//! files are the same.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const ROUNDS: usize = 3;
const SMALL_FILES: usize = 2_000;
const SMALL_BYTES: usize = 250_000;
const LARGE_BYTES: usize = 500_000_000;
const BINARY: &str = env!("CARGO_BIN_EXE_cynode");
const PASSWORD: &str = "a password for one bench";
const PSK: &str = "a pre-shared key for one bench, 32 characters";

fn main() {
    let home =
        tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or("/var/tmp".into())).unwrap();
    let tree = home.path().join("tree");
    let roles = Roles::start(home.path());
    let (mut copies, mut runs, mut repeats) = (Vec::new(), Vec::new(), Vec::new());
    let mut sent = [0; 2];
    for _ in 0..ROUNDS {
        fill(&tree);
        fs::remove_dir_all(home.path().join("out")).ok();
        copies.push(time(|| copy(home.path(), &tree)));
        let before = loopback_bytes();
        runs.push(time(|| roles.run(&tree)));
        let between = loopback_bytes();
        check(home.path(), &tree);
        repeats.push(time(|| roles.upload_again(&tree)));
        sent = [between - before, loopback_bytes() - between];
    }
    let copy = median(copies);
    println!(
        "1 GB of {} files in, a file of 500 MB out; {ROUNDS} rounds",
        SMALL_FILES + 1
    );
    for (name, taken) in [
        ("copy", copy),
        ("cynode run", median(runs)),
        ("unchanged, in only", median(repeats)),
    ] {
        println!(
            "{name:<20} {:>7.2} s {:>7.2} x",
            taken.as_secs_f64(),
            taken.as_secs_f64() / copy.as_secs_f64()
        );
    }
    println!(
        "bytes over loopback: {} MB, unchanged: {:.3} MB",
        sent[0] / 1_000_000,
        sent[1] as f64 / 1e6
    );
    for (name, process, idle) in [
        ("orchestrator", &roles.orchestrator, roles.idle[0]),
        ("node", &roles.node, roles.idle[1]),
    ] {
        let peak = memory(process.id(), "VmHWM:");
        println!(
            "{name}: {} MiB idle, {} MiB above it at the peak",
            idle >> 10,
            (peak - idle) >> 10
        );
    }
}

fn time(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Fills the directory with random bytes, new ones at each call.
fn fill(tree: &Path) {
    fs::remove_dir_all(tree).ok();
    fs::create_dir_all(tree).unwrap();
    let mut random = fs::File::open("/dev/urandom").unwrap();
    let mut bytes = vec![0; SMALL_BYTES];
    for n in 0..SMALL_FILES {
        random.read_exact(&mut bytes).unwrap();
        fs::write(tree.join(format!("file-{n:04}")), &bytes).unwrap();
    }
    let mut large = fs::File::create(tree.join("large")).unwrap();
    for _ in 0..LARGE_BYTES / SMALL_BYTES {
        random.read_exact(&mut bytes).unwrap();
        large.write_all(&bytes).unwrap();
    }
}

/// Copies the directory in and the large file out, over loopback.
fn copy(home: &Path, tree: &Path) {
    let (inside, outside) = (home.join("copy-in"), home.join("copy-out"));
    for (from, what, to) in [(tree, ".", &inside), (&inside, "large", &outside)] {
        fs::create_dir_all(to).unwrap();
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let script = format!(
            "socat -u TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr - | tar x -C '{}' & \
             tar c -C '{}' {what} | socat -u - TCP:127.0.0.1:{port},retry=200,interval=0.01; wait",
            to.display(),
            from.display(),
        );
        run(Command::new("bash").args(["-c", &script]));
    }
    fs::remove_dir_all(inside).unwrap();
    fs::remove_dir_all(outside).unwrap();
}

/// The downloaded file has to be the one that was uploaded.
fn check(home: &Path, tree: &Path) {
    let compared = Command::new("cmp")
        .arg(tree.join("large"))
        .arg(home.join("out/large"))
        .status();
    assert!(compared.unwrap().success(), "the files differ");
}

/// Bytes that loopback has carried.
fn loopback_bytes() -> u64 {
    let text = fs::read_to_string("/sys/class/net/lo/statistics/rx_bytes").unwrap();
    text.trim().parse().unwrap()
}

/// A figure of a process's memory, in KiB.
fn memory(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let figure = line.unwrap().trim().trim_end_matches(" kB");
    figure.parse().unwrap()
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn image() -> String {
    let output = Command::new("scripts/demo-image.sh")
        .stderr(Stdio::inherit())
        .output()
        .expect("run it from the repository");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An orchestrator and a node of our own.
struct Roles {
    orchestrator: Child,
    node: Child,
    home: PathBuf,
    gateway: String,
    /// Memory of both before the first task, in KiB.
    idle: [u64; 2],
}

impl Roles {
    fn start(home: &Path) -> Self {
        let secret = |name: &str, text: &str| {
            let path = home.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (password, psk) = (secret("password", PASSWORD), secret("psk", PSK));
        let orchestrator = Command::new(BINARY)
            .args([
                "serve-orchestrator",
                "--gateway-listen=127.0.0.1:0",
                "--control-listen=127.0.0.1:0",
            ])
            .args([
                "--log-level=warn",
                "--require-inference=false",
                "--default-image",
                &image(),
            ])
            .arg("--data-dir")
            .arg(home.join("orchestrator"))
            .arg("--admin-password-file")
            .arg(&password)
            .arg("--psk-file")
            .arg(&psk)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let addresses = wait_for(|| addresses(&home.join("orchestrator")));
        let node = Command::new(BINARY)
            .args([
                "node",
                "--slug=bench",
                "--worker-listen=127.0.0.1:0",
                "--inference=off",
                "--log-level=warn",
            ])
            .args([
                "--orchestrator",
                &format!("http://{}", addresses["control"].as_str().unwrap()),
            ])
            .arg("--data-dir")
            .arg(home.join("node"))
            .arg("--psk-file")
            .arg(&psk)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let gateway = format!("http://{}", addresses["gateway"].as_str().unwrap());
        let mut roles = Self {
            orchestrator,
            node,
            home: home.to_owned(),
            gateway,
            idle: [0; 2],
        };
        run(roles
            .client()
            .args(["login", "--password-file"])
            .arg(&password));
        run(roles.client().args(["run", "--", "true"]));
        roles.idle =
            [&roles.orchestrator, &roles.node].map(|process| memory(process.id(), "VmRSS:"));
        roles
    }

    fn client(&self) -> Command {
        let mut command = Command::new(BINARY);
        command
            .env("XDG_CONFIG_HOME", &self.home)
            .env("XDG_CACHE_HOME", self.home.join("cache"))
            .env("CYNODE_GATEWAY_URL", &self.gateway);
        command
    }

    /// Sends the directory, and fetches the large file.
    fn run(&self, tree: &Path) {
        let mut command = self.client();
        command.arg("run").arg("--upload").arg(tree.join("."));
        command
            .arg("--download")
            .arg(format!("large:{}", self.home.join("out").display()));
        run(command.args(["--", "true"]));
    }

    /// Sends the directory, which is unchanged.
    fn upload_again(&self, tree: &Path) {
        run(self
            .client()
            .arg("run")
            .arg("--upload")
            .arg(tree.join("."))
            .args(["--", "true"]));
    }
}

impl Drop for Roles {
    fn drop(&mut self) {
        for process in [&mut self.node, &mut self.orchestrator] {
            let pid = rustix::process::Pid::from_child(process);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            process.wait().unwrap();
        }
    }
}

/// Addresses that a role has bound, once all of them are.
fn addresses(data_dir: &Path) -> Option<serde_json::Value> {
    let file = fs::File::open(data_dir.join("addresses.json")).ok()?;
    let text: String = BufReader::new(file).lines().map_while(Result::ok).collect();
    let found: serde_json::Value = serde_json::from_str(&text).ok()?;
    (found["gateway"].is_string() && found["control"].is_string()).then_some(found)
}

fn wait_for<T>(condition: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "it did not start"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
