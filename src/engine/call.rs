//! One podman command from its start to its output, within a time limit.

use super::{EngineError, Program, process::Process};
use futures_util::FutureExt as _;
use std::{
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::timeout,
};

/// Time to read the pipes of a podman that has ended, should its children keep them open.
const PIPE_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Most that is kept of podman's stderr: its end.
const MAX_STDERR_BYTES: usize = 8 * 1024;
/// Most that is read of podman's stdout.
const MAX_STDOUT_BYTES: usize = 16 * 1024 * 1024;

/// Runs podman to its end and returns its stdout. Each line of its stderr is passed to `on_line`.
pub(super) async fn call(
    program: &Program,
    arguments: &[&str],
    limit: Duration,
    on_line: impl FnMut(&str),
) -> Result<String, EngineError> {
    let limit = tokio::time::sleep(limit).map(|()| limit);
    call_until(program, arguments, limit, on_line).await
}

/// Same as [`call`], with a limit that may depend on podman's output: once `expired` resolves, to the limit that was
/// exceeded, podman is ended.
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
    let (stdout, stderr) = (process.stdout(), process.stderr());
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
        // All of its own output is in the pipes by now; a child that keeps them open adds nothing to it.
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

/// The error of a call that exceeded its time limit.
pub(super) fn timed_out(arguments: &[&str], limit: Duration) -> EngineError {
    EngineError::TimedOut {
        call: call_name(arguments),
        limit,
    }
}

fn call_name(arguments: &[&str]) -> String {
    arguments[..arguments.len().min(2)].join(" ")
}

/// Podman's message, or its exit status where it printed none.
pub(super) fn message_or_status(message: String, status: ExitStatus) -> String {
    if message.is_empty() {
        format!("it printed no error ({status})")
    } else {
        message
    }
}

async fn read_stdout(stream: Option<impl AsyncRead + Unpin>, bytes: &mut Vec<u8>) {
    if let Some(mut stream) = stream {
        // A pipe that fails to be read has no more to give.
        while bytes.len() < MAX_STDOUT_BYTES && matches!(stream.read_buf(bytes).await, Ok(1..)) {}
    }
}

/// Reads a stream to its end and keeps the last [`MAX_STDERR_BYTES`]. Lines, or parts of long ones, are passed to
/// `on_line`.
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

/// Podman's message: the end of its stderr.
pub(super) async fn read_stderr_tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    read_tail(stream, |_| (), &mut kept).await;
    without_prefix(&kept)
}

/// A message without podman's `Error: `.
fn without_prefix(kept: &[u8]) -> String {
    let text = String::from_utf8_lossy(kept);
    text.trim().trim_start_matches("Error: ").to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rustix::process::{Pid, Signal, kill_process, test_kill_process};

    /// Runs a shell in podman's place.
    pub(in crate::engine) async fn sh(
        script: &str,
        limit: Duration,
    ) -> Result<String, EngineError> {
        call(&Program::plain("/bin/sh"), &["-c", script], limit, |_| ()).await
    }

    fn kill(pid: &str) {
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        test_kill_process(pid).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn child_with_open_pipes_delays_no_answer() {
        let limit = Duration::from_secs(60);
        kill(&sh("sleep 1000 & echo $!", limit).await.unwrap());
        match sh("sleep 1000 & echo Error: $! >&2; exit 3", limit).await {
            Err(EngineError::Failed { message, .. }) => kill(&message),
            other => panic!("{other:?}"),
        }
    }
}
