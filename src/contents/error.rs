//! Errors of the store of contents.

use crate::{
    api::{jobs::files::ContentHash, size::ByteSize},
    disk_space::Shortage,
};
use std::io;

/// A content that could not be stored. Nothing of it is left, except of an upload that can be resumed.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The bytes have another hash than announced.
    #[error(
        "the bytes have the SHA-256 {found}, not {expected}; they changed on the way or while they were read"
    )]
    WrongHash {
        /// Hash that was announced.
        expected: ContentHash,
        /// Hash of the bytes that arrived.
        found: ContentHash,
    },
    /// More bytes, or fewer, than announced.
    #[error("{found} bytes arrived where {expected} were announced")]
    WrongSize {
        /// Number of bytes that were announced.
        expected: u64,
        /// Number of bytes that arrived; of a content that is too long, at least that many.
        found: u64,
    },
    /// The store is full.
    #[error("the store of contents is full: {} of {} are used", ByteSize(*.used), ByteSize(*.quota))]
    QuotaExceeded {
        /// Most bytes of all contents.
        quota: u64,
        /// Bytes that are used.
        used: u64,
    },
    /// The disk is full, up to its reserve.
    #[error("the disk is full: {shortage}")]
    DiskFull {
        /// Space that is missing.
        shortage: Shortage,
    },
    /// Another call sends the same upload.
    #[error("another call sends this upload at the moment")]
    Busy,
    /// A part does not begin where the upload ends.
    #[error("the upload has {found} bytes, so the next part begins there, not at {offset}")]
    WrongOffset {
        /// Offset of the part.
        offset: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A file could not be written or read.
    #[error("a file of the store can't be written or read")]
    Io(#[source] io::Error),
}

impl From<io::Error> for ContentError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
