//! The owner's end of a shim: starts it, finds it again, gets its updates, requests its stop.

use super::{
    ARGUMENT, LISTENER_FD, LOG_FILE, SOCKET_FILE, bind_socket,
    frame::{Protocol, ShimMessage, encode_assignment, encode_note, encode_stdin, encode_stop},
    socket_in,
};
use crate::{environment, sandbox::StopRequest};
use bytes::{Buf as _, BytesMut};
use command_fds::{CommandFdExt as _, FdMapping};
use futures_util::FutureExt as _;
use serde::Serialize;
use std::{fs, io, os::unix::net::UnixStream as StdStream, path::Path, process::Stdio};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, Command},
    task::spawn_blocking,
};
use zeroize::Zeroizing;

/// Bytes to a shim that doesn't read, from which on it gets no notes.
const MAX_UNSENT_BYTES: usize = 64 * 1024;

/// Connection to a shim.
pub(crate) struct ShimHandle {
    stream: UnixStream,
    /// Form of the messages; unknown until the shim has sent its first.
    protocol: Option<Protocol>,
    /// Request to stop that waits for the protocol.
    stop: Option<StopRequest>,
    is_stop_sent: bool,
    /// Notification about stdin that waits for the protocol.
    has_stdin: bool,
    /// Whether the sandbox waits for its assignment, or did.
    is_ready: bool,
    read: BytesMut,
    unsent: BytesMut,
}

impl ShimHandle {
    /// Starts a shim of our own binary at `program`, with its socket and log in `dir`.
    pub(crate) async fn start(
        dir: &Path,
        program: &Path,
        config: &impl Serialize,
    ) -> io::Result<Self> {
        let (dir, program) = (dir.to_owned(), program.to_owned());
        let started = spawn_blocking(move || start_in(&dir, &program));
        let (mut child, stream) = started.await.map_err(io::Error::from).flatten()?;
        let handle = Self::new(stream)?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may hold secrets.
            let config = Zeroizing::new(serde_json::to_vec(config)?);
            stdin.write_all(&config).await?;
        }
        // The runtime reaps it, should this process live as long.
        drop(child);
        Ok(handle)
    }

    /// Connects to the shim in `dir`; `None` where none runs any more.
    pub(crate) async fn connect(dir: &Path) -> io::Result<Option<Self>> {
        let dir = dir.to_owned();
        let connected = spawn_blocking(move || {
            let (_open_dir, path) = socket_in(&dir)?;
            StdStream::connect(path)
        });
        match connected.await.map_err(io::Error::from).flatten() {
            Ok(stream) => Self::new(stream).map(Some),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn new(stream: StdStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            protocol: None,
            stop: None,
            is_stop_sent: false,
            has_stdin: false,
            is_ready: false,
            read: BytesMut::new(),
            unsent: BytesMut::new(),
        })
    }

    /// Requests the stop of the sandbox, or a shorter grace. It is sent by [`changed`](Self::changed), once the shim has
    /// said how.
    pub(crate) fn stop(&mut self, request: StopRequest) {
        self.stop = Some(self.stop.map_or(request, |waiting| waiting.merge(request)));
        self.queue_stop();
    }

    /// Notifies the shim that there is more stdin. It is sent by [`changed`](Self::changed), too.
    pub(crate) fn notify_stdin(&mut self) {
        self.has_stdin = true;
        self.queue_stdin();
    }

    /// Waits until a warm sandbox can run a command at once; false once the connection has ended. Cancel-safe.
    pub(crate) async fn ready(&mut self) -> bool {
        while !self.is_ready {
            if !self.changed().await {
                return false;
            }
        }
        true
    }

    /// Whether a warm sandbox has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.changed().now_or_never() == Some(false)
    }

    /// Assigns its guest to a warm sandbox. It is sent by [`changed`](Self::changed), too.
    pub(crate) fn assign(&mut self, guest: &impl Serialize) -> io::Result<()> {
        let assignment = encode_assignment(&serde_json::to_vec(guest)?)?;
        self.unsent.extend_from_slice(&assignment);
        Ok(())
    }

    /// Whether there is room for a note, as soon as the shim has said how to send it.
    pub(crate) fn takes_notes(&self) -> bool {
        self.protocol.is_some() && self.unsent.len() < MAX_UNSENT_BYTES
    }

    /// Sends a note for the guest, at once as far as the socket takes it: what it is about may be over soon. The rest is sent
    /// by [`changed`](Self::changed).
    pub(crate) fn note(&mut self, note: &[u8]) {
        let Some(protocol) = self.protocol else {
            return;
        };
        self.unsent.extend_from_slice(&encode_note(note, protocol));
        if let Ok(sent) = self.stream.try_write(&self.unsent) {
            self.unsent.advance(sent);
        }
    }

    fn queue_stdin(&mut self) {
        let (Some(protocol), true) = (self.protocol, self.has_stdin) else {
            return;
        };
        self.has_stdin = false;
        let notice = encode_stdin(protocol);
        // One that waits stands for all.
        if !self.unsent.ends_with(&notice) {
            self.unsent.extend_from_slice(&notice);
        }
    }

    /// Waits until the shim has written something; false once the connection has ended. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> bool {
        loop {
            match self.take_messages() {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "shim sent a malformed message");
                    return false;
                }
            }
            let (mut reader, mut writer) = self.stream.split();
            tokio::select! {
                // An error shows at the next read.
                sent = writer.write_buf(&mut self.unsent), if !self.unsent.is_empty() => {
                    if sent.is_err() {
                        self.unsent.clear();
                    }
                }
                read = reader.read_buf(&mut self.read) => {
                    if !matches!(read, Ok(1..)) {
                        return false;
                    }
                }
            }
        }
    }

    /// Takes all messages that were read; whether there were any.
    fn take_messages(&mut self) -> io::Result<bool> {
        let mut has_changed = false;
        while let Some(message) = ShimMessage::take(&mut self.read)? {
            has_changed = true;
            self.is_ready |= message == ShimMessage::Ready;
            if let ShimMessage::Hello(protocol) = message
                && self.protocol.is_none()
            {
                self.protocol = Some(protocol);
                self.queue_stop();
                self.queue_stdin();
            }
        }
        Ok(has_changed)
    }

    fn queue_stop(&mut self) {
        if let (Some(protocol), Some(request)) = (self.protocol, self.stop) {
            self.stop = None;
            // A shim without frames takes one request, on which it kills.
            if protocol == Protocol::Framed || !self.is_stop_sent {
                self.is_stop_sent = true;
                self.unsent
                    .extend_from_slice(&encode_stop(request, protocol));
            }
        }
    }
}

/// Starts a shim with its socket and log in `dir`, and connects to it. Reads and writes the disk.
fn start_in(dir: &Path, program: &Path) -> io::Result<(Child, StdStream)> {
    let listener = bind_socket(dir, SOCKET_FILE)?;
    let (open_dir, path) = socket_in(dir)?;
    // Before the shim runs: a connection waits in the listener's queue.
    let stream = StdStream::connect(&path)?;
    drop(open_dir);
    let log = fs::File::create(dir.join(LOG_FILE))?;
    let mut command = Command::new(program);
    command
        .arg(ARGUMENT)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log);
    environment::scrub(&mut command);
    let mapping = FdMapping {
        parent_fd: listener.into(),
        child_fd: LISTENER_FD,
    };
    command
        .fd_mappings(vec![mapping])
        .map_err(io::Error::other)?;
    Ok((command.spawn()?, stream))
}
