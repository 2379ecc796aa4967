//! Messages on a shim's socket, between a sandbox's shim and the process that started it or found it again.
//!
//! ```text
//! frame           version (1), type (1), length (4, little endian), so many bytes
//! shim ──▶ owner  1 hello, first on every connection: the highest version that the shim understands (1)
//!                 2 update: the shim has written something
//!                 3 ready: the sandbox waits for its guest to be assigned
//! owner ──▶ shim  1 stop: reason (1: canceled, 2: bytes, 3: inodes, 4: memory, 5: workspace, 6: closing), and of 2 to 5
//!                   used (8) and reserve or limit (8);
//!                   then the most time between TERM and KILL (4, milliseconds; absent or all ones: as the command has)
//!                 2 stdin: there is more, or its end
//!                 3 assign: the guest of a sandbox that waits for one, in the form that the guest reads
//!                 4 note: something for the guest to record, in the form that the guest reads
//! ```
//!
//! The header never changes, so that frames of a later version can be skipped. A frame of an unknown type is
//! skipped; an unknown reason to stop counts as canceled, because the sandbox is to end in any case. A second stop
//! shortens the grace of the first; a shim of a release without grace kills at the first.
//!
//! **Upgrades.** A shim outlives its owner, so each end may be of another release. Earlier releases have no frames:
//! their shim sends a `!` on every connection and for every update, and takes any byte as a request to stop, `d` and
//! `i` with two numbers behind where bytes or inodes ran out, everything else as canceled. So an owner sends nothing
//! before it has read what the shim sends first, a version or that `!`, and then requests a stop in the form that
//! this shim understands. An owner of an earlier release takes every byte as an update, frames too, and its request to
//! stop is known by the first byte.

use crate::{
    disk_space::Resource,
    sandbox::stop::{Excess, Overuse, StopReason, StopRequest},
};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use std::{io, time::Duration};

/// Version of the frames that this release sends.
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 6;
/// Longest content of a frame.
const MAX_CONTENT_BYTES: usize = 64 * 1024;
/// Longest note; a longer one is left out.
const MAX_NOTE_BYTES: usize = 4 * 1024;

/// Update of a shim without frames.
const UNFRAMED_UPDATE: u8 = b'!';
/// Requests to stop of an owner without frames, and their length with the two numbers.
const UNFRAMED_CANCEL: u8 = b'x';
const UNFRAMED_BYTES: u8 = b'd';
const UNFRAMED_INODES: u8 = b'i';
const UNFRAMED_EXCESS_BYTES: usize = 17;

const HELLO: u8 = 1;
const UPDATE: u8 = 2;
const READY: u8 = 3;
const STOP: u8 = 1;
const STDIN: u8 = 2;
const ASSIGN: u8 = 3;
const NOTE: u8 = 4;

const CANCELED: u8 = 1;
const OUT_OF_BYTES: u8 = 2;
const OUT_OF_INODES: u8 = 3;
const OUT_OF_MEMORY: u8 = 4;
const WORKSPACE_LIMIT: u8 = 5;
const CLOSING: u8 = 6;

/// Stop that leaves a command its own grace.
const OWN_GRACE: u32 = u32::MAX;

/// Form of the messages on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    /// Frames.
    Framed,
    /// Single bytes, as earlier releases send them.
    Unframed,
}

/// Message of a shim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ShimMessage {
    /// First message; how the shim is to be spoken to.
    Hello(Protocol),
    /// The shim has written something.
    Update,
    /// The sandbox waits for its guest to be assigned.
    Ready,
}

impl ShimMessage {
    /// Bytes of a hello.
    pub(super) fn hello() -> Vec<u8> {
        frame(HELLO, &[VERSION])
    }

    /// Bytes of an update.
    pub(super) fn update() -> Vec<u8> {
        frame(UPDATE, &[])
    }

    /// Bytes of the message that the sandbox waits for its guest.
    pub(super) fn ready() -> Vec<u8> {
        frame(READY, &[])
    }

    /// Takes the next message out of what was read; `None` while it isn't whole. Fails on what no shim sends.
    pub(super) fn take(read: &mut BytesMut) -> io::Result<Option<Self>> {
        if read.first() == Some(&UNFRAMED_UPDATE) {
            // All that such a shim sends.
            read.clear();
            return Ok(Some(Self::Hello(Protocol::Unframed)));
        }
        while let Some((kind, _)) = take_frame(read)? {
            match kind {
                HELLO => return Ok(Some(Self::Hello(Protocol::Framed))),
                UPDATE => return Ok(Some(Self::Update)),
                READY => return Ok(Some(Self::Ready)),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// Message of an owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum OwnerMessage {
    /// Request to stop.
    Stop(StopRequest),
    /// There is more stdin.
    Stdin,
    /// The guest of a sandbox that waits for one.
    Assign(Bytes),
    /// Something for the guest to record.
    Note(Bytes),
}

/// Bytes of an assignment. Only for a shim of this release: no other waits for one. Fails where it is too long.
pub(super) fn encode_assignment(guest: &[u8]) -> io::Result<Vec<u8>> {
    if guest.len() > MAX_CONTENT_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(frame(ASSIGN, guest))
}

/// Bytes of the notification that there is more stdin; empty for a shim that knows none.
pub(super) fn encode_stdin(protocol: Protocol) -> Vec<u8> {
    match protocol {
        Protocol::Framed => frame(STDIN, &[]),
        Protocol::Unframed => Vec::new(),
    }
}

/// Bytes of a note; empty for one that is too long, and for a shim without frames. Other shims that know none skip it.
pub(super) fn encode_note(note: &[u8], protocol: Protocol) -> Vec<u8> {
    match protocol {
        Protocol::Framed if note.len() <= MAX_NOTE_BYTES => frame(NOTE, note),
        _ => Vec::new(),
    }
}

/// Bytes of a request to stop.
pub(super) fn encode_stop(request: StopRequest, protocol: Protocol) -> Vec<u8> {
    let is_framed = protocol == Protocol::Framed;
    let mut bytes = Vec::new();
    match request.reason {
        StopReason::OutOfDisk(Excess { of, used, reserve }) => {
            bytes.put_u8(match (of, is_framed) {
                (Resource::Bytes, true) => OUT_OF_BYTES,
                (Resource::Inodes, true) => OUT_OF_INODES,
                (Resource::Bytes, false) => UNFRAMED_BYTES,
                (Resource::Inodes, false) => UNFRAMED_INODES,
            });
            bytes.put_u64_le(used);
            bytes.put_u64_le(reserve);
        }
        StopReason::OutOfMemory(overuse) if is_framed => {
            put_overuse(&mut bytes, OUT_OF_MEMORY, overuse);
        }
        StopReason::WorkspaceLimit(overuse) if is_framed => {
            put_overuse(&mut bytes, WORKSPACE_LIMIT, overuse);
        }
        // The nearest that such a shim understands.
        StopReason::WorkspaceLimit(overuse) | StopReason::OutOfMemory(overuse) => {
            put_overuse(&mut bytes, UNFRAMED_BYTES, overuse);
        }
        StopReason::Closing if is_framed => bytes.put_u8(CLOSING),
        _ if is_framed => bytes.put_u8(CANCELED),
        _ => bytes.put_u8(UNFRAMED_CANCEL),
    }
    if is_framed {
        let max_grace = u32::try_from(request.max_grace.as_millis());
        bytes.put_u32_le(max_grace.unwrap_or(OWN_GRACE));
        frame(STOP, &bytes)
    } else {
        bytes
    }
}

fn put_overuse(bytes: &mut Vec<u8>, kind: u8, Overuse { used, limit }: Overuse) {
    bytes.put_u8(kind);
    bytes.put_u64_le(used);
    bytes.put_u64_le(limit);
}

/// Takes the next message of an owner out of what was read; `None` while it isn't whole. Fails on a frame that is too
/// long.
pub(super) fn take_owner_message(read: &mut BytesMut) -> io::Result<Option<OwnerMessage>> {
    while let Some(&first) = read.first() {
        if is_version(first) {
            match take_frame(read)? {
                Some((STOP, content)) => return Ok(Some(OwnerMessage::Stop(decode_stop(content)))),
                Some((STDIN, _)) => return Ok(Some(OwnerMessage::Stdin)),
                Some((ASSIGN, content)) => return Ok(Some(OwnerMessage::Assign(content.freeze()))),
                Some((NOTE, content)) if content.len() <= MAX_NOTE_BYTES => {
                    return Ok(Some(OwnerMessage::Note(content.freeze())));
                }
                Some(_) => continue,
                None => return Ok(None),
            }
        }
        let of = match first {
            UNFRAMED_BYTES => Resource::Bytes,
            UNFRAMED_INODES => Resource::Inodes,
            _ => {
                read.advance(1);
                return Ok(Some(OwnerMessage::Stop(StopRequest::new(
                    StopReason::Canceled,
                ))));
            }
        };
        if read.len() < UNFRAMED_EXCESS_BYTES {
            return Ok(None);
        }
        read.advance(1);
        let reason = decode_excess(of, read);
        return Ok(Some(OwnerMessage::Stop(StopRequest::new(reason))));
    }
    Ok(None)
}

/// Whether a message that begins with this byte is a frame; versions up to here are kept for frames.
fn is_version(first: u8) -> bool {
    (1..UNFRAMED_UPDATE).contains(&first)
}

fn decode_stop(mut content: BytesMut) -> StopRequest {
    let kind = content.first().copied().unwrap_or(CANCELED);
    let has_numbers = content.len() >= UNFRAMED_EXCESS_BYTES;
    if !content.is_empty() {
        content.advance(1);
    }
    let reason = match kind {
        // Without its numbers a frame has nothing else that could be understood.
        OUT_OF_BYTES..=WORKSPACE_LIMIT if !has_numbers => {
            return StopRequest::new(StopReason::Canceled);
        }
        OUT_OF_BYTES => decode_excess(Resource::Bytes, &mut content),
        OUT_OF_INODES => decode_excess(Resource::Inodes, &mut content),
        OUT_OF_MEMORY => StopReason::OutOfMemory(decode_overuse(&mut content)),
        WORKSPACE_LIMIT => StopReason::WorkspaceLimit(decode_overuse(&mut content)),
        CLOSING => StopReason::Closing,
        _ => StopReason::Canceled,
    };
    match content.try_get_u32_le() {
        Ok(OWN_GRACE) | Err(_) => StopRequest::new(reason),
        Ok(milliseconds) => StopRequest::within(reason, Duration::from_millis(milliseconds.into())),
    }
}

/// Excess out of two numbers that are there.
fn decode_excess(of: Resource, read: &mut BytesMut) -> StopReason {
    let (used, reserve) = (read.get_u64_le(), read.get_u64_le());
    StopReason::OutOfDisk(Excess { of, used, reserve })
}

/// Overuse out of two numbers that are there.
fn decode_overuse(read: &mut BytesMut) -> Overuse {
    let (used, limit) = (read.get_u64_le(), read.get_u64_le());
    Overuse { used, limit }
}

fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
    bytes.put_u8(VERSION);
    bytes.put_u8(kind);
    bytes.put_u32_le(content.len() as u32);
    bytes.put_slice(content);
    bytes
}

/// Takes type and content of the next frame; `None` while it isn't whole.
fn take_frame(read: &mut BytesMut) -> io::Result<Option<(u8, BytesMut)>> {
    let Some(&[version, kind, ref length @ ..]) = read.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if !is_version(version) || length > MAX_CONTENT_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if read.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    read.advance(HEADER_BYTES);
    Ok(Some((kind, read.split_to(length))))
}

#[cfg(test)]
mod tests;
