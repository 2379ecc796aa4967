//! The worker's end: starts a shim, finds one again, hears of it, stops it to end the job.

use super::{ARGUMENT, LISTENER, ShimConfig, StopRequest};
use crate::{environment, spool::Spool};
use command_fds::{CommandFdExt as _, FdMapping};
use std::{
    fs, io,
    os::unix::net::{UnixListener, UnixStream as StdStream},
    process::Stdio,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::Command,
};

/// A shim that lives.
pub struct ShimHandle(UnixStream);

impl ShimHandle {
    /// Starts a shim.
    pub async fn start(spool: &Spool, config: &ShimConfig) -> io::Result<Self> {
        spool.write_container_name(&config.container)?;
        let (directory, path) = spool.shim_socket()?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        // Before the shim lives: whoever connects waits in line.
        let handle = connect_to(&path)?;
        drop(directory);
        let log = fs::File::create(spool.shim_log())?;
        let mut command = Command::new(&config.init);
        command
            .arg(ARGUMENT)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        environment::scrub(&mut command);
        let mapping = FdMapping {
            parent_fd: listener.into(),
            child_fd: LISTENER,
        };
        command
            .fd_mappings(vec![mapping])
            .map_err(io::Error::other)?;
        let mut child = command.spawn()?;
        drop(command);
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&serde_json::to_vec(config)?).await?;
        }
        // The runtime reaps it, should we live as long.
        drop(child);
        Ok(handle)
    }

    /// The shim of this attempt; `None` when there is none any more.
    pub fn connect(spool: &Spool) -> io::Result<Option<Self>> {
        let (_directory, path) = spool.shim_socket()?;
        match connect_to(&path) {
            Ok(handle) => Ok(Some(handle)),
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

    /// Waits until the shim has written something; false once it is gone.
    pub async fn changed(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 4096]).await, Ok(1..))
    }

    /// Has the shim end the job.
    pub async fn stop(&mut self, request: StopRequest) {
        // One that is gone shows in `changed`.
        let _ = self.0.write_all(&request.encode()).await;
    }
}

fn connect_to(path: &std::path::Path) -> io::Result<ShimHandle> {
    let stream = StdStream::connect(path)?;
    stream.set_nonblocking(true)?;
    Ok(ShimHandle(UnixStream::from_std(stream)?))
}
