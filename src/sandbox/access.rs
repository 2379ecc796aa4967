//! Access of a sandbox's owner: bytes that the shim keeps in memory for each owner, and does not read. They stand on no disk.
//!
//! They go to the owner behind the [listeners](super::listeners): the length (4, little endian) and so many bytes. The
//! kernel never joins them with the message before, which carries descriptors (unix(7)). A shim that keeps nothing closes
//! the connection there, as one of an earlier release does. So the length is sent at once: an owner that lost all of what
//! follows would take a shim for one that keeps nothing.

use crate::background;
use rustix::net::{SendFlags, send as send_now};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};
use zeroize::Zeroizing;

/// Time for an owner to read its access.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an access.
const MAX_BYTES: u32 = 1024 * 1024;

/// Bytes that a shim keeps for its owners.
pub(crate) type Access = Zeroizing<Vec<u8>>;

/// Sends an owner its access, in the background: it may be more than the socket holds.
pub(super) fn send(mut owner: UnixStream, access: Option<Arc<Access>>) {
    let Some(access) = access else { return };
    let length = u32::try_from(access.len()).unwrap_or(u32::MAX);
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    // The socket has room: nothing but the listeners was sent. An owner that has left needs none.
    if let Err(error) = send_now(&owner, &length.to_le_bytes(), flags) {
        tracing::debug!(%error, "owner of the sandbox left before its access");
        return;
    }
    background::spawn("hand_over_access", async move {
        let sending = async {
            owner.write_all(&access).await?;
            owner.shutdown().await
        };
        let sent = timeout(TIMEOUT, sending).await;
        // An owner that did not get all of it sees that, and comes again.
        if let Err(error) = sent.map_err(io::Error::from).flatten() {
            tracing::warn!(%error, "access of the sandbox's owner not handed over");
        }
    });
}

/// Reads the access behind the listeners; `None` where the connection ends there.
pub(super) async fn receive(mut shim: UnixStream) -> io::Result<Option<Access>> {
    let mut length = [0; 4];
    if shim.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    shim.read_exact(&mut length[1..]).await?;
    let length = u32::from_le_bytes(length);
    if length > MAX_BYTES {
        return Err(io::Error::other("the access of the owner is too long"));
    }
    // In one piece: no copy is left behind where it would grow.
    let mut access = Zeroizing::new(vec![0; length as usize]);
    shim.read_exact(&mut access).await?;
    Ok(Some(access))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn access_is_whole_or_an_error() {
        for (sent, expected) in [
            (&b""[..], Ok(None)),
            (b"\x02\0\0\0ab", Ok(Some(b"ab".to_vec()))),
            (b"\0\0\0\0", Ok(Some(Vec::new()))),
            (b"\x02\0", Err(())),
            (b"\x02\0\0\0a", Err(())),
            (b"\xff\xff\xff\xffab", Err(())),
        ] {
            let (mut shim, owner) = UnixStream::pair().unwrap();
            shim.write_all(sent).await.unwrap();
            drop(shim);
            let access = receive(owner).await;
            let access = access.map(|access| access.map(|access| access.to_vec()));
            assert_eq!(access.map_err(drop), expected, "{sent:?}");
        }
    }
}
