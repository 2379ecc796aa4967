//! The shim's end of its socket. One owner at a time: a new one replaces the one before, which may be dead.

use super::frame::{OwnerMessage, ShimMessage, take_owner_message};
use crate::sandbox::{StopReason, StopRequest, Stops};
use bytes::{Bytes, BytesMut};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
};

/// Connection of an owner.
struct Owner {
    stream: UnixStream,
    read: BytesMut,
    unsent: BytesMut,
}

/// Server of a shim's socket, with its channels to and from the guest.
pub(super) struct Server {
    pub(super) updates: watch::Receiver<()>,
    pub(super) ready: watch::Receiver<bool>,
    pub(super) stops: Stops,
    pub(super) stdin: watch::Sender<()>,
    /// Receiver of the assignment, while the sandbox waits for one.
    pub(super) assign: Option<oneshot::Sender<Bytes>>,
    pub(super) notes: mpsc::Sender<Bytes>,
}

impl Server {
    /// Serves owners until the guest is gone.
    pub(super) async fn serve(mut self, listener: UnixListener) {
        let mut owner: Option<Owner> = None;
        loop {
            tokio::select! {
                Ok((stream, _)) = listener.accept() => {
                    if owner.replace(Owner::new(stream)).is_some() {
                        // What it has sent last is not read any more.
                        self.on_owner_gone();
                    }
                    // The owner before may have been killed when it had written, and not notified yet.
                    self.stdin.send_replace(());
                }
                changed = self.updates.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if let Some(owner) = &mut owner {
                        owner.queue_update();
                    }
                }
                Ok(()) = self.ready.changed() => {
                    if let Some(owner) = &mut owner {
                        owner.queue(&ShimMessage::ready());
                    }
                }
                message = next_message(&mut owner) => match message {
                    Ok(message) => self.on_message(message),
                    Err(_) => {
                        owner = None;
                        self.on_owner_gone();
                    }
                },
            }
        }
    }

    fn on_message(&mut self, message: OwnerMessage) {
        match message {
            OwnerMessage::Stop(request) => self.stops.request(request),
            OwnerMessage::Stdin => {
                self.stdin.send_replace(());
            }
            OwnerMessage::Assign(guest) => {
                if let Some(assign) = self.assign.take() {
                    // Without a receiver the sandbox is ending.
                    let _ = assign.send(guest);
                }
            }
            OwnerMessage::Note(note) => {
                // A guest that takes none, or far too few, does without.
                let _ = self.notes.try_send(note);
            }
        }
    }

    /// Ends a sandbox that has no guest yet: nobody else knows of it.
    fn on_owner_gone(&mut self) {
        if self.assign.is_some() {
            let stop = StopRequest::within(StopReason::Canceled, Duration::ZERO);
            self.stops.request(stop);
        }
    }
}

/// Waits for a message of the owner, for ever where there is none. Cancel-safe.
async fn next_message(owner: &mut Option<Owner>) -> io::Result<OwnerMessage> {
    match owner {
        Some(owner) => owner.next_message().await,
        None => std::future::pending().await,
    }
}

impl Owner {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            unsent: BytesMut::from(ShimMessage::hello().as_slice()),
        }
    }

    /// Queues an update. One that waits stands for all that the owner hasn't read.
    fn queue_update(&mut self) {
        if self.unsent.is_empty() {
            self.queue(&ShimMessage::update());
        }
    }

    fn queue(&mut self, message: &[u8]) {
        self.unsent.extend_from_slice(message);
    }

    /// Sends what is queued until a message arrives. Fails when the connection has ended.
    async fn next_message(&mut self) -> io::Result<OwnerMessage> {
        loop {
            if let Some(message) = take_owner_message(&mut self.read)? {
                return Ok(message);
            }
            let (mut reader, mut writer) = self.stream.split();
            tokio::select! {
                sent = writer.write_buf(&mut self.unsent), if !self.unsent.is_empty() => {
                    sent?;
                }
                read = reader.read_buf(&mut self.read) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }
}
