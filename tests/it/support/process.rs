//! Processes of the real binary: started with a clean environment, watched, and ended by pid.

use super::{eventually, read};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    env,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

/// The binary under test: the one that was built with the tests, or, where they are run by another
/// user, a copy that may be read by that.
pub(crate) fn binary() -> PathBuf {
    let copy = env::var_os("CYNODE_TEST_BINARY").map(PathBuf::from);
    copy.unwrap_or_else(|| env!("CARGO_BIN_EXE_cynode").into())
}

/// Variable that has nodes keep warm sandboxes in tests that don't say.
const WARM_VARIABLE: &str = "CYNODE_TEST_WARM";

/// Whether nodes keep warm sandboxes in tests that don't say.
pub(crate) fn is_warm() -> bool {
    env::var_os(WARM_VARIABLE).is_some()
}

/// A command of the binary under test, without anything of ours in its environment; its
/// configuration and state live under `home`.
pub(crate) fn cynode(home: &Path) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in env::vars_os() {
        let upper = name.to_string_lossy().to_uppercase();
        let ours = ["CYNODE_", "CYNORK_"]
            .iter()
            .any(|prefix| upper.starts_with(prefix));
        if ours || upper.ends_with("_PROXY") || ["NO_COLOR", "RUST_LOG"].contains(&upper.as_str()) {
            command.env_remove(name);
        }
    }
    command
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_STATE_HOME", home.join("state"))
        .env("CYNODE_WARM", if is_warm() { "4" } else { "0" })
        .current_dir(home)
        .stdin(Stdio::null());
    command
}

/// A running process whose output goes to files.
pub(crate) struct Process {
    child: Child,
    name: String,
    logs: [PathBuf; 2],
}

impl Process {
    /// Starts a command; its stdout and stderr are kept in `dir` under `name`.
    pub(crate) fn start(name: &str, dir: &Path, command: &mut Command) -> Self {
        let logs = ["stdout", "stderr"].map(|stream| {
            (0..)
                .map(|n| dir.join(format!("{name}.{n}.{stream}")))
                .find(|path| !path.exists())
                .unwrap()
        });
        let [out, err] = logs.each_ref().map(|path| File::create(path).unwrap());
        let child = command
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Self {
            child,
            name: name.to_owned(),
            logs,
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Text on stdout so far.
    pub(crate) fn stdout(&self) -> String {
        read(&self.logs[0])
    }

    /// Text on stderr so far.
    pub(crate) fn stderr(&self) -> String {
        read(&self.logs[1])
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Fails when it has ended, and shows why.
    pub(crate) fn assert_runs(&mut self) {
        if let Some(status) = self.ended() {
            panic!(
                "{} ended ({status}):\n{}{}",
                self.name,
                self.stdout(),
                self.stderr()
            );
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        // It may have just exited; until it is reaped here, the pid stays its own.
        let _ = kill_process(pid, signal);
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually(&what, || self.ended())
    }

    /// Waits for its end; the exit code.
    pub(crate) fn code(&mut self) -> i32 {
        let status = self.wait();
        status
            .code()
            .unwrap_or_else(|| panic!("{} was killed: {status}", self.name))
    }

    /// Ends it as an operator does; the exit code.
    pub(crate) fn terminate(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.code()
    }

    /// Ends it as a power cut does.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "==== {} stdout\n{}==== {} stderr\n{}====",
                self.name,
                tail(&self.stdout()),
                self.name,
                tail(&self.stderr())
            );
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        } else if self.ended().is_none() {
            self.terminate();
        }
    }
}

/// The end of a log, which may be long.
fn tail(text: &str) -> &str {
    let start = text.ceil_char_boundary(text.len().saturating_sub(64 * 1024));
    &text[start..]
}

/// Outcome of a command that ran to its end.
#[derive(Debug)]
pub(crate) struct Done {
    /// Its exit code.
    pub(crate) code: i32,
    /// Its stdout.
    pub(crate) stdout: String,
    /// Its stderr.
    pub(crate) stderr: String,
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Done {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done {
        code: output
            .status
            .code()
            .unwrap_or_else(|| panic!("{command:?} was killed: {}", output.status)),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// Runs a command to its end, with this on its stdin.
pub(crate) fn piped(command: &mut Command, input: &[u8]) -> Done {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails before it has read all is judged by its end.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done {
        code: output.status.code().unwrap(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Runs a command to its end at a terminal of its own, where `input` is typed; both streams are in `stdout`.
pub(crate) fn at_terminal(command: &mut Command, input: &str) -> Done {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut script = Command::new("script");
    script
        .args(["--quiet", "--return", "--echo", "never", "--command"])
        .arg(line.join(" "))
        .arg("/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let mut child = script.spawn().unwrap();
    // Its end would be a hangup, so it stays open until the command is done.
    let mut keyboard = child.stdin.take().unwrap();
    keyboard.write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(keyboard);
    Done {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::new(),
    }
}

/// Puts a tool of this name and script before all others; the path to search.
pub(crate) fn with_tool(home: &Path, name: &str, script: &str) -> String {
    let bin = home.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let path = bin.join(name);
    // By another process: one of ours that is being forked off would have it open for writing.
    let write = "printf '%s\\n' '#!/bin/sh' \"$1\" >\"$0\" && chmod 755 \"$0\"";
    let written = Command::new("sh")
        .args(["-c", write])
        .arg(&path)
        .arg(script)
        .status();
    assert!(written.unwrap().success());
    format!("{}:{}", bin.display(), env::var("PATH").unwrap())
}
