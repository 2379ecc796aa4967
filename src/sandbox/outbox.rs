//! Messages on their way to init, some with descriptors.

use bytes::{Buf as _, BytesMut};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};
use tokio::{io::Interest, net::unix::OwnedWriteHalf};

/// Most descriptors of a message.
pub(super) const MAX_DESCRIPTORS: usize = 3;
const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Bytes that follow each other. The descriptors go with the first of them.
#[derive(Default)]
struct Piece {
    bytes: BytesMut,
    descriptors: Vec<OwnedFd>,
}

/// Messages that init has not been sent yet.
#[derive(Default)]
pub(super) struct Outbox(VecDeque<Piece>);

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Queues a message, at most [`MAX_DESCRIPTORS`] with it.
    pub(super) fn push(&mut self, message: &[u8], descriptors: Vec<OwnedFd>) {
        match self.0.back_mut().filter(|_| descriptors.is_empty()) {
            Some(piece) => piece.bytes.extend_from_slice(message),
            None => self.0.push_back(Piece {
                bytes: BytesMut::from(message),
                descriptors,
            }),
        }
    }

    /// Sends some of what is queued, once the socket takes it. Fails when init reads no more. Cancel-safe.
    pub(super) async fn send(&mut self, socket: &OwnedWriteHalf) -> io::Result<()> {
        let Some(piece) = self.0.front_mut() else {
            return Ok(());
        };
        let socket = socket.as_ref();
        let sent = socket.async_io(Interest::WRITABLE, || send_now(socket.as_fd(), piece));
        let sent = sent.await?;
        piece.descriptors.clear();
        piece.bytes.advance(sent);
        if piece.bytes.is_empty() {
            self.0.pop_front();
        }
        Ok(())
    }
}

fn send_now(socket: BorrowedFd<'_>, piece: &Piece) -> io::Result<usize> {
    let descriptors: Vec<_> = piece.descriptors.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let content = [IoSlice::new(&piece.bytes)];
    Ok(sendmsg(
        socket,
        &content,
        &mut ancillary,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?)
}
