//! One small process per sandbox, between its owner and podman, which outlives the owner.
//!
//! ```text
//! owner ──spawns──▶ shim ──spawns──▶ podman run ──▶ conmon ──▶ init ──▶ command
//!    ▲  shim.sock    │ ◀──── socket (3), stdout (4), stderr (5) ────┘
//!    └───────────────┤
//!                    └──▶ records of its guest
//! ```
//!
//! The owner of a sandbox may be killed, upgraded or restarted while the sandbox is in use. The shim holds init's
//! socket and pipes, keeps the time limit, and has the container removed in the end. The
//! [guest](main), a function of the owner that runs in this process, records it where the owner reads.
//!
//! Over the socket go no facts, only [signals](frame): the shim sends an update when its guest has written something,
//! its end is the end of the connection, and the owner requests a stop, with the reason. So any release of an owner
//! understands a shim of any other. What an owner has to tell the guest beside that are notes, which the guest records, and
//! of which none has to arrive.
//!
//! A sandbox may be started before there is a guest for it. Such a warm one belongs to its owner alone: it ends with
//! the owner's connection, and no later process finds it again. Its [assignment](Shim::assignment) makes it a sandbox as
//! any other.
//!
//! When a shim is killed, init's socket closes and init ends the sandbox: no command goes on unsupervised. How it
//! would have ended is unknown then, and its owner says so.

mod frame;
mod handle;
mod server;

pub(crate) use handle::ShimHandle;

use super::stop::{StopReason, StopRequest, Stops};
use crate::background;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use server::Server;
use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _},
        unix::net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    process,
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};

/// Argument by which the binary knows that it is a shim.
pub(crate) const ARGUMENT: &str = "__shim";
/// Number of the listening socket that the owner hands over.
const LISTENER_FD: i32 = 3;
const SOCKET_FILE: &str = "shim.sock";
const LOG_FILE: &str = "shim.log";
/// Notes that wait for the guest.
const MAX_WAITING_NOTES: usize = 1024;

/// Config of a guest, which a shim reads from its stdin.
pub(crate) trait GuestConfig: DeserializeOwned {
    /// Whether the sandbox is started for a guest that is assigned later.
    fn is_warm(&self) -> bool;
}

/// The shim's process, as its guest sees it.
pub(crate) struct Shim {
    /// Requests to stop the sandbox.
    pub(crate) stops: Stops,
    /// Updates of the owner.
    pub(crate) updates: watch::Sender<()>,
    /// Notifications of the owner that there is more stdin.
    pub(crate) stdin: watch::Sender<()>,
    /// Whether the sandbox waits for its assignment.
    pub(crate) ready: watch::Sender<bool>,
    /// Assignment of a warm sandbox, which is stopped where its owner is gone before. `None` for any other.
    pub(crate) assignment: Option<oneshot::Receiver<Bytes>>,
    /// Notes of the owner, for the guest to take out and to record.
    pub(crate) notes: Option<mpsc::Receiver<Bytes>>,
}

/// Runs as a shim and never returns: reads the guest's config from stdin, and runs the guest to its end.
pub(crate) fn main<C, F>(guest: impl FnOnce(C, Shim) -> F) -> !
where
    C: GuestConfig,
    F: Future<Output = io::Result<()>>,
{
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        // It would print its own errors, and panic where stderr is on a full disk.
        .log_internal_errors(false)
        .init();
    match run(guest) {
        Ok(()) => process::exit(0),
        Err(error) => {
            tracing::error!(%error, "shim failed");
            process::exit(1)
        }
    }
}

fn run<C, F>(guest: impl FnOnce(C, Shim) -> F) -> io::Result<()>
where
    C: GuestConfig,
    F: Future<Output = io::Result<()>>,
{
    let mut config = Vec::new();
    io::stdin().read_to_end(&mut config)?;
    // An owner that was killed while it wrote has started nothing.
    let config: C = serde_json::from_slice(&config)?;
    // Signals of a terminal or a service are not for this process.
    rustix::process::setsid()?;
    let listener = listener()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (assign, assignment) = match config.is_warm() {
            true => Some(oneshot::channel()).unzip(),
            false => (None, None),
        };
        let (noted, notes) = mpsc::channel(MAX_WAITING_NOTES);
        let shim = Shim {
            stops: Stops::new(),
            updates: watch::Sender::new(()),
            stdin: watch::Sender::new(()),
            ready: watch::Sender::new(false),
            assignment,
            notes: Some(notes),
        };
        let listener = UnixListener::from_std(listener)?;
        let server = Server {
            updates: shim.updates.subscribe(),
            ready: shim.ready.subscribe(),
            stops: shim.stops.clone(),
            stdin: shim.stdin.clone(),
            assign,
            notes: noted,
        };
        background::spawn("shim-server", server.serve(listener));
        background::spawn("shim-signals", stop_at_shutdown(shim.stops.clone()));
        guest(config, shim).await
    })
}

#[allow(
    unsafe_code,
    reason = "a descriptor that was handed over has only a number"
)]
fn listener() -> io::Result<StdListener> {
    // SAFETY: the owner hands the socket over under this number, and nothing else in this process uses it.
    let listener = unsafe { StdListener::from_raw_fd(LISTENER_FD) };
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Stops the sandbox on SIGTERM, which a machine sends that shuts down.
async fn stop_at_shutdown(stops: Stops) {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
            stops.request(StopRequest::new(StopReason::Shutdown));
        }
        Err(error) => tracing::warn!(%error, "SIGTERM can't be caught"),
    }
}

/// Path of the shim's own socket in its directory.
fn socket_in(dir: &Path) -> io::Result<(File, PathBuf)> {
    socket_path(dir, SOCKET_FILE)
}

/// Path of a socket in a directory. Short enough for the kernel, wherever the directory is, as long as the file that
/// comes with it is open.
pub(crate) fn socket_path(dir: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    let dir = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    Ok((dir, path.into()))
}

/// Listens at a socket in a directory. A stale one of an earlier shim is replaced.
pub(crate) fn bind_socket(dir: &Path, name: &str) -> io::Result<StdListener> {
    let (_open_dir, path) = socket_path(dir, name)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    StdListener::bind(path)
}

/// Moves the socket and the log of a shim into the directory of its guest. Connections stay, and new ones find it there.
pub(crate) fn move_into(dir: &Path, to: &Path) -> io::Result<()> {
    fs::rename(dir.join(LOG_FILE), to.join(LOG_FILE))?;
    fs::rename(dir.join(SOCKET_FILE), to.join(SOCKET_FILE))
}

/// Text that the shim in this directory has logged; empty where it has logged none.
pub(crate) fn log_in(dir: &Path) -> String {
    fs::read_to_string(dir.join(LOG_FILE)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
