//! What a worker says to a shim: end the job, and why.
//!
//! One byte, and for a job that has used up its node's room the figures behind it. A shim of an earlier
//! release takes any byte for a cancel, so it ends the job in any case.

use crate::disk_space::Resource;
use bytes::{Buf as _, BufMut as _, BytesMut};

const CANCEL: u8 = b'x';
const NO_BYTES: u8 = b'd';
const NO_INODES: u8 = b'i';
/// The two numbers.
const FIGURES_BYTES: usize = 16;

/// Share of a job in the shortage for which it is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Excess {
    /// What its node is short of.
    pub of: Resource,
    /// How much of it the job took up; `u64::MAX` where that could not be measured.
    pub used: u64,
    /// How much the node keeps free.
    pub reserve: u64,
}

/// Reason for which a worker has a job ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopRequest {
    /// Somebody asked for it.
    Cancel,
    /// The node is short of room, and the job took up the most.
    OutOfDisk(Excess),
}

impl StopRequest {
    /// As bytes.
    pub(super) fn encode(self) -> Vec<u8> {
        let Self::OutOfDisk(Excess { of, used, reserve }) = self else {
            return vec![CANCEL];
        };
        let mut bytes = vec![match of {
            Resource::Bytes => NO_BYTES,
            Resource::Inodes => NO_INODES,
        }];
        bytes.put_u64_le(used);
        bytes.put_u64_le(reserve);
        bytes
    }

    /// Takes one out of what was read; `None` while it isn't whole.
    pub(super) fn decode(read: &mut BytesMut) -> Option<Self> {
        let of = match *read.first()? {
            NO_BYTES => Resource::Bytes,
            NO_INODES => Resource::Inodes,
            _ => {
                read.advance(1);
                return Some(Self::Cancel);
            }
        };
        if read.len() <= FIGURES_BYTES {
            return None;
        }
        read.advance(1);
        Some(Self::OutOfDisk(Excess {
            of,
            used: read.get_u64_le(),
            reserve: read.get_u64_le(),
        }))
    }
}

impl Excess {
    /// The reason, for the job's user.
    pub(super) fn reason(&self) -> String {
        let reserve = self.of.amount(self.reserve);
        let used = match self.used {
            u64::MAX => "more than can be measured".to_owned(),
            used => self.of.amount(used),
        };
        format!(
            "ended by its node, which had less than {reserve} left on its disk, and this job used the most ({used}); write less, or run it on a node with more room"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_is_read_however_it_is_cut() {
        let excess = |of| Excess {
            of,
            used: 5 << 30,
            reserve: 1 << 29,
        };
        let stops = [
            StopRequest::OutOfDisk(excess(Resource::Bytes)),
            StopRequest::Cancel,
            StopRequest::OutOfDisk(excess(Resource::Inodes)),
        ];
        let (mut read, mut decoded) = (BytesMut::new(), Vec::new());
        for byte in stops.iter().flat_map(|stop| stop.encode()) {
            read.put_u8(byte);
            decoded.extend(StopRequest::decode(&mut read));
        }
        assert_eq!(decoded, stops);
    }
}
