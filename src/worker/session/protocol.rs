//! Calls on `session.sock`, between a worker and the shim of a sandbox in which execs may run.
//!
//! ```text
//! frame            length (4, little endian), so many bytes of JSON
//! worker ──▶ shim  one request
//! shim ──▶ worker  one reply; what follows depends on the request
//! ```
//!
//! One connection for each call. Fields may be added, as long as either side may lack them: a shim outlives its worker,
//! which may be of a later release when it comes back.

use crate::api::{
    ExecId,
    jobs::Env,
    sandboxes::{
        SessionState,
        exec::{Exec, TerminalSize},
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Name of the socket in the directory of its job.
pub(in crate::worker) const SOCKET_FILE: &str = "session.sock";
/// Longest content of a frame: twice the largest stdin of a call, as JSON may need it, and a command.
const MAX_FRAME_BYTES: u32 = 24 << 20;

/// Request to a shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub(in crate::worker) enum SessionRequest {
    /// Start an exec, unless there is one with this id.
    Exec(Box<ExecCall>),
    /// Write what follows the reply, up to the end of the caller's side, to the stdin of an exec; then another reply.
    Stdin {
        exec_id: ExecId,
        /// Whether stdin ends behind it.
        eof: bool,
        /// Bytes that calls with this field have sent before: what the exec has got of them already is not written again.
        #[serde(default)]
        offset: Option<u64>,
    },
    /// Send a signal to the process group of an exec.
    Signal { exec_id: ExecId, signal: i32 },
    /// Change the size of an exec's terminal.
    Resize { exec_id: ExecId, size: TerminalSize },
    /// Let the sandbox live so long from now on.
    Renew { lifetime_seconds: u64 },
    /// Say how long the sandbox lives, and what runs.
    State,
    /// Start a file server on this connection: behind the reply it is the server's.
    Files,
}

/// Exec to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::worker) struct ExecCall {
    pub(in crate::worker) exec_id: ExecId,
    /// Program and arguments.
    pub(in crate::worker) command: Vec<String>,
    /// Variables added to those of the sandbox.
    #[serde(default)]
    pub(in crate::worker) env: Env,
    /// Working directory; empty: the workspace.
    #[serde(default)]
    pub(in crate::worker) cwd: String,
    /// Size of its terminal, where it has one.
    #[serde(default)]
    pub(in crate::worker) tty: Option<TerminalSize>,
    /// Whether stdin stays open.
    #[serde(default)]
    pub(in crate::worker) interactive: bool,
    /// First bytes of stdin.
    #[serde(default)]
    pub(in crate::worker) stdin: Option<String>,
    /// Time limit.
    #[serde(default)]
    pub(in crate::worker) timeout_seconds: Option<u64>,
    /// Whether processes that it leaves behind live on.
    #[serde(default)]
    pub(in crate::worker) detached: bool,
}

/// Reply of a shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(in crate::worker) enum SessionReply {
    /// Done, or what follows may come.
    Done,
    /// The exec is on record, and being started.
    Started { exec: Exec },
    /// There is an exec with this id already.
    Exists,
    /// State of the sandbox.
    State { state: SessionState },
    /// So many bytes went into stdin.
    StdinTaken {
        bytes: u64,
        /// Bytes of all calls with an offset, where this was one; absent from a shim of an earlier release.
        #[serde(default)]
        offset: Option<u64>,
    },
    /// Bytes before those of the call are missing: the exec has got so many.
    StdinMisplaced { received: u64 },
    /// The exec reads its stdin no more, or has none that stays open; so many bytes went into it before.
    StdinClosed { bytes: u64 },
    /// No exec has this id.
    NoSuchExec,
    /// The exec has ended.
    ExecEnded,
    /// As many execs run as a sandbox may have.
    TooManyExecs,
    /// The sandbox runs the command of a task, and has no lifetime of its own.
    NotASession,
    /// The sandbox has ended, or is about to.
    Ended,
    /// The shim failed; its log says why.
    Failed { detail: String },
}

/// Reads a frame. Fails on one that is too long, or not what it should be.
pub(in crate::worker) async fn read_frame<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<T> {
    let length = stream.read_u32_le().await?;
    if length > MAX_FRAME_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut content = Vec::new();
    // Memory only for what is there.
    let mut limited = stream.take(length.into());
    limited.read_to_end(&mut content).await?;
    if content.len() != length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&content)?)
}

/// Writes a frame.
pub(in crate::worker) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    content: &impl Serialize,
) -> io::Result<()> {
    let content = serde_json::to_vec(content)?;
    let length = u32::try_from(content.len())
        .ok()
        .filter(|length| *length <= MAX_FRAME_BYTES)
        .ok_or(io::ErrorKind::FileTooLarge)?;
    let frame = [&length.to_le_bytes(), &content[..]].concat();
    stream.write_all(&frame).await
}
