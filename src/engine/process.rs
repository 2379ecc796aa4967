//! One podman process: told to end when it takes too long, and never left behind.
//!
//! A podman that hangs may ignore TERM or be stopped, what it started may keep its pipes open, and in
//! the kernel it heeds not even KILL. Whoever waits for it is held up by none of these: every wait
//! here has an end. It has a process group of its own, which gets the signals, and which has to be empty:
//! a rootless podman is two processes, and the second could still make a container that nobody looks for
//! when the first is gone. What is to outlive it, conmon, has left that group.

use super::{EngineError, containers_conf};
use crate::environment;
use futures_util::FutureExt as _;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

/// How long a podman that was told to end may take to do so.
const TERM_TIMEOUT: Duration = Duration::from_secs(5);
/// The same after KILL, and where we end ourselves and can't wait for long.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the pipes of a podman that has ended are read on, should others hold them open.
const PIPE_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks whether its group is empty.
const GROUP_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// What is kept of podman's own messages, in bytes.
const MAX_STDERR_BYTES: usize = 8 * 1024;
/// What is read of podman's answers, in bytes.
const MAX_STDOUT_BYTES: usize = 16 * 1024 * 1024;

/// A program to start, and what of the environment it gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    path: PathBuf,
    /// The settings of a podman, see [`containers_conf`].
    settings: Option<PathBuf>,
}

impl Program {
    /// A program that takes no settings of ours.
    pub fn plain(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            settings: None,
        }
    }

    /// A podman; `dir` gets the file with its settings, which has to stay for as long as its containers.
    pub fn podman(path: impl Into<PathBuf>, dir: &Path) -> Result<Self, EngineError> {
        Ok(Self {
            path: path.into(),
            settings: Some(containers_conf::write_containers_conf(dir)?),
        })
    }

    /// Its name or path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The command that starts it.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // A group of its own: Ctrl-C at a terminal is for us, and we end our containers in order.
        command.stdin(Stdio::null()).process_group(0);
        // Podman and conmon live as long as a job does.
        environment::scrub(&mut command);
        if let Some(settings) = &self.settings {
            command
                .env(containers_conf::CONF_VARIABLE, settings)
                .env_remove(containers_conf::CONF_OVERRIDE_VARIABLE)
                .env_remove(containers_conf::USERNS_VARIABLE);
        }
        command
    }
}

/// A podman that runs. Dropped before its end, it is ended.
pub(super) struct Process {
    child: Child,
    group: Option<Pid>,
    /// Not even KILL has ended it.
    is_abandoned: bool,
}

impl Process {
    pub(super) fn start(program: &Program, command: &mut Command) -> Result<Self, EngineError> {
        let child = command.spawn().map_err(|source| EngineError::NotStarted {
            program: program.path.clone(),
            source,
        })?;
        let group = child.id().map(u32::cast_signed).and_then(Pid::from_raw);
        Ok(Self {
            child,
            group,
            is_abandoned: false,
        })
    }

    /// What it says on stderr; once.
    pub(super) fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Waits for its end. Can be interrupted, and called again.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// How it ended, if it has.
    pub(super) fn try_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// TERM, and KILL to a podman that doesn't heed it.
    pub(super) async fn terminate(&mut self) {
        if self.child.id().is_none() {
            // It was waited for: its group's number may be another's by now.
            return;
        }
        self.signal(Signal::TERM);
        if timeout(TERM_TIMEOUT, self.wait_for_group()).await.is_ok() {
            return;
        }
        tracing::warn!(
            group = self.group.map(|group| group.as_raw_nonzero().get()),
            "podman ignores TERM and is killed"
        );
        self.signal(Signal::KILL);
        let is_killed = timeout(KILL_TIMEOUT, self.wait_for_group()).await.is_ok();
        // What is left of a group without its first is dead, and nobody reaps it.
        if !is_killed && self.child.id().is_some() {
            tracing::error!(
                group = self.group.map(|group| group.as_raw_nonzero().get()),
                "podman can't even be killed and is left alone; see what the kernel says of its disk (dmesg)"
            );
            self.is_abandoned = true;
        }
    }

    /// Waits for its end, and for that of all that it has started and that has not left its group.
    async fn wait_for_group(&mut self) {
        // One that can't be waited for has ended.
        let _ = self.child.wait().await;
        while self.is_group_alive() {
            tokio::time::sleep(GROUP_POLL_INTERVAL).await;
        }
    }

    /// Whether its group is there. Its number is nobody else's as long as somebody is in it.
    fn is_group_alive(&self) -> bool {
        self.group
            .is_some_and(|group| test_kill_process_group(group).is_ok())
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It may have ended by itself just now. One that is stopped hears nothing until it goes on.
            let _ = kill_process_group(group, signal);
            let _ = kill_process_group(group, Signal::CONT);
        }
    }
}

/// Nobody waits for it any more, mostly since we end ourselves: no time is left to be patient.
impl Drop for Process {
    fn drop(&mut self) {
        if self.is_abandoned || self.child.id().is_none() {
            return;
        }
        self.signal(Signal::TERM);
        let began = Instant::now();
        while self.try_status().is_none() || self.is_group_alive() {
            if began.elapsed() > KILL_TIMEOUT {
                self.signal(Signal::KILL);
                return;
            }
            thread::sleep(GROUP_POLL_INTERVAL);
        }
    }
}

/// Runs podman to its end and answers what it printed on stdout; `on_line` hears each line that it says on
/// stderr.
pub(super) async fn call(
    program: &Program,
    arguments: &[&str],
    limit: Duration,
    on_line: impl FnMut(&str),
) -> Result<String, EngineError> {
    let limit = tokio::time::sleep(limit).map(|()| limit);
    call_until(program, arguments, limit, on_line).await
}

/// The same with a limit that may depend on what it says: once `expired` resolves, it has taken so long.
pub(super) async fn call_until(
    program: &Program,
    arguments: &[&str],
    expired: impl Future<Output = Duration>,
    on_line: impl FnMut(&str),
) -> Result<String, EngineError> {
    let mut command = program.command();
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = Process::start(program, &mut command)?;
    let (stdout, stderr) = (process.child.stdout.take(), process.stderr());
    let (mut answer, mut message) = (Vec::new(), Vec::new());
    let mut reading = Box::pin(async {
        tokio::join!(
            read_stdout(stdout, &mut answer),
            read_tail(stderr, on_line, &mut message)
        )
    });
    let mut is_read = false;
    let mut expired = pin!(expired);
    let status = loop {
        tokio::select! {
            status = process.wait() => break status?,
            _ = &mut reading, if !is_read => is_read = true,
            limit = &mut expired => {
                process.terminate().await;
                return Err(timed_out(arguments, limit));
            }
        }
    };
    if !is_read {
        // What it said itself is in the pipes by now.
        let _ = timeout(PIPE_DRAIN_TIMEOUT, &mut reading).await;
    }
    drop(reading);
    if status.success() {
        return Ok(String::from_utf8_lossy(&answer).into_owned());
    }
    Err(EngineError::Failed {
        call: call_name(arguments),
        message: message_or_status(without_prefix(&message), status),
    })
}

/// A call that took too long.
pub(super) fn timed_out(arguments: &[&str], limit: Duration) -> EngineError {
    EngineError::TimedOut {
        call: call_name(arguments),
        limit,
    }
}

fn call_name(arguments: &[&str]) -> String {
    arguments[..arguments.len().min(2)].join(" ")
}

/// What podman said, or how it ended where it said nothing.
pub(super) fn message_or_status(message: String, status: ExitStatus) -> String {
    if message.is_empty() {
        format!("it said nothing ({status})")
    } else {
        message
    }
}

async fn read_stdout(stream: Option<impl AsyncRead + Unpin>, bytes: &mut Vec<u8>) {
    if let Some(mut stream) = stream {
        // A pipe that fails to be read has nothing more to tell.
        while bytes.len() < MAX_STDOUT_BYTES && matches!(stream.read_buf(bytes).await, Ok(1..)) {}
    }
}

/// Reads to the end and keeps the last [`MAX_STDERR_BYTES`]; `on_line` hears each line, or what is read of one
/// at a time.
async fn read_tail(
    stream: Option<impl AsyncRead + Unpin>,
    mut on_line: impl FnMut(&str),
    kept: &mut Vec<u8>,
) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        for line in String::from_utf8_lossy(&buffer[..n]).lines() {
            on_line(line);
        }
        kept.extend_from_slice(&buffer[..n]);
        let surplus = kept.len().saturating_sub(MAX_STDERR_BYTES);
        kept.drain(..surplus);
    }
}

/// Podman's last words, all of them.
pub(super) async fn read_stderr_tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    read_tail(stream, |_| (), &mut kept).await;
    without_prefix(&kept)
}

/// Without podman's `Error: `.
fn without_prefix(kept: &[u8]) -> String {
    let text = String::from_utf8_lossy(kept);
    text.trim().trim_start_matches("Error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    async fn sh(script: &str, limit: Duration) -> Result<String, EngineError> {
        call(&Program::plain("/bin/sh"), &["-c", script], limit, |_| ()).await
    }

    /// Whether a process is there and not only waited for.
    fn lives(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    }

    /// Waits a moment: who was killed is gone soon, and not at once.
    fn goes(pid: &str) -> bool {
        (0..200).any(|_| {
            thread::sleep(Duration::from_millis(10));
            !lives(pid)
        })
    }

    fn end_helper(pid: &str) {
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn inherited_pipes_do_not_delay_answer() {
        let limit = Duration::from_secs(60);
        let pid = sh("sleep 1000 & echo $!", limit).await.unwrap();
        assert!(lives(&pid), "not ours to end: {pid:?}");
        end_helper(&pid);
        match sh("sleep 1000 & echo Error: $! >&2; exit 3", limit).await {
            Err(EngineError::Failed { message, .. }) => end_helper(&message),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn hanging_call_is_killed_with_its_children() {
        let home = tempfile::tempdir().unwrap();
        let pids = home.path().join("pids");
        let script = format!(
            "trap '' TERM; sleep 1000 & echo $$ $! >{}; wait",
            pids.display()
        );
        let outcome = sh(&script, Duration::from_secs(2)).await;
        assert!(matches!(outcome, Err(EngineError::TimedOut { .. })));
        let pids = fs::read_to_string(pids).unwrap();
        assert!(pids.split_whitespace().all(goes), "{pids}");
    }

    #[tokio::test]
    async fn killed_call_takes_its_children_along() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pid");
        let deaf = format!("trap '' TERM; echo $$ >{}; exec sleep 1000", path.display());
        let script = format!("sh -c \"{}\" & wait", deaf.replace('$', "\\$"));
        let outcome = sh(&script, Duration::from_secs(2)).await;
        assert!(matches!(outcome, Err(EngineError::TimedOut { .. })));
        assert!(goes(&fs::read_to_string(path).unwrap()));
    }

    #[tokio::test]
    async fn stopped_call_ends_on_term() {
        let began = Instant::now();
        let outcome = sh("kill -STOP $$", Duration::from_millis(500)).await;
        assert!(matches!(outcome, Err(EngineError::TimedOut { .. })));
        assert!(began.elapsed() < TERM_TIMEOUT);
    }

    #[tokio::test]
    async fn abandoned_call_is_ended() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pid");
        let script = format!("trap '' TERM; echo $$ >{}; exec sleep 1000", path.display());
        let call = sh(&script, Duration::from_secs(60));
        assert!(timeout(Duration::from_secs(2), call).await.is_err());
        let pid = fs::read_to_string(path).unwrap();
        assert!(goes(&pid), "{pid}");
    }
}
