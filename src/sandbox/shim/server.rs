//! The shim's end of its socket. One owner at a time: a new one replaces the one before, which may be dead.

use super::frame::{OwnerMessage, ShimMessage, take_owner_message};
use crate::sandbox::Stops;
use bytes::BytesMut;
use std::io;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::watch,
};

/// Connection of an owner.
struct Owner {
    stream: UnixStream,
    read: BytesMut,
    unsent: BytesMut,
}

/// Serves owners until the guest is gone.
pub(super) async fn serve(
    listener: UnixListener,
    mut updates: watch::Receiver<()>,
    stops: Stops,
    stdin: watch::Sender<()>,
) {
    let mut owner: Option<Owner> = None;
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                owner = Some(Owner::new(stream));
                // The owner before may have been killed when it had written, and not notified yet.
                stdin.send_replace(());
            }
            changed = updates.changed() => {
                if changed.is_err() {
                    return;
                }
                if let Some(owner) = &mut owner {
                    owner.queue_update();
                }
            }
            message = next_message(&mut owner) => match message {
                Ok(OwnerMessage::Stop(request)) => stops.request(request),
                Ok(OwnerMessage::Stdin) => {
                    stdin.send_replace(());
                }
                Err(_) => owner = None,
            },
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
            self.unsent.extend_from_slice(&ShimMessage::update());
        }
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
