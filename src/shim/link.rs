//! The worker's end: starts a shim, finds one again, hears of it, orders it to end the job.

use super::{ARGUMENT, LISTENER, Order, Stop};
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
pub struct Link(UnixStream);

impl Link {
    /// Starts a shim.
    pub async fn start(spool: &Spool, order: &Order) -> io::Result<Self> {
        spool.set_container(&order.container)?;
        let (directory, path) = spool.socket()?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        // Before the shim lives: whoever connects waits in line.
        let link = connect(&path)?;
        drop(directory);
        let complaints = fs::File::create(spool.shim_log())?;
        let mut command = Command::new(&order.init);
        command
            .arg(ARGUMENT)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(complaints);
        environment::close(&mut command);
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
            stdin.write_all(&serde_json::to_vec(order)?).await?;
        }
        // The runtime reaps it, should we live as long.
        drop(child);
        Ok(link)
    }

    /// The shim of this attempt; `None` when there is none any more.
    pub fn find(spool: &Spool) -> io::Result<Option<Self>> {
        let (_directory, path) = spool.socket()?;
        match connect(&path) {
            Ok(link) => Ok(Some(link)),
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
    pub async fn news(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 4096]).await, Ok(1..))
    }

    /// Has the shim end the job.
    pub async fn end(&mut self, why: Stop) {
        // One that is gone shows in `news`.
        let _ = self.0.write_all(&why.encode()).await;
    }
}

fn connect(path: &std::path::Path) -> io::Result<Link> {
    let stream = StdStream::connect(path)?;
    stream.set_nonblocking(true)?;
    Ok(Link(UnixStream::from_std(stream)?))
}
