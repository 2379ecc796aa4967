//! The shim's end of its socket. One owner at a time: a new one replaces the one before, which may be dead.

use super::frame::{ShimMessage, take_stop};
use crate::sandbox::{StopRequest, Stops};
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
pub(super) async fn serve(listener: UnixListener, mut updates: watch::Receiver<()>, stops: Stops) {
    let mut owner: Option<Owner> = None;
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => owner = Some(Owner::new(stream)),
            changed = updates.changed() => {
                if changed.is_err() {
                    return;
                }
                if let Some(owner) = &mut owner {
                    owner.queue_update();
                }
            }
            stop = next_stop(&mut owner) => match stop {
                Ok(request) => stops.request(request),
                Err(_) => owner = None,
            },
        }
    }
}

/// Waits for a request to stop, for ever where there is no owner. Cancel-safe.
async fn next_stop(owner: &mut Option<Owner>) -> io::Result<StopRequest> {
    match owner {
        Some(owner) => owner.next_stop().await,
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

    /// Sends what is queued until a request to stop arrives. Fails when the connection has ended.
    async fn next_stop(&mut self) -> io::Result<StopRequest> {
        loop {
            if let Some(request) = take_stop(&mut self.read)? {
                return Ok(request);
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
