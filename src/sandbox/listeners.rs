//! Listeners of a sandbox for models and for the proxy, on their way from init to the owner.
//!
//! ```text
//! init ──▶ supervisor, in the shim ──▶ inference.sock in the shim's directory ──▶ owner, at each of its starts
//! ```
//!
//! The shim keeps them and accepts nothing. So while the owner is restarted, calls wait in the kernel, and the next
//! owner takes them. Both handovers have the form that [`sandbox_init::listeners`](crate::sandbox_init::listeners)
//! describes. A shim of an earlier release hands over its listeners for models without their kinds.
//!
//! Behind the listeners an owner gets its [access](super::access).

use super::{
    access::{self, Access},
    shim::{bind_socket, socket_path},
};
use crate::sandbox_init::listeners::{ListenerKind, MAX_LISTENERS};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::Interest,
    net::{TcpListener, UnixListener, UnixStream},
    sync::watch,
    task::spawn_blocking,
    time::sleep,
};

const SOCKET_FILE: &str = "inference.sock";
/// Content of a handover of an earlier release.
const UNTYPED: &[u8] = &[0];
/// Fewest listeners of such a handover: the Unix socket, and one on loopback.
const MIN_UNTYPED: usize = 2;
/// Delay after a connection that could not be accepted.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Room for the descriptors of all listeners.
const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(MAX_LISTENERS));

/// Listeners that the supervisor got from init; none yet, or of an earlier container, while it starts.
pub(crate) type Received = watch::Sender<Option<Vec<TypedListener>>>;

/// Listener of a kind, before it is opened.
pub(crate) type TypedListener = (ListenerKind, OwnedFd);

/// All that an owner takes from a shim.
pub(crate) struct Handover {
    pub(crate) listeners: Vec<SandboxListener>,
    /// `None` where the shim keeps none.
    pub(crate) access: Option<Access>,
}

/// Listener in a sandbox, whose connections come from there only.
pub(crate) enum SandboxListener {
    /// For calls of models.
    InferenceUnix(UnixListener),
    /// The same, on loopback.
    InferenceTcp(TcpListener),
    /// For the proxy.
    EgressTcp(TcpListener),
}

/// Receives the listeners of init.
pub(super) async fn receive_into(socket: &UnixStream, received: &Received) {
    match receive(socket).await {
        Ok(listeners) => {
            received.send_replace(Some(listeners));
        }
        // A container that never started sends none.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => {
            tracing::warn!(%error, "models and the proxy can't be served in the sandbox");
        }
    }
}

/// Receives the listeners that the other end of a socket sends.
async fn receive(socket: &UnixStream) -> io::Result<Vec<TypedListener>> {
    socket
        .async_io(Interest::READABLE, || receive_now(socket.as_fd()))
        .await
}

fn receive_now(socket: BorrowedFd<'_>) -> io::Result<Vec<TypedListener>> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut kinds = [0; MAX_LISTENERS];
    let mut content = [IoSliceMut::new(&mut kinds)];
    let received = recvmsg(
        socket,
        &mut content,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let listeners: Vec<_> = rights.flatten().collect();
    let is_cut = received.flags.contains(ReturnFlags::CTRUNC);
    let count = received.bytes;
    let kinds = kinds_of(&kinds[..count.min(MAX_LISTENERS)], listeners.len());
    // The kernel leaves out those for which this process has no descriptor free.
    match kinds {
        Some(kinds) if !is_cut => Ok(kinds.into_iter().zip(listeners).collect()),
        _ => Err(io::Error::other("not all listeners arrived")),
    }
}

/// Kinds of so many listeners by the content of their handover; `None` where it does not fit them.
fn kinds_of(content: &[u8], count: usize) -> Option<Vec<ListenerKind>> {
    if content == UNTYPED {
        let kind = |n| match n {
            0 => ListenerKind::InferenceUnix,
            _ => ListenerKind::InferenceTcp,
        };
        return (count >= MIN_UNTYPED).then(|| (0..count).map(kind).collect());
    }
    let kinds: Option<Vec<_>> = content.iter().copied().map(ListenerKind::of).collect();
    kinds.filter(|kinds| kinds.len() == count)
}

fn send_now(socket: BorrowedFd<'_>, listeners: &[TypedListener]) -> io::Result<()> {
    let kinds: Vec<_> = listeners.iter().map(|(kind, _)| kind.code()).collect();
    let listeners: Vec<_> = listeners
        .iter()
        .map(|(_, listener)| listener.as_fd())
        .collect();
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&listeners)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(
        socket,
        &[IoSlice::new(&kinds)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Hands the listeners, and the access where there is one, to each owner that connects in `dir`. An owner that comes before
/// there are some gets nothing, and comes again when `updates` notifies that there are. Ends with the supervisor.
pub(crate) async fn hand_over(
    dir: PathBuf,
    mut received: watch::Receiver<Option<Vec<TypedListener>>>,
    access: Option<Access>,
    updates: watch::Sender<()>,
) -> io::Result<()> {
    let access = access.map(Arc::new);
    let listener = spawn_blocking(move || bind_socket(&dir, SOCKET_FILE)).await??;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    if received.borrow_and_update().is_some() {
        updates.send_replace(());
    }
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((owner, _)) => if send_received(&owner, &received) {
                    access::send(owner, access.clone());
                },
                Err(error) => {
                    tracing::warn!(%error, "no connection for the listeners of the sandbox; retrying");
                    sleep(RETRY_INTERVAL).await;
                }
            },
            // An error means that the supervisor is gone.
            changed = received.changed() => {
                changed.map_err(io::Error::other)?;
                // Only here: an owner that gets an update for each of its tries would try for ever.
                updates.send_replace(());
            }
        }
    }
}

/// Sends an owner the listeners, if there are some; whether it got them.
fn send_received(
    owner: &UnixStream,
    received: &watch::Receiver<Option<Vec<TypedListener>>>,
) -> bool {
    let listeners = received.borrow();
    let sent = listeners
        .as_deref()
        .map(|listeners| send_now(owner.as_fd(), listeners));
    match sent {
        None => false,
        Some(Ok(())) => true,
        Some(Err(error)) => {
            tracing::warn!(%error, "listeners of the sandbox not handed over");
            false
        }
    }
}

/// Takes the listeners and the access from the shim in `dir`; `None` while it has no listeners.
pub(crate) async fn take(dir: &Path) -> io::Result<Option<Handover>> {
    let dir = dir.to_owned();
    let connected = spawn_blocking(move || {
        let (_open_dir, path) = socket_path(&dir, SOCKET_FILE)?;
        StdUnixStream::connect(path)
    });
    let shim = match connected.await? {
        Ok(shim) => shim,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    shim.set_nonblocking(true)?;
    let shim = UnixStream::from_std(shim)?;
    let listeners = match receive(&shim).await {
        Ok(listeners) => open(listeners)?,
        // A shim that ends, or that has none yet.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let access = access::receive(shim).await?;
    Ok(Some(Handover { listeners, access }))
}

/// Listeners by their kinds, ready to accept.
fn open(listeners: Vec<TypedListener>) -> io::Result<Vec<SandboxListener>> {
    let open = |(kind, listener): TypedListener| {
        rustix::io::ioctl_fionbio(&listener, true)?;
        Ok(match kind {
            ListenerKind::InferenceUnix => {
                SandboxListener::InferenceUnix(UnixListener::from_std(listener.into())?)
            }
            ListenerKind::InferenceTcp => {
                SandboxListener::InferenceTcp(TcpListener::from_std(listener.into())?)
            }
            ListenerKind::EgressTcp => {
                SandboxListener::EgressTcp(TcpListener::from_std(listener.into())?)
            }
        })
    };
    listeners.into_iter().map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        task::yield_now,
        time::timeout,
    };
    use zeroize::Zeroizing;

    #[tokio::test]
    async fn listeners_reach_each_owner() {
        let dir = tempfile::tempdir().unwrap();
        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("in-sandbox")).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        assert!(take(dir.path()).await.unwrap().is_none());
        let received = Received::new(None);
        let updates = watch::Sender::new(());
        let mut updated = updates.subscribe();
        // More than a socket holds at once.
        let access = Zeroizing::new(vec![7; 900_000]);
        let kept = Some(access.clone());
        let served = hand_over(dir.path().to_owned(), received.subscribe(), kept, updates);
        let owners = async {
            while !dir.path().join(SOCKET_FILE).exists() {
                yield_now().await;
            }
            let early = timeout(RETRY_INTERVAL, take(dir.path())).await;
            assert!(early.unwrap().unwrap().is_none());
            assert!(!updated.has_changed().unwrap());
            received.send_replace(Some(vec![
                (ListenerKind::InferenceUnix, socket.into()),
                (ListenerKind::EgressTcp, tcp.into()),
            ]));
            updated.changed().await.unwrap();
            for _ in 0..2 {
                let taken = take(dir.path()).await.unwrap().unwrap();
                assert!(taken.access.as_ref() == Some(&access));
                let mut listeners = taken.listeners;
                assert_eq!(listeners.len(), 2);
                assert!(matches!(listeners[0], SandboxListener::InferenceUnix(_)));
                let Some(SandboxListener::EgressTcp(tcp)) = listeners.pop() else {
                    panic!("no TCP listener");
                };
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(b"x").await.unwrap();
                let mut byte = [0];
                let (mut accepted, _) = tcp.accept().await.unwrap();
                accepted.read_exact(&mut byte).await.unwrap();
                assert_eq!(&byte, b"x");
            }
            assert!(!updated.has_changed().unwrap(), "an owner causes no update");
        };
        tokio::select! {
            ended = served => panic!("ended early: {ended:?}"),
            () = owners => {}
        }
    }

    #[tokio::test]
    async fn one_listener_is_enough() {
        let (sender, receiver) = UnixStream::pair().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        send_now(sender.as_fd(), &[(ListenerKind::EgressTcp, tcp.into())]).unwrap();
        let received = receive(&receiver).await.unwrap();
        assert!(matches!(received[..], [(ListenerKind::EgressTcp, _)]));
    }

    #[test]
    fn kinds_fit_their_listeners() {
        use ListenerKind::{EgressTcp, InferenceTcp, InferenceUnix};
        for kind in ListenerKind::ALL {
            assert_eq!(ListenerKind::of(kind.code()), Some(kind));
        }
        let old = Some(vec![InferenceUnix, InferenceTcp, InferenceTcp]);
        assert_eq!(kinds_of(&[0], 3), old);
        assert_eq!(kinds_of(&[1, 2, 2], 3), old);
        let both = Some(vec![InferenceUnix, InferenceTcp, EgressTcp]);
        assert_eq!(kinds_of(&[1, 2, 3], 3), both);
        assert_eq!(kinds_of(&[3], 1), Some(vec![EgressTcp]));
        for (content, count) in [(&[0][..], 1), (&[3], 0), (&[3], 2), (&[1, 2], 1), (&[9], 1)] {
            assert_eq!(kinds_of(content, count), None, "{content:?} {count}");
        }
    }
}
