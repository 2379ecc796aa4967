//! Execs: commands in a sandbox that stays.

use crate::api::{
    ExecId,
    integer::optional_integer,
    jobs::{self, Env, Truncated},
    problem::Problem,
    string_form::named_enum,
    time::Time,
    warning::Warning,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Longest `cwd`, in bytes.
const MAX_CWD_BYTES: usize = 4096;
/// Largest number of columns or rows of a terminal.
pub const MAX_TERMINAL_CELLS: u16 = 10_000;
/// Longest `stdin` in the body of a call, in bytes.
pub const MAX_EXEC_STDIN_BYTES: usize = 10 << 20;
/// Most bytes of each stream in the answer of an exec; all of it is in its log.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Most execs of a sandbox at the same time.
pub const MAX_RUNNING_EXECS: usize = 256;

/// Body of `POST /v1/sandboxes/{id}/exec`: exactly one of `command` and `script`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct StartExec {
    /// Id that the caller chooses: a call that is repeated with it starts nothing again. A new one by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<ExecId>,
    /// Program and arguments, run without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Script for `/bin/sh -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Variables added to the environment of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("propertyNames" = {"pattern": jobs::ENV_NAME_PATTERN}))]
    pub env: Option<Env>,
    /// Working directory; `/workspace` by default, and where a relative one begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User of the command: only that of the sandbox, since no command in a sandbox may change its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Text for stdin. Without it stdin is empty, unless it is sent while the command runs (`interactive`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Whether stdin stays open for `POST …/stdin`. A terminal's always does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// Time limit in seconds, after which the command and its children are killed; none by default.
    #[serde(
        default,
        deserialize_with = "timeout_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = jobs::MAX_TIMEOUT_SECONDS))]
    pub timeout_seconds: Option<u64>,
    /// Whether the command has a terminal; its output is all stdout then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// Columns and rows of the terminal; 80 by 24 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TerminalSize>,
    /// Whether the call answers as soon as the command runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub background: bool,
    /// Whether processes that the command leaves behind live on; else they are killed when it ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
}

fn timeout_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    optional_integer(deserializer, 1..=jobs::MAX_TIMEOUT_SECONDS)
}

/// Size of a terminal; body of `POST …/resize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TerminalSize {
    /// Columns.
    #[schemars(range(min = 1, max = MAX_TERMINAL_CELLS))]
    pub cols: u16,
    /// Rows.
    #[schemars(range(min = 1, max = MAX_TERMINAL_CELLS))]
    pub rows: u16,
}

impl Default for TerminalSize {
    fn default() -> Self {
        Self { cols: 80, rows: 24 }
    }
}

impl TerminalSize {
    /// Checks both numbers.
    pub fn check(self, pointer: &str) -> Result<(), Problem> {
        for (name, cells) in [("cols", self.cols), ("rows", self.rows)] {
            if !(1..=MAX_TERMINAL_CELLS).contains(&cells) {
                return Err(Problem::field(
                    &format!("{pointer}/{name}"),
                    format!("must be from 1 to {MAX_TERMINAL_CELLS}, got {cells}"),
                ));
            }
        }
        Ok(())
    }
}

impl StartExec {
    /// Checks every field. The command: a script as arguments of a shell.
    pub fn resolve_command(&self) -> Result<Vec<String>, Problem> {
        let (command, pointer) = match (&self.command, &self.script) {
            (Some(command), None) => (command.clone(), "/command"),
            (None, Some(script)) => {
                let shell = jobs::SHELL.map(str::to_owned).into_iter();
                (shell.chain([script.clone()]).collect(), "/script")
            }
            _ => {
                return Err(Problem::field(
                    "",
                    "must have exactly one of command and script",
                ));
            }
        };
        jobs::check_command(pointer, &command, self.env.as_ref())?;
        jobs::check_env("/env", self.env.as_ref())?;
        if let Some(cwd) = &self.cwd {
            if cwd.is_empty() || cwd.contains('\0') {
                return Err(Problem::field(
                    "/cwd",
                    "must be the path of a directory, without a NUL character",
                ));
            }
            jobs::check_size("/cwd", cwd, MAX_CWD_BYTES)?;
        }
        if let Some(stdin) = &self.stdin {
            jobs::check_size("/stdin", stdin, MAX_EXEC_STDIN_BYTES)?;
        }
        if let Some(size) = self.size {
            size.check("/size")?;
            if !self.tty {
                return Err(Problem::field("/size", "needs tty: true"));
            }
        }
        Ok(command)
    }
}

named_enum! {
    /// State of an exec.
    pub enum ExecStatus {
        /// Runs.
        Running,
        /// Has ended, with an exit code.
        Exited,
        /// May have run; how it ended is unknown, because its sandbox ended first.
        Lost,
    }
}

named_enum! {
    /// Cause of an end that the command did not choose.
    pub enum ExecEndCause {
        /// Its time limit.
        Timeout,
        /// The kernel killed a process for want of memory.
        Oom,
        /// A signal that was sent with `POST …/signal`.
        Signal,
    }
}

/// An exec; entry of `GET …/execs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exec {
    /// Id of the exec.
    pub exec_id: ExecId,
    /// State.
    pub status: ExecStatus,
    /// Exit code, 128 + n after signal n.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Cause of the end, where it wasn't the command's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<ExecEndCause>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether it has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether its stdin is open for `POST …/stdin`.
    #[serde(default)]
    pub interactive: bool,
    /// Time of its start.
    pub started_at: Time,
    /// Time of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Duration in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// Answer of an exec that was waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecResult {
    /// The exec.
    #[serde(flatten)]
    pub exec: Exec,
    /// First bytes of stdout, as text.
    pub stdout: String,
    /// First bytes of stderr, as text.
    pub stderr: String,
    /// Whether there is more of either in the log.
    pub truncated: bool,
}

/// Answer of `GET …/execs/{exec}/logs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExecLogs {
    /// Id of the exec.
    pub exec_id: ExecId,
    /// Output on stdout, where text was asked for.
    #[serde(default)]
    pub stdout: String,
    /// Output on stderr, where text was asked for.
    #[serde(default)]
    pub stderr: String,
    /// Output on stdout, where base64 was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// Output on stderr, where base64 was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
    /// Streams of which not everything is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated: Option<Truncated>,
    /// Reasons why there is less than was printed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

/// Answer of `GET …/execs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExecList {
    /// Execs, the newest first.
    pub execs: Vec<Exec>,
}

/// Body of `POST …/signal`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SignalExec {
    /// Name of a signal, such as `INT` or `SIGTERM`, or its number.
    pub signal: String,
}

/// Answer of `POST …/stdin`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StdinTaken {
    /// Bytes that the command's stdin took, also those that it had got before.
    pub bytes: u64,
    /// Bytes that it has got by all calls with `offset`, where this was one; absent from a node of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}
