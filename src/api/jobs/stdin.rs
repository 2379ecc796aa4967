//! Live stdin of a job: pieces with their offsets, and the node's answer to each.

use crate::api::string_form::named_enum;
use serde::{Deserialize, Serialize};

/// Largest piece of live stdin, in bytes.
pub const MAX_PIECE_BYTES: usize = 1024 * 1024;

/// Answer to `POST /v1/worker/jobs/{id}/stdin`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StdinReceipt {
    /// Payload version, 1.
    pub version: u64,
    /// Offset behind all that was received: the one of the next piece.
    pub offset: u64,
    /// State of stdin after the piece.
    pub status: StdinStatus,
}

named_enum! {
    /// Meaning of an answer to a piece of live stdin.
    pub enum StdinStatus {
        /// The piece was received, now or before.
        Accepted,
        /// The command reads no more.
        Closed,
        /// The job, or its stdin, has ended; the piece was not received.
        Ended,
        /// The piece doesn't begin at `offset`; it was not received.
        Misplaced,
        /// The command has not read enough yet; the piece is to be sent again.
        Full,
        /// The command has not started yet; the piece is to be sent again.
        NotStarted,
        /// The job takes no live stdin.
        NotLive,
    }
}
